"""The word-level tokeniser and the tiny model that was taught a task, for every test of interchanges."""

from __future__ import annotations

import pytest

from helpers.taught import taught_model, word_tokenizer
from helpers.things import model_of_things, runs_of, thing_task


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.fixture(scope="module")
def taught(tokenizer):
    return taught_model(tokenizer)


@pytest.fixture(scope="module")
def task():
    return thing_task()


@pytest.fixture(scope="module")
def taught_things(task, tokenizer):
    return model_of_things(task, tokenizer)


@pytest.fixture(scope="module")
def runs(taught_things, task, tokenizer):
    return runs_of(taught_things, task, tokenizer, "train")
