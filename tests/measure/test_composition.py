"""The composition measure: strict joint scores, the index, intervals over seeds and prompts."""

from __future__ import annotations

import pytest

from road_interp import measure
from road_interp.data.behaviours import BEHAVIOURS, Review
from road_interp.errors import InputError
from road_interp.measure.composition import CompositionReport, default_sets, satisfies
from road_interp.models.generation import Answer

REVIEWS = [Review(f"text {n}", "positive" if n % 2 else "negative", n) for n in range(20)]
TASKS = {name: BEHAVIOURS[name] for name in ("label", "closing")}


def scripted(prompts, active):
    """Right with one task; with both, every fourth answer forgets the phrase and one never ends."""
    answers = []
    for number, review in enumerate(REVIEWS):
        label = f"This is a {review.label} review."
        text = {"__base__": "A film.", "label": label, "closing": f"{review.comment} Thank you!"}.get(active)
        text = text or (label if number % 4 == 0 else f"{label} Thank you!")
        answers.append(Answer(text, finished=not (active == "label+closing" and number == 1)))
    return answers


def report(seed=0, answering=scripted):
    prompts = [review.text for review in REVIEWS]
    return measure.composition(
        answering, lambda prompts, answers: 2.0, TASKS, REVIEWS, prompts, model="m", method="road_1", seed=seed
    )


def test_rates_joint_scores_and_index_are_counted():
    found = report()
    assert [score.active for score in found.scores] == ["__base__", "label", "closing", "label+closing"]
    assert found.rate("__base__", ["label"]) == 0
    assert found.rate("label", ["label"]) == found.rate("closing", ["closing"]) == 1
    assert found.rate("label+closing", ["label"]) == 1  # an unfinished answer counts for its beginning, not for its end
    assert found.rate("label+closing", ["closing"]) == 14 / 20
    assert found.rate("label+closing", ["label", "closing"]) == 14 / 20
    assert found.index(["label", "closing"]) == 14 / 20
    low, high = found.interval("label+closing", ["label", "closing"])
    assert 0.4 < low < 0.7 < high < 0.95
    assert found.index_interval(["label", "closing"]) == pytest.approx((low, high), abs=0.06)
    assert found.summary()["composition index"][0] == 0.7
    assert found.interval("label", ["label"]) == (1, 1)


def test_seeds_go_together():
    both = CompositionReport.over_seeds([report(0), report(1)])
    assert both.seeds == (0, 1)
    assert len(both.of("label").answers) == 40
    assert both.rate("label+closing", ["label", "closing"]) == 0.7
    never = report(2, lambda prompts, active: [Answer("", True)] * 20)
    mixed = CompositionReport.over_seeds([report(0), never])
    assert mixed.rate("label", ["label"]) == 0.5
    assert mixed.interval("label", ["label"]) == (0, 1)  # seeds differ more than prompts
    assert never.index(["label", "closing"]) == 0
    with pytest.raises(InputError, match="one method"):
        CompositionReport.over_seeds([report(0), CompositionReport("m", "lora", ("label", "closing"), (0,), report().scores)])


def test_json_keeps_everything():
    found = report()
    assert CompositionReport.from_json(found.to_json()) == found
    with pytest.raises(InputError, match="not the JSON of a composition"):
        CompositionReport.from_json('{"model": 1}')
    with pytest.raises(InputError, match="no answers with 'closing\\+label' active"):
        found.of("closing+label")


@pytest.mark.parametrize(
    ("task", "text", "finished", "expected"),
    [
        ("label", "This is a positive review. It is not a negative", False, True),
        ("label", "This is a positive review. It is not a negative one.", True, False),
        ("label", "This is a negative review. This is a positive", False, False),
        ("label", "This is a positive", False, False),
        ("greeting", "Hello! Hello! Hello!", False, True),
        ("greeting", "Hello! Hello!", True, False),
        ("closing", "Thank you!", False, False),
        ("closing", "Thank you!", True, True),
        ("closing", "Thank you! Thank", False, False),
    ],
)
def test_an_answer_that_was_cut_off_is_judged_by_its_first_sentence(task, text, finished, expected):
    assert satisfies(BEHAVIOURS[task], Answer(text, finished), REVIEWS[1]) is expected


def test_active_sets_are_none_each_pairs_and_all():
    assert default_sets("ab") == ["__base__", "a", "b", "a+b"]
    assert default_sets("abc") == ["__base__", "a", "b", "c", "a+b", "a+c", "b+c", "a+b+c"]
    assert default_sets("a") == ["__base__", "a"]
