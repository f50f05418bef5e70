"""The run folder during training: check it, start the run, finish the run."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors

from road_interp.adapters.modules_to_save import digest
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.files import check_writable, locked, unfinished_writes, write_atomically
from road_interp.models.loading import process_state
from road_interp.provenance import library_versions
from road_interp.recipes.difference import describe_difference
from road_interp.recipes.loader import load_stored_recipe
from road_interp.recipes.schema import TrainableRecipe
from road_interp.runs.origin import Origin
from road_interp.runs.run import Run
from road_interp.runs.run_files import ADAPTER, CHECKPOINTS, ENVIRONMENT, HEAD, LOG, METRICS, ORIGIN, RECIPE, RUN_FORMAT


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run in training. With several processes the main process writes, and the others wait for it.

    Attributes:
        path: path of the folder.
        recipe: recipe of the run.
        device: device of the training.
        origin: where the run was started.
        resume: whether the folder holds the run already.
    """

    path: Path
    recipe: TrainableRecipe
    device: torch.device
    origin: Origin
    resume: bool = False

    @classmethod
    def prepare(cls, recipe: TrainableRecipe, out: str | Path | None, resume: bool, device: torch.device) -> RunFolder:
        """Check the run folder, by default the next free one under runs/, without writing anything.

        Raises:
            InputError: a folder that is not empty or, with `resume`, one without an unfinished run of the same recipe and data.
        """
        folder = next_free(Path("runs") / "run") if out is None else Path(out)
        check_writable(folder)
        if resume:
            if not (folder / RECIPE).is_file():
                raise InputError(f"'{folder}' holds no run to resume")
            check_unfinished(folder)
            if difference := describe_difference(load_stored_recipe(folder / RECIPE), recipe):
                raise InputError(f"the recipe differs from the one that '{folder}' was started with: {difference}")
        else:
            check_free(folder)
        is_stored = resume and (folder / ORIGIN).is_file()
        origin = Origin.load(folder / ORIGIN) if is_stored else Origin.here(recipe, folder)
        origin.check(folder)
        return cls(folder, recipe, device, origin, resume)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training in the folder during the `with` statement.

        The lock is on the folder of the checkpoints: a study holds that of the folder itself during the whole training.

        Raises:
            InputError: another process trains in the folder.
        """
        with ExitStack() as stack:
            if process_state(self.device).is_main_process:
                checkpoints = self.path / CHECKPOINTS
                checkpoints.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(locked(checkpoints, wait=False))
                    stack.callback(_remove_if_empty, checkpoints)
                except BlockingIOError:
                    message = f"'{self.path}' is being trained by another process; wait until it ends, or choose another --out"
                    raise InputError(message) from None
            yield

    def start(self, files: Mapping[str, Any]) -> None:
        """Create the folder, and write the recipe and the JSON files that exist before training.

        The recipe is written first, because a folder with a recipe is a run that can be resumed.

        Raises:
            InputError: another run has started in the folder since `prepare`, or the one to resume has finished.
        """
        process = process_state(self.device)
        process.wait_for_everyone()  # until all have checked that the folder is free
        if not process.is_main_process:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path.parent):  # a study holds the lock of the folder itself during the whole training
            (check_unfinished if self.resume else check_free)(self.path)
            for path in unfinished_writes(self.path):
                path.unlink(missing_ok=True)
            write_atomically(self.path / RECIPE, self.recipe.to_yaml())
            write_atomically(self.path / ORIGIN, self.origin.to_json())
            for name, content in files.items():
                write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")

    def finish(
        self,
        adapter: RoadAdapter,
        metrics: Mapping[str, Any],
        files: Mapping[str, bytes | str],
        log: Sequence[Mapping[str, Any]],
        precision: str,
    ) -> Run:
        """Write the results of training and return the run.

        metrics.json is written last, because a folder with metrics.json is a finished run.

        Args:
            files: contents of further files, by name.
            log: the entries of log.jsonl.
            precision: precision of the forward pass.
        """
        process = process_state(self.device)
        if process.is_main_process:
            head = files.get(HEAD)
            beside = digest(load_tensors(head)) if isinstance(head, bytes) else None
            replace(adapter, modules_to_save=beside).save(self.path / ADAPTER)
            contents = {
                **files,
                LOG: "".join(json.dumps(entry) + "\n" for entry in log),
                ENVIRONMENT: describe_environment(self.recipe.seed, self.device.type, precision),
                METRICS: json.dumps(metrics, indent=2) + "\n",
            }
            for name, content in contents.items():
                write_atomically(self.path / name, content)
            shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)
        process.wait_for_everyone()
        return Run.load(self.path)


def describe_environment(seed: int, device: str, precision: str) -> str:
    """The environment of a run as JSON text: versions, seed, device and precision."""
    content = {
        "format": RUN_FORMAT,
        "python": platform.python_version(),
        "versions": library_versions(),
        "seed": seed,
        "device": device,
        "precision": precision,
    }
    return json.dumps(content, indent=2) + "\n"


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def check_unfinished(folder: Path) -> None:
    """Raise InputError for a folder that holds a finished run."""
    if (folder / METRICS).is_file():
        raise InputError(f"the run in '{folder}' has finished; there is nothing to resume")


def check_free(folder: Path) -> None:
    """Raise InputError for a folder that holds more than what a run leaves that was killed before it wrote its recipe."""
    if not folder.is_dir():
        return
    left = {folder / ORIGIN, *unfinished_writes(folder)}
    if not any((folder / CHECKPOINTS).glob("*")):  # the trainer creates that folder
        left.add(folder / CHECKPOINTS)
    if not {*folder.iterdir()} <= left:
        is_unfinished = (folder / RECIPE).is_file() and not (folder / METRICS).is_file()
        hint = ", or go on with --resume (in Python resume=True)" if is_unfinished else ""
        raise InputError(f"'{folder}' is not empty; choose another --out{hint}")


def next_free(folder: Path) -> Path:
    """`folder`, or the first of `folder-2`, `folder-3`, ... that does not exist."""
    candidate, number = folder, 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate
