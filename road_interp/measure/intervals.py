"""Confidence intervals of rates over seeds and examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import stats

from road_interp.errors import InputError

DRAWS = 2000  # bootstrap samples
FEWEST = 3  # clusters, of which an interval says something
RARE = 5  # successes or failures; the interval of a rate with fewer is not symmetric
NORMAL = float(stats.norm.ppf(0.975))
CORRELATION = 0.1  # of two outcomes with the same clusters, where too few differ to estimate it


def mean_over_seeds(
    outcomes: Shaped[np.ndarray, " examples"], seeds: int, paired: bool = False, farthest: float = 1.0
) -> tuple[float, float, float]:
    """Mean over seeds and examples, with its 95% interval from variance components.

    Seeds and examples are both random (two crossed random effects). The variance of the mean is that of the seeds' means plus
    that of the examples' means less that of the residual, which both contain; its degrees of freedom follow from Satterthwaite
    (1946). So three seeds that differ give a wide interval, and seeds that agree give that of the examples. Equal outcomes have
    no variance: a rate has the Wilson interval of the examples of one seed, and a difference its width on either side. The
    outcomes of one seed that are all 0 or 1 have the Wilson interval, too. With fewer than RARE successes or failures, in as many
    trials as have the variance of the mean, any other rate has at either end the wider one of both intervals. Student's quantile
    stands in Wilson's rule, as in Korn & Graubard's (1998) of surveys, so that it is wide where few seeds say what their
    variance is. Where fewer than RARE examples differ, the interval of a difference is not narrower than that of equal outcomes.

    Args:
        outcomes: concatenated over seeds: rates (from 0 to 1), or paired differences.
        seeds: number of seeds.
        paired: whether they are differences.
        farthest: of differences from 0: 1 for those of rates, 2 for differences of such differences.
    """
    values = np.asarray(outcomes, dtype=float).reshape(seeds, -1)
    count, mean = values.shape[1], float(values.mean())
    if values.min() == values.max():
        half = farthest * wilson(0, count)[1]
        bounds = (mean - half, mean + half) if paired else wilson(round(count * mean), count)
        return _within((mean, *bounds), farthest if paired else None)
    if seeds == 1 and not paired and np.isin(values, (0, 1)).all():
        return (mean, *wilson(int(values.sum()), count))
    variance, quantile = _components(values)
    half = quantile * variance**0.5
    if paired and np.count_nonzero(values.any(0)) < RARE:
        half = max(half, farthest * wilson(0, count)[1])
    low, high = mean - half, mean + half
    if not paired and _rare_ones(mean, variance) < RARE:
        bounds = _wilson_of(mean, mean * (1 - mean) / variance, quantile)
        low, high = min(low, bounds[0]), max(high, bounds[1])
    return _within((mean, low, high), farthest if paired else None)


def _components(values: Float[np.ndarray, "seeds examples"]) -> tuple[float, float]:
    """Variance of the mean over seeds and examples that are not all equal, and the quantile of its 95% interval."""
    (seeds, count), mean = values.shape, values.mean()
    by_seed, by_example = values.mean(1) - mean, values.mean(0) - mean
    residual = values - mean - by_seed[:, None] - by_example
    seed = float((by_seed**2).sum() / (max(seeds - 1, 1) * seeds))
    example = float((by_example**2).sum() / (max(count - 1, 1) * count))
    both = float((residual**2).sum() / (max((seeds - 1) * (count - 1), 1) * seeds * count))
    variance = max(seed + example - both, seed, example) or both
    parts = ((seed, seeds - 1), (example, count - 1), (both, (seeds - 1) * (count - 1)))
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts if degrees > 0)
    return variance, float(stats.t.ppf(0.975, freedom))


def _within(interval: tuple[float, float, float], farthest: float | None) -> tuple[float, float, float]:
    """A mean and its interval, cut at the farthest differences from 0, or for None at the ends of rates."""
    mean, low, high = interval
    lowest, highest = (0.0, 1.0) if farthest is None else (-farthest, farthest)
    return mean, max(low, lowest), min(high, highest)


def mean_over_divisions(
    outcomes: Shaped[np.ndarray, " examples"], seeds: int, paired: bool = False
) -> tuple[float, float, float]:
    """Mean over seeds that may have other examples each, with its 95% interval.

    The wider of two intervals at either end: that of `mean_over_seeds`, which takes example i of every seed as the same one, and
    that of the seeds' means (Student's t), which holds where every seed draws examples of its own.

    Args:
        outcomes, seeds, paired: as in `mean_over_seeds`.
    """
    mean, low, high = mean_over_seeds(outcomes, seeds, paired)
    if seeds < 2:
        return mean, low, high
    _, lowest, highest = mean_of_seeds(np.asarray(outcomes, dtype=float).reshape(seeds, -1).mean(1))
    return _within((mean, min(low, lowest), max(high, highest)), 1.0 if paired else None)


def mean_over_cells(outcomes: Shaped[np.ndarray, "cells examples"], seeds: int) -> tuple[float, float, float]:
    """Mean of the rates of cells, in each of which every example has an outcome, with its 95% interval over seeds and examples.

    The variance components of the examples' means over the cells, and Student's t of the seeds' means where that is wider, give
    its width. They see little in a cell with fewer than RARE successes or failures, which adds to the square of either half by
    how much the square of its own interval (`mean_over_seeds`) exceeds that of its variance components.

    Args:
        outcomes: 0 or 1, concatenated over seeds, which may have other examples each.
        seeds: number of seeds.
    """
    values = np.asarray(outcomes, dtype=float)
    mean = float(values.mean())
    half = _half_over_seeds(values.mean(0), seeds)
    if seeds > 1:
        half = max(half, mean_of_seeds(values.mean(0).reshape(seeds, -1).mean(1))[2] - mean)
    rare = [cell for cell in values if min(cell.sum(), (1 - cell).sum()) < RARE]
    squares = np.array([_squares_where_rare(cell, seeds) for cell in rare] or [(0.0, 0.0)]).sum(0) / len(values) ** 2
    below, above = np.sqrt(half**2 + squares)
    return _within((mean, mean - float(below), mean + float(above)), None)


def _half_over_seeds(outcomes: Float[np.ndarray, " examples"], seeds: int) -> float:
    """Half of the interval by variance components alone; 0 for equal outcomes."""
    if np.ptp(outcomes) == 0:
        return 0.0
    variance, quantile = _components(outcomes.reshape(seeds, -1))
    return quantile * variance**0.5


def _squares_where_rare(cell: Float[np.ndarray, " examples"], seeds: int) -> tuple[float, float]:
    """By how much the squares of both halves of a rate's interval exceed that of its variance components."""
    mean, low, high = mean_over_seeds(cell, seeds)
    own = _half_over_seeds(cell, seeds) ** 2
    return max((mean - low) ** 2 - own, 0), max((high - mean) ** 2 - own, 0)


