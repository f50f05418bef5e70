"""The verdicts of the checks depend on the intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.compositions import REVIEWS, composition_report
from helpers.interferences import measured
from helpers.scorers import needs, taken_apart
from road_interp.errors import InputError
from road_interp.measure import Diagnosis, InterferenceReport, fails_to_compose, hurts_others, needs_magnitudes
from road_interp.measure.intervals import wilson
from road_interp.measure.multitask_accuracy import MultiTaskAccuracyReport
from road_interp.models.generation import Answer


def test_a_task_that_needs_magnitudes_is_told_from_one_that_needs_angles():
    found = needs_magnitudes(taken_apart(needs("magnitudes")))
    assert found.verdict == "yes"
    assert found.numbers["accuracy lost with angles only"][0] == 0.5
    assert needs_magnitudes(taken_apart(lambda adapter: np.tile(needs("angles")(adapter), 100))).verdict == "no"
    assert needs_magnitudes(taken_apart(needs("angles"))).verdict == "cannot tell"  # none of ten examples is lost
    assert needs_magnitudes(taken_apart(needs("angles")), margin=0.3).verdict == "cannot tell"  # the adapter gains .5 [.12, .88]
    assert needs_magnitudes(taken_apart(lambda adapter: np.ones(10, bool))).verdict == "cannot tell"  # the adapter has no effect


def test_few_examples_allow_no_verdict():
    def score(adapter):
        moved = (adapter.magnitudes(adapter.sites[0]) != 1).any()
        return np.array([True] * 9 + [bool(moved)])

    assert needs_magnitudes(taken_apart(score)).verdict == "cannot tell"


@pytest.mark.parametrize(("undone", "verdict"), [(0, "no"), (2000, "cannot tell")])
def test_a_control_that_gains_nothing_has_nothing_to_lose(undone, verdict):
    """Without its own adapter a control is right about none of 2,000 texts, or about all."""
    right = {"nothing": (True,) * 2000, "other": (True,) * 2000, "undone": (True,) * undone + (False,) * (2000 - undone)}
    square = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    found = InterferenceReport("tiny", ("own", "other", "undone"), (0,), square, square, {"own": right})
    assert hurts_others(found, "own", "other").verdict == "no"
    check = hurts_others(found, "own", "other", undone="undone")
    assert check.verdict == verdict
    assert list(check.numbers) == ["other", "what 'own' gains by its own adapter"]


def test_an_adapter_that_hurts_a_control_is_found():
    found = hurts_others(measured(), "first", "strong")
    assert found.verdict == "yes"
    assert found.numbers["second"] == (0, -wilson(0, 20)[1], wilson(0, 20)[1])
    assert hurts_others(measured(), "first", "second").verdict == "cannot tell"  # the other adapters do not matter
    assert hurts_others(measured(), "first", "second", margin=0.2).verdict == "no"
    with pytest.raises(InputError, match="no scored task 'other'; there are first"):
        hurts_others(measured(), "other", "first")
    for adapter in ("other", "nothing"):
        with pytest.raises(InputError, match=f"no adapter with which 'first' was scored: '{adapter}'; there are second, strong"):
            hurts_others(measured(), "first", adapter)


def heads(together):
    sets = {"__base__": (False,) * 100, "a": (True,) * 100, "a+b": (True,) * together + (False,) * (100 - together)}
    right = {"__base__": (False,) * 100, "b": (True,) * 100, "a+b": (True,) * 100}
    return MultiTaskAccuracyReport("m", "x", ("a", "b"), (0,), {"a": sets, "b": right})


def answering(together):
    """The right answer with one task active; with both, the template `together`."""

    def answer(prompts, active):
        labels = [f"This is a {review.label} review." for review in REVIEWS]
        texts = {"__base__": "", "label": "Well. {label} Good.", "closing": "Well. Good. Thank you!"}
        return [Answer(texts.get(active, together).format(label=label), True) for label in labels]

    return answer


def test_composition_and_heads_are_judged_by_their_cost():
    assert fails_to_compose(composition_report()).verdict == "yes"  # 14 of 20 answers show both
    both = composition_report(generate=answering("Well. {label} Good. Thank you!"))
    assert (fails_to_compose(both).verdict, fails_to_compose(both, margin=0.2).verdict) == ("cannot tell", "no")
    assert fails_to_compose(composition_report(generate=answering("Well. {label} Good."))).verdict == "yes"
    nothing = composition_report(generate=lambda prompts, active: [Answer("", True)] * 20)
    assert fails_to_compose(nothing).verdict == "cannot tell"
    with pytest.raises(InputError, match="fails_to_compose needs a report of two tasks at least, not of 'label' alone"):
        fails_to_compose(replace(composition_report(), tasks=("label",)))
    assert fails_to_compose(heads(100), margin=0.05).verdict == "no"
    assert fails_to_compose(heads(100)).verdict == "cannot tell"
    assert fails_to_compose(heads(99)).verdict == "cannot tell"
    assert fails_to_compose(heads(50)).verdict == "yes"
    assert fails_to_compose(heads(50), margin=0.9).verdict == "no"


def test_what_cannot_be_called_up_alone_gets_no_verdict():
    """An adapter that always shows everything loses nothing, and so do heads that have learned nothing."""
    always = composition_report(
        generate=lambda prompts, active: answering("Well. {label} Good. Thank you!")(prompts, "label+closing")
    )
    assert always.cost("label")[0] == always.cost("closing")[0] == 0
    found = fails_to_compose(always, margin=0.2)
    assert (found.verdict, found.numbers["'label' alone"][0]) == ("cannot tell", 0)
    chance = (True, False) * 50
    sets = dict.fromkeys(("__base__", "a", "b", "a+b"), chance)
    found = fails_to_compose(MultiTaskAccuracyReport("m", "x", ("a", "b"), (0,), {"a": sets, "b": sets}), margin=0.05)
    assert (found.verdict, found.numbers["what 'a' gains by its own planes"][0]) == ("cannot tell", 0)


def test_a_diagnosis_comes_back_from_json():
    found = Diagnosis((fails_to_compose(heads(99)), hurts_others(measured(), "first", "strong")))
    assert Diagnosis.from_json(found.to_json()) == found
    with pytest.raises(InputError, match=r"'checks\[0\].question' is missing"):
        Diagnosis.from_json('{"checks": [{}]}')
