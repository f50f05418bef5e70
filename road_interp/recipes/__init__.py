"""Recipes: dataclasses read from YAML that name the model, the sites, the data and the training settings.

Names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from road_interp.lazy import lazy_names

if TYPE_CHECKING:
    from road_interp.recipes.loader import (
        builtin_recipes,
        load_recipe,
        load_throughput_recipe,
        load_trainable_recipe,
        load_trainable_recipes,
    )
    from road_interp.recipes.schema import (
        AdapterRecipe,
        ClassificationRecipe,
        DataRecipe,
        LabelledTaskRecipe,
        ModelRecipe,
        MultiTaskClassificationRecipe,
        MultiTaskGenerationRecipe,
        ScoringRecipe,
        TaskRecipe,
        ThroughputRecipe,
        TrainingRecipe,
    )

_LAZY_IMPORTS = {
    "builtin_recipes": "loader",
    "load_recipe": "loader",
    "load_throughput_recipe": "loader",
    "load_trainable_recipe": "loader",
    "load_trainable_recipes": "loader",
    "AdapterRecipe": "schema",
    "ClassificationRecipe": "schema",
    "DataRecipe": "schema",
    "LabelledTaskRecipe": "schema",
    "ModelRecipe": "schema",
    "MultiTaskClassificationRecipe": "schema",
    "MultiTaskGenerationRecipe": "schema",
    "ScoringRecipe": "schema",
    "TaskRecipe": "schema",
    "ThroughputRecipe": "schema",
    "TrainingRecipe": "schema",
}

__all__ = [
    "AdapterRecipe",
    "ClassificationRecipe",
    "DataRecipe",
    "LabelledTaskRecipe",
    "ModelRecipe",
    "MultiTaskClassificationRecipe",
    "MultiTaskGenerationRecipe",
    "ScoringRecipe",
    "TaskRecipe",
    "ThroughputRecipe",
    "TrainingRecipe",
    "builtin_recipes",
    "load_recipe",
    "load_throughput_recipe",
    "load_trainable_recipe",
    "load_trainable_recipes",
]

__getattr__, __dir__ = lazy_names(__name__, _LAZY_IMPORTS)
