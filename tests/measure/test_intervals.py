"""Intervals over seeds and examples: seeds that agree do not narrow them, and their coverage is nominal."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from road_interp.errors import InputError
from road_interp.measure.intervals import (
    bootstrap_means,
    joined_seeds,
    mean_interval,
    mean_of_seeds,
    mean_over_cells,
    mean_over_divisions,
    mean_over_seeds,
    value_interval,
    wilson,
)


def width(outcomes, seeds):
    _, low, high = mean_over_seeds(outcomes, seeds)
    return high - low


def test_the_same_outcomes_three_times_are_no_more_certain_than_once():
    once = np.random.default_rng(0).random(200)
    assert width(np.tile(once, 3), 3) == pytest.approx(width(once, 1), rel=1e-6)


def test_one_seed_has_the_t_interval_of_its_examples():
    outcomes = np.random.default_rng(0).random(50)
    expected = stats.ttest_1samp(outcomes, 0).confidence_interval()
    assert mean_over_seeds(outcomes, 1) == pytest.approx((outcomes.mean(), *expected))


def test_seeds_without_examples_have_their_own_t_interval():
    scores = np.array([0.5, 0.52, 0.6])
    expected = stats.ttest_1samp(scores, 0).confidence_interval()
    assert mean_over_seeds(np.repeat(scores, 10), 3) == pytest.approx((scores.mean(), *expected))


def test_seeds_that_differ_widen_the_interval():
    generator = np.random.default_rng(0)
    alike = np.concatenate([generator.random(200) < 0.6 for _ in range(3)])
    apart = np.concatenate([generator.random(200) < rate for rate in (0.4, 0.6, 0.8)])
    assert width(apart, 3) > 2 * width(alike, 3)


def test_seeds_and_examples_that_both_vary_add_their_variances():
    """Effects that are added, without a residual: the degrees of freedom are Satterthwaite's of two variances."""
    seeds, examples = np.array([-0.1, 0.0, 0.1]), np.tile([-0.2, 0.2], 20)
    of_seeds, of_examples = seeds.var(ddof=1) / 3, examples.var(ddof=1) / 40
    variance = of_seeds + of_examples
    freedom = variance**2 / (of_seeds**2 / 2 + of_examples**2 / 39)
    half = stats.t.ppf(0.975, freedom) * variance**0.5
    found = mean_over_seeds((0.3 + seeds[:, None] + examples).ravel(), 3, paired=True)
    assert found == pytest.approx((0.3, 0.3 - half, 0.3 + half))


def test_rates_of_zero_and_one_are_not_certain():
    assert mean_over_seeds(np.zeros(3 * 256, bool), 3) == (0, 0, pytest.approx(0.0148, abs=1e-4))
    assert mean_over_seeds(np.ones(256, bool), 1) == (1, pytest.approx(0.985, abs=1e-3), 1)
    assert mean_over_seeds(np.array([True, False]), 2) == (0.5, 0, 1)
    assert mean_over_seeds(np.zeros(256), 1) == mean_over_seeds(np.zeros(256, bool), 1)  # such as means over sets
    assert mean_over_seeds(np.full(40, 0.25), 1) == (0.25, *wilson(10, 40))


def test_a_rate_of_one_seed_has_the_wilson_interval():
    one_of_many = np.arange(128) == 5
    assert mean_over_seeds(one_of_many, 1) == (1 / 128, *wilson(1, 128))
    assert mean_over_seeds(one_of_many, 1)[2] > mean_over_seeds(np.zeros(128), 1)[2]


def test_rare_outcomes_of_several_seeds_are_not_more_certain_than_none():
    """Three seeds that agree have the bound of one; that of one answer in 768 was below that of none."""
    one, none = np.arange(3 * 256) == 5, np.zeros(3 * 256)
    assert mean_over_seeds(one, 3)[2] > mean_over_seeds(none, 3)[2]
    assert mean_over_seeds(~one, 3)[1] < mean_over_seeds(1 - none, 3)[1]
    agreed = np.tile(np.arange(256) < 2, 3)
    assert mean_over_seeds(agreed, 3) == pytest.approx((2 / 256, 0, wilson(2, 256)[1]), abs=3e-4)


