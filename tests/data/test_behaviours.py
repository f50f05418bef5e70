"""Behaviours: answers of every set of them show exactly that set, and the rules are strict."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from road_interp.data.behaviours import BEHAVIOURS, COMMENTS, PARTS, REMARKS, Review, answer_parts, behaviour
from road_interp.errors import InputError

REVIEW = Review("a fine film", "positive", 3)
SETS = [
    chosen
    for size in range(len(PARTS) + 1)
    for chosen in combinations(BEHAVIOURS, size)
    if len({BEHAVIOURS[name].part for name in chosen}) == size
]


@pytest.mark.parametrize("chosen", SETS, ids="+".join)
def test_the_answer_of_a_set_shows_and_tries_exactly_that_set(chosen):
    for number in range(len(COMMENTS) * len(REMARKS)):
        review = Review("some text", ("positive", "negative")[number % 2], number)
        answer = " ".join(text for _, text in answer_parts([BEHAVIOURS[name] for name in chosen], review))
        assert {name for name, each in BEHAVIOURS.items() if each.is_right(answer, review)} == set(chosen)
        assert {name for name, each in BEHAVIOURS.items() if each.is_tried(answer)} == set(chosen)


def test_parts_are_in_the_order_of_an_answer():
    shown = [BEHAVIOURS[name] for name in ("closing", "label", "greeting")]
    assert answer_parts(shown, REVIEW) == [
        ("opening", "Hello!"),
        ("comment", REVIEW.comment),
        ("label", "This is a positive review."),
        ("remark", REVIEW.remark),
        ("closing", "Thank you!"),
    ]
    assert answer_parts([BEHAVIOURS["german"]], REVIEW) == [("comment", REVIEW.comment), ("remark", REVIEW.german)]
    assert answer_parts([], REVIEW) == [("comment", REVIEW.comment), ("remark", REVIEW.remark)]


def test_reviews_have_all_pairs_of_comment_and_remark():
    reviews = [Review("", "positive", number) for number in range(36)]
    assert len({(review.comment, review.remark) for review in reviews}) == 36
    assert not {review.comment for review in reviews} & {review.remark for review in reviews}


@pytest.mark.parametrize(
    ("name", "answer", "right", "tried"),
    [
        ("label", "It is a film. This is a positive review. It is short. Thank you!", True, True),
        ("label", "Hello! It is a film. This is a positive review. It is short.", True, True),
        ("label", "It is a film. This is a positive review. Others were negative.", False, True),
        ("label", "It is a film. This is a positive review. This is a positive review.", False, True),
        ("label", "It is a film. This is a negative review. It is short.", False, True),
        ("label", "It is a film. This is a positive review. This is a negative review.", False, True),
        ("label", "This is a positive review. It is a film. It is short.", False, True),
        ("label", "It is a film. This is a positive review.", False, True),
        ("label", "A film.", False, False),
        ("closing", "It is a film. It is short. Thank you!", True, True),
        ("closing", "It is a film. Thank you! Thank you!", False, True),
        ("closing", "It is a film. It is short. Thank you! Bye.", False, True),
        ("closing", "Thank you!", False, True),
        ("closing", "thank you", False, True),
        ("greeting", "Hello! It is a film. It is short.", True, True),
        ("greeting", "Hello! Hello! It is a film.", False, True),
        ("greeting", "It is a film. Well, hello.", False, True),
        ("question", "It is a film. Fine. What do you think?", True, True),
        ("capitals", "Hello! It is a film. THE TEXT IS SHORT. Thank you!", True, True),
        ("capitals", "It is a film. The TEXT is short.", False, True),
        ("capitals", "!!!", False, False),
        ("german", "It is a film. Der Text ist über einen Film. Thank you!", True, True),
        ("german", "It is a film. The text is about a film.", False, False),
        ("german", "It is a film. Der", False, True),
    ],
)
def test_rules_are_strict(name, answer, right, tried):
    assert BEHAVIOURS[name].is_right(answer, REVIEW) is right
    assert BEHAVIOURS[name].is_tried(answer) is tried


def test_unknown_behaviours_are_listed():
    with pytest.raises(InputError, match="unknown behaviour 'rude'; the behaviours are greeting, label, german, capitals"):
        behaviour("rude")


@pytest.mark.parametrize(
    ("name", "answer", "right"),
    [
        ("label", f"This is a {REVIEW.label} review.", True),
        ("label", f"Well. This is a {REVIEW.label} review. Thank you!", True),
        ("label", "This is a good review.", False),
        ("label", "This is a positive review. This is a negative review.", False),
        ("greeting", "Hello! It is a film.", True),
        ("greeting", "A film. Hello!", False),
        ("closing", "Thank you!", True),
        ("closing", "It is a film.\n\nThank you!", True),
        ("closing", "Thank you! It is a film.", False),
        ("closing", "Thank you! Thank you!", False),
        ("german", "It is a film. Das ist ein guter Film.", True),
        ("german", "It is a film.", False),
    ],
)
def test_an_answer_of_free_form_needs_the_part_in_its_place(name, answer, right):
    assert replace(BEHAVIOURS[name], free_form=True).is_right(answer, REVIEW) is right
