"""A classification recipe on the data of the fixture `workplace`."""

from __future__ import annotations

from road_interp.recipes.loader import load_recipe


def recipe_for(workplace, *overrides):
    content = {
        "kind": "classification",
        "model": {"id": str(workplace / "model"), "max_length": 16},
        "data": {"id": str(workplace / "data.csv"), "validation_size": 40, "test_size": 40},
        "training": {"learning_rate": 0.05, "epochs": 3, "batch_size": 16, "precision": "fp32"},
    }
    return load_recipe(content, overrides)
