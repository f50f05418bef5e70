"""Fixtures for studies: their commands in a folder of the test, without models and without rendering."""

from __future__ import annotations

import json

import pytest
import transformers

from helpers.cli import run
from road_interp.training import study as study_module
from road_interp.training.study import studies


@pytest.fixture(scope="module")
def known():
    """The studies, and so the scripts that tests put fakes into, as one reading of `analyses/` left them."""
    return studies()


@pytest.fixture
def command(known, monkeypatch, capsys, tmp_path):
    """`road-interp study ...` on the studies of this file, with all its folders below tmp_path: the JSON that it prints."""
    monkeypatch.setattr(study_module, "studies", lambda: known)

    def call(*arguments):
        folders = {"results": "results", "runs": "runs", "out": "figures"}
        missing = [name for name in folders if f"--{name}" not in arguments]
        given = [text for name in missing for text in (f"--{name}", tmp_path / folders[name])]
        code, out, err = run(capsys, monkeypatch, "study", *arguments, *given, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


@pytest.fixture
def no_model(monkeypatch):
    """Whoever builds a model fails."""

    def fail(self, *args, **kwargs):
        raise AssertionError("a model was built")

    monkeypatch.setattr(transformers.PreTrainedModel, "__init__", fail)
