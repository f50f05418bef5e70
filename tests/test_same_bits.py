"""Commands and studies give the same numbers, to the bit, in two processes. `make test-bits`: takes about an hour.

What measures time is left out. The numbers are those of one machine and one release of torch on the CPU; on CUDA, atomic
additions and the choice of kernels are not repeatable.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import resources

import pytest

from compare_numbers import compare, files_of
from road_interp.causal.noun_task import number_and_gender
from road_interp.sources import SMOLLM2
from road_interp.training.study import studies

pytestmark = pytest.mark.bits
TIMED = {"bank", "cost", "engine", "joint-training", "throughput"}
OF_RAVEL = {f"variables-{name}": int(name == "longer") for name in ("boundless", "longer", "three", "whitened", "wider-grid")}
NEEDS_A_FILE = {"causalgym", *OF_RAVEL}  # see below
STUDIES = sorted(studies().keys() - TIMED - NEEDS_A_FILE)


def road_interp(*words, folder):
    """What a command prints, in a process of its own."""
    command = [sys.executable, "-m", "road_interp.cli", *map(str, words)]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def json_files(folder):
    return {path.relative_to(folder): path for path in files_of(folder) if path.name != "MANIFEST.json"}


def without_provenance(value):
    """Printed JSON without when and how it was made."""
    if isinstance(value, dict):
        return {key: without_provenance(each) for key, each in value.items() if key != "provenance"}
    return [without_provenance(each) for each in value] if isinstance(value, list) else value


def written(folder):
    """The bytes of the files that hold no paths, times or versions, by their path."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".safetensors", ".html", ".csv")
    }


def assert_equal(first, second):
    """Every JSON file of two folders."""
    ones, others = json_files(first), json_files(second)
    assert list(ones) == list(others)
    assert sum(compare(ones[name], others[name], {}) for name in ones) > 0


def measure_twice(tmp_path, *words):
    """Run a study in two processes, and compare its results."""
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        places = ("--results", folder / "results", "--runs", folder / "runs", "--out", folder / "figures")
        road_interp("study", *words, "--quick", *places, folder=os.getcwd())
    assert_equal(tmp_path / "first" / "results", tmp_path / "second" / "results")


@pytest.mark.parametrize("name", STUDIES)
def test_a_study(name, tmp_path):
    measure_twice(tmp_path, name)


def test_causalgym_on_a_built_in_task(tmp_path):
    built_in = json.loads((resources.files("road_interp.causal") / "templates.json").read_text())
    templates = tmp_path / "templates.json"
    templates.write_text(json.dumps({"agr_gender": built_in["gender"]}))
    measure_twice(tmp_path, "causalgym", f"templates={templates}")


@pytest.mark.parametrize(("study", "seed"), OF_RAVEL.items())
def test_variables_of_ravels_format_on_the_nouns(tmp_path, study, seed):
    task = number_and_gender()
    attributes = {"Country": "number", "Continent": "gender", "Language": "number"}
    files = {
        "entity_attributes": {noun: {name: of[key] for name, key in attributes.items()} for noun, of in task.values.items()},
        "attribute_to_prompts": {name: list(task.prompts[key]) for name, key in attributes.items()},
        "entity_to_split": task.split,
        "prompt_to_split": {prompt: "train" for prompts in task.prompts.values() for prompt in prompts},
    }
    for name, content in files.items():
        (tmp_path / f"ravel_city_{name}.json").write_text(json.dumps(content))
    model = [f"model={SMOLLM2}", "layer=12"] if study == "variables-whitened" else []  # that need not be downloaded
    measure_twice(tmp_path, study, f"ravel={tmp_path}", *model, "--seeds", seed)


def test_training_and_what_is_measured_on_its_run(workplace, tmp_path):
    places = ("--model", workplace / "model", "--data", workplace / "data.csv", "--text", "text", "--label", "label")
    printed = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        road_interp("new", "mine", *places, folder=folder)
        road_interp("train", "mine.yaml", "training.max_steps=6", "--out", "run", folder=folder)
        commands = {
            "evaluate": ("run", "--predictions", "predictions.csv", "--json"),
            "predict": ("run", workplace / "data.csv", "--out", "predicted.csv", "--json"),
            "ablate": ("run", "--json"),
            "diagnose": ("run", "--json"),
            "inspect": ("run", "--json"),
            "drift": (workplace / "model", "run", workplace / "data.csv", "--json"),
            "report": ("run", "--out", "page.html", "--json"),
            "compose": ("run", "run", "--weights", "1,0.5", "--out", "product", "--json"),
            "export": ("run", "--out", "peft", "--json"),
            "size": (workplace / "model", "--json"),
        }
        printed.append({name: json.loads(road_interp(name, *words, folder=folder)) for name, words in commands.items()})
    for name in ("metrics.json", "classes.json"):
        assert compare(tmp_path / "first" / "run" / name, tmp_path / "second" / "run" / name, {}) > 0
    first, second = (written(tmp_path / each) for each in ("first", "second"))
    assert {path.parts[0] for path in first} == {"run", "product", "peft", "page.html", "predictions.csv", "predicted.csv"}
    assert first == second
    for name, found in printed[0].items():
        assert without_provenance(found) == without_provenance(printed[1][name]), name


def test_the_demo(tmp_path):
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        road_interp("demo", "--out", "demo", folder=folder)
    assert compare(*(tmp_path / each / "demo" / "metrics.json" for each in ("first", "second")), {}) > 0
    first, second = (written(tmp_path / each) for each in ("first", "second"))
    assert len(first) > 0
    assert first == second
