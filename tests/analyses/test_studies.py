"""Every study: its recipes load, its pieces are measured and put together, and it draws from results/ without a model."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from markupsafe import escape

from helpers.cli import run
from helpers.studies import pieces_of, quickly, small_study
from road_interp.errors import InputError
from road_interp.files import read_json_object, write_atomically
from road_interp.recipes.loader import load_recipe
from road_interp.training import study as study_module
from road_interp.training.manifest import as_text
from road_interp.training.study import StudyOptions, best_rate, studies
from road_interp.training.study_page import write_page
from road_interp.training.study_pieces import read_study, run_study, settings_of

ROOT = Path(__file__).parents[2]
RESULTS, ANALYSES = ROOT / "results", ROOT / "analyses"
NAMES = sorted(studies())
MEASURED = [name for name in NAMES if (RESULTS / name).is_dir()]  # a new study is committed before it is measured
MIB = 2**20


# What holds for every study


@pytest.mark.parametrize("name", NAMES)
def test_conditions_are_loadable_recipes(known, tmp_path, name):
    study = known[name]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", slug) for slug in (name, *study.conditions))
    assert len({condition.name for condition in study.conditions.values()}) == len(study.conditions)
    for quick in (False, True):
        pieces = pieces_of(study, StudyOptions(quick=quick, seeds=(3, 4), only=tuple(study.conditions), results=tmp_path))
        assert {piece.condition for piece in pieces} == set(study.conditions)
        assert all(piece.recipe.seed == piece.seed for piece in pieces)
        assert {piece.seed for piece in pieces} <= {3, 4}
        kinds = {type(piece.recipe) for piece in pieces}
        assert kinds == {type(load_recipe(study.recipe)) if isinstance(study.recipe, str) else study.recipe}
    for condition in study.conditions.values():
        assert settings_of(study, condition, StudyOptions()) != settings_of(study, condition, StudyOptions(quick=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_study_asks_one_question_and_says_what_it_cannot_show(known, name):
    question, caveat = known[name].question, known[name].caveat
    assert re.fullmatch(r"[A-Z][^?]*\?", question)
    assert re.fullmatch(r"[A-Z].*\.", caveat)
    assert 1 <= len(re.findall(r"[.;](?= |$)", caveat)) <= 3
    others = [study for study in known.values() if study.name != name]
    assert question not in {study.question for study in others}
    assert caveat not in {study.caveat for study in others}


def test_all_studies_have_results():
    assert NAMES == MEASURED


@pytest.mark.docs
@pytest.mark.parametrize("name", MEASURED)
def test_every_study_has_a_sentence_and_finite_numbers(known, no_model, name):
    """`make docs` draws the figures of the same results."""
    sentence, rows = known[name].describe(read_study(known[name], StudyOptions(results=RESULTS)))
    assert rows
    assert not re.search(r"\b(nan|inf)\b", " ".join([sentence, *map(" ".join, rows)]))


def test_a_study_is_redrawn_from_its_results(command, no_model, tmp_path):
    told = command("depth", "--redraw", "--results", RESULTS)
    for path in map(Path, told["figures"]):
        assert path.is_relative_to(tmp_path / "figures")
        assert path.is_file()
        assert path.with_suffix(".pdf").is_file()
        assert json.loads(path.with_suffix(".json").read_text())["format"] == 1
    assert told["figures"]
    assert told["numbers"]
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", NAMES)
def test_stored_pieces_are_those_of_the_conditions(known, name):
    """Each is of the condition, the seed and the settings that its path says."""
    study = known[name]
    for path in sorted((RESULTS / name).glob("*/*")):
        made = study.result.load(path).provenance
        assert made.settings == settings_of(study, study.conditions[path.parent.name], StudyOptions())
        assert path.name == f"seed-{made.seeds[0]}.json.gz"
        assert len(made.seeds) == 1


def test_stored_pieces_hold_no_summary():
    """It would keep the intervals of the rule by which it was computed."""
    assert not [path for path in RESULTS.glob("*/*/*.json.gz") if "summary" in read_json_object(path)]


def test_the_manifest_holds_every_result():
    text = (RESULTS / "MANIFEST.json").read_text()
    manifest = json.loads(text)
    assert as_text(manifest) == text
    pieces = [path for path in RESULTS.glob("*/*/seed-*.json.gz") if "quick" not in path.parts]
    files = {path.relative_to(RESULTS).as_posix(): path for path in pieces}
    assert sorted(manifest) == sorted(files)
    assert {name.partition("/")[0] for name in manifest} == set(MEASURED)
    for name, entry in manifest.items():
        made = read_json_object(files[name])["provenance"]
        assert entry["sha256"] == hashlib.sha256(files[name].read_bytes()).hexdigest(), name
        assert {"seconds", "sha256"} <= set(entry) <= {"precision", "seconds", "sha256"}
        assert re.fullmatch("[0-9a-f]{40}", made["commit"])
        assert re.fullmatch("[0-9a-f]{8}", made["settings"])
        assert made["versions"]["torch"]
        assert not re.search(r"[ =]/", made["command"]), f"{name}: its command names a path of one machine"


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    return [Path(name) for name in listed.stdout.split("\0") if name]


def test_tracked_paths_are_plain_and_files_are_small():
    paths = tracked()
    assert not [path for path in paths if re.search(r"[ ,]", str(path))]
    results = [path for path in paths if path.parts[0] == "results"]
    assert blocks_of(results) <= 6 * MIB
    assert blocks_of(paths) <= 12 * MIB
    assert {path.parts[1] for path in results} == {*MEASURED, "MANIFEST.json", "PROTOCOLS.md", "CHECKS.md"}
    assert not [path for path in results if path.suffix in (".pdf", ".png", ".log")]


def blocks_of(paths):
    """The bytes that files take on a disk with blocks of 4 KiB."""
    return sum(-(-(ROOT / path).lstat().st_size // 4096) * 4096 for path in paths)


# The command


def test_the_studies_are_listed(known, command, capsys, monkeypatch):
    rows = command("--list")["studies"]
    assert [row["name"] for row in rows] == list(known)
    assert all(row["minutes"] > 0 for row in rows)
    assert len({row["title"] for row in rows}) == len(rows)
    assert [row["question"] for row in rows] == [study.question for study in known.values()]
    recipes = {row["name"]: row["recipe"] for row in rows}
    assert recipes["capacity"] == "sentiment-minilm"
    assert recipes["cost"] == ""
    code, out, _ = run(capsys, monkeypatch, "study", "--list")
    assert code == 0
    assert all(name in out for name in known)
    shown = re.sub(r"[\W_]+", "", out)
    assert all(re.sub(r"\W+", "", study.question.partition(" ")[0]) in shown for study in known.values())


def test_one_json_object_and_nothing_else(known, command, tmp_path, monkeypatch):
    measured = []
    monkeypatch.setitem(known, "small", small_study(measured))
    output = command("small", "steps=3", "--seeds", "5,6", "--only", "longer", "--only", "apart")
    assert output == {"sentence": "What there is.", "numbers": {"longer": "5, 6", "apart": "5, 6"}, "figures": []}
    assert [(piece.condition, piece.seed, piece.recipe.steps) for piece in measured] == [
        (slug, seed, 3) for slug in ("longer", "apart") for seed in (5, 6)
    ]
    assert measured[0].runs == tmp_path / "runs"
    assert command("small", "steps=3", "--seeds", "6", "--redraw")["numbers"] == {"longer": "6", "apart": "6"}
    assert command("small", "--quick")["numbers"] == {"plain": "0", "longer": "0"}


def test_of_equal_rates_the_smallest_is_the_best():
    assert best_rate({3e-3: 0.1 + 0.2 - 0.0000000000000002, 1e-1: 0.1 + 0.2}) == 3e-3  # differ in rounding only
    assert best_rate({3e-3: 0.5, 1e-1: 0.51}) == 1e-1


def test_what_a_tracker_prints_is_not_in_the_json(known, command, monkeypatch):
    study = small_study([])

    def printing(piece):
        print("* Trackio project initialized")
        return study.measure(piece)

    monkeypatch.setitem(known, "small", replace(study, measure=printing))
    assert command("small", "--quick", "--only", "plain")["numbers"] == {"plain": "0"}


def test_a_log_names_each_piece(known, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study_module, "studies", lambda: {"small": small_study([])})
    code, out, err = run(capsys, monkeypatch, "study", "small", "--quick", "--seeds", "3")
    assert (code, out, err) == (0, "What there is.\n", "plain, seed 3\nmore steps, seed 3\n")
    assert run(capsys, monkeypatch, "study", "small", "--quick", "--seeds", "3")[1:] == ("What there is.\n", "")


def test_conditions_that_the_inputs_do_not_hold_are_left_out(tmp_path):
    measured = []
    study = small_study(measured, applies=lambda settings: settings.steps != 20)
    with pytest.warns(UserWarning, match="study 'small': the inputs do not hold longer: left out"):
        run_study(study, StudyOptions(seeds=(3,), results=tmp_path))
    assert [piece.condition for piece in measured] == ["plain", "apart"]
    run_study(study, StudyOptions(seeds=(3,), only=("longer",), results=tmp_path))  # chosen by name
    assert measured[-1].condition == "longer"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["drft"], "no study 'drft'; did you mean 'drift'?"),
        (["capacity", "--only", "road-1"], "study 'capacity' has no condition 'road-1'; did you mean 'road_1'?"),
        (["capacity", "--redraw", "--only", "road-1"], "study 'capacity' has no condition 'road-1'; did you mean 'road_1'?"),
        (["capacity", "training.max_step=2"], "unknown key 'training.max_step'; did you mean 'training.max_steps'?"),
        (["cost", "size=2"], "unknown key 'size'"),
        (["parameter-share", "model=bert"], "'model' must be one of minilm, mpnet, smollm2, gemma-3-270m"),
        (["throughput", "--unknown"], "No such option: --unknown"),
        (["strength", "--seeds", "a"], "--seeds 'a' must be whole numbers with commas between"),
        (["strength", "--redraw"], "strength' holds no results of this study"),
        (["--redraw"], "holds no results of any study"),
        ([], "name a study, list them with --list, or draw all that have results with --redraw"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, monkeypatch, "study", *arguments)
    *steps, line = err.splitlines()
    assert (code, out) == (2, "")
    assert line.startswith("road-interp: ")
    assert message in line
    assert len(steps) <= 1  # the condition whose recipe is wrong
    assert list(tmp_path.iterdir()) == []


def test_a_script_is_its_study(monkeypatch, capsys, tmp_path):
    arguments = ["interference.py", "--redraw", "--results", str(RESULTS), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(ANALYSES / "interference.py"), run_name="__main__")
    assert "interference.png" in capsys.readouterr().out
    assert (tmp_path / "interference.png").is_file()


@pytest.mark.parametrize("path", sorted(ANALYSES.glob("*.py")), ids=lambda path: path.stem)
def test_every_script_runs_one_of_its_studies(monkeypatch, path):
    run = []
    monkeypatch.setattr("road_interp.cli.app.main_of", run.append)
    defined = runpy.run_path(str(path), run_name="__main__")
    (study,) = run
    assert any(study is value for value in defined.values())
    assert f"road-interp study {study.name}" in defined["__doc__"]


def test_studies_of_an_installed_package_lie_in_it(monkeypatch, tmp_path):
    (tmp_path / "analyses").mkdir()
    lines = ["from helpers.studies import small_study", "measured = []", "STUDY = small_study(measured)"]
    (tmp_path / "analyses" / "small.py").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(study_module, "resources", SimpleNamespace(files=lambda package: tmp_path))
    assert list(studies()) == ["small"]
    monkeypatch.setattr(study_module, "resources", SimpleNamespace(files=lambda package: tmp_path / "elsewhere"))
    assert sorted(studies()) == NAMES  # a checkout holds them beside the package
    assert '"analyses" = "road_interp/analyses"' in (ROOT / "pyproject.toml").read_text()


def test_a_study_is_defined_once():
    found = Counter(study.name for path in sorted(ANALYSES.glob("*.py")) for study in study_module._studies_in(path))
    assert sorted(found) == NAMES
    assert set(found.values()) == {1}
    stems = [re.findall(r"road-interp study ([\w-]+)", path.read_text()) for path in ANALYSES.glob("*.py")]
    assert {name for names in stems for name in names} == set(NAMES)


# The page


def test_the_page_holds_every_study_with_results(known, no_model, tmp_path):
    def draw(report, folder):
        folder.mkdir(exist_ok=True)
        (folder / "drawn.png").write_bytes(b"image")
        return [folder / "drawn.png"]

    def described(study):
        return lambda report: said.setdefault(study.name, study.describe(report))

    said = {}
    quickly_described = ("capacity", "cost", "size", "angles", "strength", "composition")
    known = {name: study for name, study in known.items() if name in quickly_described}
    shown = [replace(study, draw=draw, describe=described(study)) for study in known.values()]
    page = write_page(shown, StudyOptions(results=RESULTS), tmp_path / "out")
    assert page == tmp_path / "out" / "index.html"
    text = page.read_text()
    measured = [name for name in known if name in MEASURED]
    assert re.findall('<section id="(.*)">', text) == measured == list(said)
    assert text.count("data:image/png;base64,aW1hZ2U=") == len(measured)
    assert '<p class="quick">' not in text
    assert f"torch {metadata.version('torch')}" in text
    assert 'src="http' not in text
    assert not re.search(r"\bnan\b", text)
    for sentence, numbers in said.values():
        assert str(escape(sentence)) in text
        assert all(f"<tr><td>{escape(what)}</td><td>{escape(value)}</td></tr>" in text for what, value in numbers)


def test_a_study_without_the_condition_that_it_needs_is_named_on_the_page(known, no_model, tmp_path):
    """The others are shown; a damaged result is an error."""
    for name in ("ablation/angles-only", "size/bert-base"):
        shutil.copytree(RESULTS / name, tmp_path / name)
    page = write_page(list(known.values()), StudyOptions(results=tmp_path), tmp_path / "out").read_text()
    assert re.findall('<section id="(.*)">', page) == ["ablation", "size"]
    assert re.search("Not shown: .*both", page)
    write_atomically(tmp_path / "size" / "bert-base" / "seed-0.json.gz", "{")
    with pytest.raises(InputError, match="not valid JSON"):
        write_page(list(known.values()), StudyOptions(results=tmp_path), tmp_path / "out")


def test_a_study_whose_conditions_lack_a_seed_is_named_on_the_page(known, no_model, tmp_path):
    """As after an interruption: seeds of both tasks together that are not measured alone yet."""
    shutil.copytree(RESULTS / "size" / "bert-base", tmp_path / "size" / "bert-base")
    shutil.copytree(RESULTS / "multitask-accuracy", tmp_path / "multitask-accuracy")
    (tmp_path / "multitask-accuracy" / "coact-0" / "seed-4.json.gz").unlink()
    page = write_page(list(known.values()), StudyOptions(results=tmp_path), tmp_path / "out").read_text()
    assert re.findall('<section id="(.*)">', page) == ["multitask-accuracy", "size"]
    assert re.search("Not shown: .*they cannot be paired", page)
    assert "bert-base" in page


def test_a_study_without_the_seeds_that_are_drawn_is_named_on_the_page(tmp_path):
    """The page is written for the others; the folder that is named is that of quick settings."""
    both = [small_study([], name=name) for name in ("first", "second")]
    for study, seed in zip(both, (1, 2), strict=True):
        run_study(study, quickly(tmp_path, seeds=(seed,)))
    page = write_page(both, quickly(tmp_path, seeds=(2,)), tmp_path / "out").read_text()
    assert re.findall('<section id="(.*)">', page) == ["first", "second"]
    assert str(escape(f"Not shown: '{tmp_path / 'results' / 'quick' / 'first'}' holds no results of this study")) in page
    assert "What there is." in page


def test_a_page_of_some_studies_escapes_what_they_say(known, command, tmp_path, monkeypatch):
    monkeypatch.setitem(known, "small", small_study([], title="<small>"))
    with pytest.raises(InputError, match="holds no results of any study"):
        write_page(list(known.values()), quickly(tmp_path), tmp_path / "figures")
    command("small", "--quick")
    assert Path(command("--redraw", "--quick")["page"]) == tmp_path / "figures" / "index.html"
    page = (tmp_path / "figures" / "index.html").read_text()
    assert page.count("<section") == 1
    assert "<h2>&lt;small&gt;</h2>" in page
    assert '<p class="quick">' in page
    assert "<code>road-interp study small --only plain --only longer</code>" in page
    assert page.index("What is there?") < page.index("What there is.") < page.index("What it cannot show: It measures nothing.")
    assert "<td>longer</td><td>0</td>" in page


def test_figures_of_quick_settings_do_not_replace_others(known, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(study_module, "studies", lambda: known)
    monkeypatch.setitem(known, "small", small_study([]))
    monkeypatch.chdir(tmp_path)
    for quick in ([], ["--quick"]):
        assert run(capsys, monkeypatch, "study", "small", *quick)[0] == 0
        _, out, _ = run(capsys, monkeypatch, "study", "--redraw", *quick, "--json")
        assert json.loads(out)["page"] == str(Path("figures", *(each.strip("-") for each in quick), "index.html"))
