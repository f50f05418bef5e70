"""GLUE's files of one task, in the folder that holds a folder per task, as data of a classification recipe."""

from __future__ import annotations

from pathlib import Path

from road_interp.errors import InputError

COLUMNS = {
    "RTE": ("data.text=sentence1", "data.text_pair=sentence2", "model.max_length=256"),
    "SST-2": ("data.text=sentence",),
}


def glue_files(glue: str | None, task: str) -> list[Path]:
    """The training and the development file of a task. Raises InputError without a folder."""
    if glue is None:
        raise InputError(f"task '{task}' needs glue=FOLDER, a folder with {task}/train.tsv and dev.tsv")
    return [Path(glue) / task / name for name in ("train.tsv", "dev.tsv")]


def glue_overrides(glue: str | None, task: str) -> list[str]:
    """The overrides that put the files of a task in the place of a classification recipe's data.

    The development texts, whose labels are published, are divided into validation and test texts.

    Raises:
        InputError: no folder.
    """
    train, dev = glue_files(glue, task)
    return [f"data.id={train}", f"data.validation={dev}", "data.filter={}", "data.label=label", *COLUMNS[task]]
