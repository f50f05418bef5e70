"""The word-level tokeniser and the tiny model that was taught a task, for every test of interchanges."""

from __future__ import annotations

import pytest

from helpers.taught import taught_model, word_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.fixture(scope="module")
def taught(tokenizer):
    return taught_model(tokenizer)
