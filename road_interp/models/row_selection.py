"""RowSelection: the coefficients of a call from the arguments of its rows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from road_interp.adapters.bank import RoadBank
from road_interp.adapters.joined_names import BASE, split_names
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.errors import InputError, shown
from road_interp.models.coefficients import BankMaps, Coefficients, Masks, Rotations
from road_interp.models.row_arguments import RowArguments, Strengths, numbers_of
from road_interp.models.token_selection import given_rows


class RowSelection(NamedTuple):
    """What a call selects from: the parameters of a model or its bank, and the planes of its tasks.

    Attributes:
        rotations: the interventions of the model.
        bank: the adapters to select from; None for a model with a single adapter.
        bank_maps: the cache of the bank's maps.
        planes: named tasks that own planes of the sites; None for a model without tasks.
    """

    rotations: Rotations
    bank: RoadBank | None
    bank_maps: BankMaps
    planes: TaskPlanes | None

    def coefficients(self, rows: RowArguments, base: Mapping[str, Any]) -> Coefficients:
        """The maps of the parameters or of the bank's adapters, with their strengths, on the active planes of every row.

        Args:
            base: the inputs of the model; empty where the number of rows is not known.

        Raises:
            InputError: names without a bank, tasks without planes, an unknown name or task, an invalid strength, one whose power
                of a scale is not finite, no list, or another number of entries than rows.
        """
        rows.check(given_rows(base))
        found = self._of_rows(rows.filled())
        changing = [abs(value) for value in numbers_of(rows.strengths or ()) if value not in (0, 1)]
        if changing and not found.are_finite():
            raise InputError(f"strengths up to {max(changing):g} make powers of scales that are not finite")
        return found

    def _of_rows(self, rows: RowArguments) -> Coefficients:
        adapter_names, tasks, trainable_tasks, strengths = rows
        if strengths is not None and self.bank is not None and adapter_names is None:
            adapter_names = [self.only_name()] * len(strengths)
        whole = self._product(adapter_names, strengths)
        if tasks is None and trainable_tasks is None:
            return whole
        if self.planes is None or tasks is None:
            missing = "needs tasks: the active ones of every row"
            if self.planes is None:
                missing = "needs a model with planes: RoadModel(base, adapter, planes=TaskPlanes.split(names, adapter.sites))"
            raise InputError(f"{'tasks' if trainable_tasks is None else 'trainable_tasks'} {missing}")
        if trainable_tasks is None:
            return whole.on_planes(self._masks(self.planes, tasks), None)
        for row, (active, trained) in enumerate(zip(tasks, trainable_tasks, strict=True)):
            if inactive := set(self.planes.named(trained)) - set(self.planes.named(active)):
                raise InputError(f"row {row}: trainable task '{min(inactive)}' is not active, so that it would get no gradient")
        return whole.on_planes(self._masks(self.planes, tasks), self._masks(self.planes, trainable_tasks))

    def only_name(self) -> str:
        """The name of the bank's only adapter. Raises InputError for a bank of several."""
        assert self.bank is not None
        if len(self.bank) > 1:
            raise InputError(f"this model holds {len(self.bank)} adapters: name one per row with adapter_names")
        return next(iter(self.bank))

    def members(self, name: str) -> tuple[str, ...]:
        """The adapters of a name such as "a+b", which are multiplied. Raises InputError for variants whose order matters."""
        if self.bank is None or "+" not in name:
            return (name,)
        if self.rotations.variant != "road_1":
            raise InputError(
                f"'{name}': adapters joined by '+' are multiplied in any order, which road_1 allows and "
                f"{self.rotations.variant} does not: compose them first, a @ b"
            )
        return split_names(name)

    def _product(self, adapter_names: Sequence[str] | None, strengths: Strengths | None) -> Coefficients:
        """The maps of every row: of its adapter, or the product of those that '+' joins, each to its strength."""
        if self.bank is None or adapter_names is None:
            return self._powers(adapter_names, strengths, self.bank_maps)
        rows = [self.members(name) for name in adapter_names]
        factors = []
        for number in range(max(map(len, rows), default=0)):
            names = [row[number] if number < len(row) else BASE for row in rows]
            powers = None if strengths is None else _of_adapters(strengths, rows, names, self.planes)
            factors.append(self._powers(names, powers, BankMaps() if number else self.bank_maps))
        return reduce(Coefficients.times, factors)

    def _powers(self, adapter_names: Sequence[str] | None, strengths: Strengths | None, bank_maps: BankMaps) -> Coefficients:
        """The maps of one adapter per row, to its strength."""
        whole = self._of_names(adapter_names, bank_maps)
        if strengths is None:
            return whole
        exponents = self._exponents(strengths)
        names = [None] * len(strengths) if adapter_names is None else adapter_names
        kinds = [(name, strength_key(strength)) for name, strength in zip(names, strengths, strict=True)]
        return whole.to_strengths(exponents, kinds)

    def _of_names(self, adapter_names: Sequence[str] | None, bank_maps: BankMaps) -> Coefficients:
        if self.bank is not None:
            names = [self.only_name()] if adapter_names is None else adapter_names
            return bank_maps.coefficients(self.bank, self.rotations, names)
        if adapter_names is not None:
            raise InputError("adapter_names needs a model with a RoadBank; this one holds a single adapter")
        return self.rotations.coefficients()

    def _masks(self, planes: TaskPlanes, tasks: Sequence[str]) -> Masks:
        return [mask.to(device) for mask, device in zip(planes.rows(tasks), self.rotations.devices, strict=True)]

    def _exponents(self, strengths: Strengths) -> list[Float[Tensor, "*rows #planes"]]:
        """For every site, the strength of every row, `(rows, 1)`, or of every plane of it."""
        if self.rotations.variant != "road_1":
            raise InputError(f"strengths are real powers, which exist for road_1 only; this model is {self.rotations.variant}")
        if not any(isinstance(each, Mapping) for each in strengths):
            rows = torch.tensor([[float(each)] for each in strengths], dtype=torch.float32)  # type: ignore[arg-type]
            return [rows.to(device) for device in self.rotations.devices]
        if self.planes is None:
            raise InputError("strengths by name need a model with planes or a bank; this one takes one number per row")
        found = self.planes.strengths([each if isinstance(each, Mapping) else {} for each in strengths])
        for exponents in found:
            for row, each in enumerate(strengths):
                if not isinstance(each, Mapping):
                    exponents[row] = each  # also the planes without a task
        return [exponents.to(device) for exponents, device in zip(found, self.rotations.devices, strict=True)]


