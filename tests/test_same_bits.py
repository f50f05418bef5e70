"""Commands and studies give the same numbers, to the bit, in two processes. `make test-bits`: takes about an hour.

What measures time is left out. The numbers are those of one machine and one release of torch on the CPU; on CUDA, atomic
additions and the choice of kernels are not repeatable.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from compare_numbers import compare
from road_interp.training.study import studies

pytestmark = pytest.mark.bits
TIMED = {"bank", "cost", "engine", "joint-training", "throughput"}
NEED_MORE = {"causalgym", "parameter-share"}  # a file of templates, rates that are not chosen yet
STUDIES = sorted(studies().keys() - TIMED - NEED_MORE)


def road_interp(*words, folder):
    """What a command prints, in a process of its own."""
    command = [sys.executable, "-m", "road_interp.cli", *map(str, words)]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def json_files(folder):
    return {path.relative_to(folder): path for path in sorted(folder.rglob("*.json")) if path.name != "MANIFEST.json"}


def assert_equal(first, second):
    """Every JSON file of two folders."""
    ones, others = json_files(first), json_files(second)
    assert list(ones) == list(others)
    assert sum(compare(ones[name], others[name], {}) for name in ones) > 0


@pytest.mark.parametrize("name", STUDIES)
def test_a_study(name, tmp_path):
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        places = ("--results", folder / "results", "--runs", folder / "runs", "--out", folder / "figures")
        road_interp("study", name, "--quick", *places, folder=os.getcwd())
    assert_equal(tmp_path / "first" / "results", tmp_path / "second" / "results")


def test_training_and_what_is_measured_on_its_run(workplace, tmp_path):
    places = ("--model", workplace / "model", "--data", workplace / "data.csv", "--text", "text", "--label", "label")
    printed = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        road_interp("new", "mine", *places, folder=folder)
        road_interp("train", "mine.yaml", "training.max_steps=6", "--out", "run", folder=folder)
        commands = {
            "evaluate": ("run", "--json"),
            "ablate": ("run", "--json"),
            "diagnose": ("run", "--json"),
            "inspect": ("run", "--json"),
            "drift": (workplace / "model", "run", workplace / "data.csv", "--json"),
        }
        printed.append({name: json.loads(road_interp(name, *words, folder=folder)) for name, words in commands.items()})
        for name in ("metrics.json", "classes.json"):
            compare(tmp_path / "first" / "run" / name, folder / "run" / name, {})
    first, second = (sorted((tmp_path / each / "run").rglob("*.safetensors")) for each in ("first", "second"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    for name, found in printed[0].items():
        for made in (found, printed[1][name]):
            if isinstance(made, dict):
                made.pop("provenance", None)
        assert found == printed[1][name], name
