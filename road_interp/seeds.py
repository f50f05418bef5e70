"""Finished runs of recipes, seed by seed: those that are missing are trained, so that several analyses share them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from road_interp.errors import InputError
from road_interp.recipe import AnyRecipe, load_recipe
from road_interp.run import METRICS, RECIPE, Run
from road_interp.training import train


def runs_for_seeds(
    name: str | Path, changes: Sequence[str], seeds: Sequence[int], parts: Path, tell: Callable[[str], None]
) -> list[Path]:
    """The run folders "VARIANT, seed N" of a recipe under `parts`, one per seed.

    Args:
        name: of the recipe, or its file.
        changes: overrides such as "training.max_steps=2".
        tell: told what is looked for or trained next.

    Raises:
        InputError: a folder with a finished run of another recipe.
    """
    folders = []
    for seed in seeds:
        recipe = load_recipe(name, [*changes, f"seed={seed}"])
        folder = parts / f"{recipe.adapter.variant}, seed {seed}"
        tell(folder.name)
        train_once(recipe, folder)
        folders.append(folder)
    return folders


def train_once(recipe: AnyRecipe, folder: Path) -> Run:
    """The run of a recipe in a folder; it is trained where the folder holds no finished one, whose remains are deleted.

    Raises:
        InputError: the folder holds a finished run of another recipe.
    """
    if not (folder / METRICS).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        return train(recipe, folder, progress=False)
    if load_recipe(folder / RECIPE) != recipe:
        raise InputError(f"'{folder}' was trained with another recipe; choose another --out")
    return Run.load(folder)
