"""Rotations attached to a model, for one call or for as long as a `with` block lasts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from road_interp.errors import InputError
from road_interp.models.forward_wrapper import Change, divert, own_forward
from road_interp.models.intervention import apply_to_part
from road_interp.rotation import plane_maps
from road_interp.rotation.inplace import COMPLEX, SMALLEST, turn
from road_interp.rotation.plane_maps import Blocks, Entries
from road_interp.sites.positions import Positions, position_mask
from road_interp.sites.site import Site


class Attachment:
    """Detours at the sites of a model, and a hook on the model itself that notices which tokens a pass is about.

    Args:
        model: the Hugging Face model; what its parameters say at the start of its pass holds for the pass.
        sites: the rotated places.
        coefficients: gives the blocks of every site at the start of a pass; with a row axis, one row per example.
        entries: gives the real entries of one site's blocks, by its index; asked inside torch.compile, where they are fused.
        group_size: pairing of the dimensions.
        positions: the tokens to rotate.
        prompt: attention mask `(batch, length)` of the prompt, for generation; without it every pass that starts with an empty
            cache is a prompt.
        once: ask for the coefficients at the first pass only, where they cannot change between passes.

    Only the thread that attached is affected.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: Sequence[Site],
        coefficients: Callable[[], Sequence[Blocks]],
        entries: Callable[[int], Entries],
        group_size: int,
        positions: Positions = "all",
        prompt: Tensor | None = None,
        once: bool = False,
    ) -> None:
        self._model, self._sites, self._group_size = model, sites, group_size
        self._coefficients, self._entries = coefficients, entries
        self._positions, self._prompt, self._once = positions, prompt, once
        self._restore: list[Callable[[], None]] = []
        self._thread = threading.get_ident()
        self._blocks: Sequence[Blocks] = ()
        self._placed: dict[tuple[int, int], Sequence[Blocks]] = {}
        self._mask: Tensor | None = None
        self._invertible = True
        self._active = True

    def __enter__(self) -> Attachment:
        try:
            self._restore.append(self._model.register_forward_pre_hook(self._before, with_kwargs=True).remove)
            if self._model.config.is_encoder_decoder:  # generation calls the encoder by itself
                self._restore.append(self._model.get_encoder().register_forward_pre_hook(self._before_encoder).remove)
            for index, site in enumerate(self._sites):
                module = self._model.get_submodule(site.module)
                self._restore.append(divert(module, self._change(index, site, module)))
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take off what this attachment put on, and nothing else."""
        while self._restore:
            self._restore.pop()()

    def _refresh(self) -> None:
        if self._once and self._blocks:
            return
        blocks = self._coefficients()
        if blocks is not self._blocks:
            self._blocks, self._placed = blocks, {}
            if torch.is_grad_enabled():
                self._invertible = _invertible(blocks)

    def _before_encoder(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not torch.compiler.is_compiling() and threading.get_ident() == self._thread:
            self._refresh()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            if threading.get_ident() != self._thread:
                return
            self._refresh()
        if self._positions != "all":
            self._mask = self._pass_mask(args, kwargs)

    def _pass_mask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The mask of this pass: the prompt's, cut to the tokens that the pass computes."""
        states = args[0] if args else next(kwargs[k] for k in ("input_ids", "inputs_embeds", "pixel_values") if k in kwargs)
        batch, length = states.shape[:2]
        cache = next((value for value in kwargs.values() if isinstance(value, Cache)), None)
        done = int(cache.get_seq_length()) if cache is not None else 0
        prompt = self._prompt
        if prompt is None:
            self._active = done == 0
            prompt = kwargs.get("attention_mask")
            prompt = torch.ones((batch, length), device=states.device) if prompt is None else prompt
        else:
            self._active = done < prompt.shape[1]
        if not self._active:
            return None
        mask = plane_maps.per_row(position_mask(self._positions, prompt), batch)[:, done : done + length]
        return nn.functional.pad(mask, (0, length - mask.shape[1])) if mask.shape[1] < length else mask

    def _change(self, index: int, site: Site, module: nn.Module) -> Change:
        # A linear layer's output is a new tensor that nobody else holds, unless somebody other than accelerate stands in for it.
        alone = type(module) in (nn.Linear, Conv1D) and (own_forward(module) is None or hasattr(module, "_hf_hook"))
        whole = self._group_size == 2 and site.part is None

        def rotate(output: Any, tracing: bool) -> Any:
            if not self._active:
                return output
            if alone and whole and self._mask is None and not tracing and not torch.is_grad_enabled():
                # What the general way comes to, without its calls: for one token per row they take longer than the product.
                a, b = self._rows_of(output, site)[index]
                if b is None and COMPLEX.get(output.dtype) is a.dtype and output.is_contiguous():
                    output.view(a.dtype).mul_(a)
                    return output
            if isinstance(output, tuple):
                return (self._rotated(index, site, output[0], False, tracing), *output[1:])
            return self._rotated(index, site, output, alone, tracing)

        return rotate

    def _rotated(self, index: int, site: Site, hidden: Tensor, alone: bool, tracing: bool) -> Tensor:
        if tracing:
            rotated = _apply_entries_to_part(self._entries(index), hidden, self._group_size, site)
        else:
            blocks = self._rows_of(hidden, site)[index]
            if self._can_turn(blocks, hidden, site):
                in_place = alone and self._mask is None and not (torch.is_grad_enabled() and hidden._is_view())
                rotated = turn(hidden, blocks.a, in_place)
            else:
                rotated = apply_to_part(blocks, hidden, self._group_size, site.part)
        if self._mask is None:
            return rotated
        mask = self._mask.to(hidden.device)
        if hidden.shape[:2] != mask.shape:
            raise InputError(
                f"site '{site.name}': its output of shape {tuple(hidden.shape)} has no {mask.shape[1]} token "
                "positions to choose from; only positions='all' works there"
            )
        return torch.where(mask.unsqueeze(-1), rotated, hidden)

    def _can_turn(self, blocks: Blocks, hidden: Tensor, site: Site) -> bool:
        return (
            blocks.b is None
            and self._group_size == 2
            and site.part is None
            and hidden.is_contiguous()
            and hidden.storage_offset() % 2 == 0
            and (self._invertible or not torch.is_grad_enabled())
        )

    def _rows_of(self, hidden: Tensor, site: Site) -> Sequence[Blocks]:
        """The blocks for this batch: one row for every example, each repeated where generation expands the batch (beams)."""
        shape = (hidden.shape[0], hidden.ndim)
        placed = self._placed.get(shape)
        if placed is None:
            if not self._blocks:  # somebody calls a part of the model by itself
                self._refresh()
            placed = self._placed[shape] = self._place(*shape, site)
        return placed

    def _place(self, batch: int, axes: int, site: Site) -> Sequence[Blocks]:
        if self._blocks[0].a.ndim == 1:
            return self._blocks
        rows = len(self._blocks[0].a)
        if batch % rows:
            raise InputError(f"site '{site.name}': {rows} names for a batch of {batch} rows; give one per row")
        return [each.for_rows(batch).beside(axes) for each in self._blocks]


def _apply_entries_to_part(blocks: Entries, hidden: Tensor, group_size: int, site: Site) -> Tensor:
    if site.part is None:
        return plane_maps.apply_entries(blocks, hidden, group_size)
    return site.part.replace(hidden, plane_maps.apply_entries(blocks, site.part.select(hidden), group_size))


def _invertible(blocks: Sequence[Blocks]) -> bool:
    """Whether no scale is so small that the gradient cannot be recovered from the output."""
    if any(each.b is not None for each in blocks):
        return False
    smallest = [each.a.detach().abs().min() for each in blocks]
    return bool(torch.stack([value.to(smallest[0].device) for value in smallest]).min() > SMALLEST)
