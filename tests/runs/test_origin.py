"""A run is scored on its own data from any directory."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from helpers.recipes import recipe_for
from road_interp.errors import InputError
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.paths import data_ids, with_paths
from road_interp.runs.origin import Origin
from road_interp.runs.run import Run
from road_interp.training.api import evaluate, train
from road_interp.training.scoring import make_scorer


@pytest.fixture
def project(workplace, tmp_path, monkeypatch):
    """A folder with model and data, which is the working directory."""
    shutil.copytree(workplace / "model", tmp_path / "project" / "model")
    shutil.copy(workplace / "data.csv", tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def relative(workplace):
    """A recipe whose paths are relative."""
    recipe = recipe_for(workplace, "training.max_steps=2")
    return replace(recipe, model=replace(recipe.model, id="model"), data=replace(recipe.data, id="data.csv"))


def test_a_run_is_scored_from_any_directory(project, relative, tmp_path, monkeypatch):
    trained = train(relative, "run", progress=False)
    assert trained.recipe == relative
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("text,label\nanother,negative\n")
    found = Run.load(project / "run")
    assert (found.recipe.model.id, found.recipe.data.id) == (str(project / "model"), str(project / "data.csv"))
    assert evaluate(found, progress=False) == trained.metrics["test"]
    assert "id: data.csv" in (project / "run" / "recipe.yaml").read_text()


def test_a_project_is_moved_with_its_run_and_its_data(project, relative, tmp_path, monkeypatch):
    trained = train(relative, "runs/run", progress=False)
    monkeypatch.chdir(tmp_path)
    moved = project.rename(tmp_path / "moved")
    found = Run.load("moved/runs/run")
    assert (found.recipe.model.id, found.recipe.data.id) == (str(moved / "model"), str(moved / "data.csv"))
    assert evaluate(found, progress=False) == trained.metrics["test"]
    (moved / "data.csv").write_text("text,label\nanother,negative\n")
    with pytest.raises(InputError, match=r"moved/data.csv' has changed"):
        evaluate(found, progress=False)


def test_a_copied_project_reads_its_own_data_where_those_of_the_first_have_changed(project, relative, tmp_path, monkeypatch):
    train(relative, "runs/run", progress=False)
    shutil.copytree(project, copied := tmp_path / "copied")
    monkeypatch.chdir(tmp_path)
    assert Run.load("copied/runs/run").recipe.data.id == str(project / "data.csv")
    with (project / "data.csv").open("a") as file:
        file.write("more,positive\n")
    assert Run.load("copied/runs/run").recipe.data.id == str(copied / "data.csv")
    Run.load("copied/runs/run").check_data()
    with (copied / "data.csv").open("a") as file:
        file.write("another,positive\n")
    with pytest.raises(InputError, match="has changed since the run was started"):
        Run.load("copied/runs/run").check_data()


def test_a_run_is_moved_away_from_its_data(project, relative, tmp_path, monkeypatch):
    origin = Origin.here(relative, project / "run")
    assert (origin.directory, origin.from_run) == (str(project), "..")
    (tmp_path / "data.csv").write_text("text,label\nanother,negative\n")
    moved = tmp_path / "run"
    assert origin.located(relative, moved).data.id == "data.csv"  # from the working directory
    monkeypatch.chdir(tmp_path)
    assert origin.located(relative, moved).data.id == str(project / "data.csv")
    assert replace(origin, from_run=None).located(relative, moved).data.id == str(project / "data.csv")


@pytest.mark.parametrize("directory", ["gone", "x" * 300, "/tmp/" + "x/" * 3000, "a\0b"])
def test_a_directory_that_is_gone_or_cannot_be_leads_nowhere(relative, tmp_path, directory):
    origin = Origin(directory, {"data.csv": "0"}, directory)
    assert origin.located(relative, tmp_path) == relative
    origin.check(tmp_path)


def test_another_base_model_or_head_is_an_error(project, relative):
    """The weights in the folder of the model were replaced, or the head is that of another run."""
    trained = train(relative, "run", progress=False)
    (project / "model" / "notes").mkdir()
    (project / "model" / "notes" / "README.md").write_text("Not read with the model.")
    trained.load_model()
    weights = project / "model" / "model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    uses = (lambda: evaluate("run", progress=False), lambda: make_scorer(trained), trained.load_model)
    for use in (*uses, lambda: trained.predict(["a warm film"])):
        with pytest.raises(InputError, match=r"files of the base model 'model' have changed since the run was started: restore"):
            use()
    weights.write_bytes(original)
    trained.load_model()
    head = load_file(project / "run" / "head.safetensors")
    save_file({name: each + 1 for name, each in head.items()}, project / "run" / "head.safetensors")
    with pytest.raises(InputError, match=r"head.safetensors' is another head than the one that was trained with this adapter"):
        Run.load("run")


def test_a_folder_with_the_name_of_a_scheme_is_no_model(tmp_path, relative, monkeypatch):
    (tmp_path / "models").mkdir()
    origin = Origin(str(tmp_path), {}, "..")
    recipe = replace(relative, model=replace(relative.model, id="models://mpnet"))
    assert origin.located(recipe, tmp_path / "run") == recipe


def test_changed_data_are_an_error_and_data_replaces_them(project, relative):
    trained = train(relative, "run", progress=False)
    other = shutil.copy("data.csv", "other.csv")
    with (project / "data.csv").open("a") as file:
        file.write("grand,positive\n")
    for use in (lambda: evaluate("run", progress=False), lambda: make_scorer(trained)):
        with pytest.raises(InputError, match=r"data file 'data.csv' has changed since the run was started: restore it.*--data"):
            use()
    assert evaluate("run", other, progress=False)["examples"] == 200
    (project / "data.csv").unlink()
    assert evaluate("run", other, progress=False)["examples"] == 200
    with pytest.raises(InputError, match="'data.csv' does not exist"):
        evaluate("run", progress=False)
    (project / "run" / "origin.json").unlink()
    assert Run.load("run").origin is None


def test_a_changed_split_of_a_folder_is_an_error(project, relative):
    (project / "ds").mkdir()
    for split in ("train", "validation", "test"):
        shutil.copy("data.csv", project / "ds" / f"{split}.csv")
    recipe = replace(relative, data=replace(relative.data, id="ds:train", validation="ds:validation", test="ds:test"))
    origin = Origin.here(recipe, project / "run")
    assert set(origin.files) == {"ds:train", "ds:validation", "ds:test"}
    origin.check(project / "run")
    with (project / "ds" / "test.csv").open("a") as file:
        file.write("grand,positive\n")
    with pytest.raises(InputError, match="data file 'ds:t[a-z]+' has changed since the run was started"):
        origin.check(project / "run")


def test_an_unfinished_run_goes_on_from_another_directory_with_the_same_data(project, relative, tmp_path, monkeypatch):
    (project / "run").mkdir()
    (project / "run" / "recipe.yaml").write_text(relative.to_yaml())
    (project / "run" / "origin.json").write_text(Origin.here(relative, project / "run").to_json())
    monkeypatch.chdir(tmp_path)
    (project / "data.csv").rename(project / "kept.csv")
    (project / "data.csv").write_text("text,label\nanother,negative\n")
    with pytest.raises(InputError, match="has changed"):
        train(relative, project / "run", resume=True, progress=False)
    (project / "kept.csv").replace(project / "data.csv")
    assert train(relative, project / "run", resume=True, progress=False).metrics["test"]["examples"] == 40
    assert Run.load(project / "run").origin.directory == str(project)


@pytest.mark.parametrize("content", ["[]", "{}", '{"directory": 3, "files": {}}', '{"directory": ".", "files": {"a": 1}}', "{"])
def test_a_damaged_origin_is_named(finished, tmp_path, content):
    shutil.copytree(finished.folder, tmp_path / "run")
    (tmp_path / "run" / "origin.json").write_text(content)
    with pytest.raises(InputError, match=r"origin\.json"):
        Run.load(tmp_path / "run")


def test_the_paths_of_all_sections_are_found():
    recipe = load_recipe("composition-smollm2")
    assert list(data_ids(recipe)) == [recipe.reviews.id]
    tasks = load_recipe("multitask-minilm")
    assert list(data_ids(tasks)) == [task.labels.id for task in tasks.tasks.values()]
    changed = with_paths(tasks, lambda name: name.upper())
    assert changed.model.id == tasks.model.id.upper()
    assert list(data_ids(changed)) == [name.upper() for name in data_ids(tasks)]
    assert with_paths(tasks, str) == tasks
    questions = load_recipe("arithmetic-llama-7b")
    assert all(task.test in list(data_ids(questions)) for task in questions.tasks.values())
