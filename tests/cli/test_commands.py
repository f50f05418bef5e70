"""The command line: exit codes, one-line errors, JSON output."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib import import_module, metadata

import numpy as np
import pytest
from rich.console import Console
from transformers import TrainerCallback

import road_interp
from helpers.cli import run
from helpers.models import random_adapter, tiny_model
from helpers.recipes import recipe_for
from road_interp import measure
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.cli import app, tables
from road_interp.measure.ablation import AblationReport
from road_interp.measure.throughput import ThroughputReport
from road_interp.progress import progress_bar
from road_interp.runs.run import Run
from road_interp.sites.find import find_sites
from road_interp.sources import local_folder
from road_interp.training.api import train
from road_interp.training.arguments import INTEGRATION_TO_CALLBACK


def test_the_version_is_that_of_the_package(capsys, monkeypatch):
    assert run(capsys, monkeypatch, "--version")[:2] == (0, f"road-interp {metadata.version('road-interp')}\n")
    assert road_interp.__version__ == metadata.version("road-interp")


def test_every_text_can_be_printed_into_a_pipe_of_windows(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed := io.BytesIO(), encoding="cp1252"))
    monkeypatch.setattr(sys, "argv", ["road-interp", "study", "size", "--only", "\u65e5\u672c"])
    with pytest.raises(SystemExit):
        app.main()
    print("\u65e5\u672c", flush=True)
    assert printed.getvalue().decode() == "\u65e5\u672c\n"


def test_a_path_behind_an_option_may_begin_at_home(capsys, monkeypatch, tmp_path):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    random_adapter(find_sites(tiny_model("Bert"), "mlp")).save(tmp_path / "adapter")
    assert run(capsys, monkeypatch, "compose", "../adapter", "../adapter", "--out=~/product")[0] == 0
    assert (tmp_path / "product").is_dir()
    code, _, err = run(capsys, monkeypatch, "train", "sentiment-minilm", "data.id=~/none.csv", "--out=~/run")
    assert (code, str(tmp_path) in err, "~" in err) == (2, True, False)
    assert not [*(tmp_path / "here").iterdir()]


@pytest.mark.rendered
def test_train_evaluate_inspect(capsys, monkeypatch, workplace, tmp_path):
    (tmp_path / "small.yaml").write_text(recipe_for(workplace).to_yaml())
    code, out, err = run(
        capsys,
        monkeypatch,
        "train",
        tmp_path / "small.yaml",
        "training.epochs=2",
        "--out",
        tmp_path / "run",
        "--seed",
        3,
        "--json",
    )
    assert code == 0, err
    result = json.loads(out)
    assert result["folder"] == str(tmp_path / "run")
    assert "seed: 3" in (tmp_path / "run" / "recipe.yaml").read_text()
    figures = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert figures == {f"{name}.{kind}" for name in ("angles", "magnitudes", "planes") for kind in ("pdf", "png", "json")}
    code, out, _ = run(capsys, monkeypatch, "evaluate", tmp_path / "run", "--json")
    assert (code, json.loads(out)) == (0, result["test"])
    code, out, _ = run(capsys, monkeypatch, "evaluate", tmp_path / "run", "--data", workplace / "data.csv")
    assert code == 0
    assert "accuracy" in out
    trained = Run.load(tmp_path / "run")
    trained.to_peft(tmp_path / "peft")
    trained.load_model().save(tmp_path / "pyvene")
    for same in (tmp_path / "run", tmp_path / "peft", tmp_path / "pyvene"):
        code, out, err = run(capsys, monkeypatch, "evaluate", tmp_path / "run", "--adapter", same, "--json")
        assert code == 0, err
        assert json.loads(out)["accuracy"] == result["test"]["accuracy"]
    (trained.adapter**0).save(tmp_path / "identity")
    code, out, _ = run(capsys, monkeypatch, "evaluate", tmp_path / "run", "--adapter", tmp_path / "identity", "--json")
    assert json.loads(out)["loss"] != result["test"]["loss"]
    random_adapter(find_sites(tiny_model("Llama"), "mlp")).save(tmp_path / "foreign")
    code, _, err = run(capsys, monkeypatch, "evaluate", tmp_path / "run", "--adapter", tmp_path / "foreign")
    assert code == 2
    assert "the adapter was made for another model" in err
    code, out, _ = run(capsys, monkeypatch, "inspect", tmp_path / "run", "--json", "--out", tmp_path / "figures")
    assert len(json.loads(out)) == 12
    assert (tmp_path / "figures" / "planes.png").stat().st_size > 5000
    code, out, err = run(capsys, monkeypatch, "train", tmp_path / "small.yaml", "--out", tmp_path / "run")
    assert code == 2
    assert "is not empty" in err


def test_another_adapter_is_scored_at_its_own_positions(capsys, monkeypatch, finished, tmp_path):
    """The adapter's file of a run of 0.1.0 has no positions; its recipe has."""
    older = shutil.copytree(finished.folder, tmp_path / "older")
    (older / "recipe.yaml").write_text((older / "recipe.yaml").read_text().replace("positions: all", "positions: f1"))
    description = json.loads((older / "adapter" / "adapter.json").read_text())
    (older / "adapter" / "adapter.json").write_text(json.dumps({k: v for k, v in description.items() if k != "positions"}))
    replace(finished.adapter, positions="f1").save(tmp_path / "adapter")
    losses = []
    for scored in (older, tmp_path / "adapter", finished.folder):
        code, out, err = run(capsys, monkeypatch, "evaluate", finished.folder, "--adapter", scored, "--json")
        assert code == 0, err
        losses.append(json.loads(out)["loss"])
    code, out, _ = run(capsys, monkeypatch, "evaluate", older, "--json")
    assert losses[0] == losses[1] == json.loads(out)["loss"]
    assert losses[2] == finished.metrics["test"]["loss"] != losses[0]