def mean_of_seeds(values: Sequence[float] | Float[np.ndarray, " seeds"]) -> tuple[float, float, float]:
    """Mean of the values of two seeds or more, with its 95% interval by Student's t."""
    given = np.asarray(values, dtype=float)
    mean, half = given.mean(), stats.t.ppf(0.975, len(given) - 1) * given.std(ddof=1) / len(given) ** 0.5
    return float(mean), float(mean - half), float(mean + half)


def bootstrap_means(values: Shaped[np.ndarray, "rows examples"]) -> Float[np.ndarray, "rows draws"]:
    """Bootstrap samples of the mean of every row over the same drawn examples, so that differences are paired."""
    count = values.shape[1]
    return values.astype(float) @ _times_drawn(count).T.astype(float) / count


@lru_cache(maxsize=1)
def _times_drawn(count: int) -> Int[np.ndarray, "draws examples"]:
    """How often every bootstrap sample has every example; no more than a byte can hold."""
    drawn = np.random.default_rng(0).integers(count, size=(DRAWS, count))
    times = np.bincount((drawn + count * np.arange(DRAWS)[:, None]).ravel(), minlength=DRAWS * count)
    return times.reshape(DRAWS, count).astype(np.uint8)


def mean_interval(
    outcomes: Shaped[np.ndarray, " examples"],
    clusters: Sequence[Sequence[str]],
    cells: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    paired: bool = False,
) -> tuple[float, float]:
    """95% interval of a weighted mean of cells, such as tasks, whose examples share clusters, such as words.

    A jackknife over the clusters gives its width; where there are too few of them, it is the whole range. The jackknife sees
    nothing in a cell without a failure, and little in one with few. So a rate's cell with fewer than 2 RARE successes or
    failures, in as many trials as have the variance of its mean, adds to the square of either half of the interval by how much
    the square of Wilson's exceeds that of its own jackknife; so does every cell where outcomes cancel each other in every
    cluster. Wilson's interval is that of as many trials as have the jackknife's variance, and of no more than these examples are
    worth where two with the same clusters are correlated: by CORRELATION where nothing fails, by less with every failure, which
    tells more of it. Where fewer than RARE examples differ, the interval of a difference is not narrower than that of equal
    outcomes of as many trials.

    The tests check its coverage at a rate of .98; results/PROTOCOLS.md has simulations with other rates and numbers of words.

    Args:
        clusters: of every example, one or two, such as the words of base and source.
        cells: of every example; a cell's value is the mean of its examples. By default all examples are in one.
        weights: of the cells; by default all are equal.
        paired: whether the outcomes are paired differences of rates.
    """
    values = outcomes.astype(float)
    cells = [""] * len(values) if cells is None else cells
    weights = dict.fromkeys(cells, 1 / len(set(cells))) if weights is None else weights
    members = {cell: np.array([each == cell for each in cells]) for cell in weights}
    mean = sum(weight * values[members[cell]].mean() for cell, weight in weights.items())
    words = _Clusters.of(clusters)
    half = _half_width(values, words, members, weights)
    parts = [(weights[cell], values[of_cell], words.of_examples(of_cell)) for cell, of_cell in members.items()]
    cancel = half < 1e-9
    if paired:
        few = cancel or np.count_nonzero(values) < RARE
        of_equal_ones = [weight * _wilson_of(0.0, own_words.trials())[1] for weight, _, own_words in parts]
        below = above = max(half, float(np.linalg.norm(of_equal_ones)) if few else 0)
    else:
        added = [weight * _added_where_rare(own, own_words, cancel) for weight, own, own_words in parts]
        below, above = np.hypot(half, np.linalg.norm(added, axis=0))
    return max(float(mean - below), -1.0 if paired else 0.0), min(float(mean + above), 1.0)


def value_interval(
    values: Float[np.ndarray, " examples"], clusters: Sequence[Sequence[str]], cells: Sequence[str] | None = None
) -> tuple[float, float]:
    """95% interval of a mean of values without bounds, such as log odds, by the jackknife of `mean_interval`.

    With cells it is that of their mean, in which all count equally. Infinite for too few clusters, and for values that are equal
    in every cell or cancel each other in every cluster, up to the rounding of fp32.
    """
    cells = [""] * len(values) if cells is None else cells
    members = {cell: np.array([each == cell for each in cells]) for cell in dict.fromkeys(cells)}
    mean = float(np.mean([values[of_cell].mean() for of_cell in members.values()]))
    weights = dict.fromkeys(members, 1 / len(members))
    half = _half_width(values, _Clusters.of(clusters), members, weights)
    return (-np.inf, np.inf) if half < 1e-6 else (mean - half, mean + half)


@dataclass(frozen=True)
class _Clusters:
    """Which clusters every example has.

    Attributes:
        has: whether an example has a cluster; every cluster has an example.
        kinds: examples with the same clusters have the same number.
    """

    has: Bool[np.ndarray, "examples clusters"]
    kinds: Int[np.ndarray, " examples"]

    @classmethod
    def of(cls, clusters: Sequence[Sequence[str]]) -> _Clusters:
        """From the names of the clusters of every example."""
        names = {name: number for number, name in enumerate(sorted(set(chain.from_iterable(clusters))))}
        kinds: dict[frozenset[str], int] = {}
        has = np.zeros((len(clusters), len(names)), dtype=bool)
        rows = np.repeat(np.arange(len(clusters)), [len(own) for own in clusters])
        has[rows, [names[name] for name in chain.from_iterable(clusters)]] = True
        return cls(has, np.array([kinds.setdefault(frozenset(own), len(kinds)) for own in clusters], dtype=int))

    def of_examples(self, chosen: Bool[np.ndarray, " examples"]) -> _Clusters:
        """Those of the chosen examples."""
        has = self.has[chosen]
        return _Clusters(has[:, has.any(0)], self.kinds[chosen])

    def trials(self, correlation: float = CORRELATION) -> float:
        """How many independent examples are worth as much as these, by their design effect (Kish 1965).

        Two that have the same clusters are taken to be correlated by `correlation`, two that share one of two by half of it.
        """
        count = len(self.has)
        of_clusters = (self.has / np.sqrt(self.has.sum(1, keepdims=True))).sum(0)
        return count**2 / ((1 - correlation) * count + correlation * float((of_clusters**2).sum()))


