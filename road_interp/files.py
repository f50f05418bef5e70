"""Small files: written atomically, and read with errors that name the file."""

from __future__ import annotations

import gzip
import json
import os
import re
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from road_interp.errors import InputError

UNFINISHED = ".tmp"
GZIP = ".gz"


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` atomically: a reader sees the old file or the new one, also after a crash.

    A path that ends in .gz gets it compressed, the same content as the same bytes.
    """
    payload = content.encode() if isinstance(content, str) else content
    if path.suffix == GZIP:
        payload = gzip.compress(payload, mtime=0)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The permissions that this process takes from new files. It can only be read by setting it."""
    current = os.umask(0o077)
    os.umask(current)
    return current


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file; False also for a name that no file can have, such as one that is too long."""
    return os.path.isfile(path)


def is_dir(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a folder; False as in `is_file`."""
    return os.path.isdir(path)


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a file or folder; False as in `is_file`."""
    return os.path.exists(path)


def path_and_split(identifier: str) -> tuple[str, str]:
    """The id, or the path with its "~" expanded, and the split of data: `reviews:test` has both, if no path is called so."""
    path = os.path.expanduser(identifier)
    if ":" not in path or exists(path):
        return path, ""
    name, _, split = path.rpartition(":")
    return name, split


def unfinished_writes(folder: Path) -> list[Path]:
    """The temporary files in a folder that `write_atomically` leaves when its process is killed."""
    return list(folder.glob(f".*{UNFINISHED}"))


@contextmanager
def locked(folder: Path, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold a lock on the folder for the `with` statement. Other processes wait; the lock ends with the process.

    Shared locks exclude only exclusive ones. A file system without locks is used without waiting. Raises BlockingIOError, instead
    of waiting without `wait`, if another holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no lock on folders
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def check_folder(folder: Path) -> None:
    """Raise InputError if the folder or one of its parents is a file, or has a name that the file system does not allow."""
    for path in (folder, *folder.parents):
        try:
            is_there = path.exists()
        except OSError as error:
            raise InputError(f"'{path}' cannot be a folder ({error.strerror})") from None
        if is_there and not path.is_dir():
            raise InputError(f"'{path}' is a file, not a folder")
        if not is_there and path.is_symlink():
            raise InputError(f"'{path}' is a link to '{path.readlink()}', which does not exist")


def check_writable(folder: Path) -> None:
    """Raise InputError as `check_folder`, and where the process may not write into the folder, or make it."""
    check_folder(folder)
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"no file can be written in '{there}': the process has no permission")


def read_text(path: Path) -> str:
    """The text in `path`, without a byte order mark; that of a path that ends in .gz is decompressed.

    Raises InputError for a file that cannot be read, is damaged or is not UTF-8.
    """
    opened = gzip.open if path.suffix == GZIP else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            return str(file.read())
    except FileNotFoundError:
        raise InputError(f"'{path}' does not exist") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"'{path}' is not a whole gzip file ({error})") from None
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"'{path}' is not a text file") from None


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises ValueError for text that is not valid JSON or is nested too deeply, a key that is given twice, or a number with too
    many digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def parse_json_values(text: str) -> Iterator[Any]:
    """The values of JSON texts one behind another, such as lines of objects. Raises ValueError as `parse_json` does."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique_keys)
    spaces = re.compile(r"[ \t\r\n]*")
    end = 0
    while (start := spaces.match(text, end).end()) < len(text):  # type: ignore[union-attr]
        try:
            value, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{error}, in the value that begins in line {len(text[:start].splitlines()) + 1}") from None
        yield value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key '{key}' is given twice")
        found[key] = value
    return found


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises InputError for a file that cannot be read, invalid JSON, or another kind of value."""
    text = read_text(path)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise InputError(f"{path.name} is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path.name} must hold one JSON object")
    return content
