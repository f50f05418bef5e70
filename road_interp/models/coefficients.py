"""The plane maps of a forward pass, site by site and row by row: of parameters, or of a bank's adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from road_interp.adapters.bank import RoadBank
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.models.intervention import RoadIntervention
from road_interp.rotation import plane_maps
from road_interp.rotation.plane_maps import Entries, PlaneMaps
from road_interp.sites.site import Site

Masks = Sequence[Bool[Tensor, "rows planes"]]  # one per site, on its device


@dataclass(frozen=True)
class Coefficients:
    """Where a forward pass finds the maps of its sites.

    Attributes:
        sites: the rotated sites.
        group_size: pairing of the dimensions.
        maps: gives the maps of all sites at the start of a pass; with a row axis, one row per example.
        entries: gives the real entries of one site's maps, by its index; asked inside torch.compile, which fuses them.
    """

    sites: Sequence[Site]
    group_size: int
    maps: Callable[[], Sequence[PlaneMaps]]
    entries: Callable[[int], Entries]

    def on_planes(self, active: Masks, trainable: Masks | None) -> Coefficients:
        """The same maps on the active planes of every row, the identity elsewhere; a gradient on the trainable planes alone.

        The masked maps are kept while the maps below stay the same.
        """
        last: tuple[Sequence[PlaneMaps], Sequence[PlaneMaps]] | None = None

        def masked(index: int, maps: Any) -> Any:
            learned = maps if trainable is None else maps.detach_outside(trainable[index])
            return learned.masked(active[index])

        def all_masked() -> Sequence[PlaneMaps]:
            nonlocal last
            maps = self.maps()
            if last is None or last[0] is not maps:
                last = (maps, [masked(index, each) for index, each in enumerate(maps)])
            return last[1]

        return replace(self, maps=all_masked, entries=lambda index: masked(index, self.entries(index)))


def of_parameters(interventions: Sequence[RoadIntervention], family: RoadAdapter) -> Coefficients:
    """The maps of the parameters at each call. None are kept, since a fused optimizer changes parameters without a trace."""

    def maps() -> list[PlaneMaps]:
        devices = [each.theta.device for each in interventions]
        if len(set(devices)) > 1:
            return [
                plane_maps.maps_from_parameters(each.theta, each.alpha, family.variant, family.group_size)
                for each in interventions
            ]
        theta, alpha = (torch.cat([getattr(each, name) for each in interventions]) for name in ("theta", "alpha"))
        return _split_maps(theta, alpha, family, devices)

    def entries(index: int) -> Entries:
        each = interventions[index]
        return plane_maps.entries_from_parameters(each.theta, each.alpha, family.variant, family.group_size)

    return Coefficients(family.sites, family.group_size, maps, entries)


class BankRows:
    """The maps of a bank's adapters, one row per name; a batch of the same names as the last one finds them ready."""

    def __init__(self, bank: RoadBank, interventions: Sequence[RoadIntervention]) -> None:
        self._bank, self._interventions = bank, interventions
        self._cached: tuple[Any, list[PlaneMaps]] | None = None

    def coefficients(self, names: Sequence[str]) -> Coefficients:
        """Asked again in every pass, since an adapter may be replaced. Raises InputError for unknown names at once."""
        maps = partial(self._maps, tuple(names))
        maps()
        family = self._bank.template
        return Coefficients(family.sites, family.group_size, maps, lambda index: plane_maps.entries_from_maps(maps()[index]))

    def _maps(self, names: tuple[str, ...]) -> list[PlaneMaps]:
        devices = tuple(each.theta.device for each in self._interventions)
        key = (names, self._bank.version, devices)
        cached = self._cached  # one read: another thread may put its own rows here
        if cached is None or cached[0] != key:
            cached = self._cached = (key, _split_maps(*self._bank.rows(names), self._bank.template, devices))
        return cached[1]


def check_rows(base: Mapping[str, Any], entries: Mapping[str, Sequence[str] | None]) -> None:
    """Raise InputError unless there is one entry per row (a model alone could not tell too few entries from beams).

    Args:
        entries: what is given row by row, by what messages call it.
    """
    batch = next((len(value) for value in base.values() if isinstance(value, Tensor)), None)
    for name, given in entries.items():
        if batch is not None and given is not None and len(given) != batch:
            raise InputError(f"{len(given)} {name} for a batch of {batch} rows; give one per row")


def _split_maps(theta: Tensor, alpha: Tensor, family: RoadAdapter, devices: Sequence[torch.device]) -> list[PlaneMaps]:
    """Maps of every site from vectors that hold all sites side by side; for road_1 all at once."""
    variant, group_size = family.variant, family.group_size
    sizes = [plane_maps.num_parameters(site.width, variant) for site in family.sites]
    if variant == "road_1" and len(set(devices)) == 1:
        together = plane_maps.maps_from_parameters(theta.to(devices[0]), alpha.to(devices[0]), variant, group_size)
        return [PlaneMaps(each) for each in together.a.split(sizes, dim=-1)]
    pairs = zip(theta.split(sizes, dim=-1), alpha.split(sizes, dim=-1), devices, strict=True)
    return [plane_maps.maps_from_parameters(t.to(device), a.to(device), variant, group_size) for t, a, device in pairs]
