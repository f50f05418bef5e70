"""The experiment of every kind of recipe that is trained."""

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
    """The experiment of a recipe's kind. Raises InputError for a kind that is not trained."""
    return EXPERIMENTS[check_trainable(recipe).kind]
