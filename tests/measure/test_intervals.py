"""Intervals over seeds and examples: seeds that agree do not narrow them, and their coverage is nominal."""

from __future__ import annotations

import numpy as np
import pytest

from road_interp.errors import InputError
from road_interp.measure.intervals import bootstrap_means, check_seeds, interval


def width(outcomes, seeds):
    low, high = interval(bootstrap_means(outcomes[None], seeds)[0])
    return high - low


def test_the_same_outcomes_three_times_are_no_more_certain_than_once():
    once = np.random.default_rng(0).random(200) < 0.6
    assert width(np.tile(once, 3), 3) == pytest.approx(width(once, 1), rel=0.1)


def test_seeds_that_differ_widen_the_interval():
    generator = np.random.default_rng(0)
    alike = np.concatenate([generator.random(200) < 0.6 for _ in range(3)])
    apart = np.concatenate([generator.random(200) < rate for rate in (0.4, 0.6, 0.8)])
    assert width(apart, 3) > 2 * width(alike, 3)


def test_rows_are_drawn_alike():
    outcomes = np.random.default_rng(0).random((1, 60)) < 0.5
    own, other = bootstrap_means(np.concatenate([outcomes, ~outcomes]), 3)
    np.testing.assert_allclose(own + other, 1)


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
def test_intervals_cover_the_rate_at_least_as_often_as_they_say(shared):
    """With probability `shared` an outcome depends on the example only, otherwise it is random."""
    generator, covered = np.random.default_rng(1), 0
    for _ in range(60):
        fixed, chance = generator.random(64) < 0.6, generator.random((3, 64)) < 0.6
        outcomes = np.where(generator.random((3, 64)) < shared, fixed, chance)
        low, high = interval(bootstrap_means(outcomes.reshape(1, -1), 3)[0])
        covered += low <= 0.6 <= high
    assert covered >= 0.9 * 60


def test_what_does_not_go_together_is_refused():
    check_seeds([(0,), (1, 2)], [10, 20])
    with pytest.raises(InputError, match="duplicate seed"):
        check_seeds([(0,), (0,)], [10, 10])
    with pytest.raises(InputError, match="different numbers of examples"):
        check_seeds([(0,), (1,)], [10, 12])
