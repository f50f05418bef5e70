"""Accuracy by the share of trained weights: outcomes are paired by text and seed, and drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from road_interp import plots
from road_interp.errors import InputError
from road_interp.measure.intervals import mean_over_seeds
from road_interp.measure.parameter_share import MethodOutcomes, ParameterShareReport


def outcomes(method, percent, rate, seed, task="reviews"):
    correct = np.random.default_rng(seed).random(200) < rate
    return MethodOutcomes("m", task, method, seed, 1e-3, 10, percent, 0.5, tuple(correct.tolist()))


@pytest.fixture(scope="module")
def report():
    return ParameterShareReport(
        {
            "road_1": tuple(outcomes("road_1", 0.1, 0.8, seed) for seed in range(3)),
            "full": tuple(outcomes("full", 100.0, 0.9, seed) for seed in range(2)),
            "other": (outcomes("road_1", 0.1, 0.8, 0, "other"),),
        }
    )


def test_accuracy_is_over_seeds_and_texts(report):
    every = np.concatenate([each.correct for each in report.trainings["road_1"]])
    assert report.accuracy("road_1") == mean_over_seeds(every, 3)
    assert report.summary()["full"] == [*report.accuracy("full")]
    with pytest.raises(InputError, match="no condition 'lora'; there are road_1, full, other"):
        report.accuracy("lora")


def test_differences_are_paired_by_text_and_seed(report):
    value, low, high = report.difference("full", "road_1")  # of the two seeds that both have
    rates = [np.mean([each.correct for each in report.trainings[slug][:2]]) for slug in ("full", "road_1")]
    assert value == pytest.approx(rates[0] - rates[1])
    assert low < value < high
    assert high - low < report.accuracy("full")[2] - report.accuracy("full")[1]  # the texts are the same
    assert report.difference("full", "full")[0] == 0
    with pytest.raises(InputError, match="'road_1' and 'other' have no seed of one model and task in common"):
        report.difference("road_1", "other")
    short = tuple(replace(each, correct=each.correct[:-1]) for each in report.trainings["full"])
    with pytest.raises(InputError, match="'road_1' and 'short' have other numbers of texts"):
        replace(report, trainings={**report.trainings, "short": short}).difference("road_1", "short")


def test_texts_are_divided_by_whether_they_stand_in_a_training_text(report):
    mask = np.arange(200) % 4 == 0
    contained = tuple(mask.tolist())
    slugs = ("road_1", "full")
    marked = {slug: tuple(replace(each, contained=contained) for each in report.trainings[slug]) for slug in slugs}
    found = ParameterShareReport(marked)
    for inside in (True, False):
        pairs = zip(*(marked[slug][:2] for slug in ("full", "road_1")), strict=True)
        lost = [np.subtract(full.correct, road.correct, dtype=float)[mask == inside] for full, road in pairs]
        expected = mean_over_seeds(np.concatenate(lost), 2, paired=True)
        assert found.difference("full", "road_1", inside) == expected
    assert found.difference("full", "road_1") == report.difference("full", "road_1")
    assert ParameterShareReport.from_json(found.to_json()) == found
    other = (replace(marked["full"][0], contained=tuple((~mask).tolist())),)
    none = tuple(replace(each, contained=(False,) * 200) for each in marked["full"])
    for changed in ({"full": other}, {"full": none, "road_1": none}, report.trainings):
        with pytest.raises(InputError, match="'full' and 'road_1' cannot be divided by whether they are in a training text"):
            ParameterShareReport({**marked, **changed}).difference("full", "road_1", contained=True)
    with pytest.raises(InputError, match="'contained' must have as many values as correct, 200"):
        replace(marked["full"][0], contained=(True,))


def test_trainings_of_one_condition_differ_in_the_seed_only():
    first, second = (outcomes("road_1", 0.1, 0.8, seed) for seed in (0, 1))
    with pytest.raises(InputError, match="the trainings of 'road_1' differ in more than the seed"):
        ParameterShareReport({"road_1": (first, replace(second, learning_rate=1e-2))})


def test_json_keeps_everything(report):
    assert ParameterShareReport.from_json(report.to_json()) == report


def test_a_point_per_method_of_the_task(report):
    ax = plots.parameter_share(report, task="reviews")
    assert [(bars.lines[0].get_xdata()[0], bars.lines[0].get_ydata()[0]) for bars in ax.containers] == [
        (0.1, report.accuracy("road_1")[0]),
        (100.0, report.accuracy("full")[0]),
    ]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["m", "road_1", "full fine-tuning"]


def test_points_of_equal_shares_stand_beside_each_other(report):
    """Their bars would cover each other; those of other shares stand where they are."""
    others = {name: (outcomes(name, percent, 0.7, 0),) for name, percent in (("road_2", 0.101), ("lora-1", 0.1), ("road_4", 0.2))}
    ax = plots.parameter_share(ParameterShareReport({**report.trainings, **others}), task="reviews")
    places = [bars.lines[0].get_xdata()[0] for bars in ax.containers]
    assert places == pytest.approx([0.1 / 1.15**0.5, 100.0, 0.101, 0.1 * 1.15**0.5, 0.2])


def test_a_method_that_trains_nothing_is_a_line(report):
    frozen = outcomes("frozen", 0.0, 0.6, 0)
    ax = plots.parameter_share(ParameterShareReport({**report.trainings, "frozen": (frozen,)}), task="reviews")
    (line,) = [line for line in ax.get_lines() if line.get_linestyle() == ":" and len(line.get_xdata())]
    assert set(line.get_ydata()) == {frozen.accuracy}
    shown = {line.get_label(): (line.get_linestyle(), line.get_marker()) for line in ax.get_lines() if not len(line.get_xdata())}
    assert shown["frozen"] == (":", "None")
    assert len(ax.containers) == 2


def test_a_condition_without_outcomes_is_refused():
    for trainings in ((), (replace(outcomes("road_1", 0.1, 0.8, 0), correct=()),)):
        with pytest.raises(InputError, match="the trainings of 'road_1' must be one at least, each with outcomes"):
            ParameterShareReport({"road_1": trainings})


def test_seeds_of_one_condition_are_different_and_of_the_same_texts():
    first, second = (outcomes("road_1", 0.1, 0.8, seed) for seed in (0, 1))
    with pytest.raises(InputError, match=r"duplicate seed in \[0, 0\]"):
        ParameterShareReport({"road_1": (first, first)})
    with pytest.raises(InputError, match=r"the seeds have different numbers of examples: \[200, 100\]"):
        ParameterShareReport({"road_1": (first, replace(second, correct=second.correct[:100]))})
