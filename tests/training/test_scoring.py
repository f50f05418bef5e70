"""Scorers: a run is scored with other adapters on its model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.recipes import recipe_for
from road_interp import RoadAdapter
from road_interp.errors import InputError
from road_interp.training.api import evaluate, train
from road_interp.training.scoring import ClassifierScorer, make_scorer


@pytest.fixture(scope="module")
def scorer(finished):
    return ClassifierScorer(finished)


def test_the_trained_adapter_scores_as_the_run_did(finished, scorer):
    right = scorer(finished.adapter)
    assert right.dtype == bool
    assert right.mean() == finished.metrics["test"]["accuracy"]
    some = np.random.default_rng(0).permutation(40)[:10]
    assert np.array_equal(ClassifierScorer(finished, limit=10)(finished.adapter), right[some])
    for limit in (0, -1, 2.5):
        with pytest.raises(InputError, match=f"make_scorer: limit must be a whole number of at least 1, not {limit}"):
            make_scorer(finished, limit=limit)


def test_without_its_rotations_the_head_is_worse_and_refitting_it_helps(finished, scorer):
    identity = RoadAdapter.identity(finished.adapter.sites)
    bare, refitted = scorer(identity).mean(), scorer.refitted(identity).mean()
    assert bare < refitted <= 1
    assert scorer.refitted(finished.adapter).mean() > 0.8
    assert scorer(finished.adapter).mean() > bare  # the scorer keeps nothing of an earlier adapter


def test_an_adapter_is_scored_at_its_own_positions(finished, scorer):
    first = replace(finished.adapter, positions="f1")
    other = replace(finished, adapter=first)
    model = other.load_model()
    assert model.positions == "f1"
    right = scorer(first)
    assert not np.array_equal(right, scorer(finished.adapter))
    assert right.mean() == evaluate(other, progress=False)["accuracy"]


def test_overflown_states_choose_no_class(finished, scorer):
    huge = replace(finished.adapter, alpha={name: torch.full_like(each, 1e30) for name, each in finished.adapter.alpha.items()})
    with pytest.raises(InputError, match="the head's outputs are NaN for 40 of 40 texts: states of the model have overflowed"):
        scorer(huge)
    run = replace(finished, adapter=huge)
    with pytest.raises(InputError, match="NaN for 40 of 40 texts"):
        evaluate(run, progress=False)
    with pytest.raises(InputError, match="NaN for 1 of 1 texts"):
        run.predict(["fine"])


def test_runs_without_accuracy_are_refused(finished, workplace):
    number = train(
        recipe_for(workplace, "data.problem_type=regression", "data.label=score", "training.max_steps=1"),
        workplace / "number", progress=False,
    )  # fmt: skip
    with pytest.raises(InputError, match="is not a run of one classification task"):
        ClassifierScorer(number)
    matthews = replace(finished, recipe=recipe_for(workplace, "data.metric=matthews"))
    with pytest.raises(InputError, match="is scored by matthews"):
        ClassifierScorer(matthews)
