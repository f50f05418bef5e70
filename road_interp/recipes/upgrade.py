"""Convert stored recipes: those of 0.1.0 have no `kind` and other keys, and some sections had keys that nothing used."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from road_interp.recipes.schema import UNUSED_OF_BEHAVIOURS, UNUSED_OF_REVIEWS


def upgraded(content: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with its kind and the current keys, without keys that nothing uses.

    A value that should be a mapping and is not is kept, so that loading the recipe reports its key.
    """
    recipe = _with_kind(content)
    if isinstance(reviews := recipe.get("reviews"), Mapping):
        recipe["reviews"] = _without(reviews, UNUSED_OF_REVIEWS)
    if isinstance(data := recipe.get("data"), Mapping) and data.get("problem_type") == "regression":
        recipe["data"] = _without(data, ("classes",))
    if isinstance(tasks := recipe.get("tasks"), Mapping):
        recipe["tasks"] = {name: _without_unused(task) for name, task in tasks.items()}
    return recipe


def _without_unused(task: Any) -> Any:
    has_behaviour = isinstance(task, Mapping) and task.get("behaviour") is not None
    return _without(task, UNUSED_OF_BEHAVIOURS) if has_behaviour else task


def _without(section: Mapping[str, Any], keys: Container[str]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in keys}


def _with_kind(content: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with its kind and the current keys; one that has a kind is current."""
    if "kind" in content:
        return dict(content)
    recipe = {**content, "adapter": _renamed(content.get("adapter") or {}, "learn", "trainable")}
    if "tasks" not in recipe:
        return {"kind": "classification", **recipe, "data": _labelled(recipe.get("data") or {})}
    if not isinstance(recipe["tasks"], Mapping):
        return {"kind": "multitask-generation", **recipe}
    tasks = {name: dict(task) if isinstance(task, Mapping) else task for name, task in recipe["tasks"].items()}
    sections = [task for task in tasks.values() if isinstance(task, dict)]
    if any(task.get("labels") is not None for task in sections):
        kept = {key: value for key, value in recipe.items() if key not in ("template", "reviews", "scoring")}
        labelled = {
            name: {"labels": _labelled(task.get("labels"))} if isinstance(task, dict) else task for name, task in tasks.items()
        }
        return {"kind": "multitask-classification", **kept, "tasks": labelled}
    for task in sections:
        task.pop("labels", None)
    return {"kind": "multitask-generation", **recipe, "tasks": tasks, "reviews": _labelled(recipe.get("reviews"))}


def _labelled(section: Any) -> Any:
    """A DataRecipe section: 0.1.0 called `problem_type` `task`."""
    return _renamed(section, "task", "problem_type")


def _renamed(section: Any, old: str, new: str) -> Any:
    """A section with another name for one of its keys, in the key's place."""
    if not isinstance(section, Mapping):
        return section
    return {new if key == old else key: value for key, value in section.items()}
