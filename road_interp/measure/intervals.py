"""Confidence intervals of rates over seeds and examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import stats

from road_interp.errors import InputError

DRAWS = 2000  # bootstrap samples
FEWEST = 3  # clusters, of which a bootstrap says something


def mean_over_seeds(outcomes: Shaped[np.ndarray, " examples"], seeds: int, paired: bool = False) -> tuple[float, float, float]:
    """Mean over seeds and examples, with its 95% interval from variance components.

    Seeds and examples are both random (two crossed random effects). The variance of the mean is that of the seeds' means plus
    that of the examples' means less that of the residual, which both contain; its degrees of freedom follow from Satterthwaite
    (1946). So three seeds that differ give a wide interval, and seeds that agree give that of the examples. Equal outcomes have
    no variance: a rate has the Wilson interval of the examples of one seed, and a difference its width on either side. The
    outcomes of one seed that are all 0 or 1 have the Wilson interval, too.

    Args:
        outcomes: concatenated over seeds: rates (from 0 to 1), or paired differences of them (from -1 to 1).
        seeds: number of seeds.
        paired: whether they are differences.
    """
    values = np.asarray(outcomes, dtype=float).reshape(seeds, -1)
    count, mean = values.shape[1], float(values.mean())
    if values.min() == values.max():
        return (mean, *_of_equal(mean, count, paired))
    if seeds == 1 and not paired and np.isin(values, (0, 1)).all():
        return (mean, *wilson(int(values.sum()), count))
    by_seed, by_example = values.mean(1) - mean, values.mean(0) - mean
    residual = values - mean - by_seed[:, None] - by_example
    seed = float((by_seed**2).sum() / (max(seeds - 1, 1) * seeds))
    example = float((by_example**2).sum() / (max(count - 1, 1) * count))
    both = float((residual**2).sum() / (max((seeds - 1) * (count - 1), 1) * seeds * count))
    variance = max(seed + example - both, seed, example) or both
    parts = ((seed, seeds - 1), (example, count - 1), (both, (seeds - 1) * (count - 1)))
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts if degrees > 0)
    half = float(stats.t.ppf(0.975, freedom) * variance**0.5)
    lowest = -1.0 if paired else 0.0
    return (mean, max(mean - half, lowest), min(mean + half, 1.0))


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
    means = np.asarray(outcomes, dtype=float).reshape(seeds, -1).mean(1)
    half = float(stats.t.ppf(0.975, seeds - 1) * means.std(ddof=1) / seeds**0.5)
    return mean, max(min(low, mean - half), -1.0 if paired else 0.0), min(max(high, mean + half), 1.0)


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


def cluster_means(
    outcomes: Float[np.ndarray, " examples"],
    clusters: Sequence[Sequence[str]],
    cells: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Float[np.ndarray, " draws"]:
    """Bootstrap samples of a weighted mean of cells, such as tasks: clusters of examples, such as words, are resampled.

    Samples in which a cell has no example are left out.

    Args:
        clusters: of every example, one or several, such as the words of base and source. An example counts as often as the
            product of the numbers of draws of its different clusters, because examples that share one are not independent.
        cells: of every example; a cell's value is the mean of its examples. By default all examples are in one.
        weights: of the cells; by default all are equal.
    """
    cells = [""] * len(outcomes) if cells is None else cells
    weights = dict.fromkeys(cells, 1 / len(set(cells))) if weights is None else weights
    place = {name: number for number, name in enumerate(sorted({name for each in clusters for name in each}))}
    times = np.random.default_rng(0).multinomial(len(place), np.full(len(place), 1 / len(place)), size=DRAWS)
    counted = np.stack([times[:, sorted({place[name] for name in each})].prod(1) for each in clusters], 1)
    total = np.zeros(DRAWS)
    for cell, weight in weights.items():
        of_cell = np.array([each == cell for each in cells])
        drawn, sums = counted[:, of_cell].sum(1), counted[:, of_cell] @ outcomes[of_cell]
        total += weight * np.divide(sums, drawn, out=np.full(DRAWS, np.nan), where=drawn > 0)
    return total[~np.isnan(total)]


def mean_interval(
    outcomes: Shaped[np.ndarray, " examples"],
    clusters: Sequence[Sequence[str]],
    cells: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    paired: bool = False,
) -> tuple[float, float]:
    """95% interval of a weighted mean of cells: bootstrap over clusters, as in `cluster_means`.

    Where all outcomes are equal, a bootstrap has no spread: then rates have the Wilson interval of as many trials as there can be
    examples without a common cluster (half of the words, where each has two), and paired differences its width on either side.
    Of fewer than FEWEST clusters, and where most samples leave a cell without examples, nothing is known: the interval is the
    whole range.

    Args:
        paired: whether the outcomes are paired differences of rates.
    """
    names = {name for each in clusters for name in each}
    if outcomes.min() == outcomes.max():
        return _of_equal(float(outcomes[0]), len(names) // max(len(set(each)) for each in clusters), paired)
    whole = (-1.0 if paired else 0.0), 1.0
    if len(names) < FEWEST:
        return whole
    means = cluster_means(outcomes.astype(float), clusters, cells, weights)
    return whole if 2 * len(means) < DRAWS else interval(means)


def value_interval(values: Float[np.ndarray, " examples"], clusters: Sequence[Sequence[str]]) -> tuple[float, float]:
    """95% interval of a mean of values without bounds, such as log odds: bootstrap over clusters, as in `cluster_means`.

    Of fewer than FEWEST clusters nothing is known: the interval is infinite.
    """
    if len({name for each in clusters for name in each}) < FEWEST:
        return -np.inf, np.inf
    return interval(cluster_means(values, clusters))


def _of_equal(value: float, trials: int, paired: bool) -> tuple[float, float]:
    """95% interval of the mean of equal outcomes: Wilson's for rates, and for differences its width on either side."""
    if not paired:
        return wilson(round(trials * value), trials)
    width = wilson(0, trials)[1]
    return max(value - width, -1.0), min(value + width, 1.0)


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
