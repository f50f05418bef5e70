"""Conversion of recipes that 0.1.0 wrote into run folders to the current keys."""

from __future__ import annotations

import copy
import re

import pytest
import yaml

from road_interp.errors import InputError
from road_interp.recipes.loader import load_recipe, load_stored_recipe
from road_interp.recipes.schema import ClassificationRecipe, MultiTaskClassificationRecipe, MultiTaskGenerationRecipe
from road_interp.recipes.upgrade import upgraded

DATA = {"id": "d.csv", "task": "classification", "validation_size": 0.1}
ADAPTER = {"sites": "fc1", "learn": "angles"}
OF_GENERATION = {"template": "{{ prompt }}", "reviews": None, "scoring": {"test": 4}}
OLD = {
    "classification": {"model": {"id": "m"}, "data": DATA, "adapter": ADAPTER, "seed": 3},
    "multitask-classification": {
        "model": {"id": "m"},
        "tasks": {"a": {"behaviour": None, "labels": DATA}, "b": {"behaviour": None, "labels": {**DATA, "id": "e.csv"}}},
        "adapter": ADAPTER,
        "planes": "layers",
        **OF_GENERATION,
    },
    "multitask-generation": {
        "model": {"id": "m"},
        "tasks": {"a": {"behaviour": "label", "labels": None}, "b": {"id": "p.jsonl", "labels": None}},
        "adapter": ADAPTER,
        **OF_GENERATION,
        "reviews": {"id": "r.csv", "task": "classification"},
    },
}
CLASSES = {
    "classification": ClassificationRecipe,
    "multitask-classification": MultiTaskClassificationRecipe,
    "multitask-generation": MultiTaskGenerationRecipe,
}


@pytest.mark.parametrize("kind", OLD)
def test_the_kind_is_told_from_the_keys_and_old_words_become_new_ones(kind, tmp_path):
    before = copy.deepcopy(OLD[kind])
    content = upgraded(OLD[kind])
    assert OLD[kind] == before
    assert content["kind"] == kind
    recipe = load_recipe(content)
    assert type(recipe) is CLASSES[kind]
    assert (recipe.adapter.sites, recipe.adapter.trainable) == ("fc1", "angles")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(OLD[kind]))
    assert load_stored_recipe(tmp_path / "recipe.yaml") == recipe
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_stored_recipe(tmp_path / "recipe.yaml") == recipe


def test_what_was_set_is_kept():
    labels = load_recipe(upgraded(OLD["classification"])).data
    assert (labels.id, labels.problem_type, labels.validation_size) == ("d.csv", "classification", 0.1)
    assert load_recipe(upgraded(OLD["classification"])).seed == 3
    heads = load_recipe(upgraded(OLD["multitask-classification"]))
    assert {name: task.labels.id for name, task in heads.tasks.items()} == {"a": "d.csv", "b": "e.csv"}
    assert heads.planes == "layers"
    answers = load_recipe(upgraded(OLD["multitask-generation"]))
    assert (answers.tasks["a"].behaviour, answers.tasks["b"].id) == ("label", "p.jsonl")
    assert (answers.reviews.id, answers.scoring.test) == ("r.csv", 4)
    regression = {"model": {"id": "m"}, "data": {"id": "d.csv", "task": "regression"}}
    assert load_recipe(upgraded(regression)).data.problem_type == "regression"


def test_a_recipe_with_a_kind_stays_as_it_is():
    content = {"kind": "classification", "model": {"id": "m"}, "data": {"id": "d.csv", "task": "regression"}}
    assert upgraded(content) == content
    with pytest.raises(InputError, match="unknown key 'data.task'"):
        load_recipe(upgraded(content))


def test_a_recipe_of_one_s_own_needs_today_s_keys():
    with pytest.raises(InputError, match="'kind' is missing; the kinds are classification, multitask-classification"):
        load_recipe(OLD["classification"])


DAMAGED = {
    "tasks must be a mapping|'tasks' must be a mapping": {"model": {"id": "m"}, "tasks": 3},
    "tasks.a must be a mapping": {"model": {"id": "m"}, "tasks": {"a": 3}},
    "tasks.b must be a mapping": {"model": {"id": "m"}, "tasks": {"a": {"labels": DATA}, "b": 3}},
    "'tasks.b.labels' must be a mapping, not None": {"model": {"id": "m"}, "tasks": {"a": {"labels": DATA}, "b": {}}},
    "adapter must be a mapping": {"model": {"id": "m"}, "adapter": 3, "data": {"id": "d"}},
    "data must be a mapping": {"model": {"id": "m"}, "data": 3},
    "reviews must be a mapping": {"model": {"id": "m"}, "tasks": {"a": {"behaviour": "label"}}, "reviews": 3},
    "'data' is missing|'data.id' is missing": {"model": {"id": "m"}},
}


@pytest.mark.parametrize("message", DAMAGED)
def test_a_damaged_recipe_is_one_line(message, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(DAMAGED[message]))
    with pytest.raises(InputError, match=message):
        load_stored_recipe(tmp_path / "recipe.yaml")


STORED = {
    "tasks.a.prompt": "kind: multitask-generation\nmodel: {id: m}\nreviews: {id: r.csv}\n"
    "tasks: {a: {behaviour: label, prompt: '{{ text }}', split: train}}\n",
    "data.classes": "kind: classification\nmodel: {id: m}\ndata: {id: d.csv, problem_type: regression, classes: [1, 2]}\n",
}


@pytest.mark.parametrize("key", STORED)
def test_keys_that_nothing_used_are_refused_but_in_stored_recipes(key, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(STORED[key])
    load_stored_recipe(path)
    with pytest.raises(InputError, match=f"'{re.escape(key)}' must be left out with"):
        load_recipe(path)


def test_a_stored_recipe_may_have_keys_of_reviews_that_nothing_used(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "kind: multitask-generation\nmodel: {id: m}\ntasks: {a: {behaviour: label}}\nreviews: {id: r.csv, test_size: 0.3}\n"
    )
    assert load_stored_recipe(tmp_path / "recipe.yaml").reviews.test_size == 0.1
    with pytest.raises(InputError, match=r"'reviews\.test_size' must be left out"):
        load_recipe(tmp_path / "recipe.yaml")