@pytest.mark.parametrize("shared", [0.5, 0.95])
@pytest.mark.parametrize("rate", [0.006, 0.02])
def test_intervals_cover_rare_outcomes_as_often_as_they_say(rate, shared):
    generator, covered, trials = np.random.default_rng(2), 0, 400
    for _ in range(trials):
        level = generator.random(128)
        chance = np.where(generator.random((5, 128)) < shared, level, generator.random((5, 128)))
        _, low, high = mean_over_seeds((chance < rate).ravel(), 5)
        covered += low <= rate <= high
    assert covered / trials >= 0.925


def test_a_difference_that_is_always_zero_is_not_certain():
    """Of ten examples without a difference, the rate of a difference may still be .28."""
    bound = wilson(0, 10)[1]
    assert mean_over_seeds(np.zeros(30), 3, paired=True) == (0, -bound, bound)
    assert mean_over_seeds(np.ones(10), 1, paired=True) == (1, pytest.approx(1 - wilson(0, 10)[1]), 1)
    least = 2 * (1 - wilson(0, 10)[1])
    assert mean_over_seeds(np.full(30, 2.0), 3, paired=True, farthest=2.0) == (2, pytest.approx(least), 2)
    assert mean_over_seeds(-np.ones(10), 1, paired=True) == (-1, -1, pytest.approx(wilson(0, 10)[1] - 1))


def test_outcomes_that_differ_only_between_seeds_and_examples_together_are_not_certain():
    mean, low, high = mean_over_seeds(np.array([True, False, False, True]), 2)
    assert (mean, low, high) == (0.5, 0, 1)


def wilson_of(mean, trials, freedom=np.inf):
    """Wilson's interval with Student's quantile."""
    q = stats.t.ppf(0.975, freedom)
    half = q * (mean * (1 - mean) / trials + (q / trials) ** 2 / 4) ** 0.5
    return [(mean + q**2 / trials / 2 + side * half) / (1 + q**2 / trials) for side in (-1, 1)]


