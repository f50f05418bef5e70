"""Methods on the same pairs: the best training by validation, seeds, and the figure."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from helpers.things import VARIABLES, nothing, runs_of
from road_interp import plots
from road_interp.causal import variables_comparison
from road_interp.causal.variable_methods import (
    METHODS,
    SHARED,
    STACKED,
    no_variable,
)
from road_interp.causal.variables import VariableRuns, VariablesReport, cell_weights, measure_variables
from road_interp.causal.variables_comparison import (
    TrainedInterchange,
    Trial,
    VariablesComparison,
    compare_variables,
    count_runs,
    disentangle_over_seeds,
    number_clusters,
)
from road_interp.errors import InputError


@pytest.mark.slow
def test_methods_are_compared_on_the_same_pairs(taught_things, task, tokenizer):
    splits = [runs_of(taught_things, task, tokenizer, split) for split in ("train", "val", "test")]
    trials, reports = compare_variables(*splits, 2, rates=dict.fromkeys(METHODS, (1e-7, 0.05)), steps=60, seed=3)
    assert [(trial.method, trial.rate) for trial in trials] == [(name, rate) for name in METHODS for rate in (1e-7, 0.05)]
    by_name = {report.method: report for report in reports}
    assert list(by_name) == ["no swap", "whole state", "random subspace", *METHODS]
    assert {report.seed for report in reports} == {3}
    assert by_name["no swap"].disentangle == 0.5
    assert (by_name["random subspace"].parameters, by_name["random subspace"].validation) == (0, None)
    assert by_name["DAS of each variable"].parameters == by_name[SHARED].parameters == 32 * 4
    for name in (SHARED, "DAS of each variable"):
        assert by_name[name].rate == 0.05  # at the other nothing is learned
        assert by_name[name].validation > 0.6
    with pytest.raises(InputError, match="the entity or group '.*' is in two splits"):
        compare_variables(splits[0], splits[1], splits[0], 2)


def test_seeds_are_pooled_over_the_groups_that_they_share():
    """Two seeds with opposite outcomes of every group: nothing varies between groups, which are six, and so not certain."""
    share = stats.t.ppf(0.975, 5) ** 2 / 5  # a cell's six outcomes are worth five trials
    half_width = (share / 4 + share**2 / 4) ** 0.5 / (1 + share) / 8**0.5
    pairs = [(cell, (group, group)) for cell in cell_weights(VARIABLES) for group in "abcdef"]
    cells, groups = zip(*pairs, strict=True)
    right = [group[0] in "abc" for group in groups]

    def comparison(outcomes, seed):
        value, counts = float(np.mean(outcomes)), ((1, 1, 1), (1, 1, 1))
        report = VariablesReport("x", "s", "m", 1, 1, 0, 0.1, 0.5, 6, (), value, (0.0, 1.0), tuple(outcomes))
        clusters = number_clusters(groups)
        return VariablesComparison("m", "x", VARIABLES, 0, 1, 1, seed, *counts, count_runs(cells), *clusters, (), (report,))

    one, other, same = comparison(right, 0), comparison([not each for each in right], 1), comparison(right, 2)
    value, low, high = disentangle_over_seeds([one], "m")
    assert value == 0.5
    assert low < 0.3
    assert high > 0.7
    mean, lowest, highest = disentangle_over_seeds([one, other], "m")
    assert mean == 0.5
    assert (lowest, highest) == pytest.approx((0.5 - half_width, 0.5 + half_width))
    assert disentangle_over_seeds([one, same], "m") == pytest.approx((value, low, high))
    for changed in ({"model": "other"}, {"task": "other"}, {"layer": 5}, {"coordinates": 2}, {"steps": 9}):
        with pytest.raises(InputError, match="only comparisons of one model, task, layer"):
            disentangle_over_seeds([one, replace(other, **changed)], "m")
    with pytest.raises(InputError, match=r"duplicate seed in \[0, 0\]"):
        disentangle_over_seeds([one, one], "m")
    with pytest.raises(InputError, match="needs one comparison at least"):
        disentangle_over_seeds([], "m")
    with pytest.raises(InputError, match="plots.variables draws comparisons of one model, task, layer and number of steps"):
        plots.variables([one, replace(other, layer=5)])


def test_of_equal_trainings_the_one_with_the_smallest_rate_is_tested(taught_things, task, tokenizer, monkeypatch):
    splits = [runs_of(taught_things, task, tokenizer, split) for split in ("train", "val", "test")]
    scores = {0.1: 0.5 + 1e-16, 0.02: 0.5, 0.3: 0.4}

    def try_methods(*runs, **options):
        for rate in scores:
            yield TrainedInterchange(Trial(SHARED, rate, 0.0, scores[rate]), no_variable)

    monkeypatch.setattr(variables_comparison, "try_methods", try_methods)
    trials, reports = compare_variables(*splits, 2, controls=False)
    assert [report.rate for report in reports] == [0.02]
    assert len(trials) == 3


def test_runs_of_all_splits_are_of_one_place(taught_things, task, tokenizer):
    """A mask has no names of variables: with another order they would be exchanged."""
    train, validation, test = (runs_of(taught_things, task, tokenizer, split) for split in ("train", "val", "test"))
    reversed_order = VariableRuns(taught_things, test.pairs, 0, VARIABLES[::-1])
    other_layer = VariableRuns(taught_things, validation.pairs, 1, VARIABLES)
    other_model = VariableRuns(copy.deepcopy(taught_things), test.pairs, 0, VARIABLES)
    other_span = VariableRuns(taught_things, test.pairs, 0, VARIABLES, "last")
    for splits, what in (
        ((train, validation, reversed_order), "variables"),
        ((train, other_layer, test), "site"),
        ((train, validation, other_model), "model"),
        ((train, validation, other_span), "span"),
    ):
        with pytest.raises(InputError, match=f"the runs of one split have another {what} than those of another"):
            compare_variables(*splits, 2)


def test_learning_rates_are_checked_before_anything_is_measured(taught_things, task, tokenizer, monkeypatch):
    splits = [runs_of(taught_things, task, tokenizer, split) for split in ("train", "val", "test")]
    monkeypatch.setattr(variables_comparison, "_untrained", lambda *arguments: pytest.fail("measured first"))
    for rates, message in (
        *(({SHARED: given}, "must be numbers, one at least, as in .*, not ") for given in ((), 0.1, "0.1", ["0.1"])),
        ({STACKED: (0.1,)}, f"learning rates of '{STACKED}', which is not among the methods {SHARED}"),
        ({"none": (0.1,)}, "unknown method 'none'"),
    ):
        with pytest.raises(InputError, match=message):
            compare_variables(*splits, 2, methods=[SHARED], rates=rates)
    with pytest.raises(InputError, match="needs a list of str, not str: give names of methods"):
        compare_variables(*splits, 2, methods=SHARED)


def half_of_equal_outcomes(pairs):
    """Half of the interval of a difference that is 0 in every pair: of each cell Wilson's upper bound of 0 times its weight."""
    halves = []
    for cell, weight in cell_weights(VARIABLES).items():
        groups = [group for group, each in zip(pairs.groups, pairs.cells, strict=True) if each == cell]
        shared = sum(len({*one} & {*other}) / (len({*one}) * len({*other})) ** 0.5 for one in groups for other in groups)
        trials = len(groups) ** 2 / (0.9 * len(groups) + 0.1 * shared)
        square = stats.norm.ppf(0.975) ** 2
        halves.append(weight * square / (trials + square))
    return sum(half**2 for half in halves) ** 0.5


