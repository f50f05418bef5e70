"""Rotating the weights themselves, so that the plain model computes the rotated states (paper, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.rotation import plane_maps
from road_interp.rotation.plane_maps import PlaneMaps
from road_interp.sites.site import Site


class MergedWeights:
    """The weights of a model's sites rotated by an adapter, W <- R W and b <- R b; the originals are kept until `restore`.

    Raises InputError for a site that is not a plain linear layer, for tied and for quantised weights; no weight is changed then.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, adapter: RoadAdapter) -> None:
        shared = shared_tensors(model)
        for site in adapter.sites:
            check_mergeable(model.get_submodule(site.module), site, shared)
        self._model = model
        self._originals: dict[str, tuple[Tensor, Tensor | None]] = {}
        for site in adapter.sites:
            module: Any = model.get_submodule(site.module)
            if site.module not in self._originals:
                self._originals[site.module] = module.weight.clone(), None if module.bias is None else module.bias.clone()
            rotate_weights(module, adapter.plane_maps(site), adapter.group_size, site)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the original weights back, equal to the bit."""
        for path, (weight, bias) in self._originals.items():
            module: Any = self._model.get_submodule(path)
            module.weight.copy_(weight)
            if bias is not None:
                module.bias.copy_(bias)


def shared_tensors(model: nn.Module) -> set[int]:
    """Ids of parameters that more than one module holds."""
    seen: set[int] = set()
    shared: set[int] = set()
    for _, parameter in nn.Module.named_parameters(model, remove_duplicate=False):
        (shared if id(parameter) in seen else seen).add(id(parameter))
    return shared


def check_mergeable(module: Any, site: Site, shared: set[int]) -> None:
    """Raise InputError unless the weights of a site's module can be rotated: a plain linear, its own, not quantised."""
    if type(module) not in (nn.Linear, Conv1D):
        raise InputError(f"site '{site.name}' cannot be merged: {type(module).__name__} is not a plain linear layer")
    if id(module.weight) in shared:
        raise InputError(f"site '{site.name}' cannot be merged: its weight is tied to another module, which would turn as well")
    if not module.weight.is_floating_point():
        raise InputError(f"site '{site.name}' cannot be merged: its weight is quantised ({module.weight.dtype})")


def rotate_weights(module: Any, maps: PlaneMaps, group_size: int, site: Site) -> None:
    """W <- R W and b <- R b, in at least fp32."""
    maps = maps.to(module.weight.device)

    def rotate(columns: Tensor) -> Tensor:
        columns = columns.float() if columns.dtype.itemsize < 4 else columns
        selected = columns if site.output_slice is None else site.output_slice.select(columns)
        rotated = plane_maps.apply(maps, selected.contiguous(), group_size)
        return rotated if site.output_slice is None else site.output_slice.replace(columns, rotated)

    columns = module.weight if isinstance(module, Conv1D) else module.weight.T  # (inputs, outputs)
    rotated = rotate(columns)
    module.weight.copy_(rotated if isinstance(module, Conv1D) else rotated.T)
    if module.bias is not None:
        module.bias.copy_(rotate(module.bias))
