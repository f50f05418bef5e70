"""Result files of a run that are damaged in any place are refused with InputError, or read."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest

from road_interp.errors import InputError
from road_interp.runs.run import Run

STORED = Path(__file__).parents[1] / "golden" / "0.1.0" / "runs"
VALUES = (None, 3, "x", [], {"a": 1}, "01")


def places(content, path=()):
    yield path
    if isinstance(content, dict):
        for key, value in content.items():
            yield from places(value, (*path, key))
    elif isinstance(content, list):
        for index, value in enumerate(content[:1]):
            yield from places(value, (*path, index))


def damaged(content, path, value):
    changed = copy.deepcopy(content)
    section = changed
    for key in path[:-1]:
        section = section[key]
    if not path:
        return value
    section[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("multitask-generation", "composition.json"),
        ("multitask-generation", "planes.json"),
        ("multitask-classification", "heads.json"),
        ("multitask-classification", "planes.json"),
        ("classification", "classes.json"),
        ("classification", "metrics.json"),
    ],
)
def test_a_damaged_file_is_an_input_error(tmp_path, kind, name):
    folder = shutil.copytree(STORED / kind, tmp_path / "run")
    content, refused = json.loads((folder / name).read_text()), 0
    for path in places(content):
        for value in VALUES:
            (folder / name).write_text(json.dumps(damaged(content, path, value)))
            try:
                run = Run.load(folder)
                if run.planes is not None:
                    run.composition.summary()
            except InputError:
                refused += 1
    assert refused
