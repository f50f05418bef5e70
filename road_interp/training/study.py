"""A study: the runs of a recipe over several seeds, kept as they are finished so that several analyses share them."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from road_interp.errors import InputError
from road_interp.recipes.loader import load_recipe, trainable
from road_interp.recipes.schema import Trainable
from road_interp.runs.run import Run
from road_interp.runs.run_files import METRICS, RECIPE
from road_interp.training.api import train

# What makes the recipe of one labelled task a matter of seconds.
QUICK = ("training.max_steps=2", "data.per_class=200", "data.validation_size=0.2", "data.test_size=0.2")


def study_options(
    doc: str, quick: str, quick_seeds: int = 1, runs: bool = False, only: Sequence[str] = (), quick_most: int | None = None
) -> argparse.Namespace:
    """What a study's script was asked on its command line: `out`, `seeds`, `quick`, `redraw`, and `parts`, where pieces are kept.

    Args:
        doc: the script's docstring; its first line describes it.
        quick: what `--quick` does.
        quick_seeds: how many seeds it leaves.
        runs: whether finished run folders can be named instead of trained.
        only: what can be chosen by `--only`, if anything; without it all is measured.
        quick_most: how many test examples `--quick` leaves, where `--most` can limit them.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    if runs:
        parser.add_argument("runs", type=Path, nargs="*", help="finished run folders; by default they are trained")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--redraw", type=Path, help="draw what an earlier run has left here instead of measuring")
    if only:
        parser.add_argument("--only", nargs="+", choices=only, default=only, metavar="NAME", help=f"of: {', '.join(only)}")
    if quick_most is not None:
        parser.add_argument("--most", type=int, help="test examples of every run; all by default")
    options = parser.parse_args()
    if quick_most is not None:
        if options.most is not None and options.most < 1:
            parser.error("--most must be at least 1")
        options.most = options.most or (quick_most if options.quick else None)
    options.parts = options.out / ("parts-quick" if options.quick else "parts")
    options.seeds = options.seeds[:quick_seeds] if options.quick else options.seeds
    return options


def tell(what: str) -> None:
    """What a script is at, on standard error."""
    print(what, file=sys.stderr, flush=True)


def fingerprint(*settings: object) -> str:
    """Eight characters that change with the settings: a piece that is kept under them is not taken for one of other settings."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def runs_for_seeds(name: str | Path, changes: Sequence[str], seeds: Sequence[int], parts: Path) -> list[Path]:
    """The run folders "VARIANT, seed N" of a recipe under `parts`, one per seed.

    One that learns angles or magnitudes only is "VARIANT, angles alone, seed N".

    Args:
        name: of the recipe, or its file.
        changes: overrides such as "training.max_steps=2".

    Raises:
        InputError: a folder with a finished run of another recipe.
    """
    folders = []
    for seed in seeds:
        recipe = trainable(load_recipe(name, [*changes, f"seed={seed}"]))
        what = recipe.adapter
        alone = "" if what.learn == "both" else f"{what.learn} alone, "
        folder = parts / f"{what.variant}, {alone}seed {seed}"
        tell(folder.name)
        train_once(recipe, folder)
        folders.append(folder)
    return folders


def train_once(recipe: Trainable, folder: Path) -> Run:
    """The run of a recipe in a folder; where the folder holds no finished one, it is trained, or goes on.

    Raises:
        InputError: the folder holds a run of another recipe.
    """
    if not (folder / METRICS).is_file():
        return train(recipe, folder, resume=(folder / RECIPE).is_file(), progress=False)
    if load_recipe(folder / RECIPE) != recipe:
        raise InputError(f"'{folder}' was trained with another recipe; choose another --out")
    return Run.load(folder)
