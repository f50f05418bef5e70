"""One way to train a recipe of any kind: what every run does, and the protocol of what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel, set_seed

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.task_planes import Split, TaskPlanes
from road_interp.models.loading import find_device
from road_interp.models.road_model import RoadModel
from road_interp.recipes.schema import AdapterRecipe
from road_interp.runs.run import Run
from road_interp.runs.run_folder import RunFolder
from road_interp.sites.find import find_sites
from road_interp.training.arguments import forward_precision
from road_interp.training.distributed import shard_blocks
from road_interp.training.trainer import RoadTrainer, run_trainer


class Scores(NamedTuple):
    """What a trained model came to.

    Attributes:
        metrics: content of metrics.json.
        files: further files of the run folder, by name.
    """

    metrics: dict[str, Any]
    files: Mapping[str, bytes | str]


class Experiment(Protocol):
    """What one kind of recipe brings to `run_training`. Its constructor takes the recipe and loads the tokeniser."""

    def __init__(self, recipe: Any) -> None: ...

    def load_data(self) -> None:
        """Read what the recipe trains and tests on."""

    def build_model(self, device: torch.device) -> nn.Module:
        """The model to train: identity rotations, fresh heads where there are any."""

    def road_model(self, model: nn.Module) -> RoadModel:
        """The RoadModel inside the model to train."""

    def make_trainer(self, model: nn.Module, folder: Path, device: torch.device, progress: bool) -> RoadTrainer:
        """The trainer of the recipe's data, with its checkpoints in the run folder `folder`."""

    def files_at_start(self, model: nn.Module) -> Mapping[str, Any]:
        """JSON files that stand in the run folder before training, by name."""

    def score_frozen(self, trainer: RoadTrainer) -> dict[str, Any]:
        """Metrics of a baseline that needs the model before training; empty where there is none."""

    def score(self, trainer: RoadTrainer, progress: bool) -> Scores:
        """What the trained model comes to on validation and test data."""

    @classmethod
    def evaluate(cls, run: Run, data: str | None, device: torch.device, progress: bool) -> dict[str, Any]:
        """The scores of a finished run on its own test data, or on other data."""


def run_training(
    kind: type[Experiment],
    recipe: Any,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    device: str | None = None,
    progress: bool = True,
) -> Run:
    """Train a recipe of a kind and leave a run folder. Arguments and errors are those of `road_interp.train`."""
    on_device = find_device(device)
    folder = RunFolder.prepare(recipe, out, resume, on_device)
    set_seed(recipe.seed)
    experiment = kind(recipe)
    experiment.load_data()
    model = experiment.build_model(on_device)
    road = experiment.road_model(model)
    if recipe.model.shard:
        shard_blocks(road.model, on_device)
    trainer = experiment.make_trainer(model, folder.path, on_device, progress)
    folder.start(experiment.files_at_start(model))
    frozen = experiment.score_frozen(trainer)
    set_seed(recipe.seed)
    run_trainer(trainer, folder.path, resume)
    metrics, files = experiment.score(trainer, progress)
    log = trainer.state.log_history
    return folder.finish(road.adapter, {**metrics, **frozen}, files, log, forward_precision(recipe.training, on_device))


def identity_model(base: PreTrainedModel, recipe: AdapterRecipe, tasks: Sequence[str] = (), split: Split = "shares") -> RoadModel:
    """The base model with identity rotations at the sites of a recipe; with tasks, their planes divided as `split` says."""
    sites = find_sites(base, recipe.sites, recipe.layers, recipe.stack)
    planes = TaskPlanes.split(tasks, sites, split) if tasks else None
    adapter = RoadAdapter.identity(sites, recipe.variant, recipe.group_size)
    return RoadModel(base, adapter, recipe.positions, planes).set_trainable(recipe.trainable)
