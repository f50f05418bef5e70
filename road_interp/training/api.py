"""Train a recipe; score a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from road_interp.arguments import check_argument
from road_interp.errors import InputError
from road_interp.models.loading import find_device
from road_interp.progress import library_bars
from road_interp.recipes.loader import load_trainable_recipe
from road_interp.recipes.schema import KINDS, Recipe
from road_interp.runs.run import Run
from road_interp.training.classification import ClassificationExperiment
from road_interp.training.experiment import run_training
from road_interp.training.kinds import experiment_kind


def train(
    recipe: Recipe | str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    resume: bool = False,
    device: str | None = None,
    progress: bool = True,
) -> Run:
    """Train the rotations of a recipe and write a run folder.

    Args:
        recipe: what to train: a recipe, a YAML file, the name of a built-in recipe, or a mapping.
        out: the run folder; by default the next free one under runs/.
        resume: continue from the last checkpoint in `out`.
        device: "cpu" or "cuda"; by default "cuda" where torch finds it.
        progress: show progress bars.

    Raises:
        InputError: an input that cannot be used, or an `out` that holds other files. Nothing has been written in that case.
    """
    if isinstance(recipe, str | Path | Mapping):
        recipe = load_trainable_recipe(recipe)
    check_argument("train", recipe, tuple(KINDS.values()), "a recipe, its YAML file, a built-in name or a mapping")
    with library_bars(progress):
        return run_training(experiment_kind(recipe), recipe, out, resume=resume, device=device, progress=progress)


def evaluate(
    run: Run | str | Path,
    data: str | Path | None = None,
    *,
    predictions: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Load the model of a run from its files and score it.

    Args:
        run: a finished run, or its folder.
        data: another file or data set, with the columns of the recipe's data; by default the recipe's test data. A multi-task run
            accepts none, unless its only task is tested on questions.
        predictions: a CSV file to write: the scored texts with their labels, predictions and probabilities; for
            `kind: classification`.
        device, progress: as in `train`.

    Returns:
        For a classification run the metric, the loss and the number of examples; for multi-task runs the summaries of their
        reports (`CompositionReport`, `MultiTaskAccuracyReport`, `ExactMatchReport`).

    Raises:
        InputError: data that cannot be read, that have changed since the training, or that this kind of run does not accept.
    """
    run = run if isinstance(run, Run) else Run.load(run)
    if data is None:
        run.check_data()
    kind = experiment_kind(run.recipe)
    if predictions is not None and not issubclass(kind, ClassificationExperiment):
        raise InputError(f"'{run.folder}' is a run of {run.recipe.kind}; predictions are written for kind: classification")
    files = [] if predictions is None else [Path(predictions)]
    with library_bars(progress):
        return kind.evaluate(run, None if data is None else str(data), find_device(device), progress, *files)
