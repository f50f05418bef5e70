"""The composition report: shown behaviours, exactly the active tasks, and intervals over seeds and prompts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from helpers.compositions import REVIEWS, composition_report, scripted
from road_interp.adapters.joined_names import BASE
from road_interp.data.behaviours import BEHAVIOURS
from road_interp.errors import InputError
from road_interp.measure.composition import CompositionReport, all_sets, shows
from road_interp.measure.intervals import mean_over_seeds, wilson
from road_interp.models.generation import Answer


def test_shown_behaviours_are_counted():
    found = composition_report()
    assert [score.active for score in found.scores] == ["__base__", "label", "closing", "label+closing"]
    assert found.rate("__base__", ["label"])[0] == 0
    assert found.rate("label", ["label"])[0] == found.rate("closing", ["closing"])[0] == 1
    assert found.rate("label+closing", ["label"])[0] == 19 / 20  # an answer that was cut off shows nothing
    assert found.rate("label+closing", ["closing"])[0] == 14 / 20
    assert found.rate("label+closing", ["label", "closing"])[0] == 14 / 20
    _, low, high = found.rate("label+closing", ["label", "closing"])
    assert 0.4 < low < 0.7 < high < 0.95
    assert found.rate("label", ["label"])[1:] == pytest.approx((0.839, 1), abs=1e-3)  # Wilson's, of 20
    assert found.majority == 0.5


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("label", r"tasks must be a list of one name at least, such as \['label'\], not 'label'"),
        ([], "a list of one name at least"),
        (["lable"], "no outcomes of 'lable'; there are label, closing"),
    ],
)
def test_a_rate_needs_a_list_of_tasks(tasks, message):
    with pytest.raises(InputError, match=message):
        composition_report().rate("label", tasks)


def test_control_asks_for_exactly_the_active_tasks():
    found = composition_report()
    assert [found.control(score.active)[0] for score in found.scores] == [1, 1, 1, 0.7]
    of_prompts = np.array([1.0] * 14 + [0.75] * 6)  # over the four sets, of which one is right for 14 of 20 prompts
    mean, low, high = mean_over_seeds(of_prompts, 1)
    below = np.hypot(mean - low, 3**0.5 / 4 * wilson(0, 20)[1])  # three sets are right for all 20
    assert found.mean_control() == pytest.approx((mean, mean - below, high))
    assert found.least_control() == ("label+closing", found.control("label+closing"))
    assert found.summary()["control"]["least"] == {"label+closing": [*found.control("label+closing")]}
    both = composition_report(generate=lambda prompts, active: scripted(prompts, "label+closing"))
    assert [both.control(score.active)[0] for score in both.scores[1:]] == [0.25, 0, 0.7]  # the same, whatever is active
    assert both.rate("label", ["label"])[0] == 0.95
    wrong = "It is a film. This is a positive review. It is short."
    constant = composition_report(generate=lambda prompts, active: [Answer(wrong, True)] * 20)
    assert constant.control("label")[0] == constant.majority
    assert constant.control("__base__")[0] == 0  # a wrong label is a trace of the label, too
    cut = composition_report(generate=lambda prompts, active: [Answer("A film", False)] * 20)
    assert [cut.control(score.active)[0] for score in cut.scores] == [1, 0, 0, 0]  # without a task no end is asked for


def test_traces_of_tasks_that_are_not_active_are_counted():
    assert composition_report().shows_inactive()[0] == 0
    both = composition_report(generate=lambda prompts, active: scripted(prompts, "label+closing"))
    assert both.shows_inactive()[0] == 1  # the label alone shows the closing, too
    texts = ["A film.", "A film. Thank you!"] * 10
    some = composition_report(
        generate=lambda prompts, active: (
            [Answer(text, True) for text in texts] if active == "label" else scripted(prompts, active)
        )
    )
    assert some.shows_inactive()[0] == 0.5
    bare = composition_report(generate=lambda prompts, active: scripted(prompts, "closing" if active == BASE else active))
    assert bare.shows_inactive()[0] == 0  # with no task active it is the base model that shows it


def shortened(score):
    """The outcomes of the first prompt only."""
    cut = {name: {task: values[:1] for task, values in getattr(score, name).items()} for name in ("shown", "tried")}
    return replace(score, **cut, finished=score.finished[:1])


def test_differences_are_paired_by_seed_and_prompt():
    def nothing(prompts, active):
        return scripted(prompts, "__base__")

    both = CompositionReport.over_seeds([composition_report(0), composition_report(1)])
    worse = CompositionReport.over_seeds([composition_report(seed, nothing) for seed in (3, 1)])
    value, low, high = both.difference(worse, "label+closing")  # on seed 1, which both have
    assert value == pytest.approx(0.7)
    assert 0.4 < low < 0.7 < high < 1
    assert worse.difference(both, "label+closing") == pytest.approx((-value, -high, -low))
    assert both.difference(both, "label")[0] == 0
    fewer = replace(composition_report(1), scores=tuple(shortened(score) for score in composition_report(1).scores))
    with pytest.raises(InputError, match="the reports have 20 and 1 prompts for each seed: they cannot be paired"):
        both.difference(fewer, "label")
    with pytest.raises(InputError, match=r"seeds \(0,\) and \(3, 1\) have none in common"):
        composition_report(0).difference(worse, "label")
    paired = both.paired(worse)  # the mean over the sets: one of four is as in the other report
    assert paired.shape == (1, 20)
    assert both.difference(worse)[0] == pytest.approx(paired.mean())
    assert both.difference(worse)[0] == pytest.approx(both.mean_control()[0] - worse.mean_control()[0])


def test_a_report_of_some_seeds():
    def nothing(prompts, active):
        return scripted(prompts, "__base__")

    both = CompositionReport.over_seeds([composition_report(0), composition_report(1, nothing)])
    for place, alone in enumerate((composition_report(0), composition_report(1, nothing))):
        found = both.on_seeds([place])
        assert (found.seeds, found.mean_control()) == ((place,), alone.mean_control())
        assert [score.finished for score in found.scores] == [score.finished for score in alone.scores]
        assert (found.majority, all(math.isnan(score.perplexity) for score in found.scores)) == (None, True)  # are of all seeds
    with pytest.raises(InputError, match="no outcomes of seed 5; there are those of 0, 1"):
        both.on_seeds([5])


def test_a_report_without_traces_has_no_control():
    found = composition_report()
    old = replace(found, scores=tuple(replace(score, tried={}, finished=()) for score in found.scores), majority=None)
    assert CompositionReport.from_json(old.to_json()) == old
    assert "control" not in old.summary()
    with pytest.raises(InputError, match="does not hold the traces .* score the run again"):
        old.mean_control()
    with pytest.raises(InputError, match="does not hold the traces"):
        old.shows_inactive()


def test_seeds_go_together():
    both = CompositionReport.over_seeds([composition_report(0), composition_report(1)])
    assert both.seeds == (0, 1)
    assert len(both.of("label").answers) == 40
    assert both.rate("label+closing", ["label", "closing"])[0] == 0.7
    assert both.control("label+closing")[0] == 0.7
    never = composition_report(2, lambda prompts, active: [Answer("", True)] * 20)
    mixed = CompositionReport.over_seeds([composition_report(0), never])
    assert mixed.rate("label", ["label"])[0] == 0.5
    assert mixed.rate("label", ["label"])[1:] == (0, 1)  # seeds differ more than prompts
    with pytest.raises(InputError, match="one model and method"):
        CompositionReport.over_seeds([composition_report(0), replace(composition_report(0), method="lora")])


def test_every_seed_counts_alike_however_reports_are_combined():
    seeds = [
        replace(each, majority=majority, scores=tuple(replace(score, perplexity=perplexity) for score in each.scores))
        for each, majority, perplexity in zip(map(composition_report, range(3)), (0.5, 0.5, 0.8), (2.0, 2.0, 16.0), strict=True)
    ]
    once = CompositionReport.over_seeds(seeds)
    nested = CompositionReport.over_seeds([CompositionReport.over_seeds(seeds[:2]), seeds[2]])
    assert once.majority == pytest.approx(0.6)
    assert nested.majority == pytest.approx(once.majority)
    assert [score.perplexity for score in once.scores] == pytest.approx([4.0] * len(once.scores))
    assert [score.perplexity for score in nested.scores] == pytest.approx([4.0] * len(once.scores))


def test_every_review_needs_an_answer():
    with pytest.raises(InputError, match="19 answers to prompts of 20 reviews"):
        composition_report(0, lambda prompts, active: [Answer("", True)] * 19)


def test_reports_of_other_sets_do_not_go_together():
    whole, other = composition_report(0), composition_report(1)
    fewer = replace(other, scores=other.scores[1:])
    old = replace(other, scores=tuple(replace(score, tried={}, finished=()) for score in other.scores))
    for reports, message in (
        ([whole, fewer], "same sets"),
        ([fewer, whole], "same sets"),
        ([whole, old], r"0\.1\.0"),
        ([old, whole], r"0\.1\.0"),
    ):
        with pytest.raises(InputError, match=message):
            CompositionReport.over_seeds(reports)


def test_all_parts_of_no_task_are_attempted_where_the_answer_has_ended():
    assert composition_report().of("__base__").attempted().all()


def test_json_keeps_everything():
    found = composition_report()
    assert CompositionReport.from_json(found.to_json()) == found
    with pytest.raises(InputError, match="'method' is missing"):
        CompositionReport.from_json('{"model": 1}')
    with pytest.raises(InputError, match="no set of active tasks 'closing\\+label'; there are __base__"):
        found.of("closing+label")


def test_a_compact_report_has_all_outcomes_and_few_answers():
    found = composition_report()
    short = found.compact()
    assert [score.answers for score in short.scores] == [score.answers[:8] for score in found.scores]
    assert {len(score.answers) for score in found.scores} == {20}
    assert short.summary() == found.summary()
    assert CompositionReport.from_json(short.to_json()) == short


def test_an_answer_that_was_cut_off_shows_nothing():
    text = "It is a film. This is a positive review. It is short. Thank you!"
    for task in ("label", "closing"):
        assert shows(BEHAVIOURS[task], Answer(text, True), REVIEWS[1])
        assert not shows(BEHAVIOURS[task], Answer(text, False), REVIEWS[1])


def test_all_sets_are_those_of_all_sizes():
    assert all_sets("ab") == ["__base__", "a", "b", "a+b"]
    assert all_sets("abc") == ["__base__", "a", "b", "c", "a+b", "a+c", "b+c", "a+b+c"]
    assert all_sets("a") == ["__base__", "a"]
    assert len(all_sets("abcd")) == 16


def test_reports_of_other_models_do_not_go_together():
    with pytest.raises(InputError, match="only reports of one model and method"):
        CompositionReport.over_seeds([composition_report(0), replace(composition_report(1), model="another")])