@pytest.mark.training
def test_several_seeds_are_a_run_each(capsys, monkeypatch, workplace, tmp_path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(recipe_for(workplace).to_yaml() + "seeds: [0, 2]\n")
    code, out, err = run(capsys, monkeypatch, "train", recipe, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    runs = json.loads(out)["runs"]
    folders = [tmp_path / "run" / f"seed-{seed}" for seed in (0, 2)]
    assert [each["folder"] for each in runs] == [str(folder) for folder in folders]
    assert [Run.load(folder).recipe.seed for folder in folders] == [0, 2]
    alone = tmp_path / "alone"
    assert run(capsys, monkeypatch, "train", recipe, "seeds=[2]", "--out", alone, "--json")[0] == 0
    assert Run.load(alone).metrics["test"] == runs[1]["test"]
    (folders[1] / "metrics.json").rename(folders[1] / "kept.json")  # as if it had been killed in its second seed
    before = (folders[0] / "metrics.json").stat().st_mtime_ns
    code, out, err = run(capsys, monkeypatch, "train", recipe, "--out", tmp_path / "run", "--resume", "--json")
    assert code == 0, err
    assert [each["test"] for each in json.loads(out)["runs"]] == [each["test"] for each in runs]
    assert (folders[0] / "metrics.json").stat().st_mtime_ns == before
    code, _, err = run(capsys, monkeypatch, "train", tmp_path / "run", "--resume")
    assert (code, "holds the runs of several seeds: give their recipe, with --resume --out " in err) == (2, True)
    (tmp_path / "half" / "seed-2").mkdir(parents=True)
    (tmp_path / "half" / "seed-2" / "notes.txt").write_text("mine")
    code, _, err = run(capsys, monkeypatch, "train", recipe, "--out", tmp_path / "half")
    assert code == 2
    assert "seed-2' is not empty" in err
    assert not (tmp_path / "half" / "seed-0").exists()
    for arguments, message in (
        (["--seed", 1], "the recipe has 'seeds', and a seed is given as well"),
        (["seeds=[0, 0]"], r"'seeds' must be a list of different whole numbers, such as \[0, 1, 2\], not \[0, 0\]"),
        (["seeds=3"], "'seeds' must be a list"),
        (
            ["--resume", "training.learning_rate=1e-4"],
            "the recipe differs from the one of the finished run .*: training.learning_rate is 0.05 there, 0.0001 here",
        ),
    ):
        code, _, err = run(capsys, monkeypatch, "train", recipe, *arguments, "--out", tmp_path / "run")
        assert code == 2
        assert re.search(message, err)


def test_an_unfinished_run_is_named_and_continued_by_its_folder(capsys, monkeypatch, workplace, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe_for(workplace, "training.max_steps=1").to_yaml())
    for command in ("evaluate", "inspect", "report"):
        code, _, err = run(capsys, monkeypatch, command, folder)
        assert code == 2
        assert f"'{folder}' is not a finished run: its training has not finished; go on with --resume" in err
    code, _, err = run(capsys, monkeypatch, "train", folder)
    assert code == 2
    assert f"'{folder}' is a run folder; add --resume to continue it" in err
    code, out, err = run(capsys, monkeypatch, "train", folder, "--resume", "--json")
    assert code == 0, err
    assert json.loads(out)["folder"] == str(folder)


def test_a_finished_run_is_resumed_to_its_missing_figures(capsys, monkeypatch, finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    before = (folder / "metrics.json").stat().st_mtime_ns
    code, out, err = run(capsys, monkeypatch, "train", folder, "--resume", "--json")
    assert code == 0, err
    assert json.loads(out)["test"] == finished.metrics["test"]
    assert {path.stem for path in (folder / "figures").glob("*.png")} == {"angles", "magnitudes", "planes"}
    assert (folder / "metrics.json").stat().st_mtime_ns == before
    code, out, _ = run(capsys, monkeypatch, "train", folder, "--resume")
    assert code == 0
    assert "Results of" in out
    code, _, err = run(capsys, monkeypatch, "train", folder, "seed=3", "--resume")
    assert code == 2
    assert f"the recipe differs from the one of the finished run '{folder}': seed is 0 there, 3 here" in err
    origin = json.loads((folder / "origin.json").read_text())
    (folder / "origin.json").write_text(json.dumps({**origin, "files": dict.fromkeys(origin["files"], "another hash")}))
    code, _, err = run(capsys, monkeypatch, "train", folder, "--resume")
    assert code == 2
    assert "data.csv' has changed since the run was started" in err


def test_an_interrupt_during_the_figures_says_how_to_go_on(capsys, monkeypatch, finished, tmp_path):
    def interrupted(report, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr("road_interp.plots.export.draw_adapter", interrupted)
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    code, _, err = run(capsys, monkeypatch, "train", folder, "--resume", "--json")
    assert code == 1
    assert f"interrupted; go on with: the same command, --resume --out {folder}" in err


@pytest.mark.parametrize("kind", ["adapter", "run"])
def test_figures_do_not_replace_the_files_of_a_run(capsys, monkeypatch, finished, workplace, tmp_path, kind):
    folder = tmp_path / kind
    {"adapter": finished.adapter.save, "run": partial(shutil.copytree, finished.folder)}[kind](folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    drift = ("drift", workplace / "model", finished.folder, workplace / "data.csv", "--limit", "2")
    for command in (
        ("inspect", folder),
        ("ablate", finished.folder, "--limit", "2"),
        drift,
        ("study", "size", "--quick"),
        ("study", "--redraw"),
    ):
        code, _, err = run(capsys, monkeypatch, *command, "--out", folder)
        assert code == 2
        assert f"{kind}' holds a run or an adapter, whose files figures would replace: choose another folder" in err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("kind", ["adapter", "peft", "run"])
def test_nothing_is_written_into_a_folder_that_is_read(capsys, monkeypatch, finished, tmp_path, kind):
    folder = tmp_path / kind
    {"adapter": finished.adapter.save, "peft": finished.to_peft, "run": partial(shutil.copytree, finished.folder)}[kind](folder)
    before = sorted(path.name for path in folder.rglob("*"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for command in ("inspect", "report", *(["ablate"] if kind == "run" else [])):
        code, _, err = run(capsys, monkeypatch, command, f"../{kind}", *(["--limit", "2"] if command == "ablate" else []))
        assert code == 0, err
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"figures", f"{kind}.html"}
    assert (tmp_path / "here" / "figures" / kind / "angles.png").is_file()
    assert (tmp_path / "here" / "figures" / kind / "ablation.png").is_file() == (kind == "run")
    if kind == "run":  # the adapters of all runs have one name
        for command in ("inspect", "report"):
            assert run(capsys, monkeypatch, command, "../run/adapter")[0] == 0
        assert (tmp_path / "here" / "figures" / "run-adapter" / "angles.png").is_file()
        assert (tmp_path / "here" / "run-adapter.html").is_file()
    monkeypatch.chdir(folder)
    for command in ("inspect", "report", *(["ablate"] if kind == "run" else [])):
        code, _, err = run(capsys, monkeypatch, command, ".")
        assert code == 2
        assert "would be inside the folder that is read: say where to write with --out" in err
    assert sorted(path.name for path in folder.rglob("*")) == before


@pytest.mark.parametrize("command", ["train sentiment-minilm", "bench throughput-smollm2", "study scan"])
def test_a_key_that_is_given_twice_is_an_error(capsys, monkeypatch, command):
    code, out, err = run(capsys, monkeypatch, *command.split(), "a.b=1", "c=2", "a.b=3")
    assert (code, out) == (2, "")
    assert "'a.b' is given twice: a.b=1, a.b=3" in err
    code, out, err = run(capsys, monkeypatch, *command.split(), "a.b.c=1", "a={b: 2}")
    assert (code, out) == (2, "")
    assert "'a' is given behind 'a.b.c', which it would replace: give it before" in err
    if command.startswith("train"):
        code, out, err = run(capsys, monkeypatch, *command.split(), "seed=2", "--seed", 1)
        assert (code, out) == (2, "")
        assert "'seed' is given twice: seed=2, seed=1" in err


EXAMPLE = "package://road_interp/example_runs/sentiment-minilm/seed-0"


@pytest.mark.parametrize("command", ["inspect RUN --json", "ablate RUN --limit 2 --by planes", "drift RUN RUN DATA --limit 2"])
def test_runs_in_packages_are_read_and_left_alone(capsys, monkeypatch, workplace, tmp_path, command):
    folder = local_folder(EXAMPLE)
    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(tmp_path)
    words = [{"RUN": EXAMPLE, "DATA": workplace / "data.csv"}.get(word, word) for word in command.split()]
    code, out, err = run(capsys, monkeypatch, *words)
    assert code == 0, err
    assert out
    assert sorted(folder.rglob("*")) == before


def test_inspect_prints_a_table_that_fits_a_terminal(capsys, monkeypatch, tmp_path):
    random_adapter(find_sites(tiny_model("Bert"), "all-linear"), "road_4", spread=1.0).save(tmp_path)
    code, out, _ = run(capsys, monkeypatch, "inspect", tmp_path, "--out", tmp_path / "figures")
    assert code == 0
    lines = [line for line in out.splitlines() if "attention.self.query" in line]
    assert [line.split()[0] for line in lines] == ["0", "1"]
    assert "mir." in out
    assert max(map(len, (line for line in out.splitlines() if "figure" not in line))) <= 80


def test_names_in_brackets_are_printed(capsys, monkeypatch, tmp_path):
    random_adapter(find_sites(tiny_model("GPT2"), "attention-qk")).save(tmp_path)
    code, out, err = run(capsys, monkeypatch, "inspect", tmp_path, "--out", tmp_path / "of[a]:x:")
    assert code == 0, err
    assert [out.count(name) for name in ("c_attn[query]", "c_attn[key]", "of[a]:x:/planes.png")] == [2, 2, 1]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_names_in_progress_are_printed(capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(Console, "is_terminal", is_terminal)
    with progress_bar() as progress:
        progress("models/:dog:/c_attn[query]", 0, 2)
    assert "models/:dog:/c_attn[query]" in capsys.readouterr().err


WRONG = {
    "no recipe 'nothing'": ("train", "nothing"),
    "did you mean 'training.learning_rate'": ("train", "sentiment-minilm", "training.learning_rat=1"),
    "--resume needs --out": ("train", "sentiment-minilm", "--resume"),
    "run folder 'nowhere' does not exist": ("evaluate", "nowhere"),
    "no adapter here": ("inspect", "nowhere"),
    "No such command": ("trian",),
    "No such option": ("inspect", "x", "--jsn"),
    "Missing argument": ("evaluate",),
    "must be 'float32'": ("train", "sentiment-minilm", "--dtype", "int4"),
    "device 'tpu' is not known": ("train", "sentiment-minilm", "--device", "tpu"),
    "data file 'gone.csv' does not exist": ("train", "sentiment-minilm", "data.id=gone.csv"),
    "unknown method 'road'; the methods are bare, merged": ("bench", "nowhere", "--peers", "bare,road"),
    "--only names conditions of one study": ("study", "--redraw", "--only", "foo"),
    "data file 'lost.csv' does not exist": ("drift", "a", "b", "lost.csv"),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_input_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, monkeypatch, *WRONG[message])
    assert code == 2
    assert message in err
    assert err.startswith("road-interp: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_is_exit_code_1(capsys, monkeypatch, workplace, tmp_path):
    recipe = recipe_for(workplace, "training.learning_rate=1e30", "training.max_grad_norm=1e30")
    (tmp_path / "wild.yaml").write_text(recipe.to_yaml())
    code, _, err = run(capsys, monkeypatch, "train", tmp_path / "wild.yaml", "--out", tmp_path / "run", "--json")
    assert code == 1
    assert "the loss is nan" in err.splitlines()[-1]


@pytest.mark.processes
def test_standard_output_holds_the_json_only(tmp_path):
    random_adapter(find_sites(tiny_model("Bert"), "fc1")).save(tmp_path / "adapter")
    script = (
        "import sys, road_interp.models.road_model; from road_interp.cli.app import main; "
        "sys.argv = sys.argv[:1] + sys.argv[2:]; main()"
    )
    arguments = [sys.executable, "-c", script, "", "inspect", "adapter", "--json"]
    shown = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(json.loads(shown.stdout)) == 2


def test_what_a_tracker_prints_is_not_in_the_json(capsys, monkeypatch, workplace, tmp_path):
    class Printing(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            print("* Trackio project initialized: huggingface")

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "trackio", Printing)
    monkeypatch.setattr("road_interp.training.arguments.get_available_reporting_integrations", lambda: ["trackio"])
    (tmp_path / "small.yaml").write_text(recipe_for(workplace, "training.max_steps=1").to_yaml())
    given = ("training.report_to=[trackio]", "--out", tmp_path / "run", "--json")
    code, out, err = run(capsys, monkeypatch, "train", tmp_path / "small.yaml", *given)
    assert code == 0, err
    assert json.loads(out)["folder"] == str(tmp_path / "run")
    assert "* Trackio project initialized" in err
    again = run(capsys, monkeypatch, "train", tmp_path / "small.yaml", "--out", tmp_path / "run", "--json", "--resume")
    assert again[0] == 0, again[2]  # no number of a run depends on its trackers


def test_help_and_bare_import_load_no_heavy_library():
    script = "import sys, road_interp.cli.app; sys.exit(bool({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    shown = subprocess.run([sys.executable, "-m", "road_interp.cli", "--help"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in ("train", "evaluate", "inspect", "demo"))


def test_compose_multiplies_powers_of_adapters(capsys, monkeypatch, tmp_path):
    sites = find_sites(tiny_model("Bert"), "mlp")
    first, second = (random_adapter(sites, seed=seed) for seed in (0, 1))
    first.save(tmp_path / "a")
    second.save(tmp_path / "b" / "adapter")  # as in a run folder
    a, b = tmp_path / "a", tmp_path / "b"
    code, out, err = run(capsys, monkeypatch, "compose", a, b, "--weights", "1,0.5", "--out", tmp_path / "ab", "--json")
    assert code == 0, err
    assert json.loads(out)["variant"] == "road_1"
    assert RoadAdapter.load(tmp_path / "ab").distance(first @ second**0.5) < 1e-5
    code, out, _ = run(capsys, monkeypatch, "compose", a, b, "--weights", "2,-1", "--out", tmp_path / "difference")
    assert code == 0
    assert RoadAdapter.load(tmp_path / "difference").distance((first**2).difference(second)) < 1e-4
    code, _, _ = run(capsys, monkeypatch, "compose", a, b, "--out", tmp_path / "plain")
    assert RoadAdapter.load(tmp_path / "plain").distance(first @ second) < 1e-5
    random_adapter(sites, "road_2").save(tmp_path / "c")
    code, out, _ = run(capsys, monkeypatch, "compose", a, tmp_path / "c", "--out", tmp_path / "ac")
    assert (code, "road_2 adapter" in out) == (0, True)
    for arguments, message in [
        ((a, b, "--weights", 1, "--out", tmp_path / "x"), "2 adapters need 2 weights, not '1'"),
        ((a, b, "--weights", "x,y", "--out", tmp_path / "x"), "--weights 'x,y' must be numbers with commas between, as in 1,0.5"),
        ((a, b, "--weights", "1,nan", "--out", tmp_path / "x"), "--weights '1,nan' must be finite numbers"),
        ((a, b), "--out is missing"),
        ((a, b, "--out", tmp_path / "ab"), "exists already"),
        ((a, tmp_path / "none", "--out", tmp_path / "x"), "no adapter here"),
        ((a, tmp_path / "c", "--weights", "1,2", "--out", tmp_path / "x"), "real powers exist for road_1 only"),
    ]:
        code, out, err = run(capsys, monkeypatch, "compose", *arguments)
        assert (code, out) == (2, "")
        assert message in " ".join(err.split())
    assert not (tmp_path / "x").exists()


def test_the_table_of_drift_has_the_ratio_to_the_null():
    mean = (0.1, 0.0, 0.2)
    place = measure.ReadPointDrift(0, False, False, mean, mean, mean, mean, None, ((0.9, 0.1), (0.8, 0.2)))
    table = tables.drift(measure.DriftReport("base", "tuned", "first", 1, 2, (place, replace(place, norm_is_pinned=True))))
    assert list(table.columns[-1].cells) == [f"{0.15 / np.mean([1 / 0.9 - 1, 1 / 0.8 - 1]):.2f}", ""]


@pytest.mark.training
def test_drift_of_a_run_does_not_count_rounding(capsys, monkeypatch, workplace, tmp_path):
    still = ("model.dtype=bfloat16", "training.learning_rate=1e-12", "training.max_steps=1", "model.max_length=12")
    folder = tmp_path / "films" / "seed-0"
    train(recipe_for(workplace, *still), folder, progress=False)
    asked = ("drift", workplace / "model", folder, workplace / "data.csv", "--limit", 20, "--json")
    code, out, err = run(capsys, monkeypatch, *asked)
    assert code == 0, err
    assert json.loads(out)["tuned"] == "films-seed-0"  # seeds of other runs have the same folder name
    assert all(place["angle"][0] < 1e-3 and place["dM"][0] < 1e-5 for place in json.loads(out)["places"])
    train(recipe_for(workplace, "training.max_steps=1"), tmp_path / "other", progress=False)
    code, out, err = run(capsys, monkeypatch, "drift", folder, tmp_path / "other", workplace / "data.csv", "--limit", 2)
    assert (code, out) == (2, "")
    assert "the runs have model.dtype bfloat16 and float32" in err


def test_drift_of_models_with_other_tokens_is_refused(capsys, monkeypatch, workplace, tmp_path):
    other = shutil.copytree(workplace / "model", tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["fine"], words["grand"] = words["grand"], words["fine"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    asked = ("drift", workplace / "model", other, workplace / "data.csv", "--limit", 20, "--json")
    code, out, err = run(capsys, monkeypatch, *asked)
    assert (code, out) == (2, "")
    assert "have other tokens for the text" in err
    for path in other.glob("*token*"):
        path.unlink()
    code, _, err = run(capsys, monkeypatch, *asked)  # the states of a model without a tokeniser
    assert code == 0, err


def test_drift_prints_a_table_and_draws(capsys, monkeypatch, workplace, tmp_path):
    tiny_model("Bert", vocab_size=30, initializer_range=0.3, seed=1).save_pretrained(tmp_path / "other")
    pair = (workplace / "model", tmp_path / "other")
    code, out, err = run(capsys, monkeypatch, "drift", *pair, workplace / "data.csv", "--limit", 5, "--out", tmp_path / "figures")
    assert code == 0, err
    assert [line.split()[:3] for line in out.splitlines() if " norm " in line and "[" in line] == [
        [str(block), where, "norm"] for block in (0, 1) for where in ("before", "after")
    ]
    steps = [line for line in err.splitlines() if line.startswith(("reading", "loading"))]
    assert steps == [f"loading {name}" for name in pair]
    assert "5 texts, token: first" in out
    assert max(map(len, (line for line in out.splitlines() if "figure" not in line))) <= 80
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {f"{name}.{kind}" for name in ("states", "states-angle", "states-dM") for kind in ("pdf", "png", "json")}
    for options, message in [
        (("--text", "words"), "has no column 'words' for --text; its columns are text, label, score"),
        (("--text", "score"), "row 0: column 'score' holds"),
        (("--token", "cls"), "token 'cls' is not known; use first, last, mean, all"),
    ]:
        code, out, err = run(capsys, monkeypatch, "drift", *pair, workplace / "data.csv", *options)
        assert (code, out) == (2, "")
        assert message in err.splitlines()[-1]


def test_a_benchmark_without_timings_writes_its_empty_report(capsys, monkeypatch, tmp_path):
    report = ThroughputReport("tiny", 14, "cpu", "float32", 2, 2, ())
    monkeypatch.setattr(import_module("road_interp.measure.throughput"), "run_throughput_recipe", lambda *arguments: report)
    code, out, err = run(capsys, monkeypatch, "bench", "throughput-smollm2", "--out", tmp_path / "figures", "--json")
    assert code == 0, err
    assert ThroughputReport.from_json(out).timings == ()
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["throughput.json"]


def test_ablate_prints_the_loss_of_every_component(capsys, monkeypatch, finished, tmp_path):
    code, out, err = run(capsys, monkeypatch, "ablate", finished.folder, "--out", tmp_path, "--json")
    assert code == 0, err
    assert AblationReport.from_json(out) == AblationReport.load(tmp_path / "ablation.json")
    rows = json.loads(out)["summary"]
    assert rows[0]["accuracy"][0] == finished.metrics["test"]["accuracy"]
    assert {row["component"] for row in rows if row["group"] == "layer"} == {"angles only", "magnitudes only", "neither"}
    assert {path.name for path in tmp_path.iterdir()} == {"ablation.pdf", "ablation.png", "ablation.json"}
    code, out, _ = run(capsys, monkeypatch, "ablate", finished.folder, "--limit", 10, "--refit", "--out", tmp_path)
    assert code == 0
    assert out.count("head refitted") == 4
    assert all(line.rstrip().endswith("]") for line in out.splitlines() if "only" in line)
    assert max(map(len, (line for line in out.splitlines() if "figure" not in line))) <= 80


def test_diagnose_gives_verdicts_with_their_numbers(capsys, monkeypatch, finished, tmp_path):
    code, out, err = run(capsys, monkeypatch, "diagnose", finished.folder, "--control", finished.folder, "--json")
    assert code == 0, err
    checks = json.loads(out)["checks"]
    assert [check["question"] for check in checks] == [
        "Does the adapter rely on its magnitudes?",
        "Do the rotated planes hurt other features?",
    ]
    assert list(checks[1]["numbers"]) == ["all layers", "layer 0", "layer 1", "what 'control' gains by its own adapter"]
    code, out, _ = run(capsys, monkeypatch, "diagnose", finished.folder)
    assert code == 0
    assert f"magnitudes? {checks[0]['verdict']} " in " ".join(out.split())
    code, out, err = run(capsys, monkeypatch, "diagnose", tmp_path)
    assert (code, out) == (2, "")
    assert "is not a finished run" in err


REPEATED = [
    "evaluate RUN",
    "inspect RUN --out OUT",
    "report RUN --out OUT/page.html",
    "predict RUN DATA --out OUT/predictions.csv",
    "drift MODEL RUN DATA --limit 20",
    "ablate RUN --limit 20 --refit --out OUT",
    "diagnose RUN --control RUN --limit 20",
    "compose RUN RUN --weights 1,0.5 --out OUT/product",
    "export RUN --out OUT/peft",
]


@pytest.mark.parametrize("command", REPEATED)
def test_a_repeated_command_gives_the_same_output(capsys, monkeypatch, workplace, finished, tmp_path, command):
    places = {"RUN": finished.folder, "MODEL": workplace / "model", "DATA": workplace / "data.csv"}
    outputs = []
    for repetition in "ab":
        out = tmp_path / repetition / "out"  # the provenance of a result holds the command, with the name of the folder
        out.mkdir(parents=True)
        places["OUT"] = out
        words = [re.sub("^[A-Z]+", lambda match: str(places[match[0]]), word) for word in command.split()]
        code, printed, err = run(capsys, monkeypatch, *words, "--json")
        assert code == 0, err
        files = {path.name: path.read_bytes() for path in out.rglob("*.*") if path.suffix in (".json", ".safetensors", ".html")}
        outputs.append((printed.replace(str(out), ""), files))
    assert outputs[0] == outputs[1]
    assert outputs[0][0]
