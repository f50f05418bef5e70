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
    outcomes: Float[np.ndarray, " examples"],
    clusters: Sequence[Sequence[str]],
    cells: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Float[np.ndarray, " draws"]:
    """Bootstrap samples of a weighted mean of cells, such as tasks: clusters of examples, such as words, are resampled.

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
        total += weight * np.where(drawn > 0, sums / np.maximum(drawn, 1), outcomes[of_cell].mean())
    return total


def rate_interval(outcomes: Shaped[np.ndarray, " examples"], clusters: Sequence[Sequence[str]]) -> tuple[float, float]:
    """95% interval of a rate: bootstrap over clusters, as in `cluster_means`.

    Where all outcomes are equal, a bootstrap has no spread: then the Wilson interval of as many trials as there are clusters.
    """
    if outcomes.min() == outcomes.max():
        trials = len({name for each in clusters for name in each})
        return wilson(trials * int(outcomes[0]), trials)
    return interval(cluster_means(outcomes.astype(float), clusters))


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
