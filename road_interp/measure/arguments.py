"""The checks of the batches that the measuring functions take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from road_interp.errors import InputError

MAKE = "give measure.text_batches(texts, tokenizer, max_length)"


def check_batches(function: str, batches: object) -> None:
    """Raise InputError for what is no list of batches, such as one batch."""
    if isinstance(batches, Mapping) or not isinstance(batches, Iterable):
        raise InputError(f"measure.{function} needs a list of batches, not {type(batches).__name__}: {MAKE}")


def check_batch(function: str, batch: object) -> None:
    """Raise InputError unless a batch has an attention_mask, such as for a text, of texts and tokens, and tensors only."""
    if not isinstance(batch, Mapping) or "attention_mask" not in batch:
        raise InputError(
            f"measure.{function} needs batches of token ids with an attention_mask, not {type(batch).__name__}: {MAKE}"
        )
    if wrong := [(name, values) for name, values in batch.items() if not isinstance(values, Tensor)]:
        raise InputError(
            f"measure.{function}: '{wrong[0][0]}' of a batch is a {type(wrong[0][1]).__name__}, not a tensor: {MAKE}"
        )
    if batch["attention_mask"].ndim != 2:
        shape = tuple(batch["attention_mask"].shape)
        raise InputError(f"measure.{function}: the attention_mask has shape {shape}, not that of texts and tokens: {MAKE}")
