"""ResumedModel: a causal language model that is run from the block of a site on, with stored inputs of that block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from road_interp.causal.stored_keys import cache_argument
from road_interp.errors import InputError
from road_interp.models.head_logits import logits_at
from road_interp.models.open_contexts import OpenContext, opened
from road_interp.models.site_modules import SkippedBlock
from road_interp.sites.find import find_sites
from road_interp.sites.module_tree import evaluating, hidden_of, layer_stacks
from road_interp.sites.site import Site


class ResumedModel:
    """A model that can start at the block of a site, and at a token of every text, where all before them is as in an earlier run.

    Texts are token ids, padded on the right. Other calls of the model are errors during a run: its hooks would change them, and
    they the states that are read.

    Args:
        model: a causal language model.
        site: a site, or the number of a block for that block's output.

    Attributes:
        model, site: as given.
        layer: number of the site's block.
        module: the one whose output the site is.

    Raises:
        InputError: a site outside the transformer blocks or in another one than it says, one of an output slice, or one that the
            model does not have.
    """

    def __init__(self, model: PreTrainedModel, site: Site | int) -> None:
        self.model, self.site = model, find_sites(model, "block-output", layers=site)[0] if isinstance(site, int) else site
        if self.site.layer is None or self.site.output_slice is not None:
            raise InputError(
                f"site '{self.site.name}': an interchange needs the whole output of a module inside the transformer blocks"
            )
        self.layer = self.site.layer
        try:
            self.module = model.get_submodule(self.site.module)
        except AttributeError:
            raise InputError(
                f"{type(model).__name__} has no site '{self.site.name}': give one of find_sites(model, ...)"
            ) from None
        holding = [each for each in layer_stacks(model).values() if self._is_in(each[self.layer : self.layer + 1])]
        if not holding:  # blocks before the site's are skipped
            raise InputError(
                f"site '{self.site.name}': the module is not in block {self.layer} of {type(model).__name__}: give one of "
                "find_sites(model, ...)"
            )
        self._blocks = holding[0]
        self._returns_tuple = False  # whether blocks return their states in a tuple, as in older releases of transformers

    def _is_in(self, blocks: nn.ModuleList) -> bool:
        return any(each is self.module for each in blocks.modules())

    def whole_logits(
        self, ids: Int[Tensor, "texts longest"], lengths: Int[Tensor, " texts"]
    ) -> Float[Tensor, "texts vocabulary"]:
        """Logits after the last token of every text, from a complete pass."""
        with self._opened(), evaluating(self.model):
            return self._last_logits(ids, lengths)

    def observe(
        self, ids: Int[Tensor, "texts longest"], lengths: Int[Tensor, " texts"], cache: DynamicCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Input of the block and output of the site, padded to the longest of all texts, and logits after the last token.

        Args:
            cache: an empty one, for keys and values.
        """
        captured: dict[str, Tensor] = {}

        def before_block(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured["entering"] = args[0] if args else kwargs["hidden_states"]

        def after_block(block: nn.Module, args: Any, output: Any) -> None:
            self._returns_tuple = isinstance(output, tuple)

        def after_site(module: nn.Module, args: Any, output: Any) -> None:
            states = hidden_of(output)
            if states.ndim != 3:
                raise InputError(
                    f"site '{self.site.name}': its output has shape {tuple(states.shape)}, not (batch, tokens, width)"
                )
            captured["leaving"] = states.clone()

        block = self._blocks[self.layer]
        with ExitStack() as stack:
            stack.enter_context(self._opened())
            stack.callback(block.register_forward_pre_hook(before_block, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(after_block).remove)
            stack.callback(self.module.register_forward_hook(after_site).remove)
            logits = self._last_logits(ids, lengths, cache=cache)
        if "leaving" not in captured:
            raise InputError(
                f"site '{self.site.name}': {type(self.model).__name__} does not call this module, so that nothing would be "
                "exchanged: give one of find_sites(model, ...)"
            )
        missing = ids.shape[1] - captured["entering"].shape[1]
        entering, leaving = (functional.pad(captured[key], (0, 0, 0, missing)) for key in ("entering", "leaving"))
        return entering, leaving, logits

    def resumed_logits(
        self,
        entering: Float[Tensor, "texts longest width"],
        ids: Int[Tensor, "texts longest"],
        lengths: Int[Tensor, " texts"],
        starts: Int[Tensor, " texts"],
        cache: DynamicCache | None,
        hook: Callable[..., Any] | None,
    ) -> Float[Tensor, "texts vocabulary"]:
        """Logits after the last token of every text, computed from the site's block and the tokens `starts` on.

        Args:
            entering: input of the block, as `observe` returned it for these texts.
            cache: of the tokens before `starts`; None if these are all 0.
            hook: a forward hook on the site's module.
        """
        columns = _columns(starts, lengths, ids.shape[1]).unsqueeze(2)
        entering = entering.gather(1, columns.expand(-1, -1, entering.shape[2]))
        with evaluating(self.model), ExitStack() as stack:
            stack.enter_context(self._resumed(entering))
            if hook is not None:
                stack.callback(self.module.register_forward_hook(hook).remove)
            return self._last_logits(ids, lengths, starts, cache)

    def _last_logits(
        self, ids: Tensor, lengths: Tensor, starts: Tensor | None = None, cache: DynamicCache | None = None
    ) -> Tensor:
        """Logits after the last token of every text, of which the cache holds the tokens before `starts`, if there is one."""
        begins = torch.zeros_like(lengths) if starts is None else starts
        columns = _columns(begins, lengths, ids.shape[1])
        mask = torch.arange(columns.shape[1], device=ids.device) < (lengths - begins).unsqueeze(1)
        options: dict[str, Any] = {"use_cache": False}
        if cache is not None:
            stored = torch.arange(int(begins.max()), device=ids.device).flip(0) < begins.unsqueeze(1)
            mask = torch.cat((stored, mask), 1)
            options = {"use_cache": True, cache_argument(self.model): cache}
            if starts is not None:
                options["position_ids"] = columns
        inputs = {"input_ids": ids.gather(1, columns), "attention_mask": mask.long(), **options}
        return logits_at(self.model, lengths - begins - 1, **inputs)

    def _opened(self) -> AbstractContextManager[OpenContext]:
        return opened(self.model, "an interchange", "interchange")

    @contextmanager
    def _resumed(self, entering: Tensor) -> Iterator[None]:
        """Skip the blocks before the site's, and give the site's block this input."""

        def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return ((entering, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": entering})

        with ExitStack() as stack:
            stack.enter_context(self._opened())
            for block in self._blocks[: self.layer]:
                instance_forward = block.__dict__.get("forward")  # set by accelerate's hooks
                block.forward = SkippedBlock(self._returns_tuple)
                stack.callback(_restore, block, instance_forward)
            stack.callback(self._blocks[self.layer].register_forward_pre_hook(enter, with_kwargs=True).remove)
            yield


def _restore(block: nn.Module, forward: Any) -> None:
    """Restore the `forward` attribute of an instance; None stands for the method of its class."""
    if forward is None:
        del block.forward
    else:
        block.forward = forward


def _columns(starts: Tensor, lengths: Tensor, longest: int) -> Int[Tensor, "texts columns"]:
    """For every text the numbers of its tokens from `starts` on, as many as the longest rest has, within `longest`."""
    count = int((lengths - starts).max())
    return (starts.unsqueeze(1) + torch.arange(count, device=starts.device)).clamp(max=longest - 1)
