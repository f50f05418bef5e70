"""Provenance of a result: versions, commit, seeds, command."""

from __future__ import annotations

import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path

LIBRARIES = ("road-interp", "torch", "transformers", "pyvene", "accelerate", "numpy", "scikit-learn")

_version = cache(metadata.version)


@dataclass(frozen=True)
class Provenance:
    """How the numbers of a result were made.

    Attributes:
        versions: installed version by package.
        commit: hash of the checkout; None for an installed package.
        command: name and arguments of the program; of an absolute path only the last part.
        seeds: seeds of training and sampling; empty without either.
        settings: hash of recipe and overrides of a study's condition; empty elsewhere.
        inputs: the beginning of the sha256 of every data file that a study was given, by setting and file, and of a local model.
    """

    versions: Mapping[str, str]
    commit: str | None
    command: str
    seeds: tuple[int, ...] = ()
    settings: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)


def current_provenance(seeds: Sequence[int] = (), settings: str = "", inputs: Mapping[str, str] | None = None) -> Provenance:
    """The provenance of a result of this process."""
    return Provenance(library_versions(), COMMIT, _command(), tuple(seeds), settings, inputs or {})


def library_versions() -> dict[str, str]:
    """Installed version by package."""
    return {name: _version(name) for name in LIBRARIES}


def figure_metadata() -> dict[str, str]:
    """Command and versions as text, for the metadata of a PNG."""
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    return {"Command": _command(), "Versions": f"Python {platform.python_version()}, {versions}"}


def _command() -> str:
    """The command; of an absolute path, which is one machine's, only the last part."""
    arguments = [re.sub(r"(^|=)(?=/)([^=]*)$", lambda found: found[1] + Path(found[2]).name, each) for each in sys.argv[1:]]
    return shlex.join([Path(sys.argv[0]).name, *arguments])


def _commit(root: Path) -> str | None:
    """The commit of the checkout in `root`, read from the files of git without running a program."""
    git = root / ".git"
    try:
        if git.is_file():  # a worktree: its files are in the main checkout
            git = root / git.read_text().removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        branch = head.removeprefix("ref: ")
        shared = git / (git / "commondir").read_text().strip() if (git / "commondir").is_file() else git
        if (shared / branch).is_file():
            return (shared / branch).read_text().strip()
        packed = (line.split() for line in (shared / "packed-refs").read_text().splitlines())
        return next((words[0] for words in packed if words[1:] == [branch]), None)
    except OSError:
        return None


COMMIT = _commit(Path(__file__).parents[1])  # of the code that runs: a checkout may change while a study measures for days
