"""adapter.json and the safetensors file that it names: written whole, read with every key checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from road_interp.adapters.base_model import Fingerprint
from road_interp.errors import InputError
from road_interp.sites.site import Part, Site

FORMAT = 1


DESCRIPTION = "adapter.json"


def _named_tensor_file(folder: Path) -> Path | None:
    """The tensor file that an existing description names, if there is one."""
    try:
        return folder / _tensor_file_name(json.loads((folder / DESCRIPTION).read_text())["tensors"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tensor_file_name(name: Any) -> str:
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
        raise InputError(f"{DESCRIPTION}: 'tensors' must name a safetensors file of this folder, not {name!r}")
    return name


def _read_tensors(folder: Path, name: Any, digest: Any) -> dict[str, Tensor]:
    path = folder / _tensor_file_name(name)
    try:
        payload = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{name} is missing") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror})") from None
    try:
        tensors = load_tensors(payload)
    except SafetensorError as error:
        raise InputError(f"{name} is not a readable safetensors file ({error})") from None
    if hashlib.sha256(payload).hexdigest() != digest:
        _report_not_finite(name, tensors)
        raise InputError(f"{name} was changed after it was saved: its content does not match the sha256 in {DESCRIPTION}")
    return tensors


def _report_not_finite(file: str, tensors: Mapping[str, Tensor]) -> None:
    """A damaged value is the more useful message than a damaged checksum."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            site, _, kind = name.rpartition(".")
            raise InputError(f"{file}: site '{site}': {kind} holds a value that is not finite")


def _site_from_json(number: int, item: Any) -> Site:
    where = f"{DESCRIPTION}: site {number}"
    if not isinstance(item, dict):
        raise InputError(f"{where} must be an object")
    _check_keys(item, {"name", "width", "layer", "kind", "part"}, where)
    _check_type(where, item, "name", str)
    _check_type(where, item, "width", int)
    _check_type(where, item, "kind", str)
    if item["layer"] is not None:
        _check_type(where, item, "layer", int)
    part = None
    if item["part"] is not None:
        if not isinstance(item["part"], dict):
            raise InputError(f"{where}: 'part' must be an object")
        _check_keys(item["part"], {"period", "start", "stop"}, f"{where}: part")
        for key in ("period", "start", "stop"):
            _check_type(f"{where}: part", item["part"], key, int)
        part = Part(**item["part"])
    return Site(item["name"], item["width"], item["layer"], item["kind"], part)


def _base_from_json(item: Any) -> Fingerprint:
    where = f"{DESCRIPTION}: base"
    if not isinstance(item, dict):
        raise InputError(f"{where} must be an object")
    _check_keys(item, {"name", "model_type", "hidden_size", "num_hidden_layers"}, where)
    for key in ("name", "model_type"):
        _check_type(where, item, key, str)
    for key in ("hidden_size", "num_hidden_layers"):
        if item[key] is not None:
            _check_type(where, item, key, int)
    return Fingerprint(**item)


def _check_type(where: str, item: dict[str, Any], key: str, kind: type) -> None:
    if not isinstance(item[key], kind) or isinstance(item[key], bool):
        raise InputError(f"{where}: '{key}' must be {'text' if kind is str else 'a whole number'}, not {item[key]!r}")


def _check_keys(item: dict[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(set(item) - known):
        raise InputError(f"{where}: unknown key '{unknown[0]}'; known are {', '.join(sorted(known))}")
    if missing := sorted(known - set(item)):
        raise InputError(f"{where}: key '{missing[0]}' is missing")
