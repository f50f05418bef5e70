"""Accuracy by number of trained values: RoAd's variants and sites, and LoRA's ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from scipy import stats

from road_interp.arguments import checked_reports
from road_interp.errors import InputError
from road_interp.from_mapping import FieldError
from road_interp.measure.intervals import joined_seeds, wilson
from road_interp.results import Result


@dataclass(frozen=True)
class CapacityPoint:
    """One trained configuration, over several seeds.

    Attributes:
        family: the varied setting, such as "LoRA, rank" or "RoAd, layers".
        name: its value: the variant, sites or rank.
        parameters: number of trained values, without the head.
        percent: `parameters` as percentage of the backbone's weights.
        scores: accuracy on the test examples, one per seed.
        examples: number of test examples, which are the same for every seed.
        seeds: of the scores; empty in files of 0.1.0.
    """

    family: str
    name: str
    parameters: int
    percent: float
    scores: tuple[float, ...]
    examples: int
    seeds: tuple[int, ...] = ()

    @property
    def mean(self) -> float:
        """Mean accuracy over the seeds."""
        return float(np.mean(self.scores))

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the mean: Wilson's over test examples, widened by the standard error over seeds.

        The two are added in quadrature, because test texts and seeds are independent sources of variance. Wilson's interval has
        the number of examples of one seed, because all seeds share the test texts.
        """
        low, high = wilson(round(self.mean * self.examples), self.examples)
        count = len(self.scores)
        error = 0.0 if count < 2 else float(np.std(self.scores, ddof=1) / count**0.5 * stats.t.ppf(0.975, count - 1))
        below, above = self.mean - low, high - self.mean
        return max(self.mean - float(np.hypot(below, error)), 0.0), min(self.mean + float(np.hypot(above, error)), 1.0)


@dataclass(frozen=True)
class CapacityReport(Result):
    """Several trained configurations of one model on one task.

    Attributes:
        model, task: names of the base model and the data.
        points: in the order in which they were measured.
    """

    model: str
    task: str
    points: tuple[CapacityPoint, ...]

    def __post_init__(self) -> None:
        if not self.points or not all(point.scores for point in self.points):
            raise FieldError("points", "must hold one configuration at least, each with scores")

    @property
    def families(self) -> list[str]:
        """The families, in the order of the points."""
        return list(dict.fromkeys(point.family for point in self.points))

    def summary(self) -> dict[str, Any]:
        """Mean accuracy and 95% interval of every configuration."""
        return {f"{point.family}: {point.name}": [point.mean, *point.interval] for point in self.points}

    @classmethod
    def over_seeds(cls, reports: Sequence[CapacityReport]) -> CapacityReport:
        """Combine reports of several seeds; a configuration has the scores of every report that contains it.

        Raises InputError if models or tasks differ, if a configuration has another number of trained values or test examples
        than in an earlier report, or for a duplicate seed.
        """
        reports = checked_reports(cls, reports)
        if any((each.model, each.task) != (reports[0].model, reports[0].task) for each in reports):
            raise InputError("only reports of one model and one task can be combined")
        points: dict[tuple[str, str], CapacityPoint] = {}
        for point in chain.from_iterable(report.points for report in reports):
            earlier = points.setdefault((point.family, point.name), replace(point, scores=(), seeds=()))
            if replace(earlier, scores=(), seeds=()) != replace(point, scores=(), seeds=()):
                raise InputError(f"{point.name}: reports with other numbers of trained values or examples cannot be combined")
            seeds = joined_seeds([earlier.seeds, point.seeds])
            points[point.family, point.name] = replace(point, scores=earlier.scores + point.scores, seeds=seeds)
        return cls(reports[0].model, reports[0].task, tuple(points.values()))
