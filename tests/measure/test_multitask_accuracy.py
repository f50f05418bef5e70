"""Accuracy of heads on one state: which reports go together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from road_interp import plots
from road_interp.errors import InputError
from road_interp.measure.multitask_accuracy import MultiTaskAccuracyReport, MultiTaskAccuracyStudy


def report(seed, texts=10):
    sets = {"a": (True,) * 10, "b": (True,) * 10, "a+b": (True,) * 10}
    return MultiTaskAccuracyReport(
        "m", "planes", ("a", "b"), (seed,), {"a": sets, "b": dict.fromkeys(sets, (seed == 0,) * texts)}
    )


def test_seeds_go_together():
    both = MultiTaskAccuracyReport.over_seeds([report(0), report(1)])
    assert both.seeds == (0, 1)
    assert (both.accuracy("a", "a")[0], both.accuracy("b", "b")[0]) == (1, 0.5)


def test_unknown_tasks_and_sets_are_refused():
    without_b = replace(report(0), tasks=("a",), correct={"a": report(0).correct["a"]})
    for use, message in (
        (lambda: report(0).accuracy("c", "a"), "no outcomes of 'c'"),
        (lambda: report(0).accuracy("a", "c"), "no outcomes of 'a' with 'c'"),
        (lambda: report(0).cost("c"), "no outcomes of 'c'"),
        (lambda: report(0).gain("a"), "no outcomes of 'a' with '__base__'"),
        (lambda: MultiTaskAccuracyStudy((report(0),), {"a": report(0)}).gap("b", report(0)), "no training alone of 'b'"),
        (lambda: MultiTaskAccuracyStudy((report(0),), {"b": without_b}).gap("b", report(0)), "no outcomes of 'b'"),
        (
            lambda: MultiTaskAccuracyStudy((report(0),), {"b": report(0, texts=20)}).gap("b", report(0)),
            "'b' alone has 20 outcomes, 'planes' 10: they cannot be paired",
        ),
    ):
        with pytest.raises(InputError, match=message):
            use()


def test_tables_have_every_set_of_active_tasks():
    both = MultiTaskAccuracyReport.over_seeds([report(0), report(1)])
    assert MultiTaskAccuracyReport.from_json(both.to_json()) == both
    assert list(both.summary()["accuracy"]["b"]) == ["a", "b", "a+b"]
    assert both.summary()["accuracy"]["b"]["b"][0] == 0.5
    assert both.summary()["cost"] == {"a": list(both.cost("a")), "b": list(both.cost("b"))}
    rows = both.records()
    assert [(row["task"], row["active"]) for row in rows] == [(task, active) for task in "ab" for active in ("a", "b", "a+b")]
    assert {row["accuracy"][0] for row in rows if row["task"] == "b"} == {0.5}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(report(1), model="another"), "only reports of one model and method and the same tasks"),
        (replace(report(1), method="another"), "only reports of one model and method and the same tasks"),
        (replace(report(1), correct={"a": report(1).correct["a"]}), "only reports of one model and method and the same tasks"),
        (report(1, texts=20), "the seeds have different numbers of examples"),
        (report(0), "duplicate seed"),
    ],
)
def test_what_does_not_go_together_is_refused(other, message):
    with pytest.raises(InputError, match=message):
        MultiTaskAccuracyReport.over_seeds([report(0), other])


def test_reports_of_other_sets_do_not_go_together():
    more = replace(report(1), correct={task: {"__base__": sets[task], **sets} for task, sets in report(1).correct.items()})
    for reports in ([report(0), more], [more, report(0)]):
        with pytest.raises(InputError, match="reports that scored 'a' with {.*} and {.*} cannot be combined"):
            MultiTaskAccuracyReport.over_seeds(reports)


def test_a_task_without_training_alone_is_named():
    with pytest.raises(InputError, match="no training alone of 'b'; there are a"):
        plots.multitask_accuracy(MultiTaskAccuracyStudy((report(0),), {"a": report(0)}))
