"""What a result was made with."""

from __future__ import annotations

import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path

LIBRARIES = ("road-interp", "torch", "transformers", "pyvene", "accelerate", "numpy", "scikit-learn")


def library_versions() -> dict[str, str]:
    """Installed versions by package."""
    return {name: metadata.version(name) for name in LIBRARIES}


def origin() -> dict[str, str]:
    """The running command and the versions, as text; of the program's path only the name."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    return {"Command": command, "Versions": f"Python {platform.python_version()}, {versions}"}
