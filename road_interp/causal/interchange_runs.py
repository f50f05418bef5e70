"""Runs of counterfactual pairs with an interchange intervention at one site.

In an interchange intervention the model reads the base text, and a component of one hidden state is replaced by that of the
source text. If the component carries the variable in which the texts differ, the model gives the source's answer (distributed
alignment search, Geiger et al. 2024; CausalGym, Arora et al. 2024).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from road_interp.causal.counterfactuals import CounterfactualPairs
from road_interp.errors import InputError
from road_interp.sites.find import find_sites
from road_interp.sites.module_tree import hidden_of, layer_stacks, with_hidden
from road_interp.sites.site import Site

# Maps the states of base and source at one token, `(batch, width)` each, to the state that replaces the base's.
Interchange = Callable[[Tensor, Tensor], Tensor]


def no_swap(base: Tensor, source: Tensor) -> Tensor:
    """Keep the state of the base."""
    return base


def full_swap(base: Tensor, source: Tensor) -> Tensor:
    """Replace the whole state by that of the source."""
    return source


class TextRuns(NamedTuple):
    """Stored states of texts that were run without an interchange, padded on the right.

    Attributes:
        ids: token ids `(texts, longest)`.
        lengths: numbers of tokens `(texts,)`.
        entering: input of the block that contains the site, `(texts, longest, width)`.
        leaving: output of the site, `(texts, longest, width)`.
        odds: log odds of the base's answer against the source's after every text `(texts,)` (nats).
    """

    ids: Int[Tensor, "texts longest"]
    lengths: Int[Tensor, " texts"]
    entering: Float[Tensor, "texts longest width"]
    leaving: Float[Tensor, "texts longest width"]
    odds: Float[Tensor, " texts"]


class InterchangeRuns:
    """Forward passes of the base texts in which an interchange replaces one hidden state.

    The computation before the intervened block is the same in every run. The constructor runs all texts once and stores the
    input of that block; later runs start there. The model is frozen and set to evaluation mode.

    Args:
        model: a causal language model; for a RoadModel the model of `with road_model.attached() as model`, inside that context.
        pairs: base and source texts.
        site: site whose output is exchanged, or the number of a block for that block's output.
        span: the exchange is at the last token of this span, in base and in source.
        batch_size: pairs per forward pass without gradient.

    Attributes:
        base_label, source_label: first token of each answer, `(pairs,)`.
        base_odds: log odds of the base's answer against the source's without an interchange `(pairs,)` (nats).
        bases, sources: states at the span's last token, `(pairs, width)`.

    Raises:
        InputError: an unknown span; a site outside the transformer blocks, or one of an output slice.
    """

    def __init__(
        self, model: PreTrainedModel, pairs: CounterfactualPairs, site: Site | int, span: str, batch_size: int = 64
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.pairs, self.batch_size = pairs, batch_size
        pairs.span(span)  # raises for an unknown span before any forward pass
        self.site = find_sites(model, "block-output", layers=site)[0] if isinstance(site, int) else site
        if self.site.layer is None or self.site.output_slice is not None:
            raise InputError(
                f"site '{self.site.name}': an interchange needs the whole output of a module inside the transformer blocks"
            )
        self._module = model.get_submodule(self.site.module)
        stacks = layer_stacks(model)
        self._blocks = next(blocks for name, blocks in stacks.items() if self.site.module.startswith(f"{name}."))
        self.base_label, self.source_label = self.tensor(pairs.base_label), self.tensor(pairs.source_label)
        self._source_states = self._run(pairs.source_ids).leaving
        self._base = self._run(pairs.base_ids)
        self.base_odds: Float[Tensor, " pairs"] = self._base.odds
        self._select_span(span)

    def at(self, span: str) -> InterchangeRuns:
        """The same runs with the exchange at another span; stored states are shared."""
        other = copy.copy(self)
        other._select_span(span)
        return other

    def _select_span(self, span: str) -> None:
        self.span = span
        base, source = (self.tensor(ends) for ends in zip(*self.pairs.span(span), strict=True))
        rows = torch.arange(len(self.pairs), device=base.device)
        self._position = base
        self.bases: Float[Tensor, "pairs width"] = self._base.leaving[rows, base]
        self.sources: Float[Tensor, "pairs width"] = self._source_states[rows, source]

    def logits(self, rows: Int[Tensor, " n"], interchange: Interchange) -> Float[Tensor, "n vocabulary"]:
        """Logits after the base texts of pairs `rows`, with the interchange. Gradients flow to its parameters."""

        def exchange(module: nn.Module, args: Any, output: Any) -> Any:
            states = hidden_of(output)
            token = torch.arange(len(rows), device=states.device), self._position[rows]
            exchanged = states.clone()
            exchanged[token] = interchange(states[token], self.sources[rows]).to(states.dtype)
            return with_hidden(output, exchanged)

        with ExitStack() as stack:
            stack.enter_context(self._resumed(rows))
            stack.callback(self._module.register_forward_hook(exchange).remove)
            return self._last_logits(self._base.ids[rows], self._base.lengths[rows])

    @torch.no_grad()
    def odds(self, interchange: Interchange) -> Float[Tensor, " pairs"]:
        """Log odds of the source's answer against the base's after every base text, with the interchange (nats)."""
        return torch.cat([-self._log_odds(self.logits(rows, interchange), rows) for rows in self._batches()])

    def tensor(self, values: Sequence[int]) -> Int[Tensor, " n"]:
        """Integers as a tensor on the model's device."""
        return torch.tensor(values, device=self.model.device)

    def _batches(self) -> tuple[Tensor, ...]:
        return torch.arange(len(self.pairs), device=self.model.device).split(self.batch_size)

    @torch.no_grad()
    def _run(self, texts: Sequence[Sequence[int]]) -> TextRuns:
        """Run all texts without an interchange, in batches."""
        ids = pad_sequence([self.tensor(text) for text in texts], batch_first=True)
        lengths = self.tensor([len(text) for text in texts])
        batches = [self._observe(ids[rows], lengths[rows], rows) for rows in self._batches()]
        return TextRuns(ids, lengths, *(torch.cat(each) for each in zip(*batches, strict=True)))

    def _last_logits(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Logits after the last token of every text."""
        longest = int(lengths.max())
        mask = (torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)).long()
        positions, column = (lengths - 1).unique(return_inverse=True)
        output = self.model(input_ids=ids[:, :longest], attention_mask=mask, use_cache=False, logits_to_keep=positions).logits
        return output[torch.arange(len(ids), device=output.device), column]

    def _log_odds(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Log odds of the base's answer against the source's (nats)."""
        base, source = (
            logits.float().gather(1, label[rows].unsqueeze(1)).squeeze(1) for label in (self.base_label, self.source_label)
        )
        return base - source

    def _observe(self, ids: Tensor, lengths: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input of the block and output of the site, padded to the longest of all texts, and log odds after the last token."""
        captured: dict[str, Tensor] = {}

        def before_block(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured["entering"] = args[0] if args else kwargs["hidden_states"]

        def after_site(module: nn.Module, args: Any, output: Any) -> None:
            states = hidden_of(output)
            if states.ndim != 3:
                raise InputError(
                    f"site '{self.site.name}': its output has shape {tuple(states.shape)}, not (batch, tokens, width)"
                )
            captured["leaving"] = states.clone()

        block = self._blocks[self.site.layer or 0]
        with ExitStack() as stack:
            stack.callback(block.register_forward_pre_hook(before_block, with_kwargs=True).remove)
            stack.callback(self._module.register_forward_hook(after_site).remove)
            logits = self._last_logits(ids, lengths)
        missing = ids.shape[1] - captured["entering"].shape[1]
        entering, leaving = (functional.pad(captured[key], (0, 0, 0, missing)) for key in ("entering", "leaving"))
        return entering, leaving, self._log_odds(logits, rows)

    @cached_property
    def _returns_tuple(self) -> bool:
        """Whether a block of this model returns its states in a tuple, as in older releases of transformers."""
        is_tuple: list[bool] = []
        block = self._blocks[self.site.layer or 0]
        with ExitStack() as stack, torch.no_grad():
            hook = block.register_forward_hook(lambda module, args, output: is_tuple.append(isinstance(output, tuple)))
            stack.callback(hook.remove)
            self._last_logits(self._base.ids[:1], self._base.lengths[:1])
        return is_tuple[0]

    @contextmanager
    def _resumed(self, rows: Tensor) -> Iterator[None]:
        """Skip the blocks before the site's, and give the site's block its stored input."""
        states = self._base.entering[rows, : int(self._base.lengths[rows].max())]
        in_tuple = self._returns_tuple

        def skip(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (hidden_states,) if in_tuple else hidden_states

        def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

        layer = self.site.layer or 0
        with ExitStack() as stack:
            for block in self._blocks[:layer]:
                instance_forward = block.__dict__.get("forward")  # set by accelerate's hooks
                block.forward = skip
                stack.callback(_restore, block, instance_forward)
            stack.callback(self._blocks[layer].register_forward_pre_hook(enter, with_kwargs=True).remove)
            yield


def _restore(block: nn.Module, forward: Any) -> None:
    """Restore the `forward` attribute of an instance; None stands for the method of its class."""
    if forward is None:
        del block.forward
    else:
        block.forward = forward
