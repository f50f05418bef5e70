"""The path of what a command writes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from road_interp.adapters.file_names import DESCRIPTION, RUN_ADAPTER, RUN_RECIPE
from road_interp.errors import InputError
from road_interp.files import check_writable, is_file, path_and_split


def check_output_file(path: Path, option: str, read: Iterable[str] = ()) -> None:
    """Raise InputError, which names the option, if no file can be written to `path`. Call this before long computations.

    Args:
        read: files that the command reads, or folders of such files, also with a split behind ":", that `path` must not replace;
            other ids are ignored.
    """
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise InputError(f"{option}: '{path}' cannot be written ({error.strerror})") from None
    if is_folder:
        raise InputError(f"{option}: '{path}' is a folder")
    if path.is_symlink():
        raise InputError(f"{option}: '{path}' is a link, which would be replaced: give the path that it leads to")
    if path.exists() and not path.is_file():
        raise InputError(f"{option}: '{path}' is no regular file, and would be replaced by one")
    if not path.parent.is_dir():
        raise InputError(f"{option}: the folder '{path.parent}' does not exist")
    check_writable(path.parent)
    there = [name for name, _ in map(path_and_split, read) if os.path.exists(name)]
    if path.is_file() and any(path.samefile(each) or path.resolve().parent.samefile(each) for each in there):
        raise InputError(f"{option}: '{path}' is the file that is read, or one of them; choose another name")


def check_figure_folder(folder: Path) -> None:
    """Raise InputError if a folder cannot hold figures, or holds a run or an adapter, whose files have such names."""
    check_writable(folder)
    if any(is_file(folder / name) for name in (RUN_RECIPE, DESCRIPTION)):
        raise InputError(f"--out: '{folder}' holds a run or an adapter, whose files figures would replace: choose another folder")


def name_of(folder: Path) -> str:
    """The name of a folder for what is written about it; with that of its parent for the run of one seed, `NAME-seed-0`, and
    for the adapter of a run, `NAME-adapter`."""
    resolved = folder.resolve()
    is_of_run = resolved.name == RUN_ADAPTER and is_file(resolved.parent / RUN_RECIPE)
    is_part = is_of_run or resolved.name.startswith("seed-")
    return f"{name_of(resolved.parent)}-{resolved.name}" if is_part else resolved.name


def default_output(folder: Path, out: Path) -> Path:
    """The default path of what a command writes. Raises InputError where it is inside the folder that the command reads."""
    if out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"'{out}' would be inside the folder that is read: say where to write with --out")
    return out
