"""Recipes from YAML files, built-in names and mappings, with overrides."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml

from road_interp.errors import InputError
from road_interp.from_mapping import from_mapping
from road_interp.recipes.schema import KINDS, Recipe, ThroughputRecipe, TrainableRecipe
from road_interp.recipes.upgrade import upgraded


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file, the bare name of a built-in one, or a mapping; its class is that of its `kind`.

    Args:
        source: `interventions/NAME.yaml`, `NAME`, or the content itself.
        overrides: texts such as "training.learning_rate=5e-3", as on the command line.

    Raises:
        InputError: no such recipe, no kind, an unknown key (with the nearest known one), a value of the wrong kind.
    """
    name = "recipe" if isinstance(source, Mapping) else recipe_path(source).name
    return _build(read_recipe(source, overrides), name)


def read_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The content of a recipe with the overrides applied, unchecked. Raises InputError where there is no such recipe."""
    content = {**source} if isinstance(source, Mapping) else _read_yaml(recipe_path(source))
    for override in overrides:
        apply_override(content, override)
    return content


def load_trainable_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainableRecipe:
    """As `load_recipe`, for kinds that are trained; one that is only timed is an InputError."""
    return check_trainable(load_recipe(source, overrides))


def load_throughput_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> ThroughputRecipe:
    """As `load_recipe`, for recipes that are timed; one that is trained is an InputError."""
    recipe: Any = load_recipe(source, overrides)
    if recipe.kind != "throughput":
        raise InputError(f"recipe '{source}' is a training recipe; use `road-interp train`")
    return cast(ThroughputRecipe, recipe)


def load_stored_recipe(path: Path) -> TrainableRecipe:
    """The recipe in a run folder, also in one that 0.1.0 wrote. Errors as in `load_recipe`."""
    return check_trainable(_build(upgraded(_read_yaml(path)), path.name))


def check_trainable(recipe: Any) -> TrainableRecipe:
    """The recipe, unless its kind is one that is timed and not trained, which is an InputError."""
    if recipe.kind == "throughput":
        raise InputError("a throughput recipe is timed and not trained: its command is road-interp bench")
    return cast(TrainableRecipe, recipe)


def _build(content: dict[str, Any], name: str) -> Recipe:
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        wrong = "'kind' is missing" if kind is None else f"unknown kind {kind!r}"
        raise InputError(f"{name}: {wrong}; the kinds are {', '.join(KINDS)}")
    try:
        return from_mapping(KINDS[kind], content)
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
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a mapping of keys to values")
    return content


def apply_override(content: dict[str, Any], override: str) -> None:
    """Put the value of a text such as "training.epochs=3" into nested mappings. Raises InputError for another text."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override '{override}' is not of the form key=value, such as training.epochs=3")
    *parents, last = key.split(".")
    section = content
    for parent in parents:
        inner = section.get(parent)
        section[parent] = dict(inner) if isinstance(inner, Mapping) else {}
        section = section[parent]
    try:
        section[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"override '{override}': the value is not valid YAML") from None
