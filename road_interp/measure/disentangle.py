"""Whether the angle or the magnitude of frozen states predicts a label (paper, pilot study 2 and figure 2 right)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from road_interp.arguments import check_argument, checked_reports
from road_interp.data.metrics import METRICS
from road_interp.errors import InputError
from road_interp.measure.frozen_states import DRAWS, SPLITS, Features, SplitFeatures, random_basis
from road_interp.measure.intervals import joined_seeds, mean_over_seeds
from road_interp.measure.linear_probe import fit_probe
from road_interp.measure.two_layer_classifier import ARMS, FULL, MAGNITUDE, RANDOM, train_arm
from road_interp.progress import Progress, silent
from road_interp.results import Result, entry

CONSTANT = "constant answer"


@dataclass(frozen=True)
class Outcome:
    """Predictions of one classifier on the test texts.

    Attributes:
        name: of the arm or probe.
        numbers: width of its input.
        predictions: class indices, or numbers for regression; those of an arm are concatenated over seeds, those of random
            directions over draws.
        chosen: hyperparameters selected on the validation texts: learning rates of an arm, by seed; C of a probe, by draw.
    """

    name: str
    numbers: int
    predictions: tuple[float, ...]
    chosen: tuple[float, ...]


@dataclass(frozen=True)
class DisentangleReport(Result):
    """The four arms, the probes and a constant answer on the same test texts.

    Attributes:
        model, task: names of the backbone and the data.
        metric: "accuracy", "matthews" or "pearson".
        seeds: of the arms' classifiers and of the random backbones.
        labels: of the test texts.
        outcomes: of the arms, the probes, and the constant answer: the most frequent class, or mean, of the training texts.
        place: name of the read point of the states.
    """

    model: str
    task: str
    metric: str
    seeds: tuple[int, ...]
    labels: tuple[float, ...]
    outcomes: tuple[Outcome, ...]
    place: str = ""

    @property
    def arms(self) -> tuple[Outcome, ...]:
        """Outcomes of the two-layer classifiers."""
        return tuple(self.of(arm) for arm in ARMS)

    @property
    def probes(self) -> tuple[Outcome, ...]:
        """Outcomes of the linear classifiers."""
        return tuple(outcome for outcome in self.outcomes if outcome.name not in (*ARMS, CONSTANT))

    @property
    def chance(self) -> float:
        """Score of the constant answer."""
        return self.score(CONSTANT)[0]

    def of(self, name: str) -> Outcome:
        """The outcome of one arm or probe. Raises InputError if there is none."""
        return entry({outcome.name: outcome for outcome in self.outcomes}, name, "outcome")

    def score(self, name: str) -> tuple[float, float, float]:
        """The metric on the test texts, mean over seeds, with its 95% interval over texts and, for an arm, seeds.

        Draws of random directions count as seeds.
        """
        return self._with_interval(self._mean(name), self._values(name), paired=False)

    def gap(self, name: str, other: str) -> tuple[float, float, float]:
        """Score of one outcome minus that of another, with the 95% interval of the paired difference: same texts and seeds.

        Raises InputError for an outcome of seeds beside one of draws, which cannot be paired.
        """
        one, another = self._values(name), self._values(other)
        if len(one) != len(another) and 1 not in (len(one), len(another)):
            raise InputError(f"'{name}' has {len(one)} seeds or draws, '{other}' {len(another)}: they cannot be paired")
        difference = one - another
        return self._with_interval(self._mean(name) - self._mean(other), difference, paired=True)

    def summary(self) -> dict[str, Any]:
        """Scores with their intervals, and the gap of each arm to the full layer."""
        scores = {outcome.name: [*self.score(outcome.name)] for outcome in self.outcomes}
        return {"scores": scores, "behind the full layer": {arm: self.gap(FULL, arm) for arm in ARMS[1:]}}

    def records(self) -> list[dict[str, Any]]:
        """A row per arm and probe, with its score, and for the constant answer."""
        return [{"name": each.name, "numbers": each.numbers, self.metric: self.score(each.name)} for each in self.outcomes]

    @classmethod
    def over_seeds(cls, reports: Sequence[DisentangleReport]) -> DisentangleReport:
        """Combine reports of several seeds. Raises InputError if model, task, metric, read point, texts or probes differ."""
        reports = checked_reports(cls, reports)
        first = reports[0]
        for each in reports:
            if replace(each, seeds=(), outcomes=()) != replace(first, seeds=(), outcomes=()):
                raise InputError("only reports of one model, task, metric and read point, on the same texts, can be combined")
            if each.probes != first.probes:
                raise InputError("the probes differ, although they do not depend on the seed")
        seeds = joined_seeds([each.seeds for each in reports], [len(each.of(FULL).predictions) for each in reports])
        outcomes = []
        for outcome in first.outcomes:
            same = [each.of(outcome.name) for each in reports]
            if outcome.name in ARMS:
                predictions = tuple(value for each in same for value in each.predictions)
                outcome = replace(outcome, predictions=predictions, chosen=tuple(rate for each in same for rate in each.chosen))
            outcomes.append(outcome)
        return replace(first, seeds=seeds, outcomes=tuple(outcomes), provenance=None)

    def _with_interval(self, value: float, values: Float[np.ndarray, "seeds texts"], paired: bool) -> tuple[float, float, float]:
        if self.metric == "accuracy":
            return mean_over_seeds(values.ravel(), len(values), paired)
        centred = values.ravel() + value - values.mean()  # before the interval is cut at the farthest values
        return mean_over_seeds(centred, len(values), paired=True, farthest=2.0 if paired else 1.0)

    def _mean(self, name: str) -> float:
        labels = np.asarray(self.labels)
        return float(np.mean([METRICS[self.metric](labels, predictions) for predictions in self._predictions(name)]))

    def _predictions(self, name: str) -> Float[np.ndarray, "seeds texts"]:
        """The predictions by seed or draw; other probes have one row."""
        return np.asarray(self.of(name).predictions).reshape(-1, len(self.labels))

    def _values(self, name: str) -> Float[np.ndarray, "seeds texts"]:
        """Jackknife pseudo-values of the metric, by seed or draw."""
        labels = np.asarray(self.labels)
        return np.stack([_pseudo_values(self.metric, labels, predictions) for predictions in self._predictions(name)])


def _pseudo_values(
    metric: str, labels: Float[np.ndarray, " texts"], predictions: Float[np.ndarray, " texts"]
) -> Float[np.ndarray, " texts"]:
    """What every text adds to the metric (Tukey 1958): n times the metric less n - 1 times that of the other texts.

    Those of an accuracy are its outcomes, 0 or 1. Pearson is the correlation of numbers, Matthews that of one-hot classes
    (Gorodkin 2004): both follow from means over texts.
    """
    if metric == "accuracy":
        return (labels == predictions).astype(float)
    if metric == "matthews":
        classes = np.union1d(labels, predictions)[:, None]
        x, y = (classes == labels).astype(float), (classes == predictions).astype(float)
    else:
        x, y = ((values - values.mean())[None] / (values.std() or 1) for values in (labels, predictions))
    rows, count = np.stack([(x * y).sum(0), (x * x).sum(0), (y * y).sum(0), *x, *y]), len(labels)
    total = rows.sum(1, keepdims=True)
    others = (total - rows) / max(count - 1, 1)
    return count * _correlation(total / count) - (count - 1) * _correlation(others)


def _correlation(means: Float[np.ndarray, "moments columns"]) -> Float[np.ndarray, " columns"]:
    """Correlation from the means of xy, xx and yy, summed over rows, and of every row of x and y; 0 where one is constant."""
    moments, x_mean, y_mean = np.split(means, [3, 3 + (len(means) - 3) // 2])
    covariance, x_spread, y_spread = moments - [(x_mean * y_mean).sum(0), (x_mean**2).sum(0), (y_mean**2).sum(0)]
    product = x_spread * y_spread
    return np.divide(covariance, np.sqrt(np.abs(product)), out=np.zeros_like(product), where=product > 1e-12)


def probe_inputs(features: Features) -> dict[str, Float[np.ndarray, "draws texts numbers"]]:
    """Inputs of the probes: states, directions, and magnitudes as one number or several.

    Two controls of the norms are drawn DRAWS times, others have one draw: as many random directions of the state, for their
    number, and one random direction at every read point, for the places where they are read.
    """
    norm = np.linalg.norm(features.states, axis=1, keepdims=True)
    unit = features.states / np.maximum(norm, 1e-12)
    chunks = features.chunk_norms.reshape(len(unit), -1)
    of_state = features.states.reshape(len(unit), features.chunk_norms.shape[2], -1)
    shares = features.chunk_norms / np.maximum(features.norms, 1e-12)[:, :, None]
    width, count = features.states.shape[1], features.norms.shape[1]
    directions = np.stack([random_basis(width, seed)[:, :count].numpy() for seed in range(DRAWS)])
    inputs = {
        "states": features.states,
        "unit states": unit,
        "norm": norm,
        "norms at all read points": features.norms,
        "as many random directions": features.states @ directions,
        "a random direction at all read points": features.random_directions,
        "chunk norms at the last block": np.linalg.norm(of_state, axis=2),
        "chunk norms at all read points": chunks,
        "chunk norms over the whole norm": shares.reshape(len(unit), -1),
        "chunk norms in a random basis": features.random_chunk_norms.reshape(len(unit), -1),
        "unit states and all norms": np.hstack([unit, features.norms, chunks]),
    }
    return {name: values if values.ndim == 3 else values[None] for name, values in inputs.items()}


def _probe(
    name: str,
    inputs: Mapping[str, Float[np.ndarray, "draws texts numbers"]],
    splits: SplitFeatures,
    metric: str,
    num_labels: int,
) -> Outcome:
    """Linear probes of standardised inputs, one per draw; C is selected on the validation texts, the smaller one in a tie.

    Args:
        inputs: by split.
    """
    predictions, chosen = [], []
    for train, validation, test in zip(*(inputs[split] for split in SPLITS), strict=True):
        examples = (train, splits["train"].labels), (validation, splits["validation"].labels)
        best, C = fit_probe(*examples, metric, num_labels == 1)
        predictions += best.predict(test).astype(float).tolist()
        chosen.append(C)
    return Outcome(name, inputs["test"].shape[2], tuple(predictions), tuple(chosen))


def _arm(arm: str, by_seed: Mapping[int, SplitFeatures], metric: str, num_labels: int) -> Outcome:
    predictions, chosen = [], []
    for seed, splits in by_seed.items():
        classifier, rate = train_arm(arm, splits, metric, num_labels, seed)
        predictions += classifier.predict(splits["test"].states).tolist()
        chosen.append(rate)
    numbers = 1 if arm == MAGNITUDE else splits["test"].states.shape[1]
    return Outcome(arm, numbers, tuple(predictions), tuple(chosen))


def _constant(splits: SplitFeatures, num_labels: int) -> Outcome:
    labels = splits["train"].labels
    answer = labels.mean() if num_labels == 1 else np.bincount(labels).argmax()
    return Outcome(CONSTANT, 0, (float(answer),) * len(splits["test"].labels), ())


def disentangle(
    features: SplitFeatures,
    random: Mapping[int, SplitFeatures],
    *,
    metric: str,
    num_labels: int,
    model: str,
    task: str,
    progress: Progress = silent,
) -> DisentangleReport:
    """Train the four arms with every seed and fit the probes, select them on the validation texts and score the test texts.

    The magnitude of a state is one number per text. The probes measure how well several norms per text predict the label.

    Args:
        features: of the pretrained backbone, by split ("train", "validation", "test").
        random: by seed, features of a randomly initialised backbone of the same configuration on the same texts.
        metric: "accuracy", "matthews" or "pearson".
        num_labels: number of classes, or 1 for regression, which needs "pearson".
        model, task: names for the report.

    Raises:
        InputError: features that are not of the same texts, read point and width, or do not fit the labels or the metric.
    """
    for given, make in ((features, "features by split"), (random, "features by split, by seed")):
        check_argument("measure.disentangle", given, Mapping, f"{make}, as read_features returns them")
    _check(features, random, metric, num_labels)
    outcomes = []
    for arm in ARMS:
        progress(arm)
        outcomes.append(_arm(arm, random if arm == RANDOM else dict.fromkeys(random, features), metric, num_labels))
    inputs = {split: probe_inputs(features[split]) for split in SPLITS}
    for name in inputs["test"]:
        progress(name)
        outcomes.append(_probe(name, {split: each[name] for split, each in inputs.items()}, features, metric, num_labels))
    outcomes.append(_constant(features, num_labels))
    labels = tuple(features["test"].labels.astype(float).tolist())
    return DisentangleReport(model, task, metric, tuple(random), labels, tuple(outcomes), features["test"].place)


def _check(features: SplitFeatures, random: Mapping[int, SplitFeatures], metric: str, num_labels: int) -> None:
    if metric not in METRICS:
        raise InputError(f"metric '{metric}' is not one of {', '.join(METRICS)}")
    if (metric == "pearson") != (num_labels == 1):
        raise InputError(f"metric '{metric}' does not fit num_labels {num_labels}: pearson is for regression, num_labels 1")
    if not random:
        raise InputError("no seed: give the features of at least one random backbone")
    for argument, splits in {"features": features, **{f"random[{seed}]": each for seed, each in random.items()}}.items():
        for split in SPLITS:
            if split not in splits:
                raise InputError(f"{argument} has no split '{split}'; it has {', '.join(splits) or 'none'}")
            _check_split(f"{argument}, {split}", splits[split], features[split], num_labels)
    if len(np.unique(features["train"].labels)) < 2:
        raise InputError("all training labels are the same")


def _check_split(name: str, split: Features, pretrained: Features, num_labels: int) -> None:
    check_argument("measure.disentangle", split, Features, "measure.read_features(model, batches, token)")
    if not len(split.states):
        raise InputError(f"{name}: there are no texts")
    if split.states.dtype != np.float32:
        raise InputError(f"{name}: the states are {split.states.dtype}: give states.astype(numpy.float32)")
    if split.states.shape != pretrained.states.shape or not np.array_equal(split.labels, pretrained.labels):
        raise InputError(f"{name}: other texts or another width than those of the pretrained backbone")
    if split.place != pretrained.place:
        raise InputError(f"{name}: states of {split.place}, those of the pretrained backbone are of {pretrained.place}")
    if split.states.shape[1] % split.chunk_norms.shape[2]:
        chunks = split.chunk_norms.shape[2]
        raise InputError(f"{name}: states of width {split.states.shape[1]} do not divide into {chunks} heads")
    directions = split.random_directions.shape[1]
    if not len(split.states) == len(split.chunk_norms) == len(split.random_chunk_norms) == directions == len(split.labels):
        sizes = f"{len(split.states)} states, {len(split.chunk_norms)} norms, {directions} directions, {len(split.labels)} labels"
        raise InputError(f"{name}: {sizes}")
    read = (split.states, split.chunk_norms, split.random_chunk_norms, split.random_directions, split.labels)
    if not all(np.isfinite(values).all() for values in read):
        raise InputError(f"{name}: a state, norm or label is not finite")
    if num_labels > 1 and not (split.labels.dtype.kind in "iu" and np.isin(split.labels, np.arange(num_labels)).all()):
        raise InputError(f"{name}: a label is not one of the classes 0 to {num_labels - 1}, as whole numbers")
