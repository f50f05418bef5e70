"""The fields of a recipe that may be paths: those of its base model and of its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from road_interp.files import exists, path_and_split
from road_interp.recipes.schema import DataRecipe, ModelRecipe, TaskRecipe, glue_name

MODEL: dict[type, tuple[str, ...]] = {ModelRecipe: ("id",)}
DATA: dict[type, tuple[str, ...]] = {DataRecipe: ("id", "validation", "test"), TaskRecipe: ("id", "test")}
Section = TypeVar("Section")


def leads_from(folder: Path, identifier: str) -> bool:
    """Whether an id is a path of something that exists, relative to a folder; "folder:split" names a split of a data set.

    A GLUE data set, `glue/NAME`, is none, whatever folders there are.
    """
    if "://" in identifier or identifier.startswith(":") or not identifier or glue_name(identifier) is not None:
        return False
    return exists(path_and_split(str(folder / identifier))[0])


def data_ids(section: Any) -> Iterator[str]:
    """The ids of all data in a recipe or a section of one, also those that are no paths."""
    if isinstance(section, Mapping):
        for each in section.values():
            yield from data_ids(each)
    elif is_dataclass(section):
        for field in fields(section):
            value = getattr(section, field.name)
            if field.name not in DATA.get(type(section), ()):
                yield from data_ids(value)
            elif value is not None:
                yield value


def with_paths(section: Section, change: Callable[[str], str]) -> Section:
    """The recipe, or section, with `change` applied to the ids of its model and its data."""
    if isinstance(section, dict):
        return {key: with_paths(each, change) for key, each in section.items()}  # type: ignore[return-value]
    if not is_dataclass(section) or isinstance(section, type):
        return section
    named, changed = {**MODEL, **DATA}.get(type(section), ()), {}
    for field in fields(section):
        value = getattr(section, field.name)
        changed[field.name] = change(value) if field.name in named and value is not None else with_paths(value, change)
    return replace(section, **changed)
