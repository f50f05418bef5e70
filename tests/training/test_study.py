"""Runs by seed: what is missing is trained, once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.recipes import recipe_for
from road_interp.errors import InputError
from road_interp.runs.run import Run
from road_interp.training.study import runs_for_seeds, settings_hash, train_once


def test_a_run_for_every_seed_is_trained_once(workplace, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(recipe_for(workplace).to_yaml())
    question = (tmp_path / "recipe.yaml", ["training.max_steps=2"], (0, 1), tmp_path / "parts")
    folders = runs_for_seeds(*question)
    assert [folder.name for folder in folders] == ["road_1, seed 0", "road_1, seed 1"]
    assert {folder.name for folder in folders} <= set(capsys.readouterr().err.splitlines())
    assert [(run.recipe.seed, run.recipe.training.max_steps) for run in map(Run.load, folders)] == [(0, 2), (1, 2)]
    written = [(folder / "metrics.json").stat().st_mtime_ns for folder in folders]
    assert runs_for_seeds(*question) == folders
    assert [(folder / "metrics.json").stat().st_mtime_ns for folder in folders] == written
    alone = runs_for_seeds(question[0], [*question[1], "adapter.learn=angles"], (0,), question[3])
    assert [folder.name for folder in alone] == ["road_1, angles alone, seed 0"]


def test_what_did_not_finish_goes_on_and_another_recipe_is_refused(workplace, tmp_path):
    recipe = recipe_for(workplace, "training.max_steps=2")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.to_yaml())
    assert train_once(recipe, tmp_path / "run").recipe == recipe
    with pytest.raises(InputError, match="run' was trained with another recipe; choose another --out"):
        train_once(replace(recipe, seed=1), tmp_path / "run")


def test_a_fingerprint_changes_with_the_settings(workplace):
    recipe = recipe_for(workplace)
    assert settings_hash(recipe, 1e-3) == settings_hash(recipe_for(workplace), 1e-3)
    assert len({settings_hash(recipe, 1e-3), settings_hash(recipe, 1e-4), settings_hash(replace(recipe, seed=1), 1e-3)}) == 3
