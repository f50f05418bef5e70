"""Intervals of rates that vary between seeds and between examples."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped

DRAWS = 2000


def redrawn(outcomes: Shaped[np.ndarray, "rows examples"], seeds: int) -> Float[np.ndarray, "rows draws"]:
    """Bootstrap samples of the mean of every row: seeds are drawn first, then examples within each.

    Args:
        outcomes: per example, those of one seed behind those of another; all rows are drawn alike.
        seeds: how many seeds the examples come from, the same number from each.
    """
    generator = np.random.default_rng(0)
    by_seed = outcomes.reshape(len(outcomes), seeds, -1)
    drawn = generator.integers(seeds, size=(DRAWS, seeds, 1))
    examples = generator.integers(by_seed.shape[2], size=(DRAWS, seeds, by_seed.shape[2]))
    return by_seed[:, drawn, examples].mean((2, 3))


def interval(samples: Float[np.ndarray, " draws"]) -> tuple[float, float]:
    """The middle 95% of bootstrap samples."""
    low, high = np.percentile(samples, (2.5, 97.5))
    return float(low), float(high)
