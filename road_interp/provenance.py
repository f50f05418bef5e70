"""What a result was made with: releases, commit, seeds, command."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

LIBRARIES = ("road-interp", "torch", "transformers", "pyvene", "accelerate", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Provenance:
    """Where the numbers of a result come from.

    Attributes:
        versions: releases by package.
        commit: of the checkout that ran; None for an installed package.
        command: the running command; of the program's path only the name.
        seeds: of what was trained or drawn; empty where nothing was.
    """

    versions: Mapping[str, str]
    commit: str | None
    command: str
    seeds: tuple[int, ...] = ()


def current_provenance(seeds: Sequence[int] = ()) -> Provenance:
    """The provenance of what this process makes."""
    return Provenance(library_versions(), _commit(), _command(), tuple(seeds))


def library_versions() -> dict[str, str]:
    """Installed releases by package."""
    return {name: metadata.version(name) for name in LIBRARIES}


def figure_metadata() -> dict[str, str]:
    """Command and releases as text, for the metadata of a PNG."""
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    return {"Command": _command(), "Versions": f"Python {platform.python_version()}, {versions}"}


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


@cache
def _commit() -> str | None:
    """The commit of the checkout that this package lies in."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
