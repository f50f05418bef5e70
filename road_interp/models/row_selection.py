"""RowSelection: the coefficients of a call from the adapter names and tasks of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from road_interp.adapters.bank import RoadBank
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.errors import InputError
from road_interp.models.coefficients import BankMaps, Coefficients, Masks, Rotations


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

    def coefficients(
        self, adapter_names: Sequence[str] | None, tasks: Sequence[str] | None, trainable_tasks: Sequence[str] | None
    ) -> Coefficients:
        """The maps of the parameters or of the bank's adapters, on the active planes of every row.

        Args:
            adapter_names, tasks, trainable_tasks: those of `RoadModel.forward`, one per row.

        Raises:
            InputError: names without a bank, tasks without planes, or an unknown name or task.
        """
        whole = self._of_names(adapter_names)
        if tasks is None and trainable_tasks is None:
            return whole
        if self.planes is None or tasks is None:
            missing = "a model with planes" if self.planes is None else "tasks: the active ones of every row"
            raise InputError(f"{'tasks' if trainable_tasks is None else 'trainable_tasks'} needs {missing}")
        if trainable_tasks is None:
            return whole.on_planes(self._masks(self.planes, tasks), None)
        if len(trainable_tasks) != len(tasks):
            raise InputError(f"trainable_tasks names the tasks of {len(trainable_tasks)} rows, tasks those of {len(tasks)}")
        return whole.on_planes(self._masks(self.planes, tasks), self._masks(self.planes, trainable_tasks))

    def only_name(self) -> str:
        """The name of the bank's only adapter. Raises InputError for a bank of several."""
        assert self.bank is not None
        if len(self.bank) > 1:
            raise InputError(f"this model holds {len(self.bank)} adapters: name one per row with adapter_names")
        return next(iter(self.bank))

    def _of_names(self, adapter_names: Sequence[str] | None) -> Coefficients:
        if self.bank is not None:
            names = [self.only_name()] if adapter_names is None else adapter_names
            return self.bank_maps.coefficients(self.bank, self.rotations, names)
        if adapter_names is not None:
            raise InputError("adapter_names needs a model with a RoadBank; this one holds a single adapter")
        return self.rotations.coefficients()

    def _masks(self, planes: TaskPlanes, tasks: Sequence[str]) -> Masks:
        return [mask.to(device) for mask, device in zip(planes.rows(tasks), self.rotations.devices, strict=True)]
