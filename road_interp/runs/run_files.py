"""File names in a run folder, and whether the run has finished."""

from __future__ import annotations

from pathlib import Path

from road_interp.errors import InputError

RECIPE, ADAPTER, HEAD, METRICS, LOG = "recipe.yaml", "adapter", "head.safetensors", "metrics.json", "log.jsonl"
ENVIRONMENT, CLASSES, FIGURES, CHECKPOINTS = "environment.json", "classes.json", "figures", "checkpoints"
PLANES, COMPOSITION, EXACT_MATCH = "planes.json", "composition.json", "exact-match.json"
ORIGIN = "origin.json"
MULTITASK_ACCURACY = "multitask-accuracy.json"
MULTITASK_ACCURACY_0_1 = "heads.json"  # its name in run folders of release 0.1.0


def check_finished(folder: Path) -> None:
    """Raise InputError unless the folder holds a finished run: one with metrics.json, which training writes last."""
    if not folder.is_dir():
        raise InputError(f"run folder '{folder}' does not exist")
    if not (folder / METRICS).is_file():
        unfinished = (folder / RECIPE).is_file()
        state = "its training has not finished; go on with --resume" if unfinished else f"{METRICS} is missing"
        raise InputError(f"'{folder}' is not a finished run: {state}")