def strength_key(strength: float | Mapping[str, float] | None) -> Hashable:
    """A strength, or strengths by name, in a form that can be compared; None stays None."""
    if strength is None:
        return None
    return tuple(sorted(strength.items())) if isinstance(strength, Mapping) else float(strength)


def _of_adapters(
    strengths: Strengths, rows: Sequence[Sequence[str]], names: Sequence[str], planes: TaskPlanes | None
) -> Strengths:
    """The strength of one of the adapters of every row, by its name; strengths of tasks stay as they are.

    Raises InputError for names that are neither adapters of their row nor tasks, for one that is both, and for both in one row.
    """
    powers: list[float | Mapping[str, float]] = []
    for strength, row, name in zip(strengths, rows, names, strict=True):
        unknown = sorted(map(str, set(strength) - set(row))) if isinstance(strength, Mapping) else []
        if isinstance(strength, Mapping) and planes is not None and (both := {*strength} & {*row} & {*planes.tasks}):
            raise InputError(f"strengths: '{min(both)}' is an adapter of its row and a task: give one of them another name")
        if isinstance(strength, Mapping) and unknown and (adapters := {*strength} & {*row}):
            raise InputError(
                f"strengths {shown(strength)}: '{min(adapters)}' is an adapter of its row and '{unknown[0]}' is none: name "
                "adapters or tasks, not both"
            )
        if not isinstance(strength, Mapping) or (unknown and planes is not None):
            powers.append(strength)
        elif unknown:
            raise InputError(f"unknown adapter '{unknown[0]}' in strengths; the adapters of its row are {', '.join(row)}")
        else:
            powers.append(strength.get(name, 1.0))
    return powers
