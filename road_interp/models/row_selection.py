"""RowSelection: the coefficients of a call from the adapter names and tasks of its rows."""

from __future__ import annotations

from collections.abc import Sequence

from road_interp.adapters.bank import RoadBank
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.errors import InputError
from road_interp.models.coefficients import BankRows, Coefficients, Masks, ParameterMaps
from road_interp.models.intervention import RoadIntervention


class RowSelection:
    """Selects the coefficients of every row of a call.

    Args:
        adapter: the adapter whose parameters are in `interventions`, or a bank.
        interventions: one per site.
        planes: named tasks that own planes of the sites; None for a model without tasks.
    """

    def __init__(
        self, adapter: RoadAdapter | RoadBank, interventions: Sequence[RoadIntervention], planes: TaskPlanes | None
    ) -> None:
        self.bank = adapter if isinstance(adapter, RoadBank) else None
        self._planes, self._interventions = planes, interventions
        self._rows = BankRows(adapter, interventions) if isinstance(adapter, RoadBank) else None
        self._parameters = None if isinstance(adapter, RoadBank) else ParameterMaps(interventions, adapter).coefficients()

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
        if self._planes is None or tasks is None:
            missing = "a model with planes" if self._planes is None else "tasks: the active ones of every row"
            raise InputError(f"{'tasks' if trainable_tasks is None else 'trainable_tasks'} needs {missing}")
        if trainable_tasks is None:
            return whole.on_planes(self._masks(self._planes, tasks), None)
        if len(trainable_tasks) != len(tasks):
            raise InputError(f"trainable_tasks names the tasks of {len(trainable_tasks)} rows, tasks those of {len(tasks)}")
        return whole.on_planes(self._masks(self._planes, tasks), self._masks(self._planes, trainable_tasks))

    def only_name(self) -> str:
        """The name of the bank's only adapter. Raises InputError for a bank of several."""
        assert self.bank is not None
        if len(self.bank) > 1:
            raise InputError(f"this model holds {len(self.bank)} adapters: name one per row with adapter_names")
        return next(iter(self.bank))

    def _of_names(self, adapter_names: Sequence[str] | None) -> Coefficients:
        if self._rows is not None:
            return self._rows.coefficients([self.only_name()] if adapter_names is None else adapter_names)
        if adapter_names is not None:
            raise InputError("adapter_names needs a model with a RoadBank; this one holds a single adapter")
        assert self._parameters is not None
        return self._parameters

    def _masks(self, planes: TaskPlanes, tasks: Sequence[str]) -> Masks:
        devices = [intervention.theta.device for intervention in self._interventions]
        return [mask.to(device) for mask, device in zip(planes.rows(tasks), devices, strict=True)]
