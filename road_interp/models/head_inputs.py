"""The states that the head over the vocabulary reads during generation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def contiguous_head_inputs(model: PreTrainedModel) -> Iterator[None]:
    """Copy the states that the head reads where they are a slice of others, on a CPU.

    `generate` gives the head the last token of every row, a slice of the states. PyTorch multiplies a slice with frozen weights
    as one product per row, for which a CPU copies the weights once per row; a copy of the states avoids that.
    """
    head: nn.Module | None = model.get_output_embeddings()
    if head is None or model.device.type != "cpu":
        yield
        return
    with head.register_forward_pre_hook(_contiguous):
        yield


def _contiguous(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.contiguous() for each in args)
