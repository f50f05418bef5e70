"""Intervals of rates that vary between seeds and between examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped
from scipy import stats

from road_interp.errors import InputError

DRAWS = 2000


def bootstrap_means(outcomes: Shaped[np.ndarray, "rows examples"], seeds: int) -> Float[np.ndarray, "rows draws"]:
    """Bootstrap samples of the mean of every row: seeds are drawn, and examples, which are the same ones for every seed.

    Args:
        outcomes: example by example, those of one seed behind those of another; all rows are drawn alike.
        seeds: how many there are. What an example makes of every seed alike does not average out over seeds, so that one draw of
            examples serves all of them.
    """
    generator = np.random.default_rng(0)
    by_seed = outcomes.reshape(len(outcomes), seeds, -1)
    drawn = generator.integers(seeds, size=(DRAWS, seeds, 1))
    examples = generator.integers(by_seed.shape[2], size=(DRAWS, 1, by_seed.shape[2]))
    return by_seed[:, drawn, examples].mean((2, 3))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95% interval of a rate over independent trials (Wilson)."""
    found = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def check_seeds(seeds: Sequence[tuple[int, ...]], examples: Sequence[int]) -> None:
    """Raise InputError unless results can be put together: no seed twice, and as many examples for each."""
    every = [seed for each in seeds for seed in each]
    if len(set(every)) < len(every):
        raise InputError(f"a seed is there twice: {every}")
    if len({count / len(each) for each, count in zip(seeds, examples, strict=True)}) > 1:
        raise InputError(f"the seeds have different numbers of examples: {list(examples)}")


def interval(samples: Float[np.ndarray, " draws"]) -> tuple[float, float]:
    """The middle 95% of bootstrap samples."""
    low, high = np.percentile(samples, (2.5, 97.5))
    return float(low), float(high)
