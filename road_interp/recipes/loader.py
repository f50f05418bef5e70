"""Load recipes from YAML files, built-in names and mappings, with overrides."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml

from road_interp.arguments import check_argument, checked_list
from road_interp.errors import InputError, did_you_mean, one_line
from road_interp.files import is_dir, is_file
from road_interp.from_mapping import from_mapping
from road_interp.recipes.paths import leads_from, with_paths
from road_interp.recipes.schema import KINDS, Recipe, ThroughputRecipe, TrainableRecipe
from road_interp.recipes.upgrade import upgraded
from road_interp.yaml_text import parse_yaml, read_yaml_mapping


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe from a YAML file, the name of a built-in recipe, or a mapping. Its key `kind` selects the class.

    Relative paths to model and data are looked up in the working directory first, then in the folder of the YAML file.

    Args:
        source: path such as `interventions/NAME.yaml`, built-in name, or the mapping itself.
        overrides: texts such as "training.learning_rate=5e-3", as on the command line.

    Raises:
        InputError: no such recipe, a missing or unknown kind, an unknown key (with the nearest known one), a value of the
            wrong type or out of range.
    """
    return _with_paths_beside(source, _build(read_recipe(source, overrides), _name(source)))


def read_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe as a mapping and apply the overrides, without checking it. Raises InputError if the recipe does not exist."""
    content = {**source} if isinstance(source, Mapping) else read_yaml_mapping(recipe_path(source))
    for override in checked_list("a recipe", overrides, str, 'overrides such as ["training.epochs=3"]'):
        apply_override(content, override)
    return content


def load_trainable_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainableRecipe:
    """Load a recipe that can be trained. Raises InputError as `load_recipe`, and for a throughput recipe."""
    return check_trainable(load_recipe(source, overrides))


def load_trainable_recipes(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> list[TrainableRecipe]:
    """One recipe per seed of the key `seeds`, such as [0, 1, 2], which replaces `seed`; without the key, the one recipe.

    Raises InputError as `load_trainable_recipe`, and for seeds that are not different whole numbers.
    """
    content, name = read_recipe(source, overrides), _name(source)
    if "seeds" not in content:
        return [check_trainable(_with_paths_beside(source, _build(content, name)))]
    seeds = content.pop("seeds")
    if any(override.partition("=")[0] == "seed" for override in overrides):
        raise InputError("the recipe has 'seeds', and a seed is given as well: give one of them")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds) or len(set(seeds)) < len(seeds):
        raise InputError(f"'seeds' must be a list of different whole numbers, such as [0, 1, 2], not {seeds!r}")
    recipes = [_build({**content, "seed": seed}, name) for seed in seeds]
    return [check_trainable(_with_paths_beside(source, recipe)) for recipe in recipes]


def load_throughput_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> ThroughputRecipe:
    """Load a throughput recipe. Raises InputError as `load_recipe`, and for a recipe of another kind."""
    recipe: Any = load_recipe(source, overrides)
    if recipe.kind != "throughput":
        what = "this mapping" if isinstance(source, Mapping) else f"recipe '{source}'"
        raise InputError(f"{what} is a training recipe; use `road-interp train`")
    return cast(ThroughputRecipe, recipe)


def load_stored_recipe(path: Path) -> TrainableRecipe:
    """Load the recipe of a run folder, including one written by 0.1.0. Raises InputError as `load_trainable_recipe`."""
    return check_trainable(_build(upgraded(read_yaml_mapping(path)), path.name))


def _with_paths_beside(source: str | Path | Mapping[str, Any], recipe: Recipe) -> Recipe:
    """The recipe with paths that lead to files beside its YAML file where there are none in the working directory."""
    if isinstance(source, Mapping):
        return recipe
    folder = recipe_path(source).parent

    def located(identifier: str) -> str:
        is_beside = leads_from(folder, identifier) and not leads_from(Path(), identifier)
        return str(folder / identifier) if is_beside else identifier

    return with_paths(recipe, located)


def _name(source: str | Path | Mapping[str, Any]) -> str:
    return "recipe" if isinstance(source, Mapping) else recipe_path(source).name


def check_trainable(recipe: Any) -> TrainableRecipe:
    """Return the recipe. Raises InputError for a throughput recipe, which cannot be trained."""
    if recipe.kind == "throughput":
        raise InputError("a throughput recipe cannot be trained; use `road-interp bench`")
    return cast(TrainableRecipe, recipe)


def _build(content: dict[str, Any], name: str) -> Recipe:
    kind = content.get("kind")
    if "seeds" in content:
        raise InputError(f"{name}: a recipe with 'seeds' is one per seed; load them with ri.recipes.load_trainable_recipes")
    if not isinstance(kind, str) or kind not in KINDS:
        problem = "'kind' is missing" if kind is None else f"unknown kind {kind!r}"
        raise InputError(f"{name}: {problem}; the kinds are {', '.join(KINDS)}")
    try:
        return from_mapping(KINDS[kind], content)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def builtin_recipes() -> dict[str, Path]:
    """Paths of the recipes that come with the package, by name."""
    installed = Path(str(resources.files("road_interp") / "interventions"))
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "interventions"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_path(name: str | Path) -> Path:
    """Path of a recipe given by path or built-in name. Raises InputError if there is none (with the nearest known name)."""
    check_argument("load_recipe", name, (str, os.PathLike), "a YAML file, the name of a built-in recipe, or a mapping")
    path = Path(name)
    if is_file(path):
        return path
    known = builtin_recipes()
    if str(name) in known:
        return known[str(name)]
    beside = [str(each) for each in path.parent.glob("*.y*ml")] if is_dir(path.parent) else []
    near = difflib.get_close_matches(str(name), beside, n=1)
    hint = f"did you mean '{near[0]}'?" if near else did_you_mean(path.stem, known, "the built-in recipes are")
    raise InputError(f"no recipe '{name}': neither a file nor a built-in name; {hint}")


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set a value in nested mappings, in place. Raises InputError unless `override` has the form "training.epochs=3"."""
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
        section[last] = parse_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(f"override '{override}': the value is not valid YAML ({one_line(error)})") from None
