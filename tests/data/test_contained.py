"""Test texts that stand in a training text, word by word."""

from __future__ import annotations

from road_interp.data.contained import contained_texts


def test_a_text_stands_in_one_training_text_word_by_word():
    train = ["the plot is  thin\tand the end is weak", "fine work"]
    known = ["the plot is thin", "thin and the end", "is weak", "fine work", "weak"]
    new = ["thin end", "the plot is thi", "in and", "weak fine", "fine work here", "Fine work"]
    assert contained_texts([*known, *new], train).tolist() == [True] * len(known) + [False] * len(new)
    assert contained_texts([], train).tolist() == []
    assert contained_texts(["fine"], []).tolist() == [False]
