"""Input made up at random: it is understood, or refused with InputError; nothing else happens."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import fields

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.main import get_command

from helpers.models import random_adapter
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.cli import app
from road_interp.errors import InputError
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.schema import (
    KINDS,
    AdapterRecipe,
    DataRecipe,
    LabelledTaskRecipe,
    ModelRecipe,
    ScoringRecipe,
    TaskRecipe,
    TrainingRecipe,
)
from road_interp.sites.positions import parse_positions, position_mask
from road_interp.sites.site import OutputSlice, Site

RECIPES = tuple(KINDS.values())
SECTIONS = (ModelRecipe, DataRecipe, AdapterRecipe, TrainingRecipe, LabelledTaskRecipe, TaskRecipe, ScoringRecipe)
KEYS = st.sampled_from(sorted({field.name for each in (*RECIPES, *SECTIONS) for field in fields(each)}))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["road_1", "all", "label", "1e-3"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
COMMANDS = get_command(app.app).commands
OPTIONS = sorted({name for command in COMMANDS.values() for option in command.params for name in option.opts})
ARGUMENT = st.characters(exclude_characters="\0")  # which no system passes to a program
WORDS = [*COMMANDS, *OPTIONS, "--nothing", "nowhere", "0", "-1", "1", "a=b", "="]


@given(
    st.sampled_from(list(KINDS)) | VALUES,
    st.dictionaries(KEYS, VALUES, max_size=5),
    st.lists(st.tuples(st.lists(KEYS, min_size=1, max_size=3), VALUES), max_size=3),
)
@example([], {}, [])
@settings(max_examples=200, deadline=None)
def test_recipes(kind, content, overrides):
    with suppress(InputError):
        recipe = load_recipe({"kind": kind, **content}, [f"{'.'.join(keys)}={value}" for keys, value in overrides])
        assert isinstance(recipe, RECIPES)


@given(st.text() | st.from_regex(r"[fl]?[0-9]{0,12}(\+?[fl][0-9]{0,12})?", fullmatch=True), st.integers(0, 3), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_position_strings(text, rows, length):
    try:
        parse_positions(text)
    except InputError:
        return
    present = torch.arange(length).expand(rows, length) < torch.arange(rows).unsqueeze(1) + 1  # no rows, no tokens, only padding
    mask = position_mask(text, present)
    assert mask.shape == present.shape
    assert not (mask & ~present).any()


@pytest.fixture(scope="module")
def adapter_files(tmp_path_factory):
    """A saved adapter: its folder, and the bytes of its files."""
    folder = tmp_path_factory.mktemp("fuzz") / "adapter"
    random_adapter((Site("a.query", 8, 0, "query"), Site("b[key]", 16, 1, "b[key]", OutputSlice(48, 16, 32)))).save(folder)
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_adapter_folders(adapter_files, data):
    folder, files = adapter_files
    name = data.draw(st.sampled_from(sorted(files)))
    content = files[name]
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(start + 8, len(content))))
    changed = content[:start] + data.draw(st.binary(max_size=8)) + content[stop:]
    for file, original in files.items():
        (folder / file).write_bytes(changed if file == name else original)
    with suppress(InputError):
        adapter = RoadAdapter.load(folder)  # a change that says the same, or of a name, which may be any
        assert all(values.isfinite().all() for values in (*adapter.theta.values(), *adapter.alpha.values()))


@given(st.lists(st.sampled_from(WORDS) | st.text(ARGUMENT, max_size=6), max_size=6))
@example(["recipes"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_command_lines(monkeypatch, tmp_path, capsys, words):
    if words[:1] in (["demo"], ["bench"]):  # which need nothing to begin
        words = [*words, "--device", "nowhere"]
    if words[:1] in (["size"], ["models"]):  # which name all models that they know
        words = [*words, "nowhere"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["road-interp", *words])
    code = 0  # of a command such as `recipes`, which needs no argument
    try:
        app.main()
    except SystemExit as end:
        code = end.code
    assert code in (0, 2)
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
