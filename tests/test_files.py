"""Paths that no file can have are wrong input, wherever one is given."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

import road_interp as ri
from helpers.recipes import recipe_for
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.causal.counterfactuals import read_pairs
from road_interp.cli.options import check_new_folder
from road_interp.cli.output_file import check_output_file
from road_interp.data.rows import read_rows
from road_interp.errors import InputError
from road_interp.files import check_writable, write_atomically
from road_interp.models.loading import load_model, load_tokenizer
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.schema import ModelRecipe
from road_interp.runs.run import Run

READERS = {
    "recipe": load_recipe,
    "run": Run.load,
    "adapter": RoadAdapter.load,
    "bank": RoadBank.from_folder,
    "pairs": read_pairs,
    "data": lambda path: read_rows(path, None, "test"),
    "model": lambda path: load_model(ModelRecipe(path)),
    "tokenizer": lambda path: load_tokenizer(ModelRecipe(path)),
    "training": lambda path: ri.train({"kind": "classification", "model": {"id": path}, "data": {"id": path}}),
}
WRITERS = {
    "run folder": lambda path: ri.train(recipe_for(Path()), path),
    "folder": lambda path: check_writable(Path(path)),
    "new folder": lambda path: check_new_folder(Path(path)),
    "file": lambda path: check_output_file(Path(path), "--out"),
}
TOO_LONG = {"name": "x" * 300, "parent": f"{'x' * 300}/y", "path": "/tmp/" + "x/" * 3000}
UNKNOWN = {"package": f"package://road_interp/{'x' * 300}/y", "suffix": f"{'x' * 300}.csv", "user": "~nobody-of-that-name/x"}


@pytest.mark.parametrize("path", [*TOO_LONG, *UNKNOWN])
@pytest.mark.parametrize("reader", READERS)
def test_what_cannot_exist_is_read_as_what_does_not(reader, path):
    with pytest.raises(InputError):
        READERS[reader]((TOO_LONG | UNKNOWN)[path])


@pytest.mark.parametrize("path", TOO_LONG)
@pytest.mark.parametrize("writer", WRITERS)
def test_what_cannot_be_written_is_named_before_the_work(writer, path):
    with pytest.raises(InputError, match=r"cannot be .* \(File name too long\)"):
        WRITERS[writer](TOO_LONG[path])


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_without_permission_is_named_before_the_work(writer, tmp_path, monkeypatch):
    """Root may write everywhere, so that the answer of the system is replaced."""
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    with pytest.raises(InputError, match=f"no file can be written in '{tmp_path}': the process has no permission"):
        WRITERS[writer](str(tmp_path / "new"))
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", WRITERS)
def test_a_link_to_nothing_is_named_before_the_work(writer, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a link|exists already"):
        WRITERS[writer](str(tmp_path / "link"))
    assert not (tmp_path / "nowhere").exists()


def test_permissions_are_those_of_the_process_and_of_the_file(tmp_path):
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "new", "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    (tmp_path / "new").chmod(0o640)
    write_atomically(tmp_path / "new", "b")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
