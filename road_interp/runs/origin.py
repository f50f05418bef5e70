"""Where a run was started, and the data files that it read: so that it is scored on the same data from any directory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from road_interp.errors import InputError
from road_interp.files import exists, is_dir, is_file, read_json_object
from road_interp.from_mapping import from_mapping
from road_interp.recipes.paths import data_ids, leads_from, with_paths
from road_interp.recipes.schema import TrainableRecipe
from road_interp.sources import is_here, resolve

AnyRecipe = TypeVar("AnyRecipe", bound=TrainableRecipe)


@dataclass(frozen=True)
class Origin:
    """The start of a run.

    Attributes:
        directory: the working directory, from which relative paths of the recipe lead to model and data; empty on the Hub, where
            they lead from that of the reader.
        files: the sha256 of every data file, and of the names and contents in every data folder, by its id in the recipe; data
            sets of the Hub are left out.
        from_run: the path of `directory` from the run folder, which leads to data that have moved together with it; None in
            older runs, and on another drive.
    """

    directory: str
    files: Mapping[str, str]
    from_run: str | None = None

    @classmethod
    def here(cls, recipe: TrainableRecipe, folder: Path) -> Origin:
        """The origin of a run that starts in the working directory and is written to `folder`."""
        hashes = {each: data_digest(each) for each in data_ids(recipe)}
        files = {name: digest for name, digest in hashes.items() if digest is not None}
        try:
            from_run = os.path.relpath(Path.cwd(), folder.resolve())
        except ValueError:
            from_run = None
        return cls(str(Path.cwd()), files, from_run)

    @classmethod
    def load(cls, path: Path) -> Origin:
        """The origin in a file. Raises InputError that names file and key."""
        try:
            return from_mapping(cls, read_json_object(path))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def without_directory(self) -> Origin:
        """The hashes alone, for the Hub: a file of the same name on another machine is not taken for the data."""
        return replace(self, directory="", from_run=None)

    def to_json(self) -> str:
        """The content of the file that `load` reads."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def located(self, recipe: AnyRecipe, folder: Path) -> AnyRecipe:
        """The recipe with the paths that lead from the working directory to model and data of the run, which is in `folder`."""
        return with_paths(recipe, lambda identifier: self._located(identifier, folder))

    def check(self, folder: Path) -> None:
        """Raise InputError for a data file whose content has changed; a missing one is reported where it is read.

        Args:
            folder: where the run is now.
        """
        for name, expected in self.files.items():
            if data_digest(self._located(name, folder)) not in (None, expected):
                hint = "restore it, train again, or score other data (--data)"
                raise InputError(f"data file '{name}' has changed since the run was started: {hint}")

    def _located(self, identifier: str, folder: Path) -> str:
        """The path to what a relative one led to from the directory of the start; else `identifier` itself."""
        directories = [Path(self.directory)]
        if self.from_run is not None:
            directories.append(Path(os.path.normpath(folder.resolve() / self.from_run)))
        for directory in directories:
            if leads_from(directory, identifier):
                return identifier if directory == Path.cwd() else str(directory / identifier)
        return identifier


def data_digest(identifier: str) -> str | None:
    """The hash of a local data file, or of names and contents of the files of a local folder; None for anything else.

    "folder:split" has the hash of the folder, so that any changed split of it is seen.
    """
    if leads_from(Path(), path := os.path.expanduser(identifier)) and not exists(path):
        identifier = path.partition(":")[0]
    folder = Path(os.path.expanduser(resolve(identifier))) if is_here(identifier) else None
    if folder is None or not is_dir(folder):
        return sha256_of(identifier)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    contents = [(path.relative_to(folder).as_posix(), sha256_of(str(path))) for path in files]
    return hashlib.sha256(repr(contents).encode()).hexdigest()


def sha256_of(identifier: str) -> str | None:
    """The hash of a local data file; None for anything else."""
    if is_here(identifier) and is_file(path := Path(os.path.expanduser(resolve(identifier)))):
        digest = hashlib.sha256()
        with suppress(OSError), path.open("rb") as file:
            for block in iter(lambda: file.read(2**20), b""):
                digest.update(block)
            return digest.hexdigest()
    return None
