"""Train a recipe of any kind: the procedure of every run, and the protocol that each kind implements."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel, set_seed

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.task_planes import Split, TaskPlanes
from road_interp.errors import InputError
from road_interp.models.loading import find_device, on_device, process_state
from road_interp.models.road_model import RoadModel
from road_interp.progress import progress_bar
from road_interp.recipes.schema import AdapterRecipe
from road_interp.runs.run import Run
from road_interp.runs.run_folder import RunFolder
from road_interp.sites.find import find_sites
from road_interp.training.arguments import forward_precision
from road_interp.training.distributed import shard_blocks
from road_interp.training.trainer import RoadTrainer, run_trainer


class Scores(NamedTuple):
    """Scores of a trained model.

    Attributes:
        metrics: the content of metrics.json.
        files: further files of the run folder, by name.
    """

    metrics: dict[str, Any]
    files: Mapping[str, bytes | str]


class Experiment(Protocol):
    """Data, model, trainer and scores of one kind of recipe, for `run_training`. The constructor loads the tokeniser."""

    recipe: Any

    def __init__(self, recipe: Any) -> None: ...

    def load_data(self) -> None:
        """Read the training and test data of the recipe."""

    def build_model(self, device: torch.device) -> nn.Module:
        """The model to train: identity rotations, and new heads where the kind has any."""

    def road_model(self, model: nn.Module) -> RoadModel:
        """The RoadModel inside the model to train."""

    def make_trainer(self, model: nn.Module, folder: Path, device: torch.device, progress: bool, **options: Any) -> RoadTrainer:
        """The trainer for the recipe's data; its checkpoints are written to the run folder `folder`.

        Args:
            options: further arguments of `TrainingArguments`, such as save_strategy.
        """

    def files_at_start(self, model: nn.Module) -> Mapping[str, Any]:
        """Contents of the JSON files that are written to the run folder before training, by file name."""

    def score_frozen(self, trainer: RoadTrainer) -> dict[str, Any]:
        """Metrics of a baseline on the untrained model; empty for kinds without one."""

    def score(self, trainer: RoadTrainer, progress: bool) -> Scores:
        """Scores of the trained model on the validation and test data."""

    @classmethod
    def evaluate(cls, run: Run, data: str | None, device: torch.device, progress: bool) -> dict[str, Any]:
        """Scores of a finished run on its recipe's test data, or on `data`."""


def run_training(
    kind: type[Experiment],
    recipe: Any,
    out: str | Path | None,
    *,
    resume: bool,
    device: str | None,
    progress: bool,
) -> Run:
    """Train a recipe with the experiment of its kind, and write a run folder.

    Arguments and errors are those of `road_interp.train`.
    """
    used = find_device(device)
    is_watched = progress and process_state(used).is_main_process and sys.stderr.isatty()  # an error is one line of a log
    with progress_bar(is_watched) as update:
        update("reading the files of model and data")
        folder = RunFolder.prepare(recipe, out, resume, used)
        recipe = folder.origin.located(recipe, folder.path)
        set_seed(recipe.seed)
        update("reading the data")
        experiment = kind(recipe)
        experiment.load_data()
        update("loading the model")
        model = experiment.build_model(used)
    road = experiment.road_model(model)
    if recipe.model.shard:
        shard_blocks(road.model, used)
    trainer = experiment.make_trainer(model, folder.path, used, progress)
    with folder.held():
        folder.start(experiment.files_at_start(model))
        frozen = experiment.score_frozen(trainer)
        set_seed(recipe.seed)
        run_trainer(trainer, folder.path, resume)
        metrics, files = experiment.score(trainer, progress)
        log = trainer.state.log_history
        return folder.finish(road.adapter, {**metrics, **frozen}, files, log, forward_precision(recipe.training, used))


@contextmanager
def trained_in_memory(experiment: Experiment, model: nn.Module, **options: Any) -> Iterator[RoadTrainer]:
    """Train a model, called as RoadModel is, on the data and with the settings of an experiment's recipe, for a baseline.

    Checkpoints are in a temporary folder, which is there until the block ends.

    Args:
        options: further arguments of `make_trainer`.

    Yields:
        The trainer, after the training.

    Raises:
        InputError: a recipe with model.shard.
    """
    recipe, device = experiment.recipe, find_device(None)
    if recipe.model.shard:
        raise InputError("model.shard is for the training of rotations; these baselines need model.shard=false")
    with TemporaryDirectory() as folder:
        trainer = experiment.make_trainer(on_device(model, device), Path(folder), device, progress=False, **options)
        set_seed(recipe.seed)
        trainer.train()
        yield trainer


def identity_model(base: PreTrainedModel, recipe: AdapterRecipe, tasks: Sequence[str] = (), split: Split = "shares") -> RoadModel:
    """The base model with identity rotations at the sites of a recipe; `split` assigns the planes to the tasks, if any."""
    sites = find_sites(base, recipe.sites, recipe.layers, recipe.stack)
    planes = TaskPlanes.split(tasks, sites, split) if tasks else None
    adapter = RoadAdapter.identity(sites, recipe.variant, recipe.group_size)
    return RoadModel(base, adapter, recipe.positions, planes).set_trainable(recipe.trainable)
