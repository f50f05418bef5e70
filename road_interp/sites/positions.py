"""Positions: the tokens of each row to rotate, as a text or as lists, converted to a mask that accounts for padding."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from road_interp.errors import InputError

Positions = str | Sequence[Sequence[int]]


def position_mask(positions: Positions, attention_mask: Bool[Tensor, "batch length"]) -> Bool[Tensor, "batch length"]:
    """A boolean mask that is True at the tokens to rotate.

    Args:
        positions: "all" or "prompt" (every token that is not padding), "first", "last", "f3+l2" (the first three and the last
            two tokens of each row), or one list of token indices per row. Indices skip padding on either side: 0 is the first
            token of the row that is not padding, -1 the last.
        attention_mask: True (or 1) where a token is not padding.

    Raises:
        InputError: an unknown text, lists for another number of rows, or an index outside a row's tokens.

    >>> position_mask("f1+l1", torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])).int()
    tensor([[1, 0, 0, 1],
            [0, 1, 0, 1]], dtype=torch.int32)
    """
    present = attention_mask.bool()
    index = present.cumsum(1) - 1
    lengths = present.sum(1, keepdim=True)
    if isinstance(positions, str):
        first, last = parse_positions(positions)
        if first is None:
            return present
        return present & ((index < first) | (index >= lengths - last))
    if len(positions) != len(present):
        raise InputError(f"positions list {len(positions)} rows, but the batch has {len(present)}")
    selected = torch.zeros_like(present)
    for row, wanted in enumerate(positions):
        length = int(lengths[row])
        for position in wanted:
            if not -length <= position < length:
                raise InputError(f"position {position} of row {row} does not exist: the row has {length} tokens")
            selected[row] |= present[row] & (index[row] == position % length)
    return selected


def parse_positions(text: str) -> tuple[int | None, int]:
    """The numbers of tokens at the start and at the end of a row; the first is None for all tokens. Raises InputError."""
    if not isinstance(text, str):
        raise InputError(f"positions of an adapter must be text, such as 'all' or 'last', not {text!r}")
    named = {"all": (None, 0), "prompt": (None, 0), "first": (1, 0), "last": (0, 1)}
    if text in named:
        return named[text]
    if match := re.fullmatch(r"f([0-9]{1,9})(?:\+l([0-9]{1,9}))?|l([0-9]{1,9})", text):
        first, last, only_last = (int(number or 0) for number in match.groups())
        if first + last + only_last > 0:
            return first, last + only_last
    raise InputError(f"'{text}' is not a position: use all, first, last, prompt, f3, l2, f3+l2, or one list of indices per row")
