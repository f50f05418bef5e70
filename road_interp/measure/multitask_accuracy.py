"""Whether classification heads keep their accuracy when the planes of other tasks are active beside their own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from road_interp.adapters.bank import BASE
from road_interp.errors import InputError
from road_interp.measure.intervals import check_seeds, interval, redrawn


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
        """95% bootstrap interval of that fraction, over seeds and examples."""
        return interval(redrawn(np.asarray([self.correct[task][active]]), len(self.seeds))[0])

    def cost(self, task: str) -> tuple[float, float, float]:
        """What the others' planes cost a task: accuracy with its own active minus that with all, and the 95% interval.

        The examples are the same on both sides, so that the interval is that of the paired difference.
        """
        own, both = redrawn(np.asarray([self.correct[task][active] for active in (task, self.together)]), len(self.seeds))
        return (self.accuracy(task, task) - self.accuracy(task, self.together), *interval(own - both))

    def summary(self) -> dict[str, Any]:
        """Accuracies by task and active set with their intervals, and what the others' planes cost each task."""
        rates = {
            task: {active: [self.accuracy(task, active), *self.interval(task, active)] for active in sets}
            for task, sets in self.correct.items()
        }
        return {"heads": rates, "cost": {task: list(self.cost(task)) for task in self.tasks}}

    @classmethod
    def over_seeds(cls, reports: Sequence[HeadsReport]) -> HeadsReport:
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
    """Trainings of the same tasks over the same seeds: together in one or several ways, and each task alone on all planes."""

    together: tuple[HeadsReport, ...]
    alone: Mapping[str, HeadsReport]

    def gap(self, task: str, report: HeadsReport) -> tuple[float, float, float]:
        """How much better a task does trained alone than with all planes active after a training together; 95% interval.

        Seeds and examples are the same on both sides: the interval is that of the paired difference.
        """
        alone = self.alone[task]
        if alone.seeds != report.seeds:
            raise InputError(f"'{task}' alone has seeds {alone.seeds}, '{report.method}' {report.seeds}: nothing to pair")
        sides = np.asarray([alone.correct[task][task], report.correct[task][report.together]])
        single, both = redrawn(sides, len(alone.seeds))
        return (float(sides[0].mean() - sides[1].mean()), *interval(single - both))

    def to_json(self) -> str:
        """All outcomes as JSON text, with the summaries beside them."""
        gaps = {report.method: {task: self.gap(task, report) for task in report.tasks} for report in self.together}
        together = [json.loads(report.to_json()) for report in self.together]
        alone = {task: json.loads(report.to_json()) for task, report in self.alone.items()}
        return json.dumps({"together": together, "alone": alone, "gap to training alone": gaps})

    @classmethod
    def from_json(cls, text: str) -> HeadsStudy:
        """The study that `to_json` wrote."""
        try:
            content = json.loads(text)
            alone = {task: _from_dict(report) for task, report in content["alone"].items()}
            return cls(tuple(map(_from_dict, content["together"])), alone)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"this is not the JSON of a study of heads ({error})") from None


def _from_dict(content: dict[str, Any]) -> HeadsReport:
    correct = {task: {active: tuple(outcomes) for active, outcomes in sets.items()} for task, sets in content["correct"].items()}
    return HeadsReport(content["model"], content["method"], tuple(content["tasks"]), tuple(content["seeds"]), correct)


def active_sets(task: str, tasks: Sequence[str]) -> list[str]:
    """What a task is tested with: nothing, its own planes, all planes."""
    return list(dict.fromkeys([BASE, task, "+".join(tasks)]))
