"""Whether classification heads keep their accuracy when the planes of other tasks are active beside their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from road_interp.adapters.bank import BASE
from road_interp.errors import InputError
from road_interp.measure.intervals import bootstrap_means, check_seeds, interval
from road_interp.results import Result


@dataclass(frozen=True)
class MultiTaskAccuracyReport(Result):
    """Outcomes on the test examples of every task, with several sets of planes active, possibly of several seeds.

    Attributes:
        model: name of the base model.
        method: how the tasks were trained.
        tasks: in the order of their planes.
        seeds: of the trainings; every tuple holds the examples of all seeds, one after the other.
        correct: by task and active set ("__base__", the task alone, all tasks), example by example.
    """

    model: str
    method: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    correct: Mapping[str, Mapping[str, tuple[bool, ...]]]

    @property
    def together(self) -> str:
        """The active set of all tasks."""
        return "+".join(self.tasks)

    def accuracy(self, task: str, active: str) -> float:
        """Fraction of the task's test examples that its head gets right."""
        return float(np.mean(self.correct[task][active]))

    def interval(self, task: str, active: str) -> tuple[float, float]:
        """95% bootstrap interval of that fraction, over seeds and examples."""
        return interval(bootstrap_means(np.asarray([self.correct[task][active]]), len(self.seeds))[0])

    def cost(self, task: str) -> tuple[float, float, float]:
        """What the others' planes cost a task: accuracy with its own active minus that with all, and the 95% interval.

        The examples are the same on both sides, so that the interval is that of the paired difference.
        """
        own, both = bootstrap_means(np.asarray([self.correct[task][active] for active in (task, self.together)]), len(self.seeds))
        return (self.accuracy(task, task) - self.accuracy(task, self.together), *interval(own - both))

    def summary(self) -> dict[str, Any]:
        """Accuracies by task and active set with their intervals, and what the others' planes cost each task."""
        rates = {
            task: {active: [self.accuracy(task, active), *self.interval(task, active)] for active in sets}
            for task, sets in self.correct.items()
        }
        return {"accuracy": rates, "cost": {task: list(self.cost(task)) for task in self.tasks}}

    @classmethod
    def over_seeds(cls, reports: Sequence[MultiTaskAccuracyReport]) -> MultiTaskAccuracyReport:
        """The reports of several seeds as one: same method and tasks."""
        first = reports[0]
        if any((each.method, each.tasks) != (first.method, first.tasks) for each in reports):
            raise InputError("only reports of one method and the same tasks can be put together")
        check_seeds([each.seeds for each in reports], [len(each.correct[first.tasks[0]][first.tasks[0]]) for each in reports])
        correct = {
            task: {active: tuple(x for each in reports for x in each.correct[task][active]) for active in sets}
            for task, sets in first.correct.items()
        }
        return cls(first.model, first.method, first.tasks, tuple(s for each in reports for s in each.seeds), correct)


@dataclass(frozen=True)
class MultiTaskAccuracyStudy(Result):
    """Trainings of the same tasks over the same seeds: together in one or several ways, and each task alone on all planes."""

    together: tuple[MultiTaskAccuracyReport, ...]
    alone: Mapping[str, MultiTaskAccuracyReport]

    def summary(self) -> dict[str, Any]:
        """How far each training together stays behind the tasks trained alone."""
        return {
            "gap to training alone": {each.method: {task: self.gap(task, each) for task in each.tasks} for each in self.together}
        }

    def gap(self, task: str, report: MultiTaskAccuracyReport) -> tuple[float, float, float]:
        """How much better a task does trained alone than with all planes active after a training together; 95% interval.

        Seeds and examples are the same on both sides: the interval is that of the paired difference.
        """
        alone = self.alone[task]
        if alone.seeds != report.seeds:
            raise InputError(f"'{task}' alone has seeds {alone.seeds}, '{report.method}' {report.seeds}: nothing to pair")
        sides = np.asarray([alone.correct[task][task], report.correct[task][report.together]])
        single, both = bootstrap_means(sides, len(alone.seeds))
        return (float(sides[0].mean() - sides[1].mean()), *interval(single - both))


def active_sets(task: str, tasks: Sequence[str]) -> list[str]:
    """What a task is tested with: nothing, its own planes, all planes."""
    return list(dict.fromkeys([BASE, task, "+".join(tasks)]))
