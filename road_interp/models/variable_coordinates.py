"""VariableCoordinates: named variables that own disjoint coordinates of one rotated state, as tasks own planes."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from road_interp.adapters.joined_names import check_name, known_names
from road_interp.arguments import check_argument, check_count, checked_list
from road_interp.errors import InputError
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.models.low_rank_interchange import LowRankInterchangeIntervention
from road_interp.models.subspace_interchange import SubspaceInterchange

Interchange = TypeVar("Interchange", bound=SubspaceInterchange)


@dataclass(frozen=True)
class VariableCoordinates:
    """How many coordinates of a rotated state each variable owns.

    Swapping the coordinates of one variable leaves those of all others as they are, because they are orthogonal. `subspaces`
    turns names into pyvene's subspaces.

    Attributes:
        counts: number of coordinates by variable, in their order.

    Raises:
        InputError: no variable, an invalid name, or a variable without coordinates.

    >>> coordinates = VariableCoordinates({"country": 2, "continent": 1})
    >>> coordinates.partition, coordinates.subspaces(["continent", "country+continent", "__base__"])
    ([[0, 2], [2, 3]], [[1], [0, 1], []])
    >>> sorted(coordinates.rows(width=6))
    [0, 2, 4]
    """

    counts: Mapping[str, int]

    def __post_init__(self) -> None:
        make = "the number of coordinates by variable, as in {'country': 2, 'continent': 1}"
        check_argument("VariableCoordinates", self.counts, Mapping, make)
        if not self.counts:
            raise InputError("VariableCoordinates needs at least one variable")
        for name, count in self.counts.items():
            check_argument("VariableCoordinates", name, str, make)
            check_name(name, "a variable")
            check_count("VariableCoordinates", f"the number of coordinates of '{name}'", count)
        object.__setattr__(self, "counts", dict(self.counts))

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of the variables."""
        return tuple(self.counts)

    @property
    def total(self) -> int:
        """The number of coordinates that have an owner."""
        return sum(self.counts.values())

    @property
    def partition(self) -> list[list[int]]:
        """pyvene's `subspace_partition`: for every variable, the range `[start, stop]` of its entries."""
        ends = [0]
        for count in self.counts.values():
            ends.append(ends[-1] + count)
        return [list(pair) for pair in pairwise(ends)]

    def rows(self, width: int) -> tuple[int, ...]:
        """The owned coordinates, variable after variable: the first of planes in a fixed random order, then the second ones.

        At depth 1 a coordinate reads the two neurons of its plane, so that a random order spreads the variables over the state.

        Raises InputError for a state with fewer coordinates than the variables own, or of an odd width, which has no planes.
        """
        self._check_width(width)
        if width % 2:
            raise InputError(f"a state of width {width} cannot be divided into planes: use low_rank, which needs none")
        planes = random.Random(0).sample(range(width // 2), width // 2)
        return (*(2 * plane for plane in planes), *(2 * plane + 1 for plane in planes))[: self.total]

    def subspaces(self, active: Sequence[str]) -> list[list[int]]:
        """pyvene's `subspaces` for the variables to swap in every row: "country", "country+continent" or "__base__" for none.

        Raises InputError for an unknown variable.
        """
        names = checked_list("VariableCoordinates.subspaces", active, str, "one text per row, as in ['country', '__base__']")
        return [[self.variables.index(name) for name in known_names(text, self.counts, "variable")] for text in names]

    def road(self, width: int, **options: Any) -> RoadInterchangeIntervention:
        """An interchange of these coordinates of a stack of plane rotations.

        Args:
            width: of the state.
            options: its depth (1 by default, where a coordinate mixes two neurons only), seed and spread.
        """
        own = {"rows": self.rows(width), "subspace_partition": self.partition}
        return self._named(RoadInterchangeIntervention(width, **_with(own, options)))

    def low_rank(self, width: int, **options: Any) -> LowRankInterchangeIntervention:
        """An interchange of as many trained orthonormal directions; `options` are its seed."""
        self._check_width(width)
        own = {"low_rank_dimension": self.total, "subspace_partition": self.partition}
        return self._named(LowRankInterchangeIntervention(width, **_with(own, options)))

    def _check_width(self, width: int) -> None:
        """Raise InputError for a state with fewer coordinates than the variables own."""
        check_count("VariableCoordinates", "the width of the state", width)
        if self.total > width:
            raise InputError(f"the variables own {self.total} coordinates, but the state has {width}")

    def _named(self, interchange: Interchange) -> Interchange:
        """The interchange with the names of the variables, by which runs of pairs check that they mean the same ones."""
        interchange.variables = self.variables
        return interchange


def _with(own: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Both together. Raises InputError for an option that the coordinates set."""
    if given := own.keys() & options.keys():
        raise InputError(
            f"'{min(given)}' is set by VariableCoordinates; those that training chooses are of causal.MaskedInterchange"
        )
    return {**own, **options}
