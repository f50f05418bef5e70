"""Accuracy of several methods of fine-tuning by their share of trained weights, for several models, on the same test texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from road_interp.errors import InputError
from road_interp.from_mapping import FieldError
from road_interp.measure.intervals import joined_seeds, mean_over_seeds
from road_interp.results import Result, entry


@dataclass(frozen=True)
class MethodOutcomes(Result):
    """The outcomes of one training.

    Attributes:
        model, task, method: names.
        seed: of the training.
        learning_rate: of the training.
        parameters: number of trained values, without the head.
        percent: `parameters` as percentage of the backbone's weights.
        validation: accuracy on the validation texts.
        correct: whether each test text is classified rightly, in an order that all trainings of the model on the task share.
        contained: whether each test text stands word by word in a training text; empty for pairs of texts.
    """

    model: str
    task: str
    method: str
    seed: int
    learning_rate: float
    parameters: int
    percent: float
    validation: float
    correct: tuple[bool, ...]
    contained: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if self.contained and len(self.contained) != len(self.correct):
            raise FieldError("contained", f"must have as many values as correct, {len(self.correct)}")

    @property
    def accuracy(self) -> float:
        """Fraction of the test texts that are classified rightly."""
        return float(np.mean(self.correct))


@dataclass(frozen=True)
class ParameterShareReport(Result):
    """The trainings of several methods, models and tasks, by condition; those of one condition differ in the seed only.

    Raises InputError for a condition whose trainings have different settings, equal seeds or other numbers of texts.
    """

    trainings: Mapping[str, tuple[MethodOutcomes, ...]]

    def __post_init__(self) -> None:
        for slug, each in self.trainings.items():
            if not each or not all(one.correct for one in each):
                raise InputError(f"the trainings of '{slug}' must be one at least, each with outcomes")
            if len({(one.model, one.task, one.method, one.learning_rate, one.parameters) for one in each}) > 1:
                raise InputError(f"the trainings of '{slug}' differ in more than the seed, such as their learning rates")
            joined_seeds([(one.seed,) for one in each], [len(one.correct) for one in each])

    def accuracy(self, slug: str) -> tuple[float, float, float]:
        """Accuracy of a condition with its 95% interval over seeds and texts."""
        found = self._of(slug)
        return mean_over_seeds(np.concatenate([_correct(each) for each in found]), len(found))

    def difference(self, slug: str, other: str, contained: bool | None = None) -> tuple[float, float, float]:
        """Accuracy of one condition less that of another of the same model and task, with the 95% interval over seeds and texts.

        Differences are paired by text and seed.

        Args:
            contained: of the test texts that stand in a training text, or of the others; of all by default.

        Raises:
            InputError: conditions that cannot be paired, or whose trainings have no such texts, or not the same.
        """
        pairs = [(one, two) for one in self._of(slug) for two in self._of(other) if one.seed == two.seed]
        if not pairs or any((one.model, one.task) != (two.model, two.task) for one, two in pairs):
            raise InputError(f"'{slug}' and '{other}' have no seed of one model and task in common")
        if any(len(one.correct) != len(two.correct) for one, two in pairs):
            raise InputError(f"'{slug}' and '{other}' have other numbers of texts: they cannot be paired")
        differences = np.stack([_correct(one).astype(float) - _correct(two) for one, two in pairs])
        if contained is not None:
            masks = {each.contained for pair in pairs for each in pair}
            if len(masks) > 1 or contained not in (mask := next(iter(masks))):
                raise InputError(f"'{slug}' and '{other}' cannot be divided by whether they are in a training text")
            differences = differences[:, np.asarray(mask) == contained]
        return mean_over_seeds(differences.ravel(), len(pairs), paired=True)

    def summary(self) -> dict[str, Any]:
        """Accuracies with intervals, by condition."""
        return {slug: [*self.accuracy(slug)] for slug in self.trainings}

    def records(self) -> list[dict[str, Any]]:
        """A row per condition, with the number of its seeds."""
        names = ("model", "task", "method", "parameters", "percent")
        return [
            {**{name: getattr(each[0], name) for name in names}, "seeds": len(each), "accuracy": self.accuracy(slug)}
            for slug, each in self.trainings.items()
        ]

    def _of(self, slug: str) -> tuple[MethodOutcomes, ...]:
        return entry(self.trainings, slug, "condition")


def _correct(outcomes: MethodOutcomes) -> Bool[np.ndarray, " texts"]:
    return np.asarray(outcomes.correct)
