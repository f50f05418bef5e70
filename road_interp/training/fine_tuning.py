"""Baselines of fine-tuning: all weights, LoRA, or the head alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed

from road_interp.errors import InputError
from road_interp.recipes.schema import ClassificationRecipe
from road_interp.sites.find import find_sites
from road_interp.sites.site import Site
from road_interp.training.classification import ClassificationExperiment, unfreeze
from road_interp.training.experiment import trained_in_memory
from road_interp.training.low_rank import LowRankModel
from road_interp.training.parameter_counts import ParameterCounts, count_parameters

Method = Literal["full", "lora", "head"]
LEARNING_RATES = {"full": 1e-4, "lora": 1e-3}  # common learning rates, not tuned for any recipe here


class UnadaptedModel(nn.Module):
    """A transformers model with the calling convention of RoadModel; parameters that require a gradient are trained."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, base: dict[str, Tensor]) -> tuple[None, Any]:
        """The output for a batch; the first value is None, as in pyvene without a base output."""
        return None, self.model(**base)


class LoraModel(nn.Module):
    """A frozen model with a LoRA (Hu et al. 2022) at linear layers, called as RoadModel is: W x becomes W x + B A x.

    Raises InputError for a site that is not a whole linear layer.
    """

    def __init__(self, model: PreTrainedModel, sites: tuple[Site, ...], rank: int, seed: int) -> None:
        super().__init__()
        for site in sites:
            if site.output_slice is not None or not isinstance(model.get_submodule(site.module), nn.Linear):
                raise InputError(f"LoRA needs whole linear layers; site '{site.name}' is not one")
        self.sites = sites
        self.lora = LowRankModel(model, sites, ["task"], rank, "LoRA", seed)

    def forward(self, base: dict[str, Tensor]) -> tuple[None, Any]:
        """The output for a batch; the first value is None, as in pyvene without a base output."""
        return self.lora(base, ["task"] * len(base["input_ids"]))

    @property
    def model(self) -> PreTrainedModel:
        """The frozen model."""
        return self.lora.model

    @torch.no_grad()
    def merge(self) -> None:
        """Add B A to the weights of the linear layers."""
        adapters: Any = self.lora.adapters
        for site, adapter in zip(self.sites, adapters, strict=True):
            linear: Any = self.model.get_submodule(site.module)
            linear.weight += adapter.up @ adapter.down


def train_baseline(
    recipe: ClassificationRecipe,
    method: Method,
    *,
    seed: int,
    learning_rate: float,
    rank: int = 8,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Train a baseline on the data and with the settings of a recipe, without leaving files on disk.

    As in `road_interp.train`, the weights of the epoch with the best validation score are kept, and the head is always trained.

    Args:
        method: "full" trains all weights, "lora" a LoRA at the recipe's sites, "head" the head alone.
        seed, learning_rate: replace those of the recipe.
        rank: of the LoRA.

    Returns:
        The tuned model in evaluation mode, with a LoRA merged into its weights; and the scores on "validation" and "test" with
        the numbers of "parameters": "trained" (without the head), "head", "backbone", and "percent of backbone".

    Raises:
        InputError: an input that cannot be used, a recipe with model.shard, or for LoRA a site that is not a whole linear layer.
    """
    recipe = replace(recipe, seed=seed, training=replace(recipe.training, learning_rate=learning_rate))
    set_seed(seed)
    experiment = ClassificationExperiment(recipe)
    experiment.load_data()
    trainable, counts = baseline(experiment, method, rank)
    parameters = {**counts._asdict(), "percent of backbone": counts.percent}
    with trained_in_memory(experiment, trainable) as trainer:
        scores = {name: experiment.score_split(trainer, experiment.splits[name]) for name in ("validation", "test")}
    if isinstance(trainable, LoraModel):
        trainable.merge()
    return trainable.model.eval(), {**scores, "parameters": parameters}


def baseline(
    experiment: ClassificationExperiment, method: Method, rank: int
) -> tuple[UnadaptedModel | LoraModel, ParameterCounts]:
    """The classifier of an experiment with the parameters of the method and of the head set to trainable, and their numbers."""
    recipe = experiment.recipe
    model, head = experiment.load_classifier()
    if method == "lora":
        sites = find_sites(model, recipe.adapter.sites, recipe.adapter.layers, recipe.adapter.stack)
        trainable: UnadaptedModel | LoraModel = LoraModel(model, sites, rank, recipe.seed)
    else:
        trainable = UnadaptedModel(model.requires_grad_(method == "full"))
    unfreeze(model, head)
    return trainable, count_parameters(trainable, model, head)
