"""Accuracy of the classification heads of several tasks when their own planes, or the planes of all tasks, are active."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from road_interp.adapters.joined_names import BASE, join_names
from road_interp.arguments import checked_reports
from road_interp.errors import InputError
from road_interp.from_mapping import FieldError
from road_interp.measure.intervals import joined_outcomes, joined_seeds, mean_over_seeds, same_counts
from road_interp.results import Result, entry


@dataclass(frozen=True)
class MultiTaskAccuracyReport(Result):
    """Outcomes on the test examples of every task with several sets of active tasks, for one or several seeds.

    Attributes:
        model: name of the base model.
        method: how the tasks were trained.
        tasks: in the order of their planes.
        seeds: of the trainings.
        correct: by task and set of active tasks ("__base__", the task alone, all tasks), whether each test example is right,
            concatenated over seeds.
    """

    model: str
    method: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    correct: Mapping[str, Mapping[str, tuple[bool, ...]]]

    def __post_init__(self) -> None:
        if unknown := set(self.correct) - set(self.tasks):
            raise FieldError("correct", f"has outcomes of '{min(unknown)}', which is not one of the tasks")
        for task, sets in self.correct.items():
            if missing := {task, self.together} - set(sets):
                raise FieldError("correct", f"has no outcomes of '{task}' with '{min(missing)}' active")
            if not same_counts(sets.values(), self.seeds):
                raise FieldError("correct", f"must hold as many outcomes of '{task}' for each seed and set of active tasks")

    @property
    def together(self) -> str:
        """Name of the set of all tasks, such as "a+b"."""
        return join_names(self.tasks)

    def accuracy(self, task: str, active: str) -> tuple[float, float, float]:
        """Fraction of a task's test examples that its head classifies correctly with a set of active tasks.

        With its 95% interval over seeds and examples.
        """
        return mean_over_seeds(self._outcomes(task, active), len(self.seeds))

    def cost(self, task: str) -> tuple[float, float, float]:
        """Accuracy of a task with its own planes active minus that with all planes active, and the 95% interval.

        The interval is of the paired difference: both accuracies are of the same examples.
        """
        return self._difference(task, task, self.together)

    def gain(self, task: str) -> tuple[float, float, float]:
        """Accuracy of a task with its own planes active minus that with none, and the 95% interval of the paired difference."""
        return self._difference(task, task, BASE)

    def _difference(self, task: str, active: str, other: str) -> tuple[float, float, float]:
        return mean_over_seeds(self._outcomes(task, active) - self._outcomes(task, other), len(self.seeds), paired=True)

    def _outcomes(self, task: str, active: str) -> Float[np.ndarray, " examples"]:
        """Raises InputError for an unknown task or set of active tasks."""
        return np.asarray(entry(entry(self.correct, task, "outcomes of"), active, f"outcomes of '{task}' with"), float)

    def summary(self) -> dict[str, Any]:
        """Accuracies by task and set of active tasks with their intervals, and the cost for each task."""
        rates = {task: {active: [*self.accuracy(task, active)] for active in sets} for task, sets in self.correct.items()}
        return {"accuracy": rates, "cost": {task: list(self.cost(task)) for task in self.correct}}

    def records(self) -> list[dict[str, Any]]:
        """A row per task and set of active tasks."""
        return [
            {"task": task, "active": active, "accuracy": self.accuracy(task, active)}
            for task, sets in self.correct.items()
            for active in sets
        ]

    @classmethod
    def over_seeds(cls, reports: Sequence[MultiTaskAccuracyReport]) -> MultiTaskAccuracyReport:
        """Combine reports of several seeds. Raises InputError if model, method, tasks, their sets or numbers of examples
        differ.
        """
        reports = checked_reports(cls, reports)
        first = reports[0]
        same = (first.model, first.method, first.tasks, [*first.correct])
        if any((each.model, each.method, each.tasks, [*each.correct]) != same for each in reports):
            raise InputError("only reports of one model and method and the same tasks can be combined")
        examples = [[len(each.correct[task][task]) for each in reports] for task in first.correct]
        seeds = joined_seeds([each.seeds for each in reports], *examples)
        return cls(first.model, first.method, first.tasks, seeds, joined_outcomes([each.correct for each in reports]))


@dataclass(frozen=True)
class MultiTaskAccuracyStudy(Result):
    """Accuracy of the same tasks with the same seeds, trained together and trained alone.

    Attributes:
        together: one report per method of training the tasks together.
        alone: by task, the report of training it alone on all planes.
        own_planes: by task, the report of training it alone on those planes that it owns in joint training.
        variants: by name, such as "four epochs", the same tasks with the same seeds, all trained in another way.
    """

    together: tuple[MultiTaskAccuracyReport, ...]
    alone: Mapping[str, MultiTaskAccuracyReport]
    own_planes: Mapping[str, MultiTaskAccuracyReport] = field(default_factory=dict)
    variants: Mapping[str, MultiTaskAccuracyStudy] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Gap of every method to the tasks trained alone, and of each variant the same and what it saves."""
        gaps = {each.method: {task: self.gap(task, each) for task in each.tasks} for each in self.together}
        return {"gap to training alone": gaps} | {
            name: {
                **variant.summary(),
                "gap closed": {
                    each.method: {task: self.gap_closed(task, each.method, name) for task in each.tasks}
                    for each in variant.together
                    if each.method in gaps
                },
            }
            for name, variant in self.variants.items()
        }

    def records(self) -> list[dict[str, Any]]:
        """The rows of all reports, each with the method of training."""
        trainings = [(each.method, each) for each in self.together]
        trainings += [("trained alone", each) for each in self.alone.values()]
        for task, each in self.own_planes.items():
            trainings.append(("trained alone on its planes", replace(each, correct={task: each.correct[task]})))
        rows = [{"method": method, **row} for method, each in trainings for row in each.records()]
        for name, variant in self.variants.items():
            rows += [{**row, "method": f"{row['method']}, {name}"} for row in variant.records()]
        return rows

    def gap(self, task: str, report: MultiTaskAccuracyReport) -> tuple[float, float, float]:
        """Accuracy of a task trained alone minus that after joint training with all planes active, and the 95% interval.

        It is the sum of what the task loses to fewer planes, to joint training, and to the other active tasks
        (`report.cost(task)`). The intervals are of paired differences: seeds and examples are the same. Raises InputError if
        the seeds or the numbers of examples differ.
        """
        return _mean_lost(task, self._alone(task), report, report.together)

    def gap_closed(self, task: str, method: str, variant: str) -> tuple[float, float, float]:
        """Gap of a method less its gap in a variant, as `gap`: what the variant saves.

        Raises InputError if the variant is missing or lacks the method, or has other seeds or numbers of examples.
        """
        trained = entry(self.variants, variant, "variant")
        (before, seeds), (after, others) = (each._lost_by(task, method) for each in (self, trained))
        if seeds != others or len(before) != len(after):
            raise InputError(f"'{variant}' has seeds {others}, not {seeds}, or other texts: they cannot be paired")
        return mean_over_seeds(before - after, len(seeds), paired=True, farthest=2.0)

    def _lost_by(self, task: str, method: str) -> tuple[Float[np.ndarray, " examples"], tuple[int, ...]]:
        report = entry({each.method: each for each in self.together}, method, "training of the method")
        return _lost(task, self._alone(task), report, report.together), report.seeds

    def lost_to_fewer_planes(self, task: str) -> tuple[float, float, float]:
        """Accuracy of a task trained alone on all planes minus that on its planes only, as `gap`."""
        return _mean_lost(task, self._alone(task), self._on_own_planes(task), task)

    def lost_to_joint_training(self, task: str, report: MultiTaskAccuracyReport) -> tuple[float, float, float]:
        """Accuracy of a task trained alone on its planes minus that after joint training with its planes active, as `gap`."""
        return _mean_lost(task, self._on_own_planes(task), report, task)

    def _alone(self, task: str) -> MultiTaskAccuracyReport:
        return entry(self.alone, task, "training alone of")

    def _on_own_planes(self, task: str) -> MultiTaskAccuracyReport:
        return entry(self.own_planes, task, "training alone on its planes of")


