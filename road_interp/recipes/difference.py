"""The keys in which two recipes differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from road_interp.recipes.schema import TrainableRecipe

SHOWN = 3


def describe_difference(stored: TrainableRecipe, given: TrainableRecipe) -> str:
    """The first keys that differ, with both values: "seed is 0 there, 3 here"; empty for equal recipes."""
    there, here = _settings(stored), _settings(given)
    keys = [key for key in dict.fromkeys([*there, *here]) if _shown(there, key) != _shown(here, key)]
    parts = [f"{key} is {_shown(there, key)} there, {_shown(here, key)} here" for key in keys[:SHOWN]]
    return "; ".join([*parts, *[f"{len(keys) - SHOWN} more"] * (len(keys) > SHOWN)])


def _settings(recipe: TrainableRecipe) -> dict[str, Any]:
    """All keys but the trackers, which change no number, and the order of the tasks, which is that of their planes."""
    settings = {**dict(_leaves(asdict(recipe))), "the order of tasks": recipe.task_names}
    del settings["training.report_to"]
    return settings


def _leaves(content: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in content.items():
        is_section = isinstance(value, Mapping) and value
        leaves += _leaves(value, f"{path}{key}.") if is_section else [(f"{path}{key}", value)]
    return leaves


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "not set"
