"""AdapterFolder: the adapters in the subfolders of a folder, which may come and go while a server runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from road_interp.adapters import peft_format
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.storage import DESCRIPTION
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.errors import InputError
from road_interp.runs.run import Run
from road_interp.runs.run_files import METRICS

log = logging.getLogger(__name__)
Change = Callable[[RoadBank], None]


class AdapterFolder:
    """Adapter folders, run folders and PEFT folders directly inside a folder, under the names of their folders.

    Args:
        folder: the folder.
        base: the base model, for PEFT folders.

    Attributes:
        planes: the planes of the tasks of the first run folder that has tasks; None without one.

    Raises:
        InputError: no adapter in the folder, one that cannot be read, or runs with different tasks.
    """

    def __init__(self, folder: Path, base: Any) -> None:
        self._folder, self._base = folder, base
        self._read = self._stamps()
        if not self._read:
            raise InputError(f"'{folder}' contains no adapter folders, run folders or PEFT folders")
        self.planes: TaskPlanes | None = None
        self._adapters = {name: self._load(name) for name in self._read}

    def bank(self) -> RoadBank:
        """A bank of the adapters that were found at first."""
        return RoadBank(self._adapters)

    def changes(self) -> list[Change]:
        """What has changed in the folder since the last call, as functions that change a bank.

        A folder that cannot be read is logged and tried again when it changes.
        """
        before, self._read = self._read, self._stamps()
        changes = [_removal(name) for name in sorted(before.keys() - self._read.keys())]
        for name, stamp in self._read.items():
            if before.get(name) != stamp:
                try:
                    changes.append(_arrival(name, self._load(name)))
                except InputError as error:
                    log.error("adapter '%s' is not served: %s", name, error)
        return changes

    def _stamps(self) -> dict[str, tuple[tuple[str, int, int], ...]]:
        """For every adapter, the names, times and sizes of its files."""
        stamps = {}
        for path in sorted(self._folder.iterdir() if self._folder.is_dir() else []):
            if not path.name.startswith(".") and any(
                (path / name).is_file() for name in (DESCRIPTION, METRICS, peft_format.CONFIG)
            ):
                files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in (".json", ".safetensors"))
                stamps[path.name] = tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
        return stamps

    def _load(self, name: str) -> RoadAdapter:
        path = self._folder / name
        if (path / peft_format.CONFIG).is_file():
            return RoadAdapter.from_peft(path, base=self._base)
        if not (path / METRICS).is_file():
            return RoadAdapter.load(path)
        run = Run.load(path)
        if run.planes is not None:
            if self.planes is not None and self.planes.to_json() != run.planes.to_json():
                raise InputError(f"the tasks of '{name}' own other planes than those of the runs before it")
            self.planes = run.planes
        return run.adapter


def _arrival(name: str, adapter: RoadAdapter) -> Change:
    return lambda bank: bank.replace(name, adapter) if name in bank else bank.add(name, adapter)


def _removal(name: str) -> Change:
    return lambda bank: bank.remove(name) if name in bank else None
