"""MANIFEST.json of a results folder: settings hash, commit, command, versions, precision, seconds and sha256 of every file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from road_interp.files import locked, read_json_object, write_atomically
from road_interp.results import Result

MANIFEST = "MANIFEST.json"


def record(results: Path, path: Path, result: Result, seconds: float, precision: str | None = None) -> None:
    """Add an entry for the new file `path` in the folder `results`; a lock orders concurrent processes.

    Args:
        seconds: duration of the measurement.
        precision: of the forward pass, where something was trained by a recipe.
    """
    assert result.provenance is not None
    provenance = result.provenance
    entry = {
        "settings": provenance.settings,
        "commit": provenance.commit,
        "command": provenance.command,
        "versions": dict(provenance.versions),
        **({} if precision is None else {"precision": precision}),
        "seconds": round(seconds, 1),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    with locked(results):
        manifest = results / MANIFEST
        content = read_json_object(manifest) if manifest.is_file() else {}
        content[path.relative_to(results).as_posix()] = entry
        write_atomically(manifest, json.dumps(dict(sorted(content.items())), indent=1) + "\n")
