"""The strength report: rates, JSON and plot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from road_interp import measure, plots
from road_interp.data.behaviours import BEHAVIOURS, Review
from road_interp.errors import InputError
from road_interp.measure import StrengthReport
from road_interp.models.generation import Answer

REVIEWS = [Review(f"text {n}", "positive", n) for n in range(8)]


def report():
    """No answer shows the behaviour below exponent 0.5; from 0.5 on all do, except a truncated one."""

    def answering(strength):
        text = "A film. Good. Thank you!" if strength >= 0.5 else "A film. Good."
        return [Answer(text, finished=number > 0) for number in range(8)]

    return measure.strength(
        answering,
        lambda answers: float(len(answers[0])),
        (0.0, 0.5, 1.0),
        REVIEWS,
        model="m",
        task="closing",
        behaviour=BEHAVIOURS["closing"],
    )


def test_answers_are_counted_at_every_strength():
    found = report()
    assert [rate for rate, _, _ in found.rates()] == [0, 7 / 8, 7 / 8]
    of_none, of_seven = (0, 0.3244), (0.5291, 0.9776)  # Wilson intervals of 0 and of 7 in 8
    for (_, *found_interval), expected in zip(found.rates(), (of_none, of_seven, of_seven), strict=True):
        assert found_interval == pytest.approx(expected, abs=1e-4)
    assert found.perplexity == (13.0, 24.0, 24.0)


def test_json_keeps_everything():
    assert StrengthReport.from_json(report().to_json()) == report()
    with pytest.raises(InputError, match="'model' is missing"):
        StrengthReport.from_json("{}")


def test_the_curve_is_drawn():
    ax = plots.strength(report())
    line = ax.containers[0].lines[0]
    assert line.get_xdata().tolist() == [0, 0.5, 1]
    assert line.get_ydata().tolist() == [0, 7 / 8, 7 / 8]


def test_the_curve_runs_from_the_least_strength_to_the_largest():
    given = report()
    mixed = replace(given, strengths=(1.0, 0.0, 0.5), shown=[given.shown[row] for row in (2, 0, 1)])
    line = plots.strength(mixed).containers[0].lines[0]
    assert line.get_xdata().tolist() == [0, 0.5, 1]
    assert line.get_ydata().tolist() == [0, 7 / 8, 7 / 8]


def test_what_cannot_be_scored_is_refused():
    def measured(answers, reviews=REVIEWS, strengths=(0.0, 1.0)):
        options = {"model": "m", "task": "closing", "behaviour": BEHAVIOURS["closing"]}
        answer = Answer("Good.", True)
        return measure.strength(lambda t: [answer] * answers, lambda texts: float(len(texts[0])), strengths, reviews, **options)

    assert measured(8).rates()[0][0] == 0
    for asked, message in (
        (lambda: measured(7), "7 answers to prompts of 8 reviews"),
        (lambda: measured(0, reviews=[]), "measure.strength needs reviews, one at least"),
        (lambda: measured(8, strengths=()), "one exponent at least"),
        (lambda: measured(8, strengths=0.5), r"a list of exponents, such as \[0, 0.5, 1\], not float"),
        (lambda: replace(report(), perplexity=(1.0,)), "each with its outcomes and its perplexity"),
        (lambda: replace(report(), shown=((True,), (True,), (True, False))), "as many outcomes for each exponent"),
    ):
        with pytest.raises(InputError, match=message):
            asked()
