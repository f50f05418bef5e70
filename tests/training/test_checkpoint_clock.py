"""Checkpoints by the clock, and runs that resume from one in the middle of an epoch."""

from __future__ import annotations

import json

import pytest
import torch

from helpers.recipes import recipe_for
from road_interp.training import checkpoint_clock
from road_interp.training.api import train
from road_interp.training.classification import ClassificationExperiment
from road_interp.training.trainer import RoadTrainer, last_checkpoint

pytestmark = pytest.mark.training


@pytest.mark.parametrize(("cut", "kept"), [(3, "checkpoint-3"), (8, "checkpoint-8"), (13, "checkpoint-13")])
def test_a_run_resumes_from_the_middle_of_an_epoch_to_the_same_bits(finished, workplace, monkeypatch, cut, kept):
    monkeypatch.setattr(checkpoint_clock, "SECONDS", 0.0)
    real, steps = RoadTrainer._save_checkpoint, []

    def interrupted(self, *args, **kwargs):
        real(self, *args, **kwargs)
        steps.append(self.state.global_step)
        if steps[-1] == cut:
            raise KeyboardInterrupt

    monkeypatch.setattr(RoadTrainer, "_save_checkpoint", interrupted)
    folder = workplace / f"cut-{cut}"
    with pytest.raises(KeyboardInterrupt):
        train(recipe_for(workplace), folder, progress=False)
    assert steps == list(range(1, cut + 1))  # of eight steps in an epoch, the last is saved once
    assert last_checkpoint(folder / "checkpoints").name == kept
    monkeypatch.undo()
    resumed = train(recipe_for(workplace), folder, resume=True, progress=False)
    assert resumed.metrics == finished.metrics
    assert losses_of(resumed) == losses_of(finished)
    for site in finished.adapter.sites:
        assert torch.equal(resumed.adapter.theta[site.name], finished.adapter.theta[site.name])


def losses_of(run):
    """The loss of every logged step, of which the first is 20."""
    entries = map(json.loads, (run.folder / "log.jsonl").read_text().splitlines())
    losses = {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}
    assert losses
    return losses


def test_a_training_that_ended_inside_an_epoch_is_not_trained_on(workplace, monkeypatch):
    ending = ("training.max_steps=12", "training.scheduler=constant_with_warmup")  # of eight steps in an epoch
    whole = train(recipe_for(workplace, *ending), workplace / "inside", progress=False)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(ClassificationExperiment, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe_for(workplace, *ending), workplace / "cut-inside", progress=False)
    monkeypatch.undo()
    resumed = train(recipe_for(workplace, *ending), workplace / "cut-inside", resume=True, progress=False)
    assert resumed.metrics == whole.metrics
    assert steps_of(resumed) == steps_of(whole) == [8, 12, 12]


def steps_of(run):
    return [json.loads(line)["step"] for line in (run.folder / "log.jsonl").read_text().splitlines()]


def test_the_clock_counts_from_the_last_checkpoint(workplace, monkeypatch):
    now, real, steps = [0.0], RoadTrainer._save_checkpoint, []
    monkeypatch.setattr(checkpoint_clock.time, "monotonic", lambda: now[0])
    step = RoadTrainer.training_step

    def slow(self, *args, **kwargs):
        now[0] += 60
        return step(self, *args, **kwargs)

    def recorded(self, *args, **kwargs):
        steps.append(self.state.global_step)
        real(self, *args, **kwargs)

    monkeypatch.setattr(RoadTrainer, "training_step", slow)
    monkeypatch.setattr(RoadTrainer, "_save_checkpoint", recorded)
    train(recipe_for(workplace, "training.epochs=2"), workplace / "slow", progress=False)
    assert steps == [2, 4, 6, 8, 10, 12, 14, 16]
