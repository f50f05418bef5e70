"""The composition report: joint rates, the index, and intervals over seeds and prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.compositions import REVIEWS, composition_report
from road_interp.data.behaviours import BEHAVIOURS
from road_interp.errors import InputError
from road_interp.measure.composition import CompositionReport, default_sets, satisfies
from road_interp.models.generation import Answer


def test_rates_joint_scores_and_index_are_counted():
    found = composition_report()
    assert [score.active for score in found.scores] == ["__base__", "label", "closing", "label+closing"]
    assert found.rate("__base__", ["label"]) == 0
    assert found.rate("label", ["label"]) == found.rate("closing", ["closing"]) == 1
    assert found.rate("label+closing", ["label"]) == 1  # a truncated answer can show a label, but no closing
    assert found.rate("label+closing", ["closing"]) == 14 / 20
    assert found.rate("label+closing", ["label", "closing"]) == 14 / 20
    assert found.index(["label", "closing"]) == 14 / 20
    low, high = found.interval("label+closing", ["label", "closing"])
    assert 0.4 < low < 0.7 < high < 0.95
    assert found.index_interval(["label", "closing"]) == pytest.approx((low, high), abs=0.06)
    assert found.summary()["composition index"][0] == 0.7
    assert found.interval("label", ["label"]) == (1, 1)


def test_seeds_go_together():
    both = CompositionReport.over_seeds([composition_report(0), composition_report(1)])
    assert both.seeds == (0, 1)
    assert len(both.of("label").answers) == 40
    assert both.rate("label+closing", ["label", "closing"]) == 0.7
    never = composition_report(2, lambda prompts, active: [Answer("", True)] * 20)
    mixed = CompositionReport.over_seeds([composition_report(0), never])
    assert mixed.rate("label", ["label"]) == 0.5
    assert mixed.interval("label", ["label"]) == (0, 1)  # seeds differ more than prompts
    assert never.index(["label", "closing"]) == 0
    with pytest.raises(InputError, match="one method"):
        CompositionReport.over_seeds([composition_report(0), replace(composition_report(0), method="lora")])


def test_json_keeps_everything():
    found = composition_report()
    assert CompositionReport.from_json(found.to_json()) == found
    with pytest.raises(InputError, match="'method' is missing"):
        CompositionReport.from_json('{"model": 1}')
    with pytest.raises(InputError, match="no answers with 'closing\\+label' active"):
        found.of("closing+label")


def test_a_compact_report_has_all_outcomes_and_few_answers():
    found = composition_report()
    short = found.compact(3)
    assert [score.answers for score in short.scores] == [score.answers[:3] for score in found.scores]
    assert short.summary() == found.summary()
    assert CompositionReport.from_json(short.to_json()) == short


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
