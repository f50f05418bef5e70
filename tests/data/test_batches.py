"""Batches of texts of similar length."""

from __future__ import annotations

import pytest

from road_interp.data.batches import batches_by_length


@pytest.mark.parametrize(
    ("lengths", "size", "expected"),
    [
        ([], 2, []),
        ([3, 1, 2], 8, [[1, 2, 0]]),
        ([3, 1, 3, 1, 2], 2, [[1, 3], [4, 0], [2]]),  # equal lengths in their order
    ],
)
def test_rows_of_similar_length_are_together(lengths, size, expected):
    assert batches_by_length(lengths, size) == expected
