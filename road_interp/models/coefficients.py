"""The plane maps of a forward pass, site by site and row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from road_interp.errors import InputError
from road_interp.rotation import plane_maps
from road_interp.rotation.plane_maps import Blocks, Entries
from road_interp.sites.site import Site


def _check_rows(base: Mapping[str, Any] | None, adapter_names: Sequence[str] | None, tasks: Sequence[str] | None) -> None:
    """Raise InputError unless there is one entry per row (a model alone could not tell too few entries from beams)."""
    batch = next((len(value) for value in (base or {}).values() if isinstance(value, Tensor)), None)
    for what, entries in (("adapter names", adapter_names), ("tasks", tasks)):
        if batch is not None and entries is not None and len(entries) != batch:
            raise InputError(f"{len(entries)} {what} for a batch of {batch} rows; give one per row")


def _on_planes(
    coefficients: Callable[[], Sequence[Blocks]],
    entries: Callable[[int], Entries],
    active: Sequence[Tensor],
    learning: Sequence[Tensor] | None,
) -> tuple[Callable[[], Sequence[Blocks]], Callable[[int], Entries]]:
    """The same coefficients on the active planes of every row, remembered while the ones below stay."""
    last: tuple[Sequence[Blocks], Sequence[Blocks]] | None = None

    def chosen(index: int, maps: Any) -> Any:
        kept = maps if learning is None else maps.learning(learning[index])
        return kept.where(active[index])

    def on_planes() -> Sequence[Blocks]:
        nonlocal last
        maps = coefficients()
        if last is None or last[0] is not maps:
            last = (maps, [chosen(index, each) for index, each in enumerate(maps)])
        return last[1]

    return on_planes, lambda index: chosen(index, entries(index))


def _split_blocks(
    theta: Tensor,
    alpha: Tensor,
    sites: Sequence[Site],
    variant: plane_maps.Variant,
    group_size: int,
    devices: Sequence[torch.device],
) -> list[Blocks]:
    """Blocks of every site from vectors that hold all sites side by side; for road_1 all at once."""
    sizes = [plane_maps.num_parameters(site.width, variant) for site in sites]
    if variant == "road_1" and len(set(devices)) == 1:
        together = plane_maps.blocks(theta.to(devices[0]), alpha.to(devices[0]), variant, group_size)
        return [Blocks(part) for part in together.a.split(sizes, dim=-1)]
    pairs = zip(theta.split(sizes, dim=-1), alpha.split(sizes, dim=-1), devices, strict=True)
    return [plane_maps.blocks(t.to(device), a.to(device), variant, group_size) for t, a, device in pairs]
