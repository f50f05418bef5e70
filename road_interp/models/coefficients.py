"""The plane maps of a forward pass, per site and per row: from trainable parameters or from the adapters of a bank."""

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

Masks = Sequence[Bool[Tensor, "rows planes"]]  # one per site, on the device of the site


@dataclass(frozen=True)
class Coefficients:
    """The source of the plane maps that a forward pass applies at its sites.

    Attributes:
        sites: the rotated sites.
        group_size: pairing of the dimensions.
        maps: returns the maps of all sites, called at the start of a pass; with a row axis, one row per example.
        entries: returns the real entries of the maps of one site, by its index. Called under torch.compile, which fuses them.
    """

    sites: Sequence[Site]
    group_size: int
    maps: Callable[[], Sequence[PlaneMaps]]
    entries: Callable[[int], Entries]

    def on_planes(self, active: Masks, trainable: Masks | None) -> Coefficients:
        """The same maps on the active planes of every row, the identity on all others.

        Only the trainable planes get a gradient; None means all active planes. The masked maps are cached for as long as
        `maps` returns the same object.
        """
        cached: tuple[Sequence[PlaneMaps], Sequence[PlaneMaps]] | None = None

        def masked(index: int, maps: Any) -> Any:
            detached = maps if trainable is None else maps.detach_outside(trainable[index])
            return detached.masked(active[index])

        def all_masked() -> Sequence[PlaneMaps]:
            nonlocal cached
            maps = self.maps()
            if cached is None or cached[0] is not maps:
                cached = (maps, [masked(index, site_maps) for index, site_maps in enumerate(maps)])
            return cached[1]

        return replace(self, maps=all_masked, entries=lambda index: masked(index, self.entries(index)))


class ParameterMaps:
    """The maps of the parameters of an adapter's interventions, computed at each call.

    A cache could not detect the updates of a fused optimizer.
    """

    def __init__(self, interventions: Sequence[RoadIntervention], family: RoadAdapter) -> None:
        self._interventions, self._family = interventions, family

    def coefficients(self) -> Coefficients:
        """Coefficients that read the parameters in every pass."""
        return Coefficients(self._family.sites, self._family.group_size, self._maps, self._entries)

    def _maps(self) -> list[PlaneMaps]:
        devices = [each.theta.device for each in self._interventions]
        if len(set(devices)) > 1:
            variant, group_size = self._family.variant, self._family.group_size
            return [plane_maps.maps_from_parameters(each.theta, each.alpha, variant, group_size) for each in self._interventions]
        theta, alpha = (torch.cat([getattr(each, name) for each in self._interventions]) for name in ("theta", "alpha"))
        return _split_maps(theta, alpha, self._family, devices)

    def _entries(self, index: int) -> Entries:
        each = self._interventions[index]
        return plane_maps.entries_from_parameters(each.theta, each.alpha, self._family.variant, self._family.group_size)


class BankRows:
    """The maps of a bank's adapters, one row per name; the maps of the last batch are cached."""

    def __init__(self, bank: RoadBank, interventions: Sequence[RoadIntervention]) -> None:
        self._bank, self._interventions = bank, interventions
        self._cached: tuple[Any, list[PlaneMaps]] | None = None

    def coefficients(self, names: Sequence[str]) -> Coefficients:
        """Coefficients that read the bank in every pass, as adapters may be replaced. Raises InputError for unknown names."""
        maps = partial(self._maps, tuple(names))
        maps()  # checks the names
        family = self._bank.template
        return Coefficients(family.sites, family.group_size, maps, lambda index: plane_maps.entries_from_maps(maps()[index]))

    def _maps(self, names: tuple[str, ...]) -> list[PlaneMaps]:
        devices = tuple(each.theta.device for each in self._interventions)
        key = (names, self._bank.version, devices)
        cached = self._cached  # read once: another thread may replace it
        if cached is None or cached[0] != key:
            cached = self._cached = (key, _split_maps(*self._bank.rows(names), self._bank.template, devices))
        return cached[1]


def check_rows(base: Mapping[str, Any], entries: Mapping[str, Sequence[str] | None]) -> None:
    """Raise InputError unless there is one entry per row; during the pass, too few entries would look like beam search.

    Args:
        base: the inputs of the model.
        entries: per-row arguments, under the names that error messages use.
    """
    batch = next((len(value) for value in base.values() if isinstance(value, Tensor)), None)
    for name, values in entries.items():
        if batch is not None and values is not None and len(values) != batch:
            raise InputError(f"{len(values)} {name} for a batch of {batch} rows; give one per row")


def _split_maps(theta: Tensor, alpha: Tensor, family: RoadAdapter, devices: Sequence[torch.device]) -> list[PlaneMaps]:
    """The maps of every site from vectors with all sites concatenated; road_1 is computed for all sites at once."""
    variant, group_size = family.variant, family.group_size
    sizes = [plane_maps.num_parameters(site.width, variant) for site in family.sites]
    if variant == "road_1" and len(set(devices)) == 1:
        joined = plane_maps.maps_from_parameters(theta.to(devices[0]), alpha.to(devices[0]), variant, group_size)
        return [PlaneMaps(a) for a in joined.a.split(sizes, dim=-1)]
    pairs = zip(theta.split(sizes, dim=-1), alpha.split(sizes, dim=-1), devices, strict=True)
    return [plane_maps.maps_from_parameters(t.to(device), a.to(device), variant, group_size) for t, a, device in pairs]
