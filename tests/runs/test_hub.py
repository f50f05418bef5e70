"""Runs on the Hub, with a fake Hub that stores repositories in a folder."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import RepositoryNotFoundError

from helpers.recipes import recipe_for
from road_interp.errors import InputError
from road_interp.runs.hub import model_card
from road_interp.runs.run import Run
from road_interp.training.api import evaluate, train


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A fake of the two upload calls and the download call of huggingface_hub, in `tmp_path / "hub"`."""
    root = tmp_path / "hub"
    made = {}

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, private, exist_ok):
            huggingface_hub.utils.validate_repo_id(repo_id)
            assert exist_ok
            made[repo_id] = (private, self.token)
            (root / repo_id).mkdir(parents=True, exist_ok=True)

        def upload_folder(self, repo_id, folder_path, delete_patterns, commit_message):
            assert commit_message
            for path in (root / repo_id).rglob(delete_patterns):
                if path.is_file():
                    path.unlink()
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")

    def snapshot_download(repo_id, revision, token):
        huggingface_hub.utils.validate_repo_id(repo_id)
        if not (root / repo_id).is_dir():
            error = RepositoryNotFoundError(
                f"404 Client Error. (Request ID: 1)\n\nRepository Not Found: {repo_id}",
                response=SimpleNamespace(headers={}, request=None),
            )
            raise error
        return str(root / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return SimpleNamespace(root=root, made=made)


def test_a_run_is_uploaded_and_downloaded(finished, hub):
    (finished.folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    try:
        assert finished.push_to_hub("somebody/rotated", private=True, token="secret") == "hub/somebody/rotated/commit/1"
    finally:
        shutil.rmtree(finished.folder / "checkpoints")
    assert hub.made == {"somebody/rotated": (True, "secret")}
    names = {path.name for path in (hub.root / "somebody/rotated").iterdir()}
    assert {"README.md", "angles.png", "adapter", "recipe.yaml", "metrics.json"} <= names
    assert "checkpoints" not in names

    back = Run.from_hub("somebody/rotated")
    assert (back.recipe, back.metrics, back.classes) == (finished.recipe, finished.metrics, finished.classes)
    assert all(torch.equal(back.adapter.theta[site.name], finished.adapter.theta[site.name]) for site in back.adapter.sites)
    assert evaluate(back, progress=False) == finished.metrics["test"]


def test_another_file_of_the_same_name_is_not_the_data_of_a_downloaded_run(workplace, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(workplace / "data.csv", "data.csv")
    train(recipe_for(workplace, "data.id=data.csv", "training.max_steps=1"), "run", progress=False).push_to_hub("a/run")
    assert str(tmp_path) not in (hub.root / "a" / "run" / "origin.json").read_text()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    back = Run.from_hub("a/run")
    with pytest.raises(InputError, match="'data.csv' does not exist"):
        evaluate(back, progress=False)
    shutil.copy(workplace / "data.csv", "data.csv")
    assert evaluate(back, progress=False) == back.metrics["test"]
    (tmp_path / "elsewhere" / "data.csv").write_text("text,label\nfine,positive\n")
    with pytest.raises(InputError, match="'data.csv' has changed since the run was started"):
        evaluate(back, progress=False)


def test_a_second_push_leaves_nothing_of_the_first(finished, hub, tmp_path):
    first = tmp_path / "first"
    shutil.copytree(finished.folder, first)
    (first / "multitask-accuracy.json").write_text("{}")
    Run.load(first).push_to_hub("somebody/rotated")
    finished.push_to_hub("somebody/rotated")
    assert not (hub.root / "somebody/rotated/multitask-accuracy.json").exists()
    assert (hub.root / "somebody/rotated/metrics.json").is_file()


def test_a_run_executes_no_remote_code_without_consent(finished, hub, tmp_path):
    folder = hub.root / "somebody/rotated"
    finished.push_to_hub("somebody/rotated")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["model"]["trust_remote_code"] = True
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(InputError, match="executes code from the repository of .* pass trust_remote_code=True"):
        Run.from_hub("somebody/rotated")
    assert Run.from_hub("somebody/rotated", trust_remote_code=True).recipe.model.trust_remote_code


def test_links_out_of_a_repository_are_refused(finished, hub, tmp_path):
    folder = hub.root / "somebody/rotated"
    finished.push_to_hub("somebody/rotated")
    (folder / "recipe.yaml").rename(hub.root / "blob")  # the cache of the Hub stores files in this way
    (folder / "recipe.yaml").symlink_to(hub.root / "blob")
    assert Run.from_hub("somebody/rotated").recipe == finished.recipe
    (tmp_path / "private.json").write_text("{}")
    (folder / "classes.json").unlink()
    (folder / "classes.json").symlink_to(tmp_path / "private.json")
    with pytest.raises(InputError, match="'somebody/rotated': 'classes.json' is a link to a file outside the repository"):
        Run.from_hub("somebody/rotated")


def test_the_card_says_what_was_rotated(finished):
    card = model_card(finished.adapter, finished.recipe, finished.metrics, "somebody/rotated", head=True)
    _, head, text = card.split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["library_name"] == "road-interp"
    assert "base_model" not in data  # the base model is a local folder
    assert 'ri.Run.from_hub("somebody/rotated")' in text
    assert f"| test accuracy | {finished.metrics['test']['accuracy']:.4g} |" in text
    for kind in {site.kind for site in finished.adapter.sites}:
        layers = ", ".join(str(site.layer) for site in finished.adapter.sites if site.kind == kind)
        assert f"| {kind} | {layers} | " in text
    assert huggingface_hub.ModelCard(card).data.library_name == "road-interp"


def test_an_error_of_the_hub_is_one_line(finished, hub):
    with pytest.raises(InputError, match="'not a name' cannot be uploaded to the Hub"):
        finished.push_to_hub("not a name")
    with pytest.raises(
        InputError, match="'somebody/else' cannot be downloaded from the Hub .*Repository Not Found: somebody/else"
    ):
        Run.from_hub("somebody/else")


def test_no_network_is_one_line(finished, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="'somebody/rotated' cannot be uploaded to the Hub"):
        finished.push_to_hub("somebody/rotated")
    with pytest.raises(InputError, match="'somebody/rotated' cannot be downloaded from the Hub"):
        Run.from_hub("somebody/rotated")


def test_a_repository_without_a_run_is_refused(hub):
    (hub.root / "somebody/empty").mkdir(parents=True)
    with pytest.raises(InputError, match="'somebody/empty' is not a run of road-interp"):
        Run.from_hub("somebody/empty")
