"""The files of an adapter, adapter.json and a safetensors file: atomic writing, and reading with validation of every key."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from road_interp.adapters.base_model import BaseModelSignature
from road_interp.adapters.file_names import DESCRIPTION, PEFT_DESCRIPTION, RUN_ADAPTER, RUN_HEAD, RUN_RECIPE
from road_interp.adapters.modules_to_save import digest, read_safetensors
from road_interp.errors import InputError
from road_interp.files import is_dir, is_file, locked, read_json_object, write_atomically
from road_interp.formats import check_format
from road_interp.rotation.plane_maps import Variant
from road_interp.sites.site import OutputSlice, Site
from road_interp.yaml_text import read_yaml_mapping

FORMAT = 1
KEYS = {"format", "release", "variant", "group_size", "sites", "tensors", "sha256", "base", "positions", "modules_to_save"}


class AdapterValues(NamedTuple):
    """The values that the files of an adapter store: the arguments of `RoadAdapter`, in their order."""

    sites: tuple[Site, ...]
    theta: Mapping[str, Tensor]
    alpha: Mapping[str, Tensor]
    variant: Variant
    group_size: int
    base: BaseModelSignature | None = None
    positions: str = "all"
    modules_to_save: str | None = None


def holds_adapter(folder: Path) -> bool:
    """Whether a folder has the files of an adapter, RoadAdapter's or PEFT's."""
    return any(is_file(folder / name) for name in (DESCRIPTION, PEFT_DESCRIPTION))


def adapter_folder(folder: Path) -> Path:
    """The folder with the files of the adapter: that inside the folder of a run, else the given one."""
    inside = folder / RUN_ADAPTER
    return inside if is_dir(inside) and not holds_adapter(folder) else folder


def is_peft_folder(folder: Path) -> bool:
    """Whether the adapter of a folder is in PEFT's format; a folder with both formats is read in ours, which is complete."""
    return is_file(folder / PEFT_DESCRIPTION) and not is_file(folder / DESCRIPTION)


def head_file(folder: Path) -> Path | None:
    """The head that was trained beside an adapter, from the folder of its run or the folder of the adapter in it."""
    inside = adapter_folder(folder)
    path = inside.parent / RUN_HEAD
    return path if inside.name == RUN_ADAPTER and is_file(path) else None


