"""Rotating weights themselves, so that a model runs without anything beside it (paper, section 3.2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from road_interp.errors import InputError
from road_interp.rotation import plane_maps
from road_interp.rotation.plane_maps import Blocks
from road_interp.sites.site import Site


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


def rotate_weights(module: Any, maps: Blocks, group_size: int, site: Site) -> None:
    """W <- R W and b <- R b, in at least fp32."""
    maps = maps.to(module.weight.device)

    def rotate(columns: Tensor) -> Tensor:
        columns = columns.float() if columns.dtype.itemsize < 4 else columns
        part = columns if site.part is None else site.part.select(columns)
        turned = plane_maps.apply(maps, part.contiguous(), group_size)
        return turned if site.part is None else site.part.replace(columns, turned)

    columns = module.weight if isinstance(module, Conv1D) else module.weight.T  # (inputs, outputs)
    turned = rotate(columns)
    module.weight.copy_(turned if isinstance(module, Conv1D) else turned.T)
    if module.bias is not None:
        module.bias.copy_(rotate(module.bias))