def test_the_figure_has_a_line_per_method_and_a_level_per_control(runs):
    def comparison(count, seed, cause):
        report = measure_variables(runs, nothing, "no swap", 0, seed)
        scores = tuple(replace(score, cause=cause) for score in report.scores)
        trained = replace(report, method=SHARED, coordinates=count, scores=scores, disentangle=(1 + cause) / 2)
        counts, pairs = ((1, 1, 1), (1, 1, 1)), (count_runs(runs.pairs.cells), *number_clusters(runs.pairs.groups))
        return VariablesComparison("m", "x", VARIABLES, 0, count, 1, seed, *counts, *pairs, (), (report, trained))

    found = [comparison(1, 0, 0.2), comparison(1, 1, 0.4), comparison(4, 0, 0.8)]
    ax = plots.variables(found, quantity="cause")
    (line,) = [each for each in ax.get_lines() if each.get_marker() == "o"]
    assert line.get_xdata().tolist() == [1, 4]
    assert line.get_ydata() == pytest.approx([0.3, 0.8])
    (level,) = [each for each in ax.get_lines() if each.get_label() == "no swap"]
    assert level.get_ydata() == pytest.approx([found[0].of("no swap").scores[0].cause] * 2)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "4"]
    assert plots.variables(found).get_lines()[0].get_ydata() == pytest.approx([0.65, 0.9])
    for seeds, expected in ((found[:1], 0.1), (found[:2], 0.15)):
        value, low, high = disentangle_over_seeds(seeds, SHARED, "no swap")
        assert value == pytest.approx(expected)
        assert -low == high == pytest.approx(half_of_equal_outcomes(runs.pairs) / len(seeds) ** 0.5)
    several = replace(found[2], reports=(found[2].reports[0], replace(found[2].reports[1], method="first"), found[2].reports[1]))
    names = [text.get_text() for text in plots.variables([found[0], several]).get_legend().get_texts()]
    assert names.index("first") < names.index(SHARED)  # as in the comparison with most methods
    assert VariablesComparison.from_json(found[0].to_json()) == found[0]
    assert found[0].cells == tuple(runs.pairs.cells)
    with pytest.raises(InputError, match="no report of 'DAS'; there are no swap, multi-task DAS"):
        found[0].of("DAS")
