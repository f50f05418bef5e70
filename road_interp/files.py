"""Reading and writing small files so that nothing is half-written and a bad file is named."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from road_interp.errors import InputError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Put `content` under `path` in one step: a reader sees the old file or the new one, also after a crash."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def locked(folder: Path, shared: bool = False) -> Iterator[None]:
    """Keep other processes that lock the folder waiting, for as long as the block lasts or the process lives.

    Those that share the lock wait for the others only. Where a file system has no locks nobody waits.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no lock on folders
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def check_folder(folder: Path) -> None:
    """Raise InputError where the folder, or one that it would lie in, is a file."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise InputError(f"'{path}' is a file, not a folder")


def as_tuples(value: Any) -> Any:
    """JSON's lists, at every depth, as the tuples of frozen results."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def read_text(path: Path) -> str:
    """The text in `path`. Raises InputError for a file that is missing or holds none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"'{path}' is not a text file") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises InputError for a missing file, invalid JSON, or another kind of value."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # also bytes that are no text, and numbers of too many digits
        raise InputError(f"{path.name} is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path.name} must hold one JSON object")
    return content
