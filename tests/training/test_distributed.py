"""Training under torchrun: two processes give the result of one."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer

from helpers.cli import run_two_processes
from helpers.models import tiny_model
from helpers.multitask import behaviours_recipe
from helpers.recipes import recipe_for
from road_interp.errors import InputError
from road_interp.recipes.loader import load_recipe
from road_interp.runs.run import Run
from road_interp.training.api import train
from road_interp.training.arguments import training_arguments
from road_interp.training.trainer import RoadTrainer


def loss_curve(run):
    """The loss of every logged step."""
    entries = map(json.loads, (run.folder / "log.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


def trained_by_two(workplace, alone, out, *overrides):
    """The run of the same recipe with two processes, and their JSON output."""
    (workplace / "two.yaml").write_text(alone.recipe.to_yaml())
    arguments = ["train", workplace / "two.yaml", *overrides, "--out", out, "--device", "cpu", "--json"]
    printed = json.loads(run_two_processes(*arguments))
    return Run.load(out), printed


def without_dropout(workplace):
    """The folder of a tiny BERT whose processes draw no masks of their own."""
    folder = workplace / "no-dropout"
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tiny_model("Bert", vocab_size=30, initializer_range=0.3, **rates).save_pretrained(folder)
    for file in (workplace / "model").glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.processes
@pytest.mark.parametrize("overrides", [(), ("model.shard=true",)], ids=["whole blocks", "sharded blocks"])
def test_two_processes_give_the_result_of_one(workplace, tmp_path, overrides):
    # The 120 training examples fill batches of 24; the 40 test examples do not.
    small = [f"model.id={without_dropout(workplace)}", "training.batch_size=24", "training.epochs=8"]
    alone = train(recipe_for(workplace, *small), tmp_path / "alone", device="cpu", progress=False)
    together, printed = trained_by_two(workplace, alone, tmp_path / "together", *overrides)
    assert printed["test"] == together.metrics["test"]
    assert len(loss_curve(alone)) == 2
    assert loss_curve(together) == pytest.approx(loss_curve(alone), abs=1e-5)
    for site in alone.adapter.sites:
        torch.testing.assert_close(together.adapter.theta[site.name], alone.adapter.theta[site.name], rtol=0, atol=1e-4)
    for split in ("validation", "test"):
        assert together.metrics[split]["accuracy"] == alone.metrics[split]["accuracy"]
        assert together.metrics[split]["loss"] == pytest.approx(alone.metrics[split]["loss"], abs=1e-5)
    assert together.metrics["frozen backbone, trained head"] == alone.metrics["frozen backbone, trained head"]


@pytest.mark.processes
def test_two_processes_activate_the_sets_of_tasks_that_one_does(workplace, tmp_path):
    labels = {"id": str(workplace / "data.csv"), "validation_size": 40, "test_size": 40}
    content = {
        "kind": "multitask-classification",
        "model": {"id": str(without_dropout(workplace)), "max_length": 16},
        "tasks": {name: {"labels": labels} for name in ("a", "b", "c")},
        "co_activation": 0.5,
        "training": {"learning_rate": 0.05, "max_steps": 12, "batch_size": 24, "precision": "fp32"},
    }
    alone = train(load_recipe(content, ()), tmp_path / "alone", device="cpu", progress=False)
    together, _ = trained_by_two(workplace, alone, tmp_path / "together")
    for site in alone.adapter.sites:
        torch.testing.assert_close(together.adapter.theta[site.name], alone.adapter.theta[site.name], rtol=0, atol=1e-4)
    assert together.composition.correct == alone.composition.correct


@pytest.mark.processes
def test_two_processes_learn_the_answers_that_one_does(language_workplace, tmp_path):
    """A process has one row, so that often only one of them has a token that the other task teaches."""
    small = ("training.batch_size=2", "training.epochs=1", "co_activation=0.5", "co_activation_loss=distilled")
    alone = train(behaviours_recipe(language_workplace, *small), tmp_path / "alone", device="cpu", progress=False)
    together, _ = trained_by_two(language_workplace, alone, tmp_path / "together")
    for site in alone.adapter.sites:
        torch.testing.assert_close(together.adapter.theta[site.name], alone.adapter.theta[site.name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_epoch_that_is_resumed_in_the_middle_has_its_own_order(monkeypatch, processes):
    def begin(self, train_dataloader, epoch):
        train_dataloader.set_epoch(epoch)
        read.append([batch.tolist() for batch in train_dataloader])

    read = []
    monkeypatch.setattr(Trainer, "_run_epoch", begin)
    PartialState(cpu=True)
    trainer = object.__new__(RoadTrainer)
    trainer.state = SimpleNamespace(global_step=0, max_steps=1, stateful_callbacks={})
    trainer.args = SimpleNamespace(train_batch_size=8 // processes, world_size=processes, gradient_accumulation_steps=1, seed=0)

    def loader():
        data = Dataset.from_dict({"input_ids": [[5] * (1 + number * 7 % 11) for number in range(48)]})
        plain = DataLoader(range(48), batch_size=8 // processes, sampler=trainer._get_train_sampler(data))
        return prepare_data_loader(plain, torch.device("cpu"), processes, 0, put_on_device=False)

    batches = loader()
    for shown, epoch in ((batches, 0), (batches, 1), (skip_first_batches(loader(), 2), 1)):
        trainer._run_epoch(train_dataloader=shown, epoch=epoch)
    first, second, resumed = read
    assert len(first) == 6
    assert first != second
    assert resumed == second[2:]


def test_a_batch_that_cannot_be_divided_is_refused(workplace, tmp_path, monkeypatch):
    monkeypatch.setattr("road_interp.training.arguments.process_state", lambda device: type("Five", (), {"num_processes": 5}))
    with pytest.raises(InputError, match="training.batch_size 16 cannot be divided among 5 processes"):
        training_arguments(recipe_for(workplace), tmp_path, torch.device("cpu"), False)
