"""Batches of texts: in their order, and of similar length, which needs little padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from road_interp.arguments import check_callable, check_count, checked_list
from road_interp.errors import InputError


def batches_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """The row numbers in batches of at most `size`, those of the shortest texts first; texts of equal length keep their order."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + size] for start in range(0, len(order), size)]


def text_batches(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, size: int = 32, *, add_special_tokens: bool = True
) -> Iterator[dict[str, Tensor]]:
    """Batches of `size` texts for `measure.drift`, in order, truncated to `max_length` tokens and padded on the right.

    Args:
        add_special_tokens: those of the tokeniser around each text; False for prompts in a template, which has its own.

    Raises InputError for something else than a list of texts, for no tokens, and for a tokeniser without a padding token.
    """
    listed = checked_list("measure.text_batches", texts, str, "a list of texts, as in ['a text']")
    check_callable("measure.text_batches", "tokenizer", tokenizer, "load_tokenizer('gpt2')")
    check_count("measure.text_batches", "max_length", max_length)
    check_count("measure.text_batches", "size", size)
    if getattr(tokenizer, "pad_token", "") is None:
        raise InputError("the tokeniser has no padding token: load_tokenizer(id) gives it one")
    padded = {"truncation": True, "max_length": max_length, "padding": True, "padding_side": "right", "return_tensors": "pt"}
    padded |= {"add_special_tokens": add_special_tokens}
    return (dict(tokenizer(listed[start : start + size], **padded)) for start in range(0, len(listed), size))
