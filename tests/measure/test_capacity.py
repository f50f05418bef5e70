"""The capacity report: intervals cover both sources of variance, and the plot shows every point."""

from __future__ import annotations

from dataclasses import replace

import pytest

from road_interp import plots
from road_interp.errors import InputError
from road_interp.measure import CapacityPoint, CapacityReport


def report(score, family="LoRA, rank", seeds=()):
    points = tuple(
        CapacityPoint(family, str(rank), 1000 * rank, 0.1 * rank, (score + rank / 100,), 400, seeds) for rank in (1, 2)
    )
    return CapacityReport("m", "t", points)


def test_seeds_go_together_and_their_spread_widens_the_interval():
    one, two, close, far = (
        CapacityReport.over_seeds([report(score) for score in scores]).points[0]
        for scores in ((0.8,), (0.79, 0.81), (0.79, 0.8, 0.81), (0.6, 0.8, 1.0 - 0.02))
    )
    assert one.scores == (pytest.approx(0.81),)
    assert close.scores == pytest.approx((0.80, 0.81, 0.82))
    widths = [point.interval[1] - point.interval[0] for point in (one, close, far)]
    assert 0.06 < widths[0] < widths[1] < 0.12 < widths[2]
    assert two.interval[1] - two.interval[0] > 0.2  # two seeds say little of their spread
    assert close.interval[0] < close.mean < close.interval[1]


def test_json_keeps_everything_and_what_differs_is_refused():
    both = CapacityReport.over_seeds([report(0.7), report(0.8)])
    assert CapacityReport.from_json(both.to_json()) == both
    with pytest.raises(InputError, match="'model' is missing"):
        CapacityReport.from_json("{}")
    other = replace(report(0.8), points=(replace(report(0.8).points[0], parameters=7),))
    with pytest.raises(InputError, match="1: reports with other numbers of trained values"):
        CapacityReport.over_seeds([report(0.7), other])


def test_a_way_has_the_seeds_it_was_measured_with():
    some = replace(report(0.8), points=report(0.8).points[1:])
    together = CapacityReport.over_seeds([report(0.7), some, report(0.6, "RoAd, sites")])
    assert [(point.family, point.name, len(point.scores)) for point in together.points] == [
        ("LoRA, rank", "1", 1),
        ("LoRA, rank", "2", 2),
        ("RoAd, sites", "1", 1),
        ("RoAd, sites", "2", 1),
    ]
    ax = plots.capacity(together)
    assert "1 to 2 seeds" in ax.get_title()
    hollow = [line.get_xdata() for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert [list(x) for x in hollow] == [pytest.approx([0.71]), pytest.approx([0.61, 0.62])]


def test_the_drawing_has_every_point():
    ax = plots.capacity(CapacityReport("m", "t", report(0.7).points + report(0.6, "RoAd, sites").points))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1  0.1%", "1  0.1%", "2  0.2%", "2  0.2%"]
    points = [container.lines[0] for container in ax.containers]
    assert [line.get_ydata().tolist() for line in points] == [[0, 2], [1, 3]]
    assert [line.get_xdata().tolist() for line in points] == [pytest.approx([0.71, 0.72]), pytest.approx([0.61, 0.62])]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["LoRA, rank", "RoAd, sites"]


@pytest.mark.parametrize("changed", [{"model": "another"}, {"task": "another"}])
def test_reports_of_other_models_or_tasks_do_not_go_together(changed):
    with pytest.raises(InputError, match="only reports of one model and one task can be combined"):
        CapacityReport.over_seeds([report(0.7), replace(report(0.8), **changed)])


def test_a_seed_counts_once():
    both = CapacityReport.over_seeds([report(0.7, seeds=(0,)), report(0.7, seeds=(1,))])
    assert [point.seeds for point in both.points] == [(0, 1), (0, 1)]
    with pytest.raises(InputError, match="duplicate seed"):
        CapacityReport.over_seeds([both, report(0.7, seeds=(1,))])


def test_a_report_without_scores_is_refused():
    for points in ((), (replace(report(0.7).points[0], scores=()),)):
        with pytest.raises(InputError, match="'points' must hold one configuration at least, each with scores"):
            CapacityReport("m", "t", points)
