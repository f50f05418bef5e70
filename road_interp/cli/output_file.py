"""The path of what a command writes."""

from __future__ import annotations

from pathlib import Path

from road_interp.errors import InputError


def check_output_file(path: Path, option: str) -> None:
    """Raise InputError, which names the option, if no file can be written to `path`. Call this before long computations."""
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise InputError(f"{option}: '{path}' cannot be written ({error.strerror})") from None
    if is_folder:
        raise InputError(f"{option}: '{path}' is a folder")
    if not path.parent.is_dir():
        raise InputError(f"{option}: the folder '{path.parent}' does not exist")


def default_output(folder: Path, out: Path) -> Path:
    """The default path of what a command writes. Raises InputError where it is inside the folder that the command reads."""
    if out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"'{out}' would be inside the folder that is read: say where to write with --out")
    return out
