"""Hashes of data files and of the files of a model, which tell whether they have changed."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from road_interp.files import exists, is_dir, is_file, path_and_split
from road_interp.recipes.paths import leads_from
from road_interp.recipes.schema import glue_name
from road_interp.sources import is_here, resolve

DIGITS = 16  # of a sha256, where the beginning of one is kept


def data_digest(identifier: str) -> str | None:
    """The hash of a local data file, or of names and contents of the files of a local folder; None for anything else.

    "folder:split" has the hash of the folder, so that any changed split of it is seen.
    """
    if glue_name(identifier) is not None:
        return None
    if leads_from(Path(), os.path.expanduser(identifier)):
        identifier, _ = path_and_split(identifier)
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


def model_files(identity: str) -> tuple[tuple[str, int, int], ...]:
    """Name, size and modification time of the files of a model that is a local file or folder.

    Subfolders and hidden files are not a model's. Empty for a model of a package, of `models://` or of the Hub, whose content its
    id fixes.
    """
    root = Path(os.path.expanduser(identity))
    if not exists(root):
        return ()
    paths = root.iterdir() if is_dir(root) else (root,)
    files = sorted(path for path in paths if path.is_file() and not path.name.startswith("."))
    return tuple((str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def model_digest(identity: str) -> str | None:
    """The beginning of a hash of the names and contents of `model_files`; None without any."""
    files = model_files(identity)
    return _digest_of_files(Path(identity), files) if files else None


@cache
def _digest_of_files(root: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    """Sizes and times of `files` let unchanged ones be read once only."""
    contents = [(name, sha256_of(str(root / name))) for name, *_ in files]
    return hashlib.sha256(repr(contents).encode()).hexdigest()[:DIGITS]
