"""MANIFEST.json of results: for every file the settings, commit, command and releases that made it, seconds and sha256."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from road_interp.files import locked, read_json_object, write_atomically
from road_interp.results import Result

MANIFEST = "MANIFEST.json"


def record(results: Path, path: Path, result: Result, seconds: float) -> None:
    """Note a file that was just written below the folder `results`; processes that note at the same time wait for each other.

    Args:
        seconds: that measuring took.
    """
    assert result.provenance is not None
    made = result.provenance
    entry = {
        "settings": made.settings,
        "commit": made.commit,
        "command": made.command,
        "versions": dict(made.versions),
        "seconds": round(seconds, 1),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    with locked(results):
        manifest = results / MANIFEST
        content = read_json_object(manifest) if manifest.is_file() else {}
        content[path.relative_to(results).as_posix()] = entry
        write_atomically(manifest, json.dumps(dict(sorted(content.items())), indent=1) + "\n")
