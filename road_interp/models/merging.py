"""Merge rotations into the weights, so that the base model itself computes the rotated states (paper, section 3.2)."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from road_interp.adapters.modules_to_save import values_of
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.rotation import plane_maps
from road_interp.rotation.plane_maps import PlaneMaps
from road_interp.sites.site import Site, on_slice

MERGED = "_merged_rotations"  # in the attributes of a rotated module, so that a copy and a part of a model have the same


def merged_rotations(model: nn.Module) -> list[str]:
    """The names of the `MergedWeights` that have rotated a model's modules and not restored them, once per module, sorted."""
    return sorted(name for module in model.modules() for name in module.__dict__.get(MERGED, ()))


class MergedWeights:
    """Rotates the weights of a model's sites by an adapter, W <- R W and b <- R b, and keeps the originals for `restore`.

    Raises InputError, before any weight changes, for a site that is not a plain linear layer and for tied or quantised weights.
    If rotating fails, restores the originals before the error is raised.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, adapter: RoadAdapter) -> None:
        shared = shared_tensors(model)
        for site in adapter.sites:
            check_mergeable(model.get_submodule(site.module), site, shared)
        self._model, self._adapter, self.name = model, adapter, uuid4().hex
        self._originals: dict[str, tuple[nn.Module, Tensor, Tensor | None]] = {}
        try:
            for site in adapter.sites:
                module: Any = model.get_submodule(site.module)
                if site.module not in self._originals:
                    bias = None if module.bias is None else module.bias.clone()
                    self._originals[site.module] = module, module.weight.clone(), bias
                rotate_weights(module, adapter.plane_maps(site), adapter.group_size, site)
        except BaseException:  # out of memory, or interrupted
            self._copy_back()
            raise
        for module in self._modules():
            setattr(module, MERGED, (*getattr(module, MERGED, ()), self.name))
        self._states = {path: _state(module) for path, (module, *_) in self._originals.items()}

    @property
    def names(self) -> list[str]:
        """What this adds to `merged_rotations`."""
        return [self.name] * len(self._originals)

    def restore(self) -> None:
        """Restore the original weights, bitwise equal.

        Raises InputError if others were merged into them since, if a rotated module is not in the model any more, and if its
        weights have changed.
        """
        present = {id(module) for module in self._model.modules()}
        if gone := [path for path, (module, *_) in self._originals.items() if id(module) not in present]:
            raise InputError(
                f"'{gone[0]}' was replaced since its weights were rotated, for example by resize_token_embeddings: the new "
                "module has rotated weights, and no original ones are known. Load the model again"
            )
        if any(getattr(module, MERGED)[-1] != self.name for module in self._modules()):
            raise InputError("another RoadModel has merged its rotations into the same weights since: call its unmerge first")
        for path in self._originals:
            self._check_as_merged(path)
        self._copy_back()
        for module in self._modules():
            setattr(module, MERGED, getattr(module, MERGED)[:-1])

    def check(self) -> None:
        """Raise InputError if weights that were written since, such as by `load_state_dict`, are not the rotated ones."""
        for path, (module, *_) in self._originals.items():
            if (state := _state(module)) != self._states[path]:
                self._check_as_merged(path)
                self._states[path] = state

    @torch.no_grad()
    def _check_as_merged(self, path: str) -> None:
        """Raise InputError unless the weights of a module are the rotated originals, up to rounding."""
        module: Any
        module, weight, bias = self._originals[path]
        expected: Any = copy.copy(module)
        expected._parameters = {"weight": weight.clone(), "bias": None if bias is None else bias.clone()}
        for site in self._adapter.sites:
            if site.module == path:
                rotate_weights(expected, self._adapter.plane_maps(site), self._adapter.group_size, site)
        for name in ("weight", "bias"):
            current, rotated = getattr(module, name), getattr(expected, name)
            if rotated is not None and (current.is_meta or not _are_equal(current, rotated)):
                raise InputError(
                    f"the {name} of '{path}' has changed since it was rotated, for example by training, by load_state_dict, by "
                    "merging a LoRA or by offloading: undo the change, which unmerge would lose, or load the model again"
                )

    def _modules(self) -> list[nn.Module]:
        return [module for module, *_ in self._originals.values()]

    @torch.no_grad()
    def _copy_back(self) -> None:
        module: Any
        for module, weight, bias in self._originals.values():
            module.weight.copy_(weight)
            if bias is not None:
                module.bias.copy_(bias)


def _state(module: Any) -> list[tuple[int, int]]:
    """What changes where the weights of a module are written or replaced."""
    weights = [each for each in (module.weight, module.bias) if each is not None]
    return [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in weights]


def _are_equal(current: Tensor, expected: Tensor) -> bool:
    """Whether weights have the expected values, up to the rounding of a change that was undone or of another dtype meanwhile.

    In half precision the rounding of an undone change is as large as changes that are not undone, and only that of small ones is
    allowed for.
    """
    size, share = expected.abs(), 0.1 if current.dtype.itemsize < 4 else 10
    most = torch.finfo(current.dtype).eps * (size + share * expected.float().square().mean().sqrt().to(size))
    rounded = (expected.to(dtype).to(current) for dtype in (expected.dtype, torch.bfloat16, torch.float16))
    return any(bool(((current - each).abs() <= most).all()) for each in rounded)


def shared_tensors(model: nn.Module) -> set[int]:
    """The ids of parameters that belong to more than one module, or whose values another parameter shares."""
    owners: dict[Hashable, list[int]] = {}
    for _, parameter in nn.Module.named_parameters(model, remove_duplicate=False):
        owners.setdefault(values_of(parameter), []).append(id(parameter))
    return {each for ids in owners.values() if len(ids) > 1 for each in ids}


def check_mergeable(module: Any, site: Site, shared: set[int]) -> None:
    """Raise InputError unless the site's module is a plain linear layer, its weights neither tied, quantised nor offloaded."""
    if type(module) not in (nn.Linear, Conv1D):
        raise InputError(f"site '{site.name}' cannot be merged: {type(module).__name__} is not a plain linear layer")
    for name in ("weight", "bias"):
        tensor = getattr(module, name)
        if tensor is not None and (tensor is not module._parameters.get(name) or tensor.is_meta):
            raise InputError(
                f"site '{site.name}' cannot be merged: its {name} is offloaded, or computed anew in every call; load the model "
                "without that"
            )
    for name in ("weight", "bias"):
        if id(getattr(module, name)) in shared:
            raise InputError(
                f"site '{site.name}' cannot be merged: its {name} is tied to another module, which would be rotated too"
            )
    if not module.weight.is_floating_point():
        raise InputError(f"site '{site.name}' cannot be merged: its weight is quantised ({module.weight.dtype})")
    outputs = module.weight.shape[1 if isinstance(module, Conv1D) else 0]
    if module.bias is not None and module.bias.shape != (outputs,):
        raise InputError(
            f"site '{site.name}' cannot be merged: its bias has shape {tuple(module.bias.shape)} for {outputs} outputs; "
            f"load a model whose bias has shape ({outputs},)"
        )


def rotate_weights(module: Any, maps: PlaneMaps, group_size: int, site: Site) -> None:
    """W <- R W and b <- R b in place, computed in at least fp32."""
    maps = maps.to(module.weight.device)

    def rotate(columns: Tensor) -> Tensor:
        columns = columns.float() if columns.dtype.itemsize < 4 else columns
        return on_slice(columns, site.output_slice, lambda selected: plane_maps.apply(maps, selected.contiguous(), group_size))

    columns = module.weight if isinstance(module, Conv1D) else module.weight.T  # shape (inputs, outputs)
    rotated = rotate(columns)
    module.weight.copy_(rotated if isinstance(module, Conv1D) else rotated.T)
    if module.bias is not None:
        module.bias.copy_(rotate(module.bias))
