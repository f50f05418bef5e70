"""The loop of studies: missing pieces are measured once, existing ones are reported; studies share runs."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from helpers.recipes import recipe_for
from helpers.studies import Measured, Settings, small_study
from road_interp.errors import InputError
from road_interp.files import read_text, write_atomically
from road_interp.measure import Ablation, AblationReport
from road_interp.progress import silent
from road_interp.recipes.loader import load_recipe
from road_interp.runs.run import Run
from road_interp.sources import SMOLLM2
from road_interp.training import arguments, study_runs
from road_interp.training.study import Condition, Piece, StudyOptions, find_study, needs, settings_hash, with_interval
from road_interp.training.study_pieces import read_study, run_study, settings_of
from road_interp.training.study_runs import run_of, train_once


@dataclass(frozen=True)
class OfModel(Settings):
    """The recipe of a study that names a model."""

    model: str = SMOLLM2


@pytest.fixture
def measured():
    return []


@pytest.fixture
def study(measured):
    return small_study(measured)


def options(folder, **changes):
    return StudyOptions(results=folder / "results", runs=folder / "runs", **changes)


def slugs_and_seeds(pieces):
    return [(piece.condition, piece.seed) for piece in pieces]


def test_missing_pieces_are_measured_once(study, measured, tmp_path):
    report = run_study(study, options(tmp_path, seeds=(0, 1, 2)))
    assert report.pieces == {"plain": [0, 1], "longer": [0, 1, 2], "apart": [0, 1, 2]}
    assert slugs_and_seeds(measured) == [
        ("plain", 0),
        ("plain", 1),
        *((slug, seed) for slug in ("longer", "apart") for seed in range(3)),
    ]
    assert [piece.recipe for piece in measured[1:3]] == [Settings(10, None, 1), Settings(20, None, 0)]
    assert {piece.runs for piece in measured} == {tmp_path / "runs"}
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("seed-*.json.gz")}
    assert len(files) == 8
    measured.clear()
    assert run_study(study, options(tmp_path, seeds=(0, 1, 2))) == report
    assert measured == []
    run_study(study, options(tmp_path, seeds=(0, 1, 2, 3)))
    assert slugs_and_seeds(measured) == [("longer", 3), ("apart", 3)]
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    (tmp_path / "results" / "small" / "apart" / "seed-1.json.gz").unlink()
    measured.clear()
    run_study(study, options(tmp_path))
    assert slugs_and_seeds(measured) == [("apart", 1)]


def test_a_condition_without_a_required_setting_is_left_out_and_named(study, measured, tmp_path):
    conditions = {**study.conditions, "longer": replace(study.conditions["longer"], requires=("file",))}
    study = replace(study, conditions=conditions)
    with pytest.warns(UserWarning, match=r"study 'small': longer is left out: it needs file=\.\.\."):
        run_study(study, options(tmp_path))
    assert {slug for slug, _ in slugs_and_seeds(measured)} == {"plain", "apart"}
    (tmp_path / "here").touch()
    run_study(study, options(tmp_path, overrides=(f"file={tmp_path / 'here'}",)))
    assert {slug for slug, _ in slugs_and_seeds(measured)} == set(conditions)
    measured.clear()
    run_study(study, options(tmp_path / "chosen", only=("longer",)))
    assert {slug for slug, _ in slugs_and_seeds(measured)} == {"longer"}


def test_a_condition_can_have_a_measure_of_its_own(study, tmp_path):
    run_study(study, options(tmp_path, seeds=(0,)))
    steps = [Measured.load(tmp_path / "results" / "small" / slug / "seed-0.json.gz").steps for slug in study.conditions]
    assert steps == [10, 20, -1]


def test_progress_names_every_piece_before_it_is_measured(study, measured, tmp_path):
    calls = []
    run_study(
        study, options(tmp_path, seeds=(4,), only=("longer", "plain")), lambda text, *_: calls.append((text, len(measured)))
    )
    assert calls == [("more steps, seed 4", 0), ("plain, seed 4", 1)]


def test_a_killed_measurement_is_continued(measured, tmp_path):
    class Killed(BaseException):
        """Like SIGKILL: not an Exception, so that no handler catches it."""

    def killed(piece):
        if measured:
            raise Killed
        return measure(piece)

    study = small_study(measured)
    measure = study.measure
    with pytest.raises(Killed):
        run_study(replace(study, measure=killed), options(tmp_path))
    assert slugs_and_seeds(measured) == [("plain", 0)]
    assert read_study(study, options(tmp_path)).pieces == {"plain": [0]}
    assert not [path for path in (tmp_path / "results").rglob("*") if path.name.startswith(".")]
    report = run_study(study, options(tmp_path))
    assert slugs_and_seeds(measured).count(("plain", 0)) == 1
    assert len(measured) == 8
    assert report.pieces["plain"] == [0, 1]


def test_the_report_covers_all_existing_pieces(study, measured, tmp_path):
    report = run_study(study, options(tmp_path, only=("apart",), seeds=(1,)))
    assert report.pieces == {"apart": [1]}
    report = run_study(study, options(tmp_path, only=("longer",), seeds=(2, 1)))
    assert report.pieces == {"longer": [2, 1], "apart": [1]}
    assert list(report.pieces) == ["longer", "apart"]  # in the order of the study
    assert read_study(study, options(tmp_path, seeds=(1,))).pieces == {"longer": [1], "apart": [1]}


def test_no_results_are_an_error_and_leave_no_folder(study, tmp_path):
    with pytest.raises(InputError, match=r"results/small' holds no results of this study"):
        read_study(study, options(tmp_path))
    run_study(study, options(tmp_path, seeds=(0,), only=("plain",)))
    read_study(study, options(tmp_path))
    assert [path.name for path in (tmp_path / "results" / "small").iterdir()] == ["plain"]
    with pytest.raises(InputError, match="holds no results of this study"):
        read_study(study, options(tmp_path, seeds=(5,)))


def test_a_piece_that_was_measured_with_other_settings_is_refused(study, tmp_path):
    run_study(study, options(tmp_path, seeds=(0,)))
    other = replace(study.conditions["plain"], overrides=("steps=11",))
    changed = replace(study, conditions={**study.conditions, "plain": other})
    for call in (run_study, read_study):
        with pytest.raises(InputError, match=r"seed-0.json.gz' was measured with other settings \(.{8}, not .{8}\)") as error:
            call(changed, options(tmp_path, seeds=(0,)))
        assert "choose another --results" in str(error.value)
    path = tmp_path / "results" / "small" / "plain" / "seed-0.json.gz"
    replace(Measured.load(path), provenance=None).save(path)  # results of other commands have no settings hash
    with pytest.raises(InputError, match="with other settings"):
        read_study(study, options(tmp_path, seeds=(0,)))
    write_atomically(path, '{"condition": "plain", "seed": 0, "steps": 10}')  # as by a release without provenance
    with pytest.raises(InputError, match=r"with other settings \(None, not"):
        read_study(study, options(tmp_path, seeds=(0,)))


def test_a_piece_of_another_seed_is_refused(study, tmp_path):
    """Such as a file that was copied from another machine to the wrong name: its seed would count twice."""
    run_study(study, options(tmp_path, seeds=(0,), only=("longer",)))
    folder = tmp_path / "results" / "small" / "longer"
    shutil.copy(folder / "seed-0.json.gz", folder / "seed-1.json.gz")
    for call in (run_study, read_study):
        with pytest.raises(InputError, match=r"longer/seed-1.json.gz' was measured with seed 0: move it where it belongs"):
            call(study, options(tmp_path, seeds=(0, 1), only=("longer",)))


def test_a_piece_that_is_not_compressed_counts(study, measured, tmp_path):
    """Such as one that was unpacked to be read, or that a release before compression wrote."""
    report = run_study(study, options(tmp_path, seeds=(0, 1), only=("longer",)))
    for path in (tmp_path / "results" / "small" / "longer").iterdir():
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    measured.clear()
    assert run_study(study, options(tmp_path, seeds=(0, 1), only=("longer",))) == report
    assert measured == []
    with pytest.warns(UserWarning, match=r"results of further seeds are left out \(1\)"):
        read_study(replace(study, seeds=(0,)), options(tmp_path))


def test_a_damaged_manifest_is_an_error_before_the_measurement(study, measured, tmp_path):
    run_study(study, options(tmp_path, seeds=(0,)))
    manifest = tmp_path / "results" / "MANIFEST.json"
    manifest.write_text("<<<<<<< HEAD\n" + manifest.read_text())
    measured.clear()
    with pytest.raises(InputError, match=r"results': MANIFEST.json is not valid JSON"):
        run_study(study, options(tmp_path, seeds=(0, 1)))
    assert measured == []
    run_study(study, options(tmp_path, seeds=(0,)))  # which measures nothing


def test_an_input_file_that_changed_is_refused(study, measured, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("a good film")
    given = options(tmp_path, seeds=(0,), overrides=(f"file={texts}",))
    run_study(study, given)
    assert {piece.seed for piece in measured} == {0}
    stored = Measured.load(tmp_path / "results" / "small" / "plain" / "seed-0.json.gz").provenance.inputs
    assert stored == {"file/texts.txt": hashlib.sha256(b"a good film").hexdigest()[:16]}
    read_study(study, options(tmp_path, seeds=(0,)))  # reading needs no input
    texts.write_text("a dull film")
    for call in (run_study, read_study):
        with pytest.raises(InputError, match="plain/seed-0.json.gz' was measured with another file/texts.txt; choose another"):
            call(study, given)
    measured.clear()
    with pytest.raises(InputError, match="was measured with another file/texts.txt"):
        run_study(study, replace(given, seeds=(0, 1)))
    assert measured == []  # it is refused before the missing piece is measured
    with pytest.raises(InputError, match=r"gone' cannot be read \(No such file or directory\)"):
        read_study(study, options(tmp_path, seeds=(0,), overrides=(f"file={tmp_path / 'gone'}",)))


def test_data_of_a_recipe_that_changed_are_refused(study, measured, tmp_path):
    data = tmp_path / "films.csv"
    data.write_text("text,label\nfine,positive\n")
    trains = replace(study, recipe="sentiment-minilm", inputs={}, conditions={"plain": Condition("plain")})
    trains = replace(trains, measure=lambda piece: Measured(piece.condition, piece.seed, 0))
    given = options(tmp_path, seeds=(0,), overrides=(f"data.id={data}", "data.filter=null"))
    run_study(trains, given)
    read_study(trains, given)
    data.write_text("text,label\ndull,negative\n")
    with pytest.raises(InputError, match="seed-0.json.gz' was measured with another data/films.csv; choose another --results"):
        run_study(trains, given)


def test_data_in_a_folder_that_changed_are_refused(study, measured, tmp_path):
    (data := tmp_path / "films").mkdir()
    (data / "train.csv").write_text("text,label\nfine,positive\n")
    trains = replace(study, recipe="sentiment-minilm", inputs={}, conditions={"plain": Condition("plain")})
    trains = replace(trains, measure=lambda piece: Measured(piece.condition, piece.seed, 0))
    given = options(tmp_path, seeds=(0,), overrides=(f"data.id={data}", "data.filter=null"))
    run_study(trains, given)
    (data / ".cache").write_text("not of the data")
    read_study(trains, given)
    (data / "train.csv").write_text("text,label\nfine,negative\n")
    with pytest.raises(InputError, match="seed-0.json.gz' was measured with another data/films; choose another --results"):
        run_study(trains, given)


def test_results_in_a_file_are_refused_before_anything_is_measured(study, measured, tmp_path):
    (tmp_path / "file").write_text("")
    for results in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(InputError, match="file' is a file, not a folder"):
            run_study(study, replace(options(tmp_path, seeds=(0,)), results=results))
    assert measured == []


@pytest.mark.parametrize("folder", ["results", "runs"])
def test_folders_without_permission_are_refused_before_anything_is_measured(study, measured, tmp_path, monkeypatch, folder):
    """Root may write everywhere, so that the answer of the system is replaced. What is measured already needs no permission."""
    (tmp_path / folder).mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / folder)
    with pytest.raises(InputError, match=f"no file can be written in '{tmp_path / folder}'"):
        run_study(study, options(tmp_path))
    assert measured == []
    monkeypatch.undo()
    report = run_study(study, options(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert run_study(study, options(tmp_path)) == report


def test_data_files_of_one_name_in_different_folders_are_told_apart(study, measured, tmp_path):
    for name in ("train", "held-out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "films.csv").write_text(f"text,label\n{name},positive\n")
    trains = replace(study, recipe="sentiment-minilm", inputs={}, conditions={"plain": Condition("plain")})
    trains = replace(trains, measure=lambda piece: Measured(piece.condition, piece.seed, 0))
    paths = {key: tmp_path / name / "films.csv" for key, name in (("id", "train"), ("validation", "held-out"))}
    given = options(tmp_path, seeds=(0,), overrides=tuple(f"data.{key}={path}" for key, path in paths.items()))
    run_study(trains, given)
    paths["id"].write_text("text,label\nchanged,positive\n")
    with pytest.raises(InputError, match="seed-0.json.gz' was measured with another data/films.csv; choose another --results"):
        read_study(trains, given)


def test_a_local_model_that_changed_is_refused(study, measured, tmp_path):
    weights = tmp_path / "my-bert" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"first")
    trains = replace(study, recipe="sentiment-minilm", inputs={}, conditions={"plain": Condition("plain")})
    for number, (ids_are, key) in enumerate(((trains, "model.id"), (replace(study, recipe=OfModel), "model"))):
        weights.write_bytes(b"first")
        given = options(tmp_path / str(number), seeds=(0,), only=("plain",), overrides=(f"{key}={weights.parent}",))
        ids_are = replace(ids_are, measure=lambda piece: Measured(piece.condition, piece.seed, 0))
        run_study(ids_are, given)
        weights.touch()  # the same content
        read_study(ids_are, given)
        weights.write_bytes(b"other")
        for call, seeds in ((read_study, (0,)), (run_study, (0, 1))):
            with pytest.raises(InputError, match="was measured with another model/my-bert; choose another --results"):
                call(ids_are, replace(given, seeds=seeds))
        shutil.move(weights.parent, tmp_path / "elsewhere")
        read_study(ids_are, given)  # reading needs no model
        shutil.move(tmp_path / "elsewhere", weights.parent)


def test_an_input_file_of_another_name_is_refused_unless_it_has_the_same_content(study, measured, tmp_path):
    for name, content in (("one", "a good film"), ("two", "a dull film"), ("copy", "a good film")):
        (tmp_path / name).write_text(content)
    one, two, copy = (
        options(tmp_path, seeds=(0,), only=("plain",), overrides=(f"file={tmp_path / name}",)) for name in ("one", "two", "copy")
    )
    run_study(study, one)
    for call in (run_study, read_study):
        with pytest.raises(InputError, match="seed-0.json.gz' was measured with another file/two; choose another --results"):
            call(study, two)
    run_study(study, copy)
    assert len(measured) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "the JSON of Measured must hold one object"),
        ("{", "not valid JSON"),
        ('{"result": "StrengthReport"}', "this is the JSON of StrengthReport, not of Measured"),
        ('{"condition": "plain", "seed": "x", "steps": 1}', "'seed' must be whole number"),
    ],
)
def test_a_file_that_is_no_result_is_named(study, measured, tmp_path, content, message):
    path = tmp_path / "results" / "small" / "plain" / "seed-0.json.gz"
    path.parent.mkdir(parents=True)
    write_atomically(path, content)
    with pytest.raises(InputError, match=message) as error:
        run_study(study, options(tmp_path, seeds=(0,)))
    assert str(path) in str(error.value)
    assert read_text(path) == content


def test_overrides_get_a_folder_of_their_own(study, measured, tmp_path):
    run_study(study, options(tmp_path, seeds=(0,), only=("plain",)))
    run_study(study, options(tmp_path, seeds=(0,), only=("plain",), overrides=("steps=7",)))
    assert [piece.recipe.steps for piece in measured] == [10, 7]
    folders = {path.name for path in (tmp_path / "results").iterdir() if path.is_dir()}
    (own,) = folders - {"small"}
    assert own.startswith("small-")
    run_study(study, options(tmp_path, seeds=(0,), only=("plain",), overrides=("steps=8",)))
    assert len({path.name for path in (tmp_path / "results").iterdir() if path.is_dir()} - folders) == 1
    assert read_study(study, options(tmp_path)).pieces == {"plain": [0]}


def test_paths_on_this_machine_do_not_enter_the_settings_hash(study, measured, tmp_path):
    plain = study.conditions["plain"]
    same, other = StudyOptions(("file=here.json",)), StudyOptions(("steps=9",))
    assert settings_of(study, plain, same) == settings_of(study, plain, StudyOptions())
    assert settings_of(study, plain, other) != settings_of(study, plain, StudyOptions())
    given = tmp_path / "here.json"
    given.touch()
    run_study(study, options(tmp_path, seeds=(0,), only=("plain",), overrides=(f"file={given}",)))
    assert measured[0].recipe.file == str(given)
    run_study(study, options(tmp_path, seeds=(0,), only=("plain",)))
    assert len(measured) == 1


def test_quick_measures_less_in_a_folder_of_its_own(study, measured, tmp_path):
    report = run_study(study, options(tmp_path, quick=True))
    assert report.pieces == {"plain": [0], "longer": [0]}
    assert [piece.recipe.steps for piece in measured] == [1, 1]  # the overrides of --quick replace those of the condition
    assert (tmp_path / "results" / "quick" / "small" / "plain" / "seed-0.json.gz").is_file()
    with pytest.raises(InputError, match="holds no results"):
        read_study(study, options(tmp_path))
    run_study(study, options(tmp_path, quick=True, only=("apart",)))
    assert slugs_and_seeds(measured)[2:] == [("apart", 0)]
    more = replace(study, quick_seeds=2, quick_conditions=None)
    assert len(pieces := run_study(more, options(tmp_path, quick=True)).pieces) == 3
    assert set(map(tuple, pieces.values())) == {(0, 1)}
    assert run_study(study, options(tmp_path, quick=True, seeds=(3, 4))).pieces == {"plain": [3, 4], "longer": [3, 4]}


@pytest.mark.filterwarnings("error")
def test_seeds_that_a_condition_does_not_take_are_named(study, measured, tmp_path):
    with pytest.warns(UserWarning, match="study 'small': plain takes 2 of the seeds that are given; left out: 5, 6") as found:
        run_study(study, options(tmp_path, seeds=(3, 4, 5, 6)))
    assert len(found) == 1
    run_study(study, options(tmp_path / "default"))  # which warns of nothing


def test_results_of_seeds_that_are_not_read_are_named(study, tmp_path, recwarn):
    """A study to which seeds were added is not reported without them in silence."""
    run_study(study, options(tmp_path))
    added = options(tmp_path, seeds=(0, 1, 2, 3, 4), only=("longer",))
    assert run_study(study, added).pieces["longer"] == [0, 1, 2, 3, 4]
    assert not recwarn.list
    for call in (run_study, read_study):
        with pytest.warns(UserWarning, match=r"study 'small': results of further seeds are left out \(3, 4\); --seeds chooses"):
            assert call(study, options(tmp_path)).pieces["longer"] == [0, 1, 2]


def test_overrides_that_replace_a_setting_of_a_condition_are_named(study, measured, tmp_path, recwarn):
    """The condition "more steps" would be one of fewer."""
    section = replace(study.conditions["apart"], overrides=("data.filter={}",))
    trains = replace(study, recipe="sentiment-minilm", inputs={}, conditions={"apart": section})
    for of, override, slug in ((study, "steps=3", "longer"), (trains, "data={id: films.csv}", "apart")):
        given = options(tmp_path, seeds=(0,), overrides=(override,))
        for call in (run_study, read_study):
            with pytest.warns(UserWarning, match=f"study 'small': {override} replaces a setting of {slug}, which") as found:
                call(of, given)
            assert len(found) == 1
    run_study(study, options(tmp_path, seeds=(0,), overrides=("steps=3",), only=("plain",)))
    run_study(study, options(tmp_path, seeds=(0,), overrides=("steps=20",)))
    run_study(trains, options(tmp_path, seeds=(0,), overrides=("data.filter.source=imdb", "data.id=films.csv")))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("slug", "hint"), [("longr", "did you mean 'longer'?"), ("x", "the conditions are plain, longer, apart")]
)
def test_an_unknown_condition_is_refused_before_anything_is_measured(study, measured, tmp_path, slug, hint):
    with pytest.raises(InputError) as error:
        run_study(study, options(tmp_path, only=("plain", slug)))
    assert str(error.value) == f"study 'small' has no condition '{slug}'; {hint}"
    assert measured == []


def test_an_unknown_study_is_refused():
    with pytest.raises(InputError, match="no study 'drft'; did you mean 'drift'?"):
        find_study("drft")
    with pytest.raises(InputError, match="no study 'x'; known are ablation, ablation-smollm2, ablation-sst2, angles"):
        find_study("x")
    assert find_study("drift").name == "drift"


def test_wrong_overrides_are_refused(study, tmp_path):
    for override, message in (
        ("step=2", "unknown key 'step'; did you mean 'steps'?"),
        ("steps=two", "'steps' must be whole number"),
        ("steps", "override 'steps' is not of the form key=value"),
    ):
        with pytest.raises(InputError, match=message):
            run_study(study, options(tmp_path, overrides=(override,)))
    assert not (tmp_path / "results").exists()


def test_the_manifest_has_time_and_digest_of_every_piece(study, tmp_path):
    run_study(study, options(tmp_path, seeds=(0, 1)))
    run_study(study, options(tmp_path, seeds=(0,), quick=True))
    settings = {}
    for results, count in ((tmp_path / "results", 6), (tmp_path / "results" / "quick", 2)):
        manifest = json.loads((results / "MANIFEST.json").read_text())
        files = {path.relative_to(results).as_posix(): path for path in (results / "small").rglob("seed-*.json.gz")}
        assert list(manifest) == sorted(files)
        assert len(files) == count
        for name, entry in manifest.items():
            assert list(entry) == ["seconds", "sha256"]  # no precision, because its recipe trains nothing
            assert entry["sha256"] == hashlib.sha256(files[name].read_bytes()).hexdigest()
            assert entry["seconds"] >= 0
            made = Measured.load(files[name]).provenance
            assert str(made.seeds[0]) in name
            settings[results.name, name] = made.settings
    assert settings["results", "small/plain/seed-0.json.gz"] == settings["results", "small/plain/seed-1.json.gz"]
    keys = [(folder, f"small/{slug}/seed-0.json.gz") for folder in ("results", "quick") for slug in ("plain", "longer")]
    assert len({settings[key] for key in keys}) == 4


def test_the_manifest_has_the_precision_of_trainings(study, tmp_path, monkeypatch):
    """That of the recipe, or of the processor where the recipe leaves it open."""
    monkeypatch.setattr(arguments, "_processor_has_amx", lambda: True)
    for given, expected in (("fp32", "fp32"), ("auto", "bf16")):
        results = tmp_path / given
        conditions = {"plain": Condition("plain", (f"training.precision={given}",))}
        trains = replace(
            study,
            recipe="sentiment-minilm",
            inputs={},
            conditions=conditions,
            measure=lambda piece: Measured(piece.condition, piece.seed, 0),
        )
        run_study(trains, StudyOptions(results=results, runs=tmp_path / "runs", seeds=(0,)))
        (entry,) = json.loads((results / "MANIFEST.json").read_text()).values()
        assert entry["precision"] == expected


@pytest.mark.training
def test_a_run_is_trained_once_for_all_studies(workplace, tmp_path, capsys):
    recipe = recipe_for(workplace, "training.max_steps=2")
    piece = Piece(recipe, "any", recipe.seed, tmp_path / "runs", silent)
    runs = [run_of(piece._replace(recipe=replace(recipe, seed=seed))) for seed in (0, 1)]
    assert [(run.recipe.seed, run.recipe.training.max_steps) for run in runs] == [(0, 2), (1, 2)]
    assert runs[0].folder.name.startswith(f"{recipe.model.name}-")
    written = [(run.folder / "metrics.json").stat().st_mtime_ns for run in runs]
    again = [run_of(piece._replace(recipe=replace(recipe, seed=seed), condition="other")) for seed in (0, 1)]
    assert [run.folder for run in again] == [run.folder for run in runs]
    assert [(run.folder / "metrics.json").stat().st_mtime_ns for run in runs] == written
    alone = run_of(piece._replace(recipe=recipe_for(workplace, "training.max_steps=2", "adapter.trainable=angles")))
    assert alone.folder.parent == tmp_path / "runs"
    assert alone.folder not in [run.folder for run in runs]


def test_an_unfinished_run_is_resumed_and_another_recipe_is_refused(workplace, tmp_path):
    recipe = recipe_for(workplace, "training.max_steps=2")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.to_yaml())
    assert train_once(recipe, tmp_path / "run").recipe == recipe
    assert Run.load(tmp_path / "run").recipe == recipe
    with pytest.raises(InputError, match="run' was trained with another recipe; choose another --runs"):
        train_once(replace(recipe, seed=1), tmp_path / "run")


def test_a_run_of_data_that_have_changed_is_not_used_again(workplace, tmp_path):
    data = Path(shutil.copy(workplace / "data.csv", tmp_path))
    recipe = recipe_for(workplace, "training.max_steps=2", f"data.id={data}")
    train_once(recipe, tmp_path / "run")
    data.write_text(data.read_text() + "grand,positive,1\n")
    with pytest.raises(InputError, match=r"data.csv' has changed since the run was started"):
        train_once(recipe, tmp_path / "run")


def test_a_local_model_has_a_run_for_each_content(workplace, tmp_path, monkeypatch):
    monkeypatch.setattr(study_runs, "train_once", lambda recipe, folder: folder)
    model = Path(shutil.copytree(workplace / "model", tmp_path / "model"))

    def folder_of(recipe):
        return run_of(Piece(recipe, "any", 0, tmp_path / "runs", silent))

    local = recipe_for(workplace, f"model.id={model}")
    first = folder_of(local)
    (model / "model.safetensors").touch()
    assert folder_of(local) == first
    (model / "model.safetensors").write_bytes(b"other weights")
    assert folder_of(local) != first
    packaged = load_recipe("sentiment-minilm")
    assert folder_of(packaged).name == f"{packaged.model.name}-{settings_hash(packaged)}"


def test_equal_paths_of_data_with_other_contents_have_runs_of_their_own(workplace, tmp_path, monkeypatch):
    recipe = recipe_for(workplace, "training.max_steps=2", "data.id=data.csv")
    lines = (workplace / "data.csv").read_text().splitlines(keepends=True)
    found = []
    for name, content in (("project", lines), ("copy", lines), ("changed", lines[:-1])):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        Path("data.csv").write_text("".join(content))
        found.append(run_of(Piece(recipe, "any", recipe.seed, tmp_path / "runs", silent)))
    first, same, other = found
    assert same.folder == first.folder
    assert other.folder != first.folder
    assert other.metrics != first.metrics


def test_a_hash_changes_with_the_settings(workplace):
    recipe = recipe_for(workplace)
    assert settings_hash(recipe, 1e-3) == settings_hash(recipe_for(workplace), 1e-3)
    assert len({settings_hash(recipe, 1e-3), settings_hash(recipe, 1e-4), settings_hash(replace(recipe, seed=1), 1e-3)}) == 3


def test_an_interval_as_text():
    assert with_interval((0.12345, 0.1, 0.2)) == "0.123 [0.100, 0.200]"
    assert with_interval((1, -2, 3.26), 1) == "1.0 [-2.0, 3.3]"


def test_a_report_names_missing_conditions_and_other_seeds():
    def of(*seeds):
        rows = (Ablation("components", "all planes", "both", (True,)),)
        return [AblationReport("model", "task", "road_1", (seed,), rows) for seed in seeds]

    needs({"both": of(0, 1), "alone": of(0, 1)}, "both", "alone")
    with pytest.raises(InputError, match="needs the conditions both"):
        needs({"alone": of(0)}, "both", "alone")
    with pytest.raises(InputError, match="results of different seeds"):
        needs({"both": of(0, 1), "alone": of(1, 2)}, "both", "alone")
    for first, second in (((0, 1), (0, 2)), ((0, 1), (0,))):  # results of one seed each, which have no field "seeds"
        pieces = {"both": [Measured("both", seed, 1) for seed in first], "alone": [Measured("alone", seed, 1) for seed in second]}
        with pytest.raises(InputError, match="results of different seeds"):
            needs(pieces, "both", "alone")
        needs({**pieces, "alone": pieces["both"]}, "both", "alone")