def test_clusters_without_a_difference_are_not_certain():
    words = [(str(number // 2),) for number in range(20)]
    trials = 20**2 / (0.9 * 20 + 0.1 * 10 * 2**2)  # ten words with two examples each
    bound = wilson_of(0, trials)[1]
    assert mean_interval(np.zeros(20), words, paired=True) == pytest.approx((-bound, bound))
    assert mean_interval(np.zeros(20, bool), words) == pytest.approx(wilson_of(0, trials, 9))
    both_ways = [pair for n in range(4) for pair in ((f"{n}", f"{n}s"), (f"{n}s", f"{n}"))]  # four nouns with two forms each
    trials = 8**2 / (0.9 * 8 + 0.1 * 8 * 2**2 / 2)
    assert mean_interval(np.zeros(8, bool), both_ways) == pytest.approx(wilson_of(0, trials, 7))


def test_equal_outcomes_of_pairs_that_share_a_word_count_for_less():
    """One word in all pairs, beside twenty others: nothing is known of another word in its place, whatever the outcomes."""
    words = [("hub", str(number)) for number in range(20)]
    assert mean_interval(np.ones(20, bool), words) == (0, 1)
    assert mean_interval(np.arange(20) % 2, words, [str(number % 2) for number in range(20)]) == (0, 1)
    two = [(("no", "never")[number % 2], str(number)) for number in range(20)]
    apart = [(f"base {number}", str(number)) for number in range(20)]
    trials = 20**2 / (0.9 * 20 + 0.1 * (2 * 10**2 / 2 + 20 / 2))
    assert mean_interval(np.ones(20, bool), two) == pytest.approx(wilson_of(1, trials, 40**2 / (2 * 10**2 + 20) - 1))
    assert mean_interval(np.ones(20, bool), two)[0] < mean_interval(np.ones(20, bool), apart)[0]


def test_one_failure_changes_an_interval_by_little():
    """The lower bound of 400 pairs of 24 words, from no failure to seven."""
    generator = np.random.default_rng(0)
    base = generator.integers(24, size=400)
    words = [(str(one), str((one + other) % 24)) for one, other in zip(base, generator.integers(1, 24, 400), strict=True)]
    lows = []
    for failures in range(8):
        outcomes = np.ones(400)
        outcomes[: 50 * failures : 50] = 0
        lows.append(mean_interval(outcomes, words)[0])
    assert 0.9 < lows[0] < wilson(400, 400)[0]
    assert lows[1] < lows[0]
    assert np.abs(np.diff(lows)).max() < 0.01


@pytest.mark.parametrize("paired", [False, True])
def test_few_clusters_say_nothing(paired):
    outcomes = np.array([1, 0, 1] * 4)
    whole = (-1.0 if paired else 0.0, 1.0)
    assert mean_interval(outcomes, [("a", "a")] * 12, paired=paired) == whole
    assert mean_interval(outcomes, [("a", "b")] * 12, paired=paired) == whole
    assert value_interval(outcomes.astype(float), [("a", "b")] * 12) == (-np.inf, np.inf)
    low, high = value_interval(outcomes.astype(float), [(name, name) for name in "abcdefghijkl"])
    assert low < 2 / 3 < high


def test_noise_of_fp32_does_not_vary():
    noise = 1e-8 * np.random.default_rng(0).normal(size=30)
    assert value_interval(noise, [(str(number),) for number in range(30)]) == (-np.inf, np.inf)


def test_differences_of_differences_reach_two():
    value, low, high = mean_over_seeds(np.array([2.0, 2.0, 2.0, 1.0] * 8), 2, paired=True, farthest=2.0)
    assert 1 < low < value == 1.75 < high <= 2
    assert mean_over_seeds(np.array([1.0, 1.0, 1.0, 0.0] * 8), 2, paired=True)[2] <= 1


def test_bootstrapped_rows_are_drawn_alike():
    outcomes = np.random.default_rng(0).random((1, 60)) < 0.5
    own, other = bootstrap_means(np.concatenate([outcomes, ~outcomes]))
    np.testing.assert_allclose(own + other, 1)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("spread", "shared"), [(0.0, 0.0), (0.0, 0.9), (0.05, 0.5), (0.1, 0.5)])
def test_intervals_cover_the_rate_as_often_as_they_say(seeds, spread, shared):
    """The seeds' rates have a standard deviation; with probability `shared` an outcome depends on the example only."""
    generator, covered, trials = np.random.default_rng(1), 0, 400
    for _ in range(trials):
        rates = generator.normal(0.6, spread, seeds)[:, None]
        level = generator.random(128)
        chance = np.where(generator.random((seeds, 128)) < shared, level, generator.random((seeds, 128)))
        _, low, high = mean_over_seeds((chance < rates).ravel(), seeds)
        covered += low <= 0.6 <= high
    assert 0.925 <= covered / trials <= 0.99


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("spread", [0.0, 0.7])
@pytest.mark.parametrize("most", [0.1, 0.4])
def test_intervals_over_pairs_of_words_cover_the_rate_as_often_as_they_say(paired, spread, most):
    """Every word has an effect on the pairs that it is in; one word is the base in a share `most` of them.

    Where that is much and effects are large, there are in truth fewer words, and intervals are a little too narrow.
    """
    generator, covered, trials = np.random.default_rng(0), 0, 300
    for _ in range(trials):
        base = np.where(generator.random(160) < most, 0, generator.integers(1, 24, 160))
        source = (base + generator.integers(1, 24, 160)) % 24
        rates = []
        for _ in range(1 + paired):
            effect = generator.normal(0, spread, 24)
            rates.append(generator.random(160) < 1 / (1 + np.exp(-effect[base] - effect[source])))
        outcomes = rates[0].astype(float) - (rates[1] if paired else 0)
        cells = [str(number % 2) for number in range(160)]
        words = [(str(one), str(other)) for one, other in zip(base, source, strict=True)]
        low, high = mean_interval(outcomes, words, cells, paired=paired)
        covered += low <= (0 if paired else 0.5) <= high
    assert (0.88 if most > 0.1 and spread else 0.92) <= covered / trials <= 0.99


@pytest.mark.parametrize(("words", "least"), [(24, 0.96), (40, 0.96)])
def test_intervals_over_words_of_rates_near_one_hold_them_mostly(words, least):
    """Of 400 pairs .98 are right, and every word has a large effect. The jackknife alone holds .98 in .8 of the cases."""
    generator, covered, trials = np.random.default_rng(0), 0, 150
    offset = 5.77  # with which a word's effects of 1.5 give .98
    for _ in range(trials):
        effect, base = generator.normal(0, 1.5, words), generator.integers(words, size=400)
        source = (base + generator.integers(1, words, 400)) % words
        outcomes = generator.random(400) < 1 / (1 + np.exp(-offset - effect[base] - effect[source]))
        low, high = mean_interval(outcomes, [(str(one), str(other)) for one, other in zip(base, source, strict=True)])
        covered += low <= 0.98 <= high
    assert covered / trials >= least


def test_a_cell_without_failures_adds_what_is_not_known_of_it():
    """Isolation of 1 beside a cause of .9: the mean is not known better than half of the cause is."""
    words = [(str(number % 100),) for number in range(200)]
    cells = ["cause"] * 100 + ["isolation"] * 100
    wrong = np.array([0] * 10 + [1] * 90)
    low, high = mean_interval(np.concatenate([wrong, np.ones(100)]), words, cells)
    alone = mean_interval(wrong, words[:100])
    expected = np.hypot((0.9 - alone[0]) / 2, (1 - wilson_of(1, 100, 99)[0]) / 2)
    assert 0.95 - low == pytest.approx(expected, rel=0.02)
    assert high - 0.95 == pytest.approx((alone[1] - 0.9) / 2, rel=0.02)


def test_one_difference_does_not_make_more_certain_than_none():
    one = np.zeros(300)
    one[7] = 1
    bound = wilson(0, 300)[1]
    mean, low, high = mean_over_seeds(one, 1, paired=True)
    assert (low, high) == pytest.approx((mean - bound, mean + bound))
    assert low < -0.009
    low, high = mean_interval(one, [(str(number),) for number in range(300)], paired=True)
    assert (low, high) == pytest.approx((mean - bound, mean + bound))


def test_the_interval_of_one_word_each_is_that_of_a_mean():
    """And twelve pairs of every word count once."""
    values = np.random.default_rng(0).normal(size=30)
    words = [(str(number),) for number in range(30)]
    low, high = value_interval(values, words)
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 29) * values.std(ddof=1) / 30**0.5)
    repeated = value_interval(np.repeat(values, 12), [word * 2 for word in words for _ in range(12)])
    assert repeated == pytest.approx((low, high))


