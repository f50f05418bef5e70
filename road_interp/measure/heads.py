"""Whether classification heads keep their accuracy when the planes of other tasks are active beside their own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from road_interp.bank import BASE
from road_interp.errors import InputError
from road_interp.measure.bootstrap import interval, redrawn


@dataclass(frozen=True)
class HeadsReport:
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
        """95% bootstrap interval of that fraction: seeds are drawn first, then examples within each."""
        return interval(redrawn(np.asarray([self.correct[task][active]]), len(self.seeds))[0])

    def loss(self, task: str) -> tuple[float, float, float]:
        """What the task loses when all planes are active instead of its own: difference of accuracies and its 95% interval.

        The examples are the same on both sides, so that the interval is that of the paired difference.
        """
        own, both = redrawn(np.asarray([self.correct[task][active] for active in (task, self.together)]), len(self.seeds))
        return (self.accuracy(task, task) - self.accuracy(task, self.together), *interval(own - both))

    def summary(self) -> dict[str, Any]:
        """Accuracies by task and active set with their intervals, and what each task loses."""
        rates = {
            task: {active: [self.accuracy(task, active), *self.interval(task, active)] for active in sets}
            for task, sets in self.correct.items()
        }
        return {"heads": rates, "loss when all are active": {task: list(self.loss(task)) for task in self.tasks}}

    @classmethod
    def over_seeds(cls, reports: Sequence[HeadsReport]) -> HeadsReport:
        """The reports of several seeds as one: same method and tasks."""
        first = reports[0]
        if any((each.method, each.tasks) != (first.method, first.tasks) for each in reports):
            raise InputError("only reports of one method and the same tasks can be put together")
        correct = {
            task: {active: tuple(x for each in reports for x in each.correct[task][active]) for active in sets}
            for task, sets in first.correct.items()
        }
        return cls(first.model, first.method, first.tasks, tuple(s for each in reports for s in each.seeds), correct)

    def to_json(self) -> str:
        """All outcomes as JSON text, with the summary beside them."""
        return json.dumps({**asdict(self), "summary": self.summary()})

    @classmethod
    def from_json(cls, text: str) -> HeadsReport:
        """The report that `to_json` wrote."""
        try:
            return _from_dict(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"this is not the JSON of heads ({error})") from None


@dataclass(frozen=True)
class HeadsStudy:
    """Trainings of the same tasks in several ways, together and alone, over the same seeds."""

    reports: tuple[HeadsReport, ...]

    def of(self, method: str) -> HeadsReport:
        """The report of one way."""
        for report in self.reports:
            if report.method == method:
                return report
        raise InputError(f"no training '{method}'; there are {', '.join(report.method for report in self.reports)}")

    def gap(self, task: str, method: str) -> tuple[float, float, float]:
        """How much better a task does when it is trained alone than with all planes active after `method`, and its 95% interval.

        Seeds and examples are the same on both sides: the interval is that of the paired difference.
        """
        alone, joint = self.of(f"{task} alone"), self.of(method)
        if alone.seeds != joint.seeds:
            raise InputError(f"'{task} alone' has seeds {alone.seeds}, '{method}' {joint.seeds}: nothing to pair")
        sides = np.asarray([alone.correct[task][task], joint.correct[task][joint.together]])
        single, together = redrawn(sides, len(alone.seeds))
        return (float(sides[0].mean() - sides[1].mean()), *interval(single - together))

    def to_json(self) -> str:
        """All outcomes as JSON text, with the summaries beside them."""
        joint = [report for report in self.reports if len(report.tasks) > 1]
        gaps = {report.method: {task: self.gap(task, report.method) for task in report.tasks} for report in joint}
        return json.dumps({"reports": [json.loads(report.to_json()) for report in self.reports], "gap to training alone": gaps})

    @classmethod
    def from_json(cls, text: str) -> HeadsStudy:
        """The study that `to_json` wrote."""
        try:
            return cls(tuple(map(_from_dict, json.loads(text)["reports"])))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"this is not the JSON of a study of heads ({error})") from None


def _from_dict(content: dict[str, Any]) -> HeadsReport:
    correct = {task: {active: tuple(outcomes) for active, outcomes in sets.items()} for task, sets in content["correct"].items()}
    return HeadsReport(content["model"], content["method"], tuple(content["tasks"]), tuple(content["seeds"]), correct)


def active_sets(task: str, tasks: Sequence[str]) -> list[str]:
    """What a task is tested with: nothing, its own planes, all planes."""
    return list(dict.fromkeys([BASE, task, "+".join(tasks)]))
