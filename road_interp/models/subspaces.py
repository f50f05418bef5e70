"""pyvene's `subspaces`: which of an intervention's coordinates act on every row of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from road_interp.errors import InputError


def selected_entries(
    subspaces: Sequence[Sequence[int]], partition: Sequence[Sequence[int]] | None, count: int, states: Tensor
) -> Float[Tensor, "batch *ones count"]:
    """1 for the entries that a row of the batch selects, 0 for the others, with the axes of `states`.

    Args:
        subspaces: for every row, indices of entries or, with a partition, of its parts.
        partition: the entries of every part.
        count: number of entries.
        states: `(batch, ..., width)`.

    Raises:
        InputError: an index that does not exist, or another number of rows than the batch has.
    """
    if len(subspaces) != len(states):
        raise InputError(f"subspaces list {len(subspaces)} rows, but the batch has {len(states)}")
    known = count if partition is None else len(partition)
    selected = states.new_zeros(len(states), *[1] * (states.ndim - 2), count)
    for row, chosen in enumerate(subspaces):
        for subspace in chosen:
            if not 0 <= subspace < known:
                raise InputError(f"subspace {subspace} does not exist: subspaces are 0 to {known - 1}")
            selected[row, ..., [subspace] if partition is None else list(partition[subspace])] = 1
    return selected


def as_lists(partition: Any) -> list[list[int]] | None:
    """A partition as lists of numbers, for a state dict."""
    return None if partition is None else [[int(entry) for entry in part] for part in partition]
