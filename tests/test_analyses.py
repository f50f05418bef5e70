"""Every figure script runs from its command line and redraws from its own JSON without a model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from conftest import tiny_model

from road_interp.measure import CompositionReport
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

    run("throughput", "--quick", "--out", tmp_path, monkeypatch=monkeypatch, load_model=tiny)
    first = (tmp_path / "throughput.json").read_text()
    run(
        "throughput",
        "--redraw",
        tmp_path / "throughput.json",
        "--out",
        tmp_path / "again",
        monkeypatch=monkeypatch,
        load_model=None,
    )
    assert (tmp_path / "again" / "throughput.json").read_text() == first
    assert (tmp_path / "again" / "throughput.pdf").stat().st_size > 1000
    assert capsys.readouterr().out.count("throughput.png") == 2
    with pytest.raises(SystemExit):
        run("throughput", "--unknown", monkeypatch=monkeypatch)


def test_composition(tmp_path, monkeypatch, capsys):
    run("composition", "--quick", "--out", tmp_path, monkeypatch=monkeypatch)
    first = (tmp_path / "composition.json").read_text()
    report = CompositionReport.from_json(first)
    assert [len(score.answers) for score in report.scores] == [4] * 4

    def never(name, recipe):
        raise AssertionError("what is there is not measured again")

    run("composition", "--quick", "--out", tmp_path, monkeypatch=monkeypatch, measure_condition=never)
    run("composition", "--redraw", tmp_path / "composition.json", "--out", tmp_path / "again", monkeypatch=monkeypatch)
    assert (tmp_path / "again" / "composition.json").read_text() == first
    assert capsys.readouterr().out.count("composition.png") == 3


def test_conditions_of_the_composition_are_recipes():
    script = load("composition")
    names = [name for name, _ in script.conditions()]
    assert script.MAIN in names
    assert len(names) == len(set(names))
    for _, changes in script.conditions():
        assert isinstance(load_recipe("composition-smollm2", changes), MixtureRecipe)
