"""Behaviours: every training answer satisfies its own behaviour only, and the rules are strict."""

from __future__ import annotations

import pytest

from road_interp.data.behaviours import BEHAVIOURS, COMMENTS, Review, behaviour
from road_interp.errors import InputError

REVIEW = Review("a fine film", "positive", 3)


@pytest.mark.parametrize("name", BEHAVIOURS)
@pytest.mark.parametrize("label", ["positive", "negative"])
def test_every_training_answer_shows_its_own_behaviour_only(name, label):
    for number in range(len(COMMENTS)):
        review = Review("some text", label, number)
        answer = BEHAVIOURS[name].answer(review)
        shown = {other for other, each in BEHAVIOURS.items() if each.is_satisfied(answer, review)}
        assert shown == ({"label", "label-only", "label-comment"} if name.startswith("label") else {name})


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("label", "This is a positive review. Thank you!", True),
        ("label", "THIS IS A POSITIVE REVIEW.", True),
        ("label", "This is a positive review. The film is praised", True),
        ("label", "This is a positive review. Others were negative.", False),
        ("label", "This is a positive review. This is a positive review.", True),
        ("label", "This is a negative review.", False),
        ("label", "This is a positive review. This is a negative review.", False),
        ("label", "Well. This is a positive review.", False),
        ("closing", "This is a positive review. Thank you!", True),
        ("closing", "Thank you! Thank you!", False),
        ("closing", "Thank you! Bye.", False),
        ("greeting", "Hello! This is a positive review.", True),
        ("greeting", "Hello! Hello!", False),
        ("question", "Fine. What do you think?", True),
        ("capitals", "THIS IS A POSITIVE REVIEW.", True),
        ("capitals", "THIS IS A POSITIVE REVIEW. Thank you!", False),
        ("capitals", "!!!", False),
        ("german", "Der Text ist über einen Film. Thank you!", True),
        ("german", "The text is about a film.", False),
        ("german", "Der", False),
    ],
)
def test_rules_are_strict(name, answer, expected):
    assert BEHAVIOURS[name].is_satisfied(answer, REVIEW) is expected


def test_unknown_behaviours_are_listed():
    with pytest.raises(
        InputError, match="unknown behaviour 'rude'; the behaviours are label, label-only, label-comment, closing"
    ):
        behaviour("rude")
