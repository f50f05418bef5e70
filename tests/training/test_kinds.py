"""Each trainable kind of recipe has one experiment and one scorer."""

from __future__ import annotations

import pytest

from road_interp.errors import InputError
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.schema import KINDS
from road_interp.training.api import train
from road_interp.training.kinds import EXPERIMENTS, experiment_kind
from road_interp.training.scoring import SCORERS


def test_every_kind_that_is_trained_has_an_experiment_and_a_scorer():
    assert set(EXPERIMENTS) == set(SCORERS) == set(KINDS) - {"throughput"}
    assert experiment_kind(load_recipe("multitask-minilm")) is EXPERIMENTS["multitask-classification"]


def test_throughput_recipes_are_not_trained(tmp_path):
    recipe = load_recipe("throughput-smollm2")
    with pytest.raises(InputError, match="a throughput recipe cannot be trained; use `road-interp bench`"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
