"""Fine-tuning by other methods, for comparison: all weights, LoRA, or the head alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed

from road_interp.errors import InputError
from road_interp.models.loading import find_device
from road_interp.recipes.schema import ClassificationRecipe
from road_interp.sites.find import find_sites
from road_interp.sites.site import Site
from road_interp.training.classification import ClassificationExperiment
from road_interp.training.low_rank import LowRankModel

Method = Literal["full", "lora", "head"]
LEARNING_RATES = {"full": 1e-4, "lora": 1e-3}  # usual learning rates, not tuned for any recipe here


class UnadaptedModel(nn.Module):
    """A transformers model that is called as a RoadModel is; what of it requires a gradient is trained."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, base: dict[str, Tensor]) -> tuple[None, Any]:
        """Its output for a batch."""
        return None, self.model(**base)


class LoraModel(nn.Module):
    """A frozen model with one LoRA (Hu et al. 2022) at linear layers, called as a RoadModel is: W x becomes W x + B A x.

    Raises InputError for a site that is not a whole linear layer.
    """

    def __init__(self, model: PreTrainedModel, sites: tuple[Site, ...], rank: int, seed: int) -> None:
        super().__init__()
        for site in sites:
            if site.output_slice is not None or not isinstance(model.get_submodule(site.module), nn.Linear):
                raise InputError(f"LoRA acts on whole linear layers; site '{site.name}' is none")
        self.sites = sites
        self.lora = LowRankModel(model, sites, ["task"], rank, "LoRA", seed)

    def forward(self, base: dict[str, Tensor]) -> tuple[None, Any]:
        """Its output for a batch."""
        return self.lora(base, ["task"] * len(base["input_ids"]))

    @torch.no_grad()
    def merge(self) -> None:
        """Add B A to the weights."""
        adapters: Any = self.lora.adapters
        for site, adapter in zip(self.sites, adapters, strict=True):
            linear: Any = self.lora.model.get_submodule(site.module)
            linear.weight += adapter.up @ adapter.down


def train_baseline(
    recipe: ClassificationRecipe,
    method: Method,
    *,
    seed: int,
    learning_rate: float,
    rank: int = 8,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Train a model on a recipe's data with its settings, but by another method; nothing stays on disk.

    As in `road_interp.train`, the epoch with the best validation score is kept, and the head is trained in every method.

    Args:
        method: "full" trains all weights, "lora" a LoRA at the recipe's sites, "head" nothing but the head.
        seed, learning_rate: instead of the recipe's.
        rank: of the LoRA.

    Returns:
        The tuned model in evaluation mode, a LoRA merged into its weights; and the scores on "validation" and "test" with the
        number of "parameters": those "trained" without the head, those of the "head" and of the "backbone", and "percent of
        backbone".

    Raises:
        InputError: an input that cannot be used, blocks to divide, or for LoRA a site that is not a linear layer.
    """
    if recipe.model.shard:
        raise InputError("model.shard divides the blocks where rotations are trained; these baselines need model.shard=false")
    recipe = replace(recipe, seed=seed, training=replace(recipe.training, learning_rate=learning_rate))
    set_seed(seed)
    experiment = ClassificationExperiment(recipe)
    experiment.load_data()
    model, head = experiment.load_classifier()
    learner = _learner(recipe, method, rank, model)
    for name in head:
        model.get_submodule(name).requires_grad_(True)
    parameters = _count(learner, model, head)
    with TemporaryDirectory() as folder:
        trainer = experiment.make_trainer(learner, Path(folder), find_device(None), progress=False)
        set_seed(seed)
        trainer.train()
        scores = {name: experiment.score_split(trainer, experiment.splits[name]) for name in ("validation", "test")}
    if isinstance(learner, LoraModel):
        learner.merge()
    return model.eval(), {**scores, "parameters": parameters}


def _learner(recipe: ClassificationRecipe, method: Method, rank: int, model: PreTrainedModel) -> UnadaptedModel | LoraModel:
    """The model with what the method trains beside the head set to learn."""
    if method == "lora":
        sites = find_sites(model, recipe.adapter.sites, recipe.adapter.layers, recipe.adapter.stack)
        return LoraModel(model, sites, rank, recipe.seed)
    return UnadaptedModel(model.requires_grad_(method == "full"))


def _count(learner: nn.Module, model: PreTrainedModel, head: list[str]) -> dict[str, Any]:
    """Trained values beside the backbone's."""
    in_head = sum(parameter.numel() for name in head for parameter in model.get_submodule(name).parameters())
    backbone = sum(parameter.numel() for parameter in model.parameters()) - in_head
    trained = sum(parameter.numel() for parameter in learner.parameters() if parameter.requires_grad) - in_head
    return {"trained": trained, "head": in_head, "backbone": backbone, "percent of backbone": 100 * trained / backbone}