def test_pairs_of_different_words_are_independent_and_count_once():
    """Leaving out either word of a pair leaves out the pair."""
    values = np.random.default_rng(0).normal(size=30)
    low, high = value_interval(values, [(f"base {number}", f"source {number}") for number in range(30)])
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 59) * values.std(ddof=1) / 30**0.5, rel=0.04)


def test_cells_of_values_count_equally():
    values = np.random.default_rng(0).normal(size=40)
    words, cells = [(str(number),) for number in range(40)], ["small"] * 10 + ["large"] * 30
    low, high = value_interval(values, words, cells)
    assert (low + high) / 2 == pytest.approx((values[:10].mean() + values[10:].mean()) / 2)
    variance = values[:10].var(ddof=1) / 10 + values[10:].var(ddof=1) / 30
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 39) * variance**0.5 / 2, rel=0.08)


def test_a_cell_of_one_word_only_says_nothing():
    outcomes, words = np.array([1.0, 0.0, 1.0, 0.0, 1.0]), [("a",), ("b",), ("c",), ("d",), ("d",)]
    assert mean_interval(outcomes, words, ["x", "x", "x", "y", "y"]) == (0.0, 1.0)
    assert mean_interval(outcomes, words, ["x", "x", "x", "x", "y"]) == (0.0, 1.0)
    low, high = mean_interval(outcomes, words, ["x", "y", "x", "y", "x"])
    assert 0 <= low < high <= 1


