"""Recipes in run folders written by 0.1.0, which had no `kind`, in today's keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def upgraded(content: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with its kind and today's keys; one that has a kind comes back as it is."""
    if "kind" in content:
        return dict(content)
    recipe = {**content, "adapter": dict(content.get("adapter") or {})}
    if "learn" in recipe["adapter"]:
        recipe["adapter"]["trainable"] = recipe["adapter"].pop("learn")
    if "tasks" not in recipe:
        return {"kind": "classification", **recipe, "data": _labelled(recipe.get("data"))}
    tasks = {name: dict(task) for name, task in recipe["tasks"].items()}
    if any(task.get("labels") is not None for task in tasks.values()):
        kept = {key: value for key, value in recipe.items() if key not in ("template", "reviews", "scoring")}
        labelled = {name: {"labels": _labelled(task["labels"])} for name, task in tasks.items()}
        return {"kind": "multitask-classification", **kept, "tasks": labelled}
    for task in tasks.values():
        task.pop("labels", None)
    reviews = recipe.get("reviews")
    return {
        "kind": "multitask-generation",
        **recipe,
        "tasks": tasks,
        "reviews": None if reviews is None else _labelled(reviews),
    }


def _labelled(data: Any) -> dict[str, Any]:
    """A section of labelled text; `problem_type` was called `task`."""
    section = dict(data or {})
    if "task" in section:
        section["problem_type"] = section.pop("task")
    return section