def _half_width(
    values: Float[np.ndarray, " examples"],
    clusters: _Clusters,
    members: Mapping[str, Bool[np.ndarray, " examples"]],
    weights: Mapping[str, float],
) -> float:
    """Half of the 95% interval of a weighted mean of cells; infinite for too few clusters."""
    variance, quantile = _jackknife(values, clusters, members, weights)
    return quantile * variance**0.5


def _added_where_rare(values: Float[np.ndarray, " examples"], clusters: _Clusters, cancel: bool) -> Float[np.ndarray, " sides"]:
    """By how much Wilson's interval of a cell with few successes or failures exceeds its jackknife's below and above."""
    variance, quantile = _jackknife(values, clusters, {"": np.ones(len(values), dtype=bool)}, {"": 1.0})
    mean = float(values.mean())
    if not np.isfinite(variance):
        return np.array([mean, 1 - mean])
    binomial = mean * (1 - mean)
    known = 0.0 if cancel or not binomial else _rare_ones(mean, max(variance, binomial / len(values))) / (2 * RARE)
    if known >= 1:
        return np.zeros(2)
    trials = min(clusters.trials(CORRELATION * (1 - known)), binomial / variance if variance else np.inf)
    bounds = np.array(_wilson_of(mean, trials, quantile))
    return np.maximum((bounds - mean) ** 2 - (0 if cancel else quantile**2 * variance), 0) ** 0.5


def _rare_ones(mean: float, variance: float) -> float:
    """The number of successes or failures, whichever are fewer, in as many trials as have the variance of a rate's mean."""
    return mean * (1 - mean) / variance * min(mean, 1 - mean)


