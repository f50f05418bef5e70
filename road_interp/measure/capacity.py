"""How well a task is learned by how much is trained: RoAd's variants and places beside LoRA's ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from scipy import stats

from road_interp.errors import InputError
from road_interp.measure.intervals import wilson
from road_interp.results import Result


@dataclass(frozen=True)
class CapacityPoint:
    """One way to train, over several seeds.

    Attributes:
        family: what is varied, such as "LoRA, rank" or "RoAd, layers".
        name: the variant, places or rank.
        parameters: trained values, the head left out.
        percent: of the backbone's weights.
        scores: accuracy on the test examples, one per seed.
        examples: number of test examples, the same ones for every seed.
    """

    family: str
    name: str
    parameters: int
    percent: float
    scores: tuple[float, ...]
    examples: int

    @property
    def mean(self) -> float:
        """Mean accuracy over the seeds."""
        return float(np.mean(self.scores))

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the mean over test examples (Wilson, for one seed's examples) widened by the seeds' standard error.

        Two sources of chance: which texts are tested, the same ones for all seeds, and which seed was drawn.
        """
        low, high = wilson(round(self.mean * self.examples), self.examples)
        count = len(self.scores)
        error = 0.0 if count < 2 else float(np.std(self.scores, ddof=1) / count**0.5 * stats.t.ppf(0.975, count - 1))
        below, above = self.mean - low, high - self.mean
        return self.mean - float(np.hypot(below, error)), self.mean + float(np.hypot(above, error))


@dataclass(frozen=True)
class CapacityReport(Result):
    """Several ways to train the same model on the same task.

    Attributes:
        model, task: names.
        points: in the order in which they were measured.
    """

    model: str
    task: str
    points: tuple[CapacityPoint, ...]

    @property
    def families(self) -> list[str]:
        """What is varied, in order."""
        return list(dict.fromkeys(point.family for point in self.points))

    def summary(self) -> dict[str, Any]:
        """Mean and interval of every way."""
        return {f"{point.family}: {point.name}": [point.mean, *point.interval] for point in self.points}

    @classmethod
    def over_seeds(cls, reports: Sequence[CapacityReport]) -> CapacityReport:
        """Reports of one seed each as one: a way has a score for every report that holds it.

        Raises InputError where a way trains or is tested on another number of values or examples than in an earlier report.
        """
        points: dict[tuple[str, str], CapacityPoint] = {}
        for point in chain.from_iterable(report.points for report in reports):
            earlier = points.setdefault((point.family, point.name), replace(point, scores=()))
            if replace(earlier, scores=()) != replace(point, scores=()):
                raise InputError(f"{point.name}: only as many trained values and as many examples can be put together")
            points[point.family, point.name] = replace(point, scores=earlier.scores + point.scores)
        return cls(reports[0].model, reports[0].task, tuple(points.values()))
