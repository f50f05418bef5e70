"""The check of the batches that the measuring functions take."""

from __future__ import annotations

from collections.abc import Mapping

from road_interp.errors import InputError


def check_batch(function: str, batch: object) -> None:
    """Raise InputError unless a batch has an attention_mask, such as for a text."""
    if not isinstance(batch, Mapping) or "attention_mask" not in batch:
        raise InputError(
            f"measure.{function} needs batches of token ids with an attention_mask, not {type(batch).__name__}: "
            "give measure.text_batches(texts, tokenizer, max_length)"
        )
