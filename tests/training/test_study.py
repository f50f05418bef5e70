"""Studies: what is missing is measured, once, and runs are trained once for all that need them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

import pytest

from helpers.recipes import recipe_for
from road_interp.errors import InputError
from road_interp.results import Result
from road_interp.runs.run import Run
from road_interp.training.study import (
    Condition,
    Study,
    StudyOptions,
    read_study,
    run_of,
    run_study,
    settings_hash,
    train_once,
)


@dataclass(frozen=True)
class Rotations(Result):
    """How many values were trained, by condition and seed."""

    values: dict[str, int]


def measure(piece):
    run = run_of(piece)
    return Rotations({f"{piece.condition}, seed {run.recipe.seed}": run.metrics["parameters"]["adapter"]})


def report(pieces):
    return Rotations({name: count for found in pieces.values() for piece in found for name, count in piece.values.items()})


@pytest.fixture
def study(workplace, tmp_path):
    """Two seeds of a rotation, and one of its angles alone."""
    (tmp_path / "recipe.yaml").write_text(recipe_for(workplace, "training.max_steps=2").to_yaml())
    conditions = {"both": Condition("both parts"), "angles": Condition("angles alone", ("adapter.trainable=angles",), seeds=1)}
    return Study(
        name="parts",
        title="Parts",
        recipe=str(tmp_path / "recipe.yaml"),
        conditions=conditions,
        measure=measure,
        report=report,
        result=Rotations,
        draw=lambda found, folder: [],
        describe=lambda found: ("", []),
        minutes=1,
        quick=("training.max_steps=1",),
        quick_conditions=1,
    )


@pytest.fixture
def options(tmp_path):
    return StudyOptions(seeds=(0, 1), results=tmp_path / "results", runs=tmp_path / "runs")


def test_a_run_for_every_seed_is_trained_once(study, options):
    told = []
    found = run_study(study, options, lambda what, done=0, total=None: told.append(what))
    assert told == ["both parts, seed 0", "both parts, seed 1", "angles alone, seed 0"]
    values = found.values["both, seed 0"]
    assert found.values == {"both, seed 0": values, "both, seed 1": values, "angles, seed 0": values // 2}
    files = sorted(path.relative_to(options.results).as_posix() for path in options.results.rglob("seed-*.json"))
    assert files == ["parts/angles/seed-0.json", "parts/both/seed-0.json", "parts/both/seed-1.json"]
    runs = [Run.load(folder).recipe for folder in options.runs.iterdir()]
    assert sorted((run.seed, run.training.max_steps, run.adapter.trainable) for run in runs) == [
        (0, 2, "angles"),
        (0, 2, "both"),
        (1, 2, "both"),
    ]
    written = [path.stat().st_mtime_ns for path in sorted(options.runs.rglob("*")) if path.is_file()]
    assert run_study(study, options, lambda *arguments: pytest.fail("measured again")) == found
    assert read_study(study, options) == found
    for path in options.results.glob("parts/*/*.json"):
        path.unlink()
    assert run_study(study, options) == found  # measured again, on the same runs
    assert [path.stat().st_mtime_ns for path in sorted(options.runs.rglob("*")) if path.is_file()] == written


def test_some_conditions_alone_and_a_quick_look(study, options):
    chosen = run_study(study, replace(options, only=("angles",)))
    assert list(chosen.values) == ["angles, seed 0"]
    assert list(run_study(study, replace(options, quick=True)).values) == ["both, seed 0"]
    assert list(read_study(study, options).values) == ["angles, seed 0"]  # what is quick lies apart
    other = replace(options, overrides=("training.batch_size=8",), only=("angles",))
    run_study(study, other)
    folders = {path.parents[1].relative_to(options.results).as_posix() for path in options.results.rglob("seed-*.json")}
    assert {"parts", "quick/parts"} < folders
    assert len(folders) == 3
    with pytest.raises(InputError, match="study 'parts' has no condition 'angle'; did you mean 'angles'"):
        run_study(study, replace(options, only=("angle",)))


def test_nothing_measured_is_an_error_and_leaves_nothing(study, options):
    with pytest.raises(InputError, match="results/parts' holds no results of this study"):
        read_study(study, options)
    assert not options.results.exists()


def test_results_of_other_settings_are_not_taken(study, options, tmp_path):
    run_study(study, replace(options, only=("angles",)))
    text = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text.replace("batch_size: 16", "batch_size: 8"))
    with pytest.raises(InputError, match="angles/seed-0.json' was measured with other settings .* choose another --results"):
        read_study(study, options)


def test_the_manifest_names_every_file_and_what_made_it(study, options):
    run_study(study, replace(options, only=("angles",)))
    manifest = json.loads((options.results / "MANIFEST.json").read_text())
    path = options.results / "parts/angles/seed-0.json"
    result = Rotations.load(path)
    assert list(manifest) == ["parts/angles/seed-0.json"]
    entry = manifest["parts/angles/seed-0.json"]
    assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (entry["settings"], result.provenance.seeds) == (result.provenance.settings, (0,))


@dataclass(frozen=True)
class Settings:
    """Of a study that trains nothing."""

    steps: int
    seed: int = 0
    base: str = "somewhere"


def test_a_study_that_trains_nothing_has_settings_of_its_own(options):
    study = Study(
        name="steps",
        title="Steps",
        recipe=Settings,
        conditions={"few": Condition("few", ("steps=2",)), "many": Condition("many", ("steps=3",))},
        measure=lambda piece: Rotations({f"{piece.condition}, {piece.recipe.base}": piece.recipe.steps}),
        report=report,
        result=Rotations,
        draw=lambda found, folder: [],
        describe=lambda found: ("", []),
        minutes=1,
        inputs=("base",),
    )
    some = replace(options, seeds=(0,))
    assert run_study(study, some).values == {"few, somewhere": 2, "many, somewhere": 3}
    assert run_study(study, replace(some, overrides=("base=elsewhere",))) == read_study(study, some)  # the same settings
    with pytest.raises(InputError, match="'steps' must be whole number, not 'x'"):
        run_study(study, replace(some, overrides=("steps=x",)))


def test_what_did_not_finish_goes_on_and_another_recipe_is_refused(workplace, tmp_path):
    recipe = recipe_for(workplace, "training.max_steps=2")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.to_yaml())
    assert train_once(recipe, tmp_path / "run").recipe == recipe
    with pytest.raises(InputError, match="run' was trained with another recipe; choose another --runs"):
        train_once(replace(recipe, seed=1), tmp_path / "run")


def test_a_settings_hash_changes_with_the_settings(workplace):
    recipe = recipe_for(workplace)
    assert settings_hash(recipe, 1e-3) == settings_hash(recipe_for(workplace), 1e-3)
    assert len({settings_hash(recipe, 1e-3), settings_hash(recipe, 1e-4), settings_hash(replace(recipe, seed=1), 1e-3)}) == 3
