"""Runs on the Hub, against a stand-in that keeps repositories in a folder."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import RepositoryNotFoundError

from road_interp.errors import InputError
from road_interp.hub import model_card
from road_interp.run import Run
from road_interp.training import evaluate


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub's two calls of an upload and the one of a download, on `tmp_path / "hub"`."""
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

        def upload_folder(self, repo_id, folder_path, commit_message):
            assert commit_message
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")

    def snapshot_download(repo_id, revision, token):
        huggingface_hub.utils.validate_repo_id(repo_id)
        if not (root / repo_id).is_dir():
            raise RepositoryNotFoundError(f"404: no repository {repo_id}", response=SimpleNamespace(headers={}, request=None))
        return str(root / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return SimpleNamespace(root=root, made=made)


def test_a_run_goes_to_the_hub_and_comes_back(finished, hub):
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


def test_the_card_says_what_was_rotated(finished):
    card = model_card(finished, "somebody/rotated")
    _, head, text = card.split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["library_name"] == "road-interp"
    assert "base_model" not in data  # a folder, not a model of the Hub
    assert 'ri.Run.from_hub("somebody/rotated")' in text
    assert f"| test accuracy | {finished.metrics['test']['accuracy']:.4g} |" in text
    for kind in {site.kind for site in finished.adapter.sites}:
        layers = ", ".join(str(site.layer) for site in finished.adapter.sites if site.kind == kind)
        assert f"| {kind} | {layers} | " in text
    assert huggingface_hub.ModelCard(card).data.library_name == "road-interp"


def test_what_the_hub_refuses_is_one_line(finished, hub):
    with pytest.raises(InputError, match="'not a name': the Hub does not take it"):
        finished.push_to_hub("not a name")
    with pytest.raises(InputError, match="'somebody/else' cannot be had from the Hub"):
        Run.from_hub("somebody/else")
    (hub.root / "somebody/empty").mkdir(parents=True)
    with pytest.raises(InputError, match="'somebody/empty' is not a run of road-interp"):
        Run.from_hub("somebody/empty")
