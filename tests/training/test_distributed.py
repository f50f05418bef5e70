"""Training under torchrun: two processes learn what one does."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from helpers.models import tiny_model
from helpers.recipes import recipe_for
from road_interp.errors import InputError
from road_interp.runs.run import Run
from road_interp.training.api import train
from road_interp.training.arguments import training_arguments


def curve(run):
    """The loss of every logged step."""
    entries = map(json.loads, (run.folder / "log.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


def launched(workplace, alone, out, *changes):
    """The run of the same recipe by two processes, and what they printed."""
    (workplace / "two.yaml").write_text(alone.recipe.to_yaml())
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "road_interp.cli",
    ]
    arguments = ["train", workplace / "two.yaml", *changes, "--out", out, "--device", "cpu", "--json"]
    done = subprocess.run([*launch, *map(str, arguments)], capture_output=True, text=True, check=True, timeout=300)
    return Run.load(out), json.loads(done.stdout)


@pytest.mark.processes
@pytest.mark.parametrize("changes", [(), ("model.shard=true",)], ids=["whole blocks", "divided blocks"])
def test_two_processes_learn_what_one_does(workplace, tmp_path, changes):
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # dropout is drawn by each process for itself
    tiny_model("Bert", vocab_size=30, initializer_range=0.3, **quiet).save_pretrained(workplace / "quiet")
    for file in (workplace / "model").glob("tokenizer*"):
        (workplace / "quiet" / file.name).write_bytes(file.read_bytes())
    # 120 examples are whole batches of 24; 40 are not, and are scored all the same.
    small = [f"model.id={workplace / 'quiet'}", "training.batch_size=24", "training.epochs=8"]
    alone = train(recipe_for(workplace, *small), tmp_path / "alone", device="cpu", progress=False)
    together, told = launched(workplace, alone, tmp_path / "together", *changes)
    assert told["test"] == together.metrics["test"]
    assert len(curve(alone)) == 2
    assert curve(together) == pytest.approx(curve(alone), abs=1e-5)
    for site in alone.adapter.sites:
        torch.testing.assert_close(together.adapter.theta[site.name], alone.adapter.theta[site.name], rtol=0, atol=1e-4)
    for split in ("validation", "test"):
        assert together.metrics[split]["accuracy"] == alone.metrics[split]["accuracy"]
        assert together.metrics[split]["loss"] == pytest.approx(alone.metrics[split]["loss"], abs=1e-5)
    assert together.metrics["frozen backbone, trained head"] == alone.metrics["frozen backbone, trained head"]


def test_a_batch_that_cannot_be_divided_is_refused(workplace, tmp_path, monkeypatch):
    monkeypatch.setattr("road_interp.training.arguments.process_state", lambda where: type("Five", (), {"num_processes": 5}))
    with pytest.raises(InputError, match="training.batch_size 16 cannot be divided among 5 processes"):
        training_arguments(recipe_for(workplace), tmp_path, torch.device("cpu"), False)