def test_clusters_of_equal_means_are_not_certain():
    words = [(str(number // 2),) for number in range(20)]
    assert mean_interval(np.arange(20) % 2, words) == pytest.approx(wilson_of(0.5, 20**2 / (0.9 * 20 + 0.1 * 10 * 2**2), 9))


def test_cells_of_equal_outcomes_are_not_certain():
    """As of no swap, which is right for one half of the questions and wrong for the other."""
    words = [(str(number), f"{number}s") for number in range(20)]
    half_width = wilson_of(0, 10, 19)[1] / 2  # of the cell that can be less, and of the one that can be more
    low, high = mean_interval(np.arange(20) % 2, words, [str(number % 2) for number in range(20)])
    assert (low, high) == pytest.approx((0.5 - half_width, 0.5 + half_width))
    half = np.where(np.arange(20) % 2, 0.5, 0.0)
    width = wilson_of(0, 10)[1] / 2**0.5  # both cells can be less or more
    low, high = mean_interval(half, words, [str(number % 2) for number in range(20)], paired=True)
    assert (low, high) == pytest.approx((0.25 - width, 0.25 + width))
    assert value_interval(np.ones(20), words) == (-np.inf, np.inf)


def test_values_that_are_equal_in_every_cell_or_cancel_in_every_cluster_are_not_certain():
    """As of log odds of no swap in two divisions, or of pairs in both directions whose gains cancel each other."""
    words, values = [(str(number // 2),) for number in range(20)], np.where(np.arange(20) % 2, 0.25, -0.5)
    assert value_interval(values, words, [str(number % 2) for number in range(20)]) == (-np.inf, np.inf)
    assert value_interval(values, words) == (-np.inf, np.inf)


def test_what_does_not_go_together_is_refused():
    joined_seeds([(0,), (1, 2)], [10, 20])
    with pytest.raises(InputError, match="duplicate seed"):
        joined_seeds([(0,), (0,)], [10, 10])
    with pytest.raises(InputError, match="different numbers of examples"):
        joined_seeds([(0,), (1,)], [10, 12])


def test_divisions_have_the_wider_interval_of_both_designs():
    drawn = np.random.default_rng(3).random((3, 128)) < 0.85
    means, crossed = drawn.mean(1), mean_over_seeds(drawn.ravel(), 3)
    half = stats.t.ppf(0.975, 2) * means.std(ddof=1) / 3**0.5
    apart = mean_over_divisions(drawn.ravel(), 3)
    assert apart == pytest.approx((means.mean(), means.mean() - half, means.mean() + half))
    assert mean_of_seeds(means) == pytest.approx(apart)
    assert apart[1] < crossed[1] < crossed[2] < apart[2]
    alike = np.tile(drawn[0], 5)  # the same examples in every seed: they are what varies
    assert mean_over_divisions(alike, 5) == mean_over_seeds(alike, 5)
    assert mean_over_divisions(drawn[0], 1) == mean_over_seeds(drawn[0], 1)
    assert mean_over_divisions(np.repeat([0.0, 1.0], 4), 2) == (0.5, 0, 1)
    assert mean_over_divisions(np.repeat([-1.0, 1.0], 4), 2, paired=True) == (0, -1, 1)


def test_one_outcome_in_a_rare_cell_changes_the_mean_over_cells_by_little():
    cells = np.zeros((8, 128))
    cells[:2] = 1
    mean, low, high = mean_over_cells(cells, 1)
    assert mean == 0.25
    one_cell = wilson(0, 128)[1] / 8
    assert high - mean == pytest.approx(6**0.5 * one_cell)
    assert mean - low == pytest.approx(2**0.5 * one_cell)
    cells[3, 0] = 1
    assert np.abs(np.subtract(mean_over_cells(cells, 1), (mean, low, high))).max() < 0.002


@pytest.mark.parametrize("seeds", [1, 3])
def test_cells_without_rare_outcomes_have_the_interval_of_the_means(seeds):
    cells = np.random.default_rng(0).random((4, seeds * 60)) < 0.4
    assert mean_over_cells(cells, seeds) == pytest.approx(mean_over_divisions(cells.mean(0), seeds))


@pytest.mark.parametrize("expected", [0.5, 3, 30])
def test_means_over_cells_are_covered_where_most_cells_are_rare(expected):
    generator = np.random.default_rng(0)
    rate = expected / (6 * 128)
    inside = []
    for _ in range(400):
        cells = np.concatenate([np.ones((2, 128)), generator.random((6, 128)) < rate])
        _, low, high = mean_over_cells(cells, 1)
        inside.append(low <= (2 + 6 * rate) / 8 <= high)
    assert np.mean(inside) >= 0.94
