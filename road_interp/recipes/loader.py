"""Recipes from YAML files, built-in names and mappings, with overrides."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from road_interp.errors import InputError
from road_interp.recipes.from_mapping import _build
from road_interp.recipes.schema import AnyRecipe, BenchRecipe, MixtureRecipe, Recipe, Trainable


def trainable(recipe: AnyRecipe) -> Trainable:
    """The recipe, unless it is one to be timed, which is an InputError."""
    if isinstance(recipe, BenchRecipe):
        raise InputError("this recipe trains nothing: its command is road-interp bench")
    return recipe


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> AnyRecipe:
    """A recipe from a YAML file, the bare name of a built-in one, or a mapping.

    With a key `tasks` it is a MixtureRecipe, with a key `requests` a BenchRecipe.

    Args:
        source: `interventions/NAME.yaml`, `NAME`, or the content itself.
        overrides: texts such as "training.learning_rate=5e-3", as on the command line.

    Raises:
        InputError: no such recipe, an unknown key (with the nearest known one), a value of the wrong kind.
    """
    if isinstance(source, Mapping):
        content, name = {**source}, "recipe"
    else:
        path = recipe_path(source)
        content, name = _read_yaml(path), path.name
    for override in overrides:
        _apply_override(content, override)
    kind = MixtureRecipe if "tasks" in content else BenchRecipe if "requests" in content else Recipe
    try:
        return _build(kind, content, "")
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def builtin_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    installed = Path(str(resources.files("road_interp") / "interventions"))
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "interventions"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_path(name: str | Path) -> Path:
    """The file of a recipe given by path or bare name."""
    path = Path(name)
    if path.is_file():
        return path
    known = builtin_recipes()
    if str(name) in known:
        return known[str(name)]
    near = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else f"; the built-in recipes are {', '.join(known)}"
    raise InputError(f"no recipe '{name}': neither a file nor a built-in name{hint}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a mapping of keys to values")
    return content


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override '{override}' is not of the form key=value, such as training.epochs=3")
    *parents, last = key.split(".")
    place = content
    for parent in parents:
        inner = place.get(parent)
        place[parent] = dict(inner) if isinstance(inner, Mapping) else {}
        place = place[parent]
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"override '{override}': the value is not valid YAML") from None
