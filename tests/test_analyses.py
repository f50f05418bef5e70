"""Every figure script runs from its command line and redraws from its own JSON without a model."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from conftest import tiny_model
from taught import word_tokenizer

ANALYSES = Path(__file__).parents[1] / "analyses"


def run(name, *arguments, monkeypatch, **replaced):
    spec = importlib.util.spec_from_file_location(f"analysis_{name}", ANALYSES / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
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
