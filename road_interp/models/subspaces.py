"""pyvene's `subspaces`: which of an intervention's coordinates act on every row of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from road_interp.arguments import is_whole
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
    chosen = entries_of_rows(subspaces, partition, count, len(states))
    selected = torch.zeros(len(states), count, dtype=states.dtype)
    selected[[row for row, entries in enumerate(chosen) for _ in entries], [entry for entries in chosen for entry in entries]] = 1
    return selected.view(len(states), *[1] * (states.ndim - 2), count).to(states.device)


def entries_of_rows(
    subspaces: Sequence[Sequence[int]], partition: Sequence[Sequence[int]] | None, count: int, rows: int
) -> list[list[int]]:
    """The entries of the subspaces of every row. Raises InputError for an index that does not exist or another number of rows."""
    if len(subspaces) != rows:
        raise InputError(f"subspaces list {len(subspaces)} rows, but the batch has {rows}")
    entries = []
    for row, chosen in enumerate(subspaces):
        try:
            entries.append(entries_of(chosen, partition, count))
        except InputError as error:
            raise InputError(f"row {row}: {error}") from None
    return entries


def entries_of(subspaces: Sequence[int], partition: Sequence[Sequence[int]] | None, count: int) -> list[int]:
    """The entries of the subspaces of one row. Raises InputError for an index that does not exist."""
    try:
        chosen: list[Any] = subspaces.tolist() if isinstance(subspaces, Tensor) else list(subspaces)
    except TypeError:  # a number
        chosen = [None]
    if not all(map(is_whole, chosen)):
        raise InputError(
            f"{subspaces!r} are not subspaces of a row: give their numbers, as in [0]; those of a variable are "
            "VariableCoordinates.subspaces([name])[0]"
        )
    known = count if partition is None else len(partition)
    if unknown := [subspace for subspace in chosen if not 0 <= subspace < known]:
        raise InputError(f"subspace {unknown[0]} does not exist: subspaces are 0 to {known - 1}")
    return [int(each) for each in chosen] if partition is None else [entry for each in chosen for entry in partition[each]]


def as_lists(partition: Any) -> list[list[int]] | None:
    """A partition as lists of numbers, for a state dict."""
    return None if partition is None else [[int(entry) for entry in part] for part in partition]


def same_form(saved: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether the extra states of two interchanges agree; names of variables only where both have them."""
    return all(saved.get(key) == own[key] or (key == "variables" and None in (saved.get(key), own[key])) for key in own)


def expanded_parts(partition: Any) -> list[list[int]] | None:
    """The entries of every part of a partition as pyvene takes it: two numbers are a start and an end, unless in a `range`.

    Raises InputError unless the partition is None or holds a list of numbers, an array or a range for every part.
    """
    if partition is None:
        return None
    try:
        parts = [_expanded(part) for part in partition]
    except TypeError:
        parts = []
    if not parts:
        raise InputError(f"subspace_partition must hold a list for every subspace, as in [[0, 4], [4, 8]], not {partition!r}")
    return parts


def _expanded(part: Any) -> list[int]:
    entries = [index(entry) for entry in part]
    return list(range(*entries)) if len(entries) == 2 and not isinstance(part, range) else entries


def check_partition(partition: Sequence[Sequence[int]] | None, count: int) -> None:
    """Raise InputError for a partition with entries that do not exist, or that two of its parts share."""
    entries = [entry for part in partition or () for entry in part]
    if unknown := [entry for entry in entries if not 0 <= entry < count]:
        raise InputError(f"subspace_partition contains entry {unknown[0]}, but there are entries 0 to {count - 1}")
    if len(set(entries)) < len(entries):
        raise InputError("the parts of subspace_partition overlap: a variable's coordinates must be its own")
