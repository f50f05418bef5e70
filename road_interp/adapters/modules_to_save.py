"""Weights of modules that are trained in addition to the rotations, such as a classification head: saving and loading."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from road_interp.errors import InputError


def module_tensors(model: nn.Module, modules: Sequence[str]) -> dict[str, Tensor]:
    """Parameters and buffers of the named modules, on the CPU. Raises InputError for a module that the model does not have."""
    tensors: dict[str, Tensor] = {}
    for name in modules:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise InputError(f"{type(model).__name__} has no module '{name}'") from None
        for inner, tensor in module.state_dict().items():
            tensors[f"{name}.{inner}"] = tensor.detach().cpu().contiguous()
    return tensors


def serialize_modules(model: nn.Module, modules: Sequence[str]) -> bytes:
    """The weights of the named modules of `model`, as the bytes of a safetensors file."""
    return save(module_tensors(model, modules))


def digest(tensors: Mapping[str, Tensor]) -> str | None:
    """The sha256 of named weights, which is equal for equal weights only; None for no weights."""
    return hashlib.sha256(save(dict(sorted(tensors.items())))).hexdigest() if tensors else None


def load_modules(model: nn.Module, path: Path) -> None:
    """Load a file of `serialize_modules` into `model`. Raises InputError that names the tensor that does not fit."""
    load_tensors(model, read_safetensors(path), path.name)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises InputError if it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None


def values_of(parameter: nn.Parameter) -> Hashable:
    """A key that is equal for parameters with the same values: tied ones, or ones in one memory, as by `.data = other.data`."""
    is_dense = type(parameter) is nn.Parameter and parameter.layout is torch.strided
    has_memory = is_dense and not parameter.is_meta and parameter.numel() > 0
    return (parameter.device, parameter.data_ptr()) if has_memory else id(parameter)


def check_untied(model: nn.Module, names: Collection[str]) -> None:
    """Raise InputError for a named weight that is tied to one that is not named: PEFT trains and saves a copy of its own."""
    tied: dict[Hashable, list[str]] = {}
    for name, parameter in nn.Module.named_parameters(model, remove_duplicate=False):
        tied.setdefault(values_of(parameter), []).append(name)
    for places in tied.values():
        inside = [name for name in places if name in names]
        if inside and len(inside) < len(places):
            other = next(name for name in places if name not in names)
            raise InputError(
                f"'{inside[0]}' is tied to '{other}', and PEFT has a copy of it that is not: give both to modules_to_save, or "
                "load the model with tie_word_embeddings=False"
            )


def differs(weight: Tensor, other: Tensor) -> bool:
    """Whether two tensors differ, in the dtype of the first; one that is offloaded has no values to compare, and differs."""
    return weight.is_meta or weight.shape != other.shape or not torch.equal(weight.cpu(), other.to(weight.dtype))


def differ(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether `model` has other weights than those named."""
    known = model.state_dict()
    return any(name in known and differs(known[name], tensor) for name, tensor in tensors.items())


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Load tensors by name into `model`. Raises InputError that names `origin` and the tensor that does not fit."""
    known = model.state_dict()
    for name, tensor in tensors.items():
        if name not in known:
            raise InputError(f"{origin}: '{name}' is not a tensor of {type(model).__name__}")
        if known[name].shape != tensor.shape:
            raise InputError(f"{origin}: '{name}' has shape {tuple(tensor.shape)}, not {tuple(known[name].shape)}")
        if not tensor.isfinite().all():
            raise InputError(f"{origin}: '{name}' holds a value that is not finite")
        if known[name].is_meta:  # torch would leave it as it is
            raise InputError(f"{origin}: '{name}' is offloaded in the model and cannot be loaded: use a device_map that keeps it")
    model.load_state_dict(dict(tensors), strict=False)
