"""Positions count the tokens of a row without its padding, on either side."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from road_interp.errors import InputError
from road_interp.sites.positions import parse_positions, position_mask

RIGHT = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
LEFT = RIGHT.flip(1)


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("all", [[0, 1, 2, 3, 4], [0, 1, 2], [0]]),
        ("prompt", [[0, 1, 2, 3, 4], [0, 1, 2], [0]]),
        ("first", [[0], [0], [0]]),
        ("last", [[4], [2], [0]]),
        ("f2", [[0, 1], [0, 1], [0]]),
        ("l2", [[3, 4], [1, 2], [0]]),
        ("f2+l1", [[0, 1, 4], [0, 1, 2], [0]]),
        ([[0, -1], [1], []], [[0, 4], [1], []]),
        ([[-5], [-3, 2], [-1]], [[0], [0, 2], [0]]),
    ],
)
def test_positions_for_both_padding_sides(positions, expected):
    for mask, starts in ((RIGHT, [0, 0, 0]), (LEFT, [0, 2, 4])):
        found = position_mask(positions, mask)
        assert [(row.nonzero().flatten() - start).tolist() for row, start in zip(found, starts, strict=True)] == expected


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 3), st.integers(1, 3))
def test_padding_side_makes_no_difference(lengths, first, last):
    width = max(lengths)
    right = torch.tensor([[1] * length + [0] * (width - length) for length in lengths])
    left = right.flip(1)
    text = f"f{first}+l{last}"
    for row, length in enumerate(lengths):
        on_the_right = position_mask(text, right)[row, :length]
        assert torch.equal(on_the_right, position_mask(text, left)[row, width - length :])
        assert int(on_the_right.sum()) == min(length, first + last)


@pytest.mark.parametrize("text", ["", "middle", "f", "f0", "l0+f0", "f2+", "f2,l2", "f-1", "first+last"])
def test_other_texts_are_refused(text):
    with pytest.raises(InputError, match="is not a position"):
        parse_positions(text)


def test_lists_must_fit_the_batch():
    with pytest.raises(InputError, match="positions list 1 rows, but the batch has 3"):
        position_mask([[0]], RIGHT)
    with pytest.raises(InputError, match="position 3 of row 1 does not exist: the row has 3 tokens"):
        position_mask([[0], [3], [0]], RIGHT)
    with pytest.raises(InputError, match="position -2 of row 2"):
        position_mask([[0], [0], [-2]], RIGHT)


def test_rows_of_padding_only_select_no_token():
    padding = torch.zeros(1, 4, dtype=torch.long)
    for text in ("all", "first", "last", "f3+l2"):
        assert not position_mask(text, padding).any()
