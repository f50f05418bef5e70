"""The version of a file's format, which is checked before anything else in the file."""

from __future__ import annotations

from typing import Any

from road_interp.errors import InputError


def check_format(number: Any, known: int, release: Any = None) -> None:
    """Raise InputError for another version of a format than the known one; for a newer one it says what to install.

    Args:
        number: of the file.
        release: of road-interp that wrote the file, where the file says so.
    """
    if type(number) is int and number > known:
        needed = f"'road-interp>={release}'" if isinstance(release, str) else "--upgrade road-interp"
        raise InputError(f"format {number} is newer than this release of road-interp, which reads {known}: pip install {needed}")
    if type(number) is not int or number != known:
        raise InputError(f"format {number!r} is not supported, only {known}")


def release_of(content: Any) -> Any:
    """The release of road-interp among the `versions` of a JSON object; None without one."""
    versions = content.get("versions") if isinstance(content, dict) else None
    return versions.get("road-interp") if isinstance(versions, dict) else None
