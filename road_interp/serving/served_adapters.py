"""ServedAdapters: the adapters in the subfolders of a folder, which may come and go while a server runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from road_interp.adapters.bank import RoadBank
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.storage import holds_adapter
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.errors import InputError
from road_interp.models.compatibility import check_made_for, other_weights_beside
from road_interp.runs.digests import model_digest
from road_interp.runs.run import Run
from road_interp.runs.run_files import METRICS
from road_interp.sources import is_here, resolve

log = logging.getLogger(__name__)


class ServedAdapters:
    """Adapter folders, run folders and PEFT folders directly inside a folder, under the names of their folders.

    Args:
        folder: the folder.
        base: the base model, for PEFT folders.
        model_id: its id. A run that was trained on another model is served with a warning.

    Attributes:
        bank: the adapters.
        planes: the planes of the tasks of the runs with tasks that were there at first; None without one.
        with_tasks: the names of the adapters that were trained with these tasks.

    Raises:
        InputError: no adapter in the folder, one that cannot be read or does not fit the others, or runs with different tasks.
    """

    def __init__(self, folder: Path, base: Any, model_id: str) -> None:
        self._folder, self._base, self._model_id = folder, base, model_id
        check_adapters(folder)
        self._stamps = _read_stamps(folder)
        loaded = {name: self._load(name) for name in self._stamps}
        with_tasks = {name: planes for name, (_, planes) in loaded.items() if planes is not None}
        self.planes = next(iter(with_tasks.values()), None)
        for name, planes in with_tasks.items():
            self._check_planes(name, planes)
        self.with_tasks = set(with_tasks)
        self.bank = RoadBank({name: adapter for name, (adapter, _) in loaded.items()})
        self._without_folder: str | None = None

    def changed(self) -> dict[str, tuple[RoadAdapter, TaskPlanes | None]]:
        """Read the adapters that have come or changed since the last call. One that cannot be read is logged, and is read again
        when its files change; behind an unexpected error, at the next call."""
        before, self._stamps = self._stamps, _read_stamps(self._folder)
        loaded = {}
        for name, stamp in self._stamps.items():
            if before.get(name) != stamp:
                try:
                    adapter, planes = self._load(name)
                    self._check_planes(name, planes)
                    loaded[name] = adapter, planes
                except (InputError, OSError) as error:
                    log.error("adapter '%s' is not served as it is now: %s", name, error)
                except Exception:
                    log.exception("adapter '%s' is not served as it is now, and is read again", name)
                    self._stamps[name] = ()
        return loaded

    def update(self, loaded: Mapping[str, tuple[RoadAdapter, TaskPlanes | None]]) -> None:
        """Put adapters into the bank, and remove those whose folders are gone. One that does not fit the others is logged."""
        for name, (adapter, planes) in loaded.items():
            try:
                (self.bank.replace if name in self.bank else self.bank.add)(name, adapter)
                (self.with_tasks.discard if planes is None else self.with_tasks.add)(name)
            except InputError as error:
                log.error("adapter '%s' is not served as it is now: %s", name, error)
        for name in [name for name in self.bank if name not in self._stamps]:
            if len(self.bank) > 1:
                self.bank.remove(name)
                self.with_tasks.discard(name)
            elif self._without_folder != name:
                log.error(
                    "adapter '%s' stays served without its folder, as it is the last one: stop the server, or add others", name
                )
                self._without_folder = name
        if self._without_folder in self._stamps:
            self._without_folder = None

    def _load(self, name: str) -> tuple[RoadAdapter, TaskPlanes | None]:
        path, planes, trained_on = self._folder / name, None, self._model_id
        if (path / METRICS).is_file():
            run = Run.load(path)
            adapter, planes, trained_on = run.adapter, run.planes, run.recipe.model.id
        else:
            adapter = RoadAdapter.load(path, self._base)
        check_made_for(self._base, adapter, f"adapter '{name}' was made")
        if difference := other_weights_beside(self._base, path):
            raise InputError(f"{difference}, and can be saved as a model to serve")
        if not _is_same_model(trained_on, self._model_id):
            log.warning("run '%s' was trained on '%s' and is served on other files, '%s'", name, trained_on, self._model_id)
        return adapter, planes

    def _check_planes(self, name: str, planes: TaskPlanes | None) -> None:
        if planes is not None and (self.planes is None or self.planes.to_json() != planes.to_json()):
            raise InputError(f"the tasks of '{name}' own other planes than those that are served")


def _is_same_model(one: str, other: str) -> bool:
    """Whether two ids are equal, or lead to equal files: one file, or folders of files with equal names and contents."""
    paths = [resolve(each) for each in (one, other) if is_here(each)]
    if one == other or len(paths) < 2:
        return one == other
    first, second = map(model_digest, paths)
    return first is not None and first == second


def check_adapters(folder: Path) -> None:
    """Raise InputError for a folder that does not exist, or that holds no adapter."""
    if not folder.is_dir():
        raise InputError(f"the folder of adapters '{folder}' does not exist")
    if not _read_stamps(folder):
        raise InputError(f"'{folder}' contains no adapter folders, run folders or PEFT folders")


def _read_stamps(folder: Path) -> dict[str, tuple[tuple[str, int, int], ...]]:
    """For every adapter, the names, times and sizes of its files. Folders that vanish meanwhile are left out."""
    stamps = {}
    for path in sorted(folder.iterdir() if folder.is_dir() else []):
        try:
            if not path.name.startswith(".") and (holds_adapter(path) or (path / METRICS).is_file()):
                stamps[path.name] = _stamp(path)
        except OSError as error:
            log.warning("'%s' is left out: %s", path, error)
    return stamps


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of the files of an adapter, without those that are removed meanwhile, as by `save`."""
    found = []
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".json", ".safetensors"):
            with suppress(FileNotFoundError):
                status = file.stat()
                found.append((file.name, status.st_mtime_ns, status.st_size))
    return tuple(found)
