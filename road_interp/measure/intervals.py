"""Confidence intervals of rates over seeds and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Shaped
from scipy import stats

from road_interp.errors import InputError

DRAWS = 2000  # bootstrap samples


def bootstrap_means(outcomes: Shaped[np.ndarray, "rows examples"], seeds: int) -> Float[np.ndarray, "rows draws"]:
    """Bootstrap samples of the mean of every row, over seeds and examples.

    Examples are resampled once per draw and shared by all seeds, because an example's difficulty is common to them: it does not
    average out over seeds. The resampled seeds and examples are also the same for all rows, so that differences are paired.

    Args:
        outcomes: one column per seed and example, concatenated over seeds.
        seeds: number of seeds.
    """
    generator = np.random.default_rng(0)
    by_seed = outcomes.reshape(len(outcomes), seeds, -1)
    count = by_seed.shape[2]
    drawn = generator.integers(seeds, size=(DRAWS, seeds))
    examples = generator.integers(count, size=(DRAWS, count))
    times = np.bincount((examples + count * np.arange(DRAWS)[:, None]).ravel(), minlength=DRAWS * count).reshape(DRAWS, count)
    sums = by_seed.astype(float) @ times.T.astype(float)  # (rows, seeds, draws): of the examples drawn, per seed
    return sums[:, drawn.T, np.arange(DRAWS)].sum(1) / (seeds * count)


def cluster_means(
    outcomes: Float[np.ndarray, " examples"], clusters: Sequence[str], cells: Sequence[str], weights: Mapping[str, float]
) -> Float[np.ndarray, " draws"]:
    """Bootstrap samples of a weighted mean of cells, such as tasks: clusters of examples, such as words, are resampled.

    Args:
        clusters: of every example; examples of one cluster are drawn together, because they are not independent.
        cells: of every example; a cell's value is the mean of its examples.
        weights: of the cells.
    """
    names, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    columns = list(weights)
    column = np.array([columns.index(cell) for cell in cells])
    sums, counts = np.zeros((2, len(names), len(columns)))
    np.add.at(sums, (cluster, column), outcomes)
    np.add.at(counts, (cluster, column), 1.0)
    times = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    drawn, overall = times @ counts, sums.sum(0) / np.maximum(counts.sum(0), 1)
    means = np.where(drawn > 0, times @ sums / np.maximum(drawn, 1), overall)
    return means @ np.array([weights[cell] for cell in columns])


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95% Wilson interval of a rate over independent trials."""
    bounds = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return float(bounds.low), float(bounds.high)


def check_seeds(seeds: Sequence[tuple[int, ...]], examples: Sequence[int]) -> None:
    """Raise InputError if reports cannot be combined: for a duplicate seed, and for different numbers of examples per seed.

    Args:
        seeds: of each report.
        examples: of each report, the number of its outcomes over all its seeds.
    """
    all_seeds = [seed for each in seeds for seed in each]
    if len(set(all_seeds)) < len(all_seeds):
        raise InputError(f"duplicate seed in {all_seeds}")
    if len({count / len(each) for each, count in zip(seeds, examples, strict=True)}) > 1:
        raise InputError(f"the seeds have different numbers of examples: {list(examples)}")


def interval(samples: Float[np.ndarray, " draws"]) -> tuple[float, float]:
    """The 2.5% and 97.5% percentiles of bootstrap samples."""
    low, high = np.percentile(samples, (2.5, 97.5))
    return float(low), float(high)
