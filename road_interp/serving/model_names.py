"""The names under which clients ask for adapters: `road:NAME`, `road:a@0.5+b`, `road:NAME/label@0.5+closing`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from road_interp.adapters.bank import RoadBank
from road_interp.adapters.joined_names import BASE, join_names
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.errors import InputError
from road_interp.models.request_adapter import RequestAdapter

PREFIX = "road:"


@dataclass(frozen=True)
class ModelNames:
    """Finds what a client asks for in the `model` of its request.

    `road:NAME` is an adapter and `road:__base__` the base model. `road:a@0.5+b` are several road_1 adapters, each at a strength.
    `road:NAME/label@0.5+closing` are tasks of an adapter that was trained with tasks; a server of one adapter needs no NAME.

    Attributes:
        bank: the adapters.
        planes: the planes of their tasks; None for adapters without tasks.
        with_tasks: the names of the adapters that were trained with these tasks; by default all.
    """

    bank: RoadBank
    planes: TaskPlanes | None = None
    with_tasks: Collection[str] | None = None

    def listed(self) -> list[str]:
        """The base model, every adapter and every task of one."""
        adapters = list(self.bank)  # another thread may change the bank
        tasks = [f"{name}/{task}" for name in adapters for task in self._tasks_of(name)]
        return [PREFIX + name for name in (BASE, *adapters, *tasks)]

    def parse(self, model: str) -> RequestAdapter:
        """What a name means. Raises InputError for a name without a meaning, and lists the known ones."""
        name = model.removeprefix(PREFIX)
        if not model.startswith(PREFIX) or not name:
            raise self._unknown(model)
        if name == BASE or name in self.bank:
            return RequestAdapter(name)
        for each in self.bank:
            if (task := name.removeprefix(f"{each}/")) != name and task in self._tasks_of(each):
                return RequestAdapter(each, task)
        known = {*self.bank, *(() if self.planes is None else self.planes.tasks)}
        strengths = _strengths(name.rpartition("/")[2], known)
        adapter, separator, _ = name.rpartition("/")
        if strengths is None:
            raise self._unknown(model)
        if not separator and all(each in self.bank for each in strengths):
            return RequestAdapter(join_names(strengths), None, _given(strengths))
        adapter = adapter if separator else next(iter(self.bank)) if len(self.bank) == 1 else ""
        if adapter in self.bank and all(task in self._tasks_of(adapter) for task in strengths):
            return RequestAdapter(adapter, join_names(strengths), _given(strengths))
        raise self._unknown(model)

    def _tasks_of(self, adapter: str) -> tuple[str, ...]:
        has_tasks = self.planes is not None and (self.with_tasks is None or adapter in self.with_tasks)
        return self.planes.tasks if self.planes is not None and has_tasks else ()

    def _unknown(self, model: str) -> InputError:
        return InputError(
            f"unknown model '{model[:100]}'; the models are {', '.join(self.listed())}, joined by '+', with @STRENGTH"
        )


def _strengths(text: str, known: Collection[str]) -> dict[str, float] | None:
    """The names and strengths in a text such as "a@0.5+b", or None if it is not one. A known name may have "@" in it."""
    strengths = {}
    for term in text.split("+"):
        name, at, strength = (term, "", "") if term in known or "@" not in term else term.rpartition("@")
        if "_" in strength:  # Python reads "1_0" as 10
            return None
        try:
            value = float(strength) if at else 1.0
        except ValueError:
            return None
        if not name or name in strengths or abs(value) > 100 or value != value:
            return None
        strengths[name] = value
    return strengths


def _given(strengths: dict[str, float]) -> dict[str, float] | None:
    """The strengths, or None if all are 1."""
    return None if set(strengths.values()) == {1.0} else strengths
