"""Every figure script runs from its command line and redraws from its own JSON without a model."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from conftest import tiny_model
from taught import word_tokenizer
from test_composition import report as scripted_report

from road_interp.bench import BenchReport, Timing
from road_interp.measure.heads import HeadsReport
from road_interp.measure.strength import StrengthReport
from road_interp.recipe import MixtureRecipe, load_recipe

ANALYSES = Path(__file__).parents[1] / "analyses"


def load(name):
    spec = importlib.util.spec_from_file_location(f"analysis_{name}", ANALYSES / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def run(name, *arguments, monkeypatch, **replaced):
    script = load(name)
    for what, value in replaced.items():
        monkeypatch.setattr(script, what, value)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    script.main()


def test_throughput(tmp_path, monkeypatch, capsys):
    def tiny(recipe, head):
        return tiny_model("Llama", head), []

    def timed(base, rounds, requests, new_tokens, lengths, ranks, progress):
        settings = [("requests", rows, new_tokens, 8) for rows in requests]
        settings += [("length", 8, length, 8) for length in lengths] + [("rank", 8, new_tokens, rank) for rank in ranks]
        timings = [Timing(task, "bare", *setting, (0.5, 1.0), (1.0, 1.0), 8) for task, *setting in settings]
        return BenchReport("tiny", 14, "cpu", "float32", 2, rounds, tuple(timings))

    run("throughput", "--quick", "--out", tmp_path, monkeypatch=monkeypatch, load_model=tiny, bench=timed)
    first = (tmp_path / "throughput.json").read_text()
    again = tmp_path / "again"
    run("throughput", "--redraw", tmp_path / "throughput.json", "--out", again, monkeypatch=monkeypatch, bench=None)
    assert (again / "throughput.json").read_text() == first
    assert (again / "throughput.pdf").stat().st_size > 1000
    assert capsys.readouterr().out.count("throughput.png") == 2
    with pytest.raises(SystemExit):
        run("throughput", "--unknown", monkeypatch=monkeypatch)


def test_composition(tmp_path, monkeypatch, capsys):
    asked = []

    def scripted(recipe, folder):
        asked.append((folder.name, recipe.scoring.test))
        folder.mkdir(parents=True)
        (folder / "composition.json").write_text(scripted_report(recipe.seed).to_json())
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        (folder / "metrics.json").write_text("{}")

    run("composition", "--quick", "--out", tmp_path, monkeypatch=monkeypatch, trained=scripted)
    run("composition", "--quick", "--out", tmp_path, monkeypatch=monkeypatch, trained=scripted)
    assert asked == [("label+closing, co-activation 0.5, seed 0", 4)]  # what is there is not measured again
    first = (tmp_path / "composition.json").read_text()
    run("composition", "--redraw", tmp_path / "composition.json", "--out", tmp_path / "again", monkeypatch=monkeypatch)
    assert (tmp_path / "again" / "composition.json").read_text() == first
    assert capsys.readouterr().out.count("composition.png") == 3


def test_conditions_of_the_composition_are_recipes():
    script = load("composition")
    names = [name for name, _, _ in script.conditions()]
    assert script.MAIN in names
    assert len(names) == len(set(names))
    for _, changes, _ in script.conditions():
        assert isinstance(load_recipe("composition-smollm2", changes), MixtureRecipe)


def test_heads(tmp_path, monkeypatch, capsys):
    trained = []

    def scripted(recipe, folder, progress):
        trained.append((folder.name, recipe.training.max_steps))
        folder.mkdir(parents=True)
        tasks = tuple(recipe.tasks)
        correct = {task: dict.fromkeys(("__base__", task, "+".join(tasks)), (True, False)) for task in tasks}
        (folder / "heads.json").write_text(HeadsReport("m", "x", tasks, (recipe.seed,), correct).to_json())
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        (folder / "metrics.json").write_text("{}")

    run("heads", "--quick", "--out", tmp_path, monkeypatch=monkeypatch, train=scripted)
    run("heads", "--quick", "--out", tmp_path, monkeypatch=monkeypatch, train=scripted)
    names = ["co-activation 0.5", "co-activation 0", "sentiment alone", "source alone"]
    assert trained == [(f"{name}, seed 0", 2) for name in names]
    first = (tmp_path / "heads.json").read_text()
    run("heads", "--redraw", tmp_path / "heads.json", "--out", tmp_path / "again", monkeypatch=monkeypatch, train=None)
    assert (tmp_path / "again" / "heads.json").read_text() == first
    assert capsys.readouterr().out.count("heads.png") == 3


def test_strength(tmp_path, monkeypatch, capsys):
    report = StrengthReport("m", "closing", (0.0, 1.0), ((False, False), (True, False)), (2.0, 3.0))
    asked = []

    def scripted(folder, strengths, prompts):
        asked.append((folder, strengths, prompts))
        return report

    run("strength", tmp_path / "run", "--quick", "--out", tmp_path, monkeypatch=monkeypatch, measure=scripted)
    assert asked == [(tmp_path / "run", (0.0, 1.0), 4)]
    run("strength", "--redraw", tmp_path / "strength.json", "--out", tmp_path / "again", monkeypatch=monkeypatch, measure=None)
    assert (tmp_path / "again" / "strength.json").read_text() == report.to_json()
    with pytest.raises(SystemExit):
        run("strength", monkeypatch=monkeypatch)


def test_interchange(tmp_path, monkeypatch, capsys):
    def tiny(recipe, head):
        return tiny_model("Llama", head, vocab_size=400), []

    run(
        "interchange", "--quick", "--layer", 0, "--tasks", "gender", "agreement:object", "--out", tmp_path,
        monkeypatch=monkeypatch, load_model=tiny, load_tokenizer=lambda recipe: word_tokenizer(),
    )  # fmt: skip
    parts = ["controls-agreement-0", "controls-gender-0", "cost", "depth-gender-0", "scan-gender"]
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == parts
    assert json.loads((tmp_path / "controls-agreement-0.json").read_text())["rows"][0]["span"] == "object"
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("c*.json")}
    assert "scan-gender.png" in capsys.readouterr().out

    (tmp_path / "scan-gender.json").unlink()
    run("interchange", "--redraw", "--out", tmp_path, monkeypatch=monkeypatch, load_model=None)
    assert "controls-agreement-0" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("c*.json")} == written
