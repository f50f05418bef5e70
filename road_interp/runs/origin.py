"""Where a run was started, and the model and data files that it read: it is scored with the same ones from any directory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from road_interp.errors import InputError
from road_interp.files import read_json_object
from road_interp.from_mapping import from_mapping
from road_interp.recipes.paths import data_ids, leads_from, with_paths
from road_interp.recipes.schema import TrainableRecipe
from road_interp.runs.digests import data_digest, model_digest

AnyRecipe = TypeVar("AnyRecipe", bound=TrainableRecipe)


@dataclass(frozen=True)
class Origin:
    """The start of a run.

    Attributes:
        directory: the working directory, from which relative paths of the recipe lead to model and data; empty on the Hub, where
            they lead from that of the reader.
        files: the sha256 of every data file, and of the names and contents in every data folder, by its id in the recipe; data
            sets of the Hub are left out.
        models: the hash of the files of the base model by its id, where that is a local file or folder.
        from_run: the path of `directory` from the run folder, which leads to data that have moved together with it; None in
            older runs, and on another drive.
    """

    directory: str
    files: Mapping[str, str]
    from_run: str | None = None
    models: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls, recipe: TrainableRecipe, folder: Path) -> Origin:
        """The origin of a run that starts in the working directory and is written to `folder`."""
        files = {each: digest for each in data_ids(recipe) if (digest := data_digest(each)) is not None}
        models = {each: digest for each in (recipe.model.id,) if (digest := model_digest(each)) is not None}
        try:
            from_run = os.path.relpath(Path.cwd(), folder.resolve())
        except ValueError:
            from_run = None
        return cls(str(Path.cwd()), files, from_run, models)

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
        """Raise InputError for a data file, or a base model, that has changed; a missing one is reported where it is read.

        Args:
            folder: where the run is now.
        """
        if changed := self._changed(self.files, data_digest, folder):
            hint = "restore it, train again, or score other data (--data)"
            raise InputError(f"data file '{changed}' has changed since the run was started: {hint}")
        self.check_model(folder)

    def check_model(self, folder: Path) -> None:
        """Raise InputError for a base model whose files have changed; as `check`."""
        if changed := self._changed(self.models, model_digest, folder):
            hint = "restore them, or train again; RoadModel(model, run.adapter) rotates another model"
            raise InputError(f"the files of the base model '{changed}' have changed since the run was started: {hint}")

    def _changed(self, known: Mapping[str, str], digest: Callable[[str], str | None], folder: Path) -> str | None:
        """The path of the first of these files that are there with another content; None if there is none."""
        now = {name: self._located(name, folder) for name in known}
        return next((now[name] for name, expected in known.items() if digest(now[name]) not in (None, expected)), None)

    def _located(self, identifier: str, folder: Path) -> str:
        """The path to what a relative one led to from the directory of the start; else `identifier` itself.

        Where that directory and the one beside the moved run both have it, the first with the content that the run has read.
        """
        directories = [Path(self.directory)]
        if self.from_run is not None:
            directories.append(Path(os.path.normpath(folder.resolve() / self.from_run)))
        paths = [
            identifier if directory == Path.cwd() else str(directory / identifier)
            for directory in dict.fromkeys(directories)
            if leads_from(directory, identifier)
        ]
        unchanged = [path for path in paths if self._is_unchanged(identifier, path)] if len(paths) > 1 else []
        return (unchanged or paths or [identifier])[0]

    def _is_unchanged(self, identifier: str, path: str) -> bool:
        """Whether a path leads to the content that the run has read under this id."""
        expected = (self.files.get(identifier), data_digest), (self.models.get(identifier), model_digest)
        return any(known is not None and digest(path) == known for known, digest in expected)
