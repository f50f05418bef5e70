"""Which data and which model on this machine a piece of a study was measured with."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from road_interp.errors import InputError
from road_interp.recipes.paths import data_ids
from road_interp.runs.digests import DIGITS, data_digest, model_digest
from road_interp.sources import PACKAGE

Inputs = Mapping[str, Callable[[Any], Sequence[Path]]]  # by setting, the files that a piece with a recipe reads


def digests(recipe: Any, inputs: Inputs) -> dict[str, str]:
    """The beginning of the sha256 of every file that a piece reads, by setting and file; none for settings without a path.

    Data files and folders of a recipe are those of the setting "data"; a package fixes the content of its own. Of several with
    one name, in different folders, the second is "NAME 2". A model that is a local file or folder has one hash, of the setting
    "model".

    Raises:
        InputError: a file cannot be read.
    """
    given = {name: files(recipe) for name, files in inputs.items() if getattr(recipe, name) is not None}
    found = {f"{name}/{path.name}": _digest(path) for name, paths in given.items() for path in paths}
    names = Counter[str]()
    for each in dict.fromkeys(data_ids(recipe)):
        if not each.startswith(PACKAGE) and (digest := data_digest(each)) is not None:
            names[name := f"data/{Path(each).name}"] += 1
            found[name if names[name] == 1 else f"{name} {names[name]}"] = digest[:DIGITS]
    model = getattr(recipe, "model", None)  # an id, or the section that holds it
    identity = getattr(model, "id", model)
    if identity is not None and (digest := model_digest(identity)) is not None:
        found[f"model/{Path(identity).name}"] = digest
    return found


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS]
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror})") from None


def check_digests(measured: Mapping[str, str], given: Mapping[str, str], path: Path) -> None:
    """Raise InputError if a file of today differs from the one that the piece at `path` was measured with.

    A file that was renamed is the one with its content among those of its setting.
    """
    for name, digest in given.items():
        same_setting = {one: each for one, each in measured.items() if one.partition("/")[0] == name.partition("/")[0]}
        known = [same_setting[name]] if name in same_setting else list(same_setting.values())
        if known and digest not in known:
            raise InputError(f"'{path}' was measured with another {name}; choose another --results")