def save(values: AdapterValues, folder: Path) -> None:
    """Write adapter.json and the safetensors file that it names into `folder`, as `RoadAdapter.save` says.

    Raises InputError for the folder of a run, whose adapter is in a folder of its own.
    """
    if is_file(folder / RUN_RECIPE) and is_dir(folder / RUN_ADAPTER):
        raise InputError(f"'{folder}' is the folder of a run, which has an adapter: save into another folder")
    if is_file(folder / PEFT_DESCRIPTION):
        warnings.warn(f"'{folder}' has an adapter in PEFT's format, too, which stays as it is: PEFT reads that one", stacklevel=3)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{site.name}.theta": values.theta[site.name] for site in values.sites}
    tensors |= {f"{site.name}.alpha": values.alpha[site.name] for site in values.sites}
    # safetensors refuses tensors that share memory.
    payload = save_tensors({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    hashed = hashlib.sha256(payload).hexdigest()
    file = f"adapter-{hashed[:16]}.safetensors"
    description = {
        "format": FORMAT,
        "release": version("road-interp"),
        "variant": values.variant,
        "group_size": values.group_size,
        "sites": [_site_to_json(site) for site in values.sites],
        "tensors": file,
        "sha256": hashed,
        "base": None if values.base is None else asdict(values.base),
        "positions": values.positions,
        "modules_to_save": values.modules_to_save,
    }
    with locked(folder):
        previous = _named_tensor_file(folder)
        write_atomically(folder / file, payload)
        write_atomically(folder / DESCRIPTION, json.dumps(description, indent=2).encode() + b"\n")
        if previous is not None and previous.name != file:
            previous.unlink(missing_ok=True)


def load(folder: Path) -> AdapterValues:
    """Read the files that `save` wrote. Raises InputError that names the invalid file, site or value and the reason."""
    path = folder / DESCRIPTION
    if not is_file(path):
        raise InputError(f"no adapter here ({_why_not(folder)})")
    with locked(folder, shared=True):
        description = {"release": None, "base": None, **read_json_object(path)}  # files of 0.1.0 may lack these
        for key, read in (("positions", _positions_of_run), ("modules_to_save", _head_of_run)):
            if key not in description:
                description[key] = read(folder)
        _check_description(description)
        sites = tuple(_site_from_json(number, item) for number, item in enumerate(description["sites"]))
        tensors = _read_tensors(folder, description["tensors"], description["sha256"])
    theta: dict[str, Tensor] = {}
    alpha: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        site, _, kind = name.rpartition(".")
        if kind not in ("theta", "alpha"):
            raise InputError(f"{description['tensors']}: unknown tensor '{name}'; only theta and alpha of sites are allowed")
        (theta if kind == "theta" else alpha)[site] = tensor
    base = read_signature(description["base"], f"{DESCRIPTION}: base")
    variant, group_size, positions = (description[key] for key in ("variant", "group_size", "positions"))
    return AdapterValues(sites, theta, alpha, variant, group_size, base, positions, description["modules_to_save"])


def _why_not(folder: Path) -> str:
    if is_file(folder):
        return "this is a file; give the folder with adapter.json"
    if not is_dir(folder):
        return "there is no such folder"
    return f"{DESCRIPTION} is missing" + ("; RoadModel.load reads this folder" if is_file(folder / "config.json") else "")


def _positions_of_run(folder: Path) -> str:
    """The positions in the recipe of the run around the folder of an adapter; "all" where there is no run."""
    path = folder.parent / RUN_RECIPE
    if folder.name != RUN_ADAPTER or not is_file(path):
        return "all"
    try:
        positions = read_yaml_mapping(path)["adapter"].get("positions", "all")
    except (InputError, KeyError, AttributeError):
        raise InputError(f"{path} cannot be read, so that the adapter's positions are unknown") from None
    return "all" if positions is None else positions


def _head_of_run(folder: Path) -> str | None:
    """The sha256 of the head in the run around the folder of an adapter; None where there is none."""
    path = head_file(folder)
    return None if path is None else digest(read_safetensors(path))


def _check_description(description: dict[str, Any]) -> None:
    try:
        check_format(description.get("format", FORMAT), FORMAT, description["release"])
    except InputError as error:
        raise InputError(f"{DESCRIPTION}: {error}") from None
    _check_keys(description, KEYS, DESCRIPTION)
    _check_type(DESCRIPTION, description, "group_size", int)
    _check_type(DESCRIPTION, description, "positions", str)
    if description["modules_to_save"] is not None:
        _check_type(DESCRIPTION, description, "modules_to_save", str)
    if not isinstance(description["sites"], list):
        raise InputError(f"{DESCRIPTION}: 'sites' must be a list")


def _named_tensor_file(folder: Path) -> Path | None:
    """The tensor file that adapter.json names; None without a readable adapter.json."""
    try:
        return folder / _tensor_file_name(json.loads((folder / DESCRIPTION).read_text())["tensors"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _tensor_file_name(name: Any) -> str:
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
        raise InputError(f"{DESCRIPTION}: 'tensors' must name a safetensors file of this folder, not {name!r}")
    return name


def _read_tensors(folder: Path, name: Any, sha256: Any) -> dict[str, Tensor]:
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
    if hashlib.sha256(payload).hexdigest() != sha256:
        _report_not_finite(name, tensors)
        raise InputError(f"{name} was changed after it was saved: its content does not match the sha256 in {DESCRIPTION}")
    return tensors


def _report_not_finite(file: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise InputError for a value that is not finite: this message is more specific than that of a wrong checksum."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            site, _, kind = name.rpartition(".")
            raise InputError(f"{file}: site '{site}': {kind} holds a value that is not finite")


def _site_to_json(site: Site) -> dict[str, Any]:
    """A site under the keys of format 1, in which the output slice is called `part`."""
    content = asdict(site)
    content["part"] = content.pop("output_slice")
    return content


def _site_from_json(number: int, item: Any) -> Site:
    key_path = f"{DESCRIPTION}: site {number}"
    if not isinstance(item, dict):
        raise InputError(f"{key_path} must be an object")
    _check_keys(item, {"name", "width", "layer", "kind", "part"}, key_path)
    _check_type(key_path, item, "name", str)
    _check_type(key_path, item, "width", int)
    _check_type(key_path, item, "kind", str)
    if item["layer"] is not None:
        _check_type(key_path, item, "layer", int)
    output_slice = None
    if item["part"] is not None:
        if not isinstance(item["part"], dict):
            raise InputError(f"{key_path}: 'part' must be an object")
        _check_keys(item["part"], {"period", "start", "stop"}, f"{key_path}: part")
        for key in ("period", "start", "stop"):
            _check_type(f"{key_path}: part", item["part"], key, int)
        output_slice = OutputSlice(**item["part"])
    return Site(item["name"], item["width"], item["layer"], item["kind"], output_slice)


def read_signature(item: Any, key_path: str) -> BaseModelSignature | None:
    """The signature of a base model in a file, at `key_path` in errors; None for none."""
    if item is None:
        return None
    if not isinstance(item, dict):
        raise InputError(f"{key_path} must be an object")
    _check_keys(item, {"name", "model_type", "hidden_size", "num_hidden_layers"}, key_path)
    for key in ("name", "model_type"):
        _check_type(key_path, item, key, str)
    for key in ("hidden_size", "num_hidden_layers"):
        if item[key] is not None:
            _check_type(key_path, item, key, int)
    return BaseModelSignature(**item)


def _check_type(key_path: str, item: dict[str, Any], key: str, kind: type) -> None:
    if not isinstance(item[key], kind) or isinstance(item[key], bool):
        raise InputError(f"{key_path}: '{key}' must be {'text' if kind is str else 'a whole number'}, not {item[key]!r}")


def _check_keys(item: dict[str, Any], known: set[str], key_path: str) -> None:
    if unknown := sorted(set(item) - known):
        raise InputError(f"{key_path}: unknown key '{unknown[0]}'; known are {', '.join(sorted(known))}")
    if missing := sorted(known - set(item)):
        raise InputError(f"{key_path}: key '{missing[0]}' is missing")
