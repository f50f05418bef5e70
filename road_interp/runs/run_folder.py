"""A run folder while a training fills it: prepared, started, finished."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.files import check_folder, write_atomically
from road_interp.provenance import library_versions
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.schema import Trainable
from road_interp.runs.run import Run
from road_interp.runs.run_files import ADAPTER, CHECKPOINTS, ENVIRONMENT, LOG, METRICS, RECIPE
from road_interp.training.arguments import forward_precision
from road_interp.training.trainer import _processes


def prepare_folder(recipe: Trainable, out: str | Path | None, resume: bool) -> Path:
    """The run folder, which must be new or, to resume, hold an unfinished run of the same recipe."""
    folder = next_free(Path("runs") / "run") if out is None else Path(out)
    check_folder(folder)
    if resume:
        if not (folder / RECIPE).is_file():
            raise InputError(f"'{folder}' holds no run to resume")
        if (folder / METRICS).is_file():
            raise InputError(f"the run in '{folder}' has finished; there is nothing to resume")
        if load_recipe(folder / RECIPE) != recipe:
            raise InputError(f"the recipe differs from the one that '{folder}' was started with ({RECIPE} there)")
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"'{folder}' is not empty; choose another --out, or go on with --resume")
    return folder


def start_run(folder: Path, recipe: Trainable, contents: Mapping[str, Any], where: torch.device) -> None:
    """Make the run folder and write the recipe and JSON files that stand before training; of several processes one does."""
    process = _processes(where)
    process.wait_for_everyone()  # all have found the folder free
    if process.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RECIPE, recipe.to_yaml())
        for name, content in contents.items():
            write_atomically(folder / name, json.dumps(content, indent=2) + "\n")


def finish_run(
    trainer: Trainer,
    recipe: Trainable,
    adapter: RoadAdapter,
    metrics: dict[str, Any],
    contents: Mapping[str, bytes | str],
    folder: Path,
    where: torch.device,
) -> Run:
    """Write `contents` (by file name) and what every run folder holds; of several processes one does.

    The metrics come last, since a folder that has them is a finished run.
    """
    process = _processes(where)
    if process.is_main_process:
        adapter.save(folder / ADAPTER)
        log = "".join(json.dumps(entry) + "\n" for entry in trainer.state.log_history)
        environment = describe_environment(recipe.seed, where.type, forward_precision(recipe.training, where))
        scores = json.dumps(metrics, indent=2) + "\n"
        for name, content in {**contents, LOG: log, ENVIRONMENT: environment, METRICS: scores}.items():
            write_atomically(folder / name, content)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    process.wait_for_everyone()
    return Run.load(folder)


def describe_environment(seed: int, device: str, precision: str) -> str:
    """What a run ran on, as JSON text: versions, seed, device and precision."""
    content = {
        "python": platform.python_version(),
        "versions": library_versions(),
        "seed": seed,
        "device": device,
        "precision": precision,
    }
    return json.dumps(content, indent=2) + "\n"


def next_free(folder: Path) -> Path:
    """`folder`, or `folder-2`, `folder-3`, ... if it is taken."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate
