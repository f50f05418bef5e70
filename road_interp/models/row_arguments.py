"""RowArguments: what a call gives for the rows of its batch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from road_interp.adapters.joined_names import BASE
from road_interp.errors import InputError

Strengths = Sequence[float | Mapping[str, float]]  # one per row: a number, or numbers by task, or by adapter in a bank


class RowArguments(NamedTuple):
    """The arguments of `RoadModel.forward` that have an entry per row; None where one is not given."""

    adapter_names: Sequence[str] | None = None
    tasks: Sequence[str] | None = None
    trainable_tasks: Sequence[str] | None = None
    strengths: Strengths | None = None

    @property
    def rows(self) -> int:
        """The number of entries of the longest list; 1 if none is given."""
        return max((len(values) for values in self if values is not None), default=1)

    def filled(self) -> RowArguments:
        """One entry for all rows, beside several entries of another argument, once for each of these."""
        given: dict[str, Any] = {name: values for name, values in self._asdict().items() if values is not None}
        return self._replace(**{name: [*values] * self.rows for name, values in given.items() if len(values) == 1})

    def check(self, count: int | None, kind: str = "row") -> None:
        """Raise InputError unless there is a list with one entry per row; during the pass, too few would look like beam search.

        Args:
            count: of the rows; None where it is not known.
            kind: what a row is in errors, such as "prompt".
        """
        if hasattr(self.strengths, "tolist"):
            raise InputError("strengths are numbers, one per row: give strengths.tolist()")
        given: dict[str, Any] = self._asdict()
        sizes: dict[int, str] = {}
        for field, values in given.items():
            name = field.replace("_", " ")
            if values is None:
                continue
            if isinstance(values, str | Mapping | set | frozenset) or not isinstance(values, Collection):
                raise InputError(f"{name} must be a list, one per row, as in [{values!r}], not {values!r}")
            if count is not None and len(values) != count:
                rows = f"a batch of {count} rows" if kind == "row" else f"{count} {kind}s"
                raise InputError(f"{len(values)} {name} for {rows}; give one per {kind}")
            if count is None and not len(values):
                raise InputError(f"no {name} are given; give a list, one per row")
            if field != "strengths":
                for value in values:
                    if not isinstance(value, str):
                        raise InputError(f"{name}: {value!r} is not a name: give text per row, '{BASE}' for none, 'a+b' for two")
            sizes.setdefault(len(values), name)
        several = [f"{size} {name}" for size, name in sizes.items() if size > 1]
        if len(several) > 1:
            raise InputError(f"{several[0]} and {several[1]} are given; give as many, one per {kind}, or one for all")
        for value in numbers_of(self.strengths or ()):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"{value!r} is not a strength: use finite numbers, 1 for the adapter as it is, 0 for none")


def numbers_of(strengths: Strengths) -> list[float]:
    """All numbers among the strengths of rows."""
    return [value for each in strengths for value in (each.values() if isinstance(each, Mapping) else [each])]
