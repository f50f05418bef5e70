"""The folder of a run: what may stand in it when a run starts, two runs that start together, and its head."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch

from helpers.recipes import recipe_for
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.files import locked
from road_interp.models.loading import load_model
from road_interp.models.road_model import RoadModel
from road_interp.recipes.loader import load_stored_recipe
from road_interp.runs.run import Run
from road_interp.runs.run_folder import RunFolder
from road_interp.sites.find import find_sites

CPU = torch.device("cpu")


def test_two_runs_that_start_together_do_not_share_a_folder(workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = (RunFolder.prepare(recipe_for(workplace, f"seed={seed}"), None, False, CPU) for seed in (1, 2))
    first.start({"classes.json": {"classes": []}})
    with pytest.raises(InputError, match="'runs/run' is not empty; choose another --out"):
        second.start({})
    assert load_stored_recipe(first.path / "recipe.yaml").seed == 1


def test_a_folder_of_other_files_is_not_resumed(workplace, tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match="' is not empty; choose another --out$"):
        RunFolder.prepare(recipe_for(workplace), tmp_path, False, CPU)


def test_a_folder_is_trained_in_by_one_process_at_a_time(workplace, tmp_path):
    """Until the training ends, also by an error; a study holds the lock of the folder itself meanwhile."""
    recipe, folder = recipe_for(workplace), tmp_path / "run"
    first = RunFolder.prepare(recipe, folder, False, CPU)

    def fail():
        with first.held():
            first.start({})
            second = RunFolder.prepare(recipe, folder, True, CPU)
            with pytest.raises(InputError, match=f"'{folder}' is being trained by another process; wait until"), second.held():
                pytest.fail("two at a time")
            with RunFolder.prepare(recipe, tmp_path / "other", False, CPU).held(), locked(folder):
                raise BlockingIOError("of the training")

    with pytest.raises(BlockingIOError, match="of the training"):
        fail()
    with RunFolder.prepare(recipe, folder, True, CPU).held():
        pass


def test_a_run_that_finishes_before_it_is_resumed_is_not_trained_again(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns("metrics.json"))
    late = RunFolder.prepare(finished.recipe, folder, True, CPU)
    shutil.copy(finished.folder / "metrics.json", folder)
    with late.held(), pytest.raises(InputError, match="has finished; there is nothing to resume"):
        late.start({})


def test_a_start_that_was_killed_leaves_a_folder_that_the_next_one_accepts(workplace, tmp_path, monkeypatch):
    recipe = recipe_for(workplace)

    def start(killed_at=None):
        written = []

        def write(path, content):
            if len(written) == killed_at:
                (path.parent / f".{path.name}-12345678.tmp").touch()  # as a kill leaves it
                raise KeyboardInterrupt
            written.append(path.name)
            path.write_text(content)

        monkeypatch.setattr("road_interp.runs.run_folder.write_atomically", write)
        resume = (tmp_path / "run" / "recipe.yaml").exists()
        RunFolder.prepare(recipe, tmp_path / "run", resume, CPU).start({"classes.json": {"classes": []}})
        return written

    for killed_at in range(3):
        with pytest.raises(KeyboardInterrupt):
            start(killed_at)
    assert start() == ["recipe.yaml", "origin.json", "classes.json"]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"recipe.yaml", "origin.json", "classes.json"}


def test_the_origin_alone_is_what_a_killed_start_of_an_older_release_leaves(workplace, tmp_path):
    (tmp_path / "origin.json").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    recipe = recipe_for(workplace)
    RunFolder.prepare(recipe, tmp_path, False, CPU).start({})
    assert load_stored_recipe(tmp_path / "recipe.yaml") == recipe
    (tmp_path / "recipe.yaml").rename(tmp_path / "notes.yaml")
    with pytest.raises(InputError, match="is not empty"):
        RunFolder.prepare(recipe, tmp_path, False, CPU)


def test_a_model_with_another_head_than_the_runs_is_warned_of(finished):
    """As a folder, as the folder of its adapter, or as a run, also in a bank; not with its own head, and not without any."""
    untrained, _ = load_model(finished.recipe.model, "classifier", num_labels=2)
    banks = [RoadBank({"half": finished.adapter**0.5, "a": source}) for source in (finished, str(finished.folder))]
    banks[1].rows(["a"])  # reads the folder
    for source in (str(finished.folder), finished.folder / "adapter", finished, RoadBank({"a": finished.folder}), *banks):
        with pytest.warns(UserWarning, match=r"another head than the one .* Run.load\('.*'\).load_model\(\) has both"):
            RoadModel(untrained, source)
    backbone, _ = load_model(finished.recipe.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in (finished.folder, RoadBank({"a": finished.folder})):
            RoadModel(finished.load_model().model, source)
        RoadModel(backbone, RoadAdapter.identity(find_sites(backbone, "mlp")))
        RoadModel(untrained, finished.adapter)


def test_what_is_no_run_is_told_apart(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "runs" / "seed-1")
    shutil.copytree(finished.folder, tmp_path / "runs" / "seed-0")
    with pytest.raises(InputError, match="is not a finished run: it holds the runs seed-0, seed-1; give one of them$"):
        Run.load(tmp_path / "runs")
    with pytest.raises(
        InputError,
        match="is missing; a run is a folder that `train` has written, a lone adapter is none$",
    ):
        Run.load(finished.folder / "adapter")