def _mean_lost(
    task: str, alone: MultiTaskAccuracyReport, report: MultiTaskAccuracyReport, active: str
) -> tuple[float, float, float]:
    """Accuracy of a task trained alone minus that of another report with a set of active tasks."""
    return mean_over_seeds(_lost(task, alone, report, active), len(alone.seeds), paired=True)


def _lost(
    task: str, alone: MultiTaskAccuracyReport, report: MultiTaskAccuracyReport, active: str
) -> Float[np.ndarray, " examples"]:
    """1 for each example that only training alone gets right, -1 for one that only the other report gets right."""
    if alone.seeds != report.seeds:
        raise InputError(f"'{task}' alone has seeds {alone.seeds}, '{report.method}' {report.seeds}: they cannot be paired")
    before, after = (
        entry(entry(each.correct, task, "outcomes of"), chosen, f"outcomes of '{task}' with")
        for each, chosen in ((alone, task), (report, active))
    )
    if len(before) != len(after):
        raise InputError(f"'{task}' alone has {len(before)} outcomes, '{report.method}' {len(after)}: they cannot be paired")
    return np.asarray(before, float) - np.asarray(after)


def active_sets(task: str, tasks: Sequence[str]) -> list[str]:
    """The sets of active tasks with which a task is tested: none, the task, and all tasks."""
    return list(dict.fromkeys([BASE, task, join_names(tasks)]))