def _jackknife(
    values: Float[np.ndarray, " examples"],
    clusters: _Clusters,
    members: Mapping[str, Bool[np.ndarray, " examples"]],
    weights: Mapping[str, float],
) -> tuple[float, float]:
    """Variance of a weighted mean of cells, by leaving out one cluster after another, and the quantile of its 95% interval.

    An example with two clusters is left out twice, so that the variance of examples with the same two is taken off once: the
    sum over examples that share a cluster (Aronow, Samii & Assenova 2015) with the jackknife's terms, which do not fall short
    where one cluster is in many examples (MacKinnon, Nielsen & Webb 2023). It is at least the variance if examples with other
    clusters were independent. The quantile is Student's, with one degree of freedom fewer than the effective number of
    clusters (Kish 1965), which is smaller where some are in many examples.

    The variance is infinite for fewer than FEWEST clusters, and where a cell has no example without one of them.
    """
    has, count = clusters.has, clusters.has.shape[1]
    if count < FEWEST:
        return np.inf, 1.0
    change, effect = np.zeros(count), np.zeros(len(values))
    for cell, of_cell in members.items():
        share, own = values[of_cell] - values[of_cell].mean(), has[of_cell]
        left = len(own) - own.sum(0)
        if not left.all():
            return np.inf, 1.0
        change -= weights[cell] * (share @ own) / left
        effect[of_cell] = weights[cell] * share / len(own)
    of_kinds = np.bincount(clusters.kinds, effect) ** 2
    twice = of_kinds[np.unique(clusters.kinds[has.sum(1) > 1])].sum()
    variance = max((count - 1) / count * (change**2).sum() - twice, of_kinds.sum())
    often = has.sum(0)
    effective = often.sum() ** 2 / (often**2).sum()
    return float(variance), _student(max(effective - 1, 1))


@cache
def _student(freedom: float) -> float:
    """The 97.5% quantile of Student's t."""
    return float(stats.t.ppf(0.975, freedom))


def _wilson_of(mean: float, trials: float, quantile: float = NORMAL) -> tuple[float, float]:
    """Wilson's interval of a rate over a number of independent trials that need not be whole."""
    share = quantile**2 / trials
    middle, half = mean + share / 2, (share * mean * (1 - mean) + share**2 / 4) ** 0.5
    return (middle - half) / (1 + share), (middle + half) / (1 + share)


@cache
def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95% Wilson interval of a rate over independent trials."""
    bounds = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return float(bounds.low), float(bounds.high)


def joined_seeds(seeds: Sequence[tuple[int, ...]], *examples: Sequence[int]) -> tuple[int, ...]:
    """The seeds of reports that are combined, one after another.

    Raises InputError for a duplicate seed, and for different numbers of examples per seed.

    Args:
        seeds: of each report.
        examples: for every task, of each report, the number of outcomes over all its seeds.
    """
    joined = tuple(seed for each in seeds for seed in each)
    if len(set(joined)) < len(joined):
        raise InputError(f"duplicate seed in {list(joined)}")
    for counts in examples:
        if len({count / len(each) for each, count in zip(seeds, counts, strict=True)}) > 1:
            raise InputError(f"the seeds have different numbers of examples: {list(counts)}")
    return joined


def same_counts(outcomes: Iterable[Sequence[bool]], seeds: Sequence[int]) -> bool:
    """Whether there are as many outcomes in every list, at least one, and as many for every seed."""
    counts = {len(each) for each in outcomes}
    return len(counts) <= 1 and 0 not in counts and len(seeds) > 0 and all(count % len(seeds) == 0 for count in counts)


def joined_outcomes(reports: Sequence[Mapping[str, Mapping[str, tuple[bool, ...]]]]) -> dict[str, dict[str, tuple[bool, ...]]]:
    """The outcomes of reports of the same tasks, one after another, by task and by what each was scored with.

    Raises InputError where a task was scored with other names in another report.
    """
    joined: dict[str, dict[str, tuple[bool, ...]]] = {}
    for task, scored in reports[0].items():
        if other := [each for each in reports if each[task].keys() != scored.keys()]:
            different = " and ".join(f"{{{', '.join(names)}}}" for names in (scored, other[0][task]))
            raise InputError(f"reports that scored '{task}' with {different} cannot be combined")
        joined[task] = {name: tuple(x for each in reports for x in each[task][name]) for name in scored}
    return joined


def quartiles(values: Float[np.ndarray, " rounds"]) -> tuple[float, float, float]:
    """The median, and the first and third quartile."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float(median), float(low), float(high)


def interval(samples: Float[np.ndarray, " draws"]) -> tuple[float, float]:
    """The 2.5% and 97.5% percentiles of bootstrap samples."""
    low, high = np.percentile(samples, (2.5, 97.5))
    return float(low), float(high)
