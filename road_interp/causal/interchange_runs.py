"""Interchange interventions on counterfactual pairs: train them, count how often the answer follows, look where it does.

A base text is run with part of a hidden state taken from the source text's run. If that part carries the variable in which the
texts differ, the model now gives the source's answer (distributed alignment search, Geiger et al. 2024; CausalGym, Arora et al.
2024).
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

# From the states of base and source at one token, `(batch, width)` each, to the state that the base run goes on with.
Interchange = Callable[[Tensor, Tensor], Tensor]


def no_swap(base: Tensor, source: Tensor) -> Tensor:
    """The base run as it is."""
    return base


def full_swap(base: Tensor, source: Tensor) -> Tensor:
    """The whole state of the source."""
    return source


class TextRuns(NamedTuple):
    """What one plain run of texts leaves, texts padded on the right.

    Attributes:
        ids: token ids `(texts, longest)`.
        lengths: number of tokens of every text.
        entering: states that enter the block of the site, `(texts, longest, width)`.
        leaving: states that leave the site, likewise.
        odds: log odds of the base's answer against the source's after every text.
    """

    ids: Int[Tensor, "texts longest"]
    lengths: Int[Tensor, " texts"]
    entering: Float[Tensor, "texts longest width"]
    leaving: Float[Tensor, "texts longest width"]
    odds: Float[Tensor, " texts"]


class InterchangeRuns:
    """Base runs of pairs through a model, with one state exchanged for what an interchange makes of it and the source's.

    What comes before the intervened block is the same in every run: it is computed once, here, and later runs start at that block
    from what entered it. The model is frozen and set to evaluation mode.

    Args:
        model: a causal language model; for a RoadModel what `with road_model.attached() as model` gives, inside that block.
        site: whose output is exchanged, or the number of a block for that block's output.
        span: the token that ends this span, in base and in source.
        batch_size: pairs per forward pass where no gradient is needed.

    Attributes:
        base_label, source_label: first token of either answer, `(pairs,)`.
        base_odds: log odds of the base's answer when nothing is exchanged (nats).
        bases, sources: states at the span's token, `(pairs, width)`.
    """

    def __init__(
        self, model: PreTrainedModel, pairs: CounterfactualPairs, site: Site | int, span: str, batch_size: int = 64
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.pairs, self.batch_size = pairs, batch_size
        pairs.span(span)  # before anything is run
        self.site = find_sites(model, "block-output", layers=site)[0] if isinstance(site, int) else site
        if self.site.layer is None or self.site.output_slice is not None:
            raise InputError(f"site '{self.site.name}': an interchange acts on the whole output of a module inside the blocks")
        self._module = model.get_submodule(self.site.module)
        stacks = layer_stacks(model)
        self._blocks = next(blocks for name, blocks in stacks.items() if self.site.module.startswith(f"{name}."))
        self.base_label, self.source_label = self.tensor(pairs.base_label), self.tensor(pairs.source_label)
        self._source_states = self._run(pairs.source_ids).leaving
        self._base = self._run(pairs.base_ids)
        self.base_odds: Float[Tensor, " pairs"] = self._base.odds
        self._look_at(span)

    def at(self, span: str) -> InterchangeRuns:
        """The same runs with the exchange at another span."""
        other = copy.copy(self)
        other._look_at(span)
        return other

    def _look_at(self, span: str) -> None:
        self.span = span
        base, source = (self.tensor(ends) for ends in zip(*self.pairs.span(span), strict=True))
        rows = torch.arange(len(self.pairs), device=base.device)
        self._position = base
        self.bases: Float[Tensor, "pairs width"] = self._base.leaving[rows, base]
        self.sources: Float[Tensor, "pairs width"] = self._source_states[rows, source]

    def logits(self, rows: Int[Tensor, " n"], interchange: Interchange) -> Float[Tensor, "n vocabulary"]:
        """Logits after the base texts of these pairs. Gradients flow to the interchange's parameters."""

        def exchange(module: nn.Module, args: Any, output: Any) -> Any:
            states = hidden_of(output)
            token = torch.arange(len(rows), device=states.device), self._position[rows]
            changed = states.clone()
            changed[token] = interchange(states[token], self.sources[rows]).to(states.dtype)
            return with_hidden(output, changed)

        with ExitStack() as stack:
            stack.enter_context(self._resumed(rows))
            stack.callback(self._module.register_forward_hook(exchange).remove)
            return self._last_logits(self._base.ids[rows], self._base.lengths[rows])

    @torch.no_grad()
    def odds(self, interchange: Interchange) -> Float[Tensor, " pairs"]:
        """Log odds of the source's answer against the base's after every base text, with the interchange."""
        return torch.cat([-self._log_odds(self.logits(rows, interchange), rows) for rows in self._batches()])

    def tensor(self, values: Sequence[int]) -> Int[Tensor, " n"]:
        """Whole numbers on the model's device."""
        return torch.tensor(values, device=self.model.device)

    def _batches(self) -> tuple[Tensor, ...]:
        return torch.arange(len(self.pairs), device=self.model.device).split(self.batch_size)

    @torch.no_grad()
    def _run(self, texts: Sequence[Sequence[int]]) -> TextRuns:
        """One plain run of all texts."""
        ids = pad_sequence([self.tensor(text) for text in texts], batch_first=True)
        lengths = self.tensor([len(text) for text in texts])
        batches = [self._observe(ids[rows], lengths[rows], rows) for rows in self._batches()]
        return TextRuns(ids, lengths, *(torch.cat(each) for each in zip(*batches, strict=True)))

    def _last_logits(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Logits after the last token of every text."""
        longest = int(lengths.max())
        mask = (torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)).long()
        wanted, column = (lengths - 1).unique(return_inverse=True)
        output = self.model(input_ids=ids[:, :longest], attention_mask=mask, use_cache=False, logits_to_keep=wanted).logits
        return output[torch.arange(len(ids), device=output.device), column]

    def _log_odds(self, logits: Tensor, rows: Tensor) -> Tensor:
        base, source = (
            logits.float().gather(1, label[rows].unsqueeze(1)).squeeze(1) for label in (self.base_label, self.source_label)
        )
        return base - source

    def _observe(self, ids: Tensor, lengths: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What enters the block and what leaves the site, padded to the longest text of all, and the log odds at the end."""
        seen: dict[str, Tensor] = {}

        def before_block(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen["entering"] = args[0] if args else kwargs["hidden_states"]

        def after_site(module: nn.Module, args: Any, output: Any) -> None:
            states = hidden_of(output)
            if states.ndim != 3:
                raise InputError(
                    f"site '{self.site.name}': its output has shape {tuple(states.shape)}, not (batch, tokens, width)"
                )
            seen["leaving"] = states.clone()

        block = self._blocks[self.site.layer or 0]
        with ExitStack() as stack:
            stack.callback(block.register_forward_pre_hook(before_block, with_kwargs=True).remove)
            stack.callback(self._module.register_forward_hook(after_site).remove)
            logits = self._last_logits(ids, lengths)
        missing = ids.shape[1] - seen["entering"].shape[1]
        entering, leaving = (functional.pad(seen[key], (0, 0, 0, missing)) for key in ("entering", "leaving"))
        return entering, leaving, self._log_odds(logits, rows)

    @cached_property
    def _returns_tuple(self) -> bool:
        """Whether a block of this model returns its states in a tuple, as older releases of transformers do."""
        seen: list[bool] = []
        block = self._blocks[self.site.layer or 0]
        with ExitStack() as stack, torch.no_grad():
            hook = block.register_forward_hook(lambda module, args, output: seen.append(isinstance(output, tuple)))
            stack.callback(hook.remove)
            self._last_logits(self._base.ids[:1], self._base.lengths[:1])
        return seen[0]

    @contextmanager
    def _resumed(self, rows: Tensor) -> Iterator[None]:
        """Blocks before the site's pass on what they get, and its own starts from what entered it in the plain run."""
        states = self._base.entering[rows, : int(self._base.lengths[rows].max())]
        in_tuple = self._returns_tuple

        def skip(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (hidden_states,) if in_tuple else hidden_states

        def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

        layer = self.site.layer or 0
        with ExitStack() as stack:
            for block in self._blocks[:layer]:
                own = block.__dict__.get("forward")  # accelerate puts one there
                block.forward = skip
                stack.callback(_restore, block, own)
            stack.callback(self._blocks[layer].register_forward_pre_hook(enter, with_kwargs=True).remove)
            yield


def _restore(block: nn.Module, forward: Any) -> None:
    if forward is None:
        del block.forward
    else:
        block.forward = forward
