"""MANIFEST.json of a results folder: what a file cannot say of itself, its precision of training, seconds and sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from road_interp.errors import InputError
from road_interp.files import locked, read_json_object, write_atomically

MANIFEST = "MANIFEST.json"


def record(results: Path, path: Path, seconds: float, precision: str | None = None) -> None:
    """Add an entry for the new file `path` in the folder `results`; a lock orders concurrent processes.

    Args:
        seconds: duration of the measurement.
        precision: of the forward pass, where something was trained by a recipe.
    """
    entry = {
        **({} if precision is None else {"precision": precision}),
        "seconds": round(seconds, 1),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    with locked(results):
        content = read_manifest(results)
        content[path.relative_to(results).as_posix()] = entry
        write_atomically(results / MANIFEST, as_text(content))


def as_text(content: Mapping[str, Any]) -> str:
    """The manifest as JSON with a line per file, sorted."""
    lines = (f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(content.items()))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_manifest(results: Path) -> dict[str, Any]:
    """The entries by file; empty without a manifest. Raises InputError for one that is damaged, as by a conflict of git."""
    path = results / MANIFEST
    try:
        return read_json_object(path) if path.is_file() else {}
    except InputError as error:
        raise InputError(f"'{results}': {error}") from None
