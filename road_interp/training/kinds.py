"""The experiment of each trainable kind of recipe."""

from __future__ import annotations

from road_interp.recipes.loader import check_trainable
from road_interp.recipes.schema import Recipe
from road_interp.training.classification import ClassificationExperiment
from road_interp.training.experiment import Experiment
from road_interp.training.multitask_classifier import MultiTaskClassificationExperiment
from road_interp.training.multitask_generation import MultiTaskGenerationExperiment

EXPERIMENTS: dict[str, type[Experiment]] = {
    "classification": ClassificationExperiment,
    "multitask-classification": MultiTaskClassificationExperiment,
    "multitask-generation": MultiTaskGenerationExperiment,
}


def experiment_kind(recipe: Recipe) -> type[Experiment]:
    """The experiment class for the kind of a recipe. Raises InputError for a kind that is not trainable."""
    return EXPERIMENTS[check_trainable(recipe).kind]
