"""Interference between adapters of different tasks: shared planes, angle between maps, and lost accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.arguments import check_argument, check_callable, checked_reports
from road_interp.errors import InputError
from road_interp.from_mapping import FieldError
from road_interp.measure.ablation import ScoreFn
from road_interp.measure.angles import angles, check_magnitudes
from road_interp.measure.intervals import joined_outcomes, joined_seeds, mean_over_divisions, mean_over_seeds, same_counts
from road_interp.progress import Progress, silent
from road_interp.results import Result, entry

NOTHING = "nothing"
TOP = 0.1  # fraction of the planes whose overlap is measured: those with the largest |angle|


@dataclass(frozen=True)
class InterferenceReport(Result):
    """Outcomes of every task with its own adapter, and with each other adapter composed on it.

    Attributes:
        model: name of the base model.
        names: of the adapters, in the order in which they were given.
        seeds: of the trainings.
        overlap: for every pair of adapters, the fraction of their most rotated planes (a tenth of all) that they share; by chance
            a tenth. Planes with angle 0 are not counted. Mean over seeds.
        angle: for every pair of adapters, the angle between their vectors of all angles (radians) and log magnitudes, in degrees;
            90 for unrelated adapters. Mean over seeds.
        correct: by scored task and by the adapter composed on its own ("nothing", or the adapter's name), whether each test
            example is right, concatenated over seeds.
        same_examples: whether the test examples of all seeds are the same.
    """

    model: str
    names: tuple[str, ...]
    seeds: tuple[int, ...]
    overlap: tuple[tuple[float, ...], ...]
    angle: tuple[tuple[float, ...], ...]
    correct: Mapping[str, Mapping[str, tuple[bool, ...]]]
    same_examples: bool = True

    def __post_init__(self) -> None:
        if unknown := {*self.correct, *(other for rows in self.correct.values() for other in rows)} - {NOTHING, *self.names}:
            raise FieldError("correct", f"has outcomes of '{min(unknown)}', which is not one of the adapters")
        for task, rows in self.correct.items():
            if NOTHING not in rows:
                raise FieldError("correct", f"has no outcomes of '{task}' with '{NOTHING}'")
            if not same_counts(rows.values(), self.seeds):
                raise FieldError("correct", f"must hold as many outcomes of '{task}' for each seed and adapter")

    def accuracy(self, task: str, with_: str = NOTHING) -> tuple[float, float, float]:
        """Accuracy of a task with an adapter composed on its own, and its 95% interval over seeds and examples."""
        return self._mean(self._outcomes(task, with_), paired=False)

    def others(self, task: str) -> list[str]:
        """The adapters that were composed on that of a task."""
        return [other for other in entry(self.correct, task, "outcomes of") if other != NOTHING]

    def cost(self, task: str, other: str) -> tuple[float, float, float]:
        """Accuracy of a task without another adapter minus that with it, and the 95% interval of the paired difference."""
        lost = self._outcomes(task, NOTHING) - self._outcomes(task, other)
        return self._mean(lost, paired=True)

    def _mean(self, outcomes: Float[np.ndarray, " examples"], paired: bool) -> tuple[float, float, float]:
        mean = mean_over_seeds if self.same_examples else mean_over_divisions
        return mean(outcomes, len(self.seeds), paired)

    def _outcomes(self, task: str, other: str) -> Float[np.ndarray, " examples"]:
        """Raises InputError for an unknown task or adapter."""
        return np.asarray(entry(entry(self.correct, task, "outcomes of"), other, f"outcomes of '{task}' with"), float)

    def summary(self) -> dict[str, Any]:
        """Cost of every adapter for every task, with intervals."""
        return {task: {other: self.cost(task, other) for other in self.others(task)} for task in self.correct}

    def records(self) -> list[dict[str, Any]]:
        """A row per task and adapter composed on its own."""
        return [
            {"task": task, "composed_with": other, "accuracy": self.accuracy(task, other), "cost": self.cost(task, other)}
            for task, others in self.correct.items()
            for other in others
        ]

    @classmethod
    def over_seeds(cls, reports: Sequence[InterferenceReport]) -> InterferenceReport:
        """Combine reports of several seeds. Raises InputError if models, adapters or scored tasks differ."""
        reports = checked_reports(cls, reports)
        first = reports[0]
        measured = {(each.model, each.names, each.same_examples, *each.correct) for each in reports}
        if len(measured) > 1:
            raise InputError("only reports of one model with the same adapters, tasks and choice of examples can be combined")
        examples = [[len(each.correct[task][NOTHING]) for each in reports] for task in first.correct]
        seeds = joined_seeds([each.seeds for each in reports], *examples)
        correct = joined_outcomes([each.correct for each in reports])
        weights = [len(each.seeds) for each in reports]
        tables = ([getattr(each, name) for each in reports] for name in ("overlap", "angle"))
        overlap, angle = (_nested(np.average(of_reports, axis=0, weights=weights)) for of_reports in tables)
        return cls(first.model, first.names, seeds, overlap, angle, correct, first.same_examples)


def interference(
    adapters: Mapping[str, RoadAdapter],
    scores: Mapping[str, ScoreFn],
    *,
    model: str,
    seed: int,
    progress: Progress = silent,
) -> InterferenceReport:
    """Compare adapters at the same sites, and score every task with each other adapter composed on its own.

    Args:
        adapters: by name.
        scores: by name of an adapter, the function that scores its task with any adapter.
        model: name of the base model.
        seed: of the trainings.

    Raises:
        InputError: fewer than two adapters, one named "nothing", adapters that cannot be composed, a task without an adapter,
            or a plane of magnitude 0.
    """
    check_argument("measure.interference", adapters, Mapping, "a dict of adapters by name")
    check_argument("measure.interference", scores, Mapping, "a dict of scoring functions by name of an adapter")
    for name, score in scores.items():
        check_callable("measure.interference", f"scores['{name}']", score, "a function of an adapter, such as make_scorer(run)")
    adapters = {name: RoadAdapter.of(each) for name, each in adapters.items()}
    names = list(adapters)
    if len(names) < 2:
        raise InputError(f"interference needs at least two adapters, not {len(names)}")
    if NOTHING in adapters:
        raise InputError(f"an adapter cannot be named '{NOTHING}', which stands for no other adapter")
    if unknown := [name for name in scores if name not in adapters]:
        raise InputError(f"task '{unknown[0]}' has no adapter; the adapters are {', '.join(names)}")
    products = {(own, other): adapters[other] @ adapters[own] for own in names for other in names if other != own}
    sites = [site.name for site in adapters[names[0]].sites]  # adapters may have the same ones in another order
    maps = {name: _logarithm(adapter, sites) for name, adapter in adapters.items()}
    overlap = [[_overlap(maps[one], maps[other]) for other in names] for one in names]
    angle = [[_angle(maps[one], maps[other]) for other in names] for one in names]
    correct: dict[str, dict[str, tuple[bool, ...]]] = {}
    for own, score in scores.items():
        progress(own)
        correct[own] = {NOTHING: tuple(map(bool, score(adapters[own])))}
        for other in names:
            if other != own:
                progress(f"{own} with {other}")
                correct[own][other] = tuple(map(bool, score(products[own, other])))
    same = all(getattr(score, "same_examples", True) for score in scores.values())
    return InterferenceReport(model, tuple(names), (seed,), _nested(overlap), _nested(angle), correct, same)


def _logarithm(adapter: RoadAdapter, names: Sequence[str]) -> Float[np.ndarray, "2 planes"]:
    """Angle (radians) and log magnitude of every plane, with the sites in the order of `names`."""
    by_name = {site.name: site for site in angles(adapter).sites}
    sites = [by_name[name] for name in names]
    check_magnitudes(sites)
    angle, magnitude = (np.concatenate([getattr(site, name) for site in sites]) for name in ("angle", "magnitude"))
    return np.stack([angle, np.log(magnitude)])


def _overlap(first: Float[np.ndarray, "2 planes"], second: Float[np.ndarray, "2 planes"]) -> float:
    """Fraction of the most rotated planes that two maps share."""
    count = max(1, round(TOP * first.shape[1]))
    sizes = (np.abs(each[0]) for each in (first, second))
    top = [{plane for plane in np.argsort(-size, kind="stable")[:count].tolist() if size[plane] > 0} for size in sizes]
    return len(top[0] & top[1]) / max(1, *map(len, top))


def _angle(first: Float[np.ndarray, "2 planes"], second: Float[np.ndarray, "2 planes"]) -> float:
    """Angle between two maps in degrees; 90 if one is the identity."""
    norms = np.linalg.norm(first) * np.linalg.norm(second)
    if norms == 0:
        return 90.0
    return float(np.degrees(np.arccos(np.clip((first * second).sum() / norms, -1, 1))))


def _nested(rows: Sequence[Sequence[float]] | np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in rows)
