"""Stacked LoRA: the factors of many LoRA adapters, one per row of a batch, in two batched matrix products per layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from road_interp.sites.module_tree import output_width
from road_interp.sites.site import Site

# Adds the product of a layer's input with A and B to the layer's output, in place: (output, input, A, B) -> output.
Product = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class StackedLora:
    """LoRA with its own A and B for every row: two batched matrix products per layer (section 4.2).

    Args:
        base: a causal language model, of which `model` is a copy that shares parameters and buffers.
        sites: of the linear layers that have factors.
        rows: number of adapters.
        rank: of every adapter.
    """

    def __init__(self, base: PreTrainedModel, sites: Sequence[Site], rows: int, rank: int) -> None:
        self.model: Any = shared_copy(base)
        self._modules: list[Any] = [self.model.get_submodule(site.module) for site in sites]
        self._pairs = []
        for module in self._modules:
            input_width = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
            down = torch.randn(rows, input_width, rank) / input_width**0.5
            up = torch.randn(rows, rank, output_width(module)) / 10
            self._pairs.append([nn.Parameter(each.to(base.device, base.dtype)) for each in (down, up)])

    @contextmanager
    def per_row(self, rows: int, strengths: Float[Tensor, " rows"] | None = None) -> Iterator[None]:
        """Calls of `model` have the first `rows` adapters, one per row, each at its strength if there are strengths."""
        with self._added(product_of_rows(rows, strengths)):
            yield

    def keep_per_row(self, rows: int) -> None:
        """As `per_row`, for good: hooks that are registered again are compiled again."""
        self._add(product_of_rows(rows))

    @contextmanager
    def one_adapter(self) -> Iterator[None]:
        """Calls of `model` have the first adapter in every row."""

        def product(output: Tensor, states: Tensor, down: Tensor, up: Tensor) -> Tensor:
            low = states.flatten(0, -2) @ down[0]
            output.view(-1, output.shape[-1]).addmm_(low, up[0])
            return output

        with self._added(product):
            yield

    @contextmanager
    def per_request(self, engine: Any) -> Iterator[None]:
        """Passes of transformers' engine for continuous batching on `model`: its request `req_3` has adapter 3.

        A pass has the tokens of all requests in one row. They are moved to a batch of one row per adapter, padded to the longest.
        """
        rows = len(self._pairs[0][0])
        places, longest = torch.empty(0, dtype=torch.long), 0

        def find_places(*_: Any) -> None:
            nonlocal places, longest
            batch = engine.batch_processor.inputs_and_outputs.requests_in_batch
            longest = max(each.query_length for each in batch)
            starts = [longest * row_of(each.state.request_id) for each in batch]
            of_requests = [start + torch.arange(each.query_length) for start, each in zip(starts, batch, strict=True)]
            places = torch.cat(of_requests).to(self.model.device)

        def product(output: Tensor, states: Tensor, down: Tensor, up: Tensor) -> Tensor:
            padded = states.new_zeros(rows * longest, states.shape[-1])
            padded[places] = states[0, : len(places)]
            added = torch.bmm(torch.bmm(padded.view(rows, longest, -1), down), up)
            output[0, : len(places)] += added.flatten(0, 1)[places]
            return output

        handle = self.model.register_forward_pre_hook(find_places)
        try:
            with self._added(product):
                yield
        finally:
            handle.remove()

    @contextmanager
    def _added(self, product: Product) -> Iterator[None]:
        handles = self._add(product)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, product: Product) -> list[RemovableHandle]:
        def hook(down: Tensor, up: Tensor) -> Callable[..., Tensor]:
            return lambda module, args, output: product(output, args[0], down, up)

        return [module.register_forward_hook(hook(*pair)) for module, pair in zip(self._modules, self._pairs, strict=True)]


def product_of_rows(rows: int, strengths: Float[Tensor, " rows"] | None = None) -> Product:
    """The product with the first `rows` adapters, one per row, each at its strength if there are strengths."""

    def product(output: Tensor, states: Tensor, down: Tensor, up: Tensor) -> Tensor:
        low = torch.bmm(states, down[:rows])
        return output.baddbmm_(low if strengths is None else low * strengths[:, None, None], up[:rows])

    return product


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of all modules that shares parameters and buffers."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def row_of(request: str) -> int:
    """The number of a request in the order in which transformers' engine was given them: 3 for `req_3`."""
    return int(request.removeprefix("req_"))
