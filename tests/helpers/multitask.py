"""A multitask-generation recipe with two behaviours on the data of the fixture `language_workplace`."""

from __future__ import annotations

from road_interp.recipes.loader import load_recipe


def behaviours_recipe(workplace, *overrides):
    content = {
        "kind": "multitask-generation",
        "model": {"id": str(workplace / "model"), "max_length": 64},
        "tasks": {"label": {"behaviour": "label", "examples": 16}, "closing": {"behaviour": "closing", "examples": 16}},
        "template": "Q: {{ prompt }}\nA:",
        "reviews": {"id": str(workplace / "reviews.csv")},
        "adapter": {"sites": "block-output"},
        "scoring": {"validation": 4, "test": 6, "max_new_tokens": 4, "batch_size": 4},
        "training": {"learning_rate": 0.05, "epochs": 2, "batch_size": 8, "precision": "fp32"},
    }
    return load_recipe(content, overrides)
