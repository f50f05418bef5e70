"""The plane maps of a forward pass, per site and per row: from trainable parameters or from the adapters of a bank."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from road_interp.adapters.bank import RoadBank
from road_interp.models.intervention import RoadIntervention
from road_interp.rotation import plane_maps
from road_interp.rotation.plane_maps import Entries, PlaneMaps, Variant
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
        version: returns a number that changes with the maps; None where an optimizer may change them.
    """

    sites: Sequence[Site]
    group_size: int
    maps: Callable[[], Sequence[PlaneMaps]]
    entries: Callable[[int], Entries]
    version: Callable[[], int] | None = None

    def on_planes(self, active: Masks, trainable: Masks | None) -> Coefficients:
        """The same maps on the active planes of every row, the identity on all others.

        Only the trainable planes get a gradient; None means all active planes.
        """

        def masked(index: int, maps: Any) -> Any:
            detached = maps if trainable is None else maps.detach_outside(trainable[index])
            return detached.masked(active[index])

        return replace(self, maps=self._each(masked), entries=lambda index: masked(index, self.entries(index)))

    def to_strengths(self, exponents: Sequence[Float[Tensor, "*rows #planes"]], kinds: Sequence[Hashable]) -> Coefficients:
        """The maps of every row to the power of its exponents, one tensor per site, on the device of the site.

        Args:
            kinds: for every row, a value that is equal for rows with the same maps and exponents: each is computed once.
        """
        first_row = {kind: row for row, kind in reversed([*enumerate(kinds)])}
        place = {kind: number for number, kind in enumerate(first_row)}
        first, index = [*first_row.values()], [place[kind] for kind in kinds]

        def raised(site: int, maps: PlaneMaps) -> PlaneMaps:
            exponent = exponents[site][first]
            a = maps.a if maps.a.ndim == 1 else maps.a[first]
            power = plane_maps.power(PlaneMaps(a, maps.b), exponent).a
            return PlaneMaps(torch.where(exponent == 1, a, power)[index])

        maps = self._each(raised)
        return replace(self, maps=maps, entries=partial(_entries_of, maps))

    @torch.no_grad()
    def are_finite(self) -> bool:
        """Whether all maps are finite: powers of scales may not be."""
        maps = self.maps()
        return bool(torch.stack([each.a.isfinite().all().to(maps[0].a.device) for each in maps]).all())

    def times(self, other: Coefficients) -> Coefficients:
        """The product with other road_1 maps, which are complex numbers: both rotations, in any order."""
        cached: tuple[Sequence[PlaneMaps], Sequence[PlaneMaps], list[PlaneMaps]] | None = None

        def product() -> Sequence[PlaneMaps]:
            nonlocal cached
            own, others = self.maps(), other.maps()
            if cached is None or cached[0] is not own or cached[1] is not others:
                with torch.inference_mode(False):  # a later pass may train what comes before these maps
                    cached = own, others, [PlaneMaps(left.a * right.a) for left, right in zip(own, others, strict=True)]
            return cached[2]

        return replace(self, maps=product, entries=partial(_entries_of, product))

    def _each(self, change: Callable[[int, PlaneMaps], PlaneMaps]) -> Callable[[], Sequence[PlaneMaps]]:
        """The changed maps of every site, cached for as long as `maps` returns the same object."""
        cached: tuple[Sequence[PlaneMaps], Sequence[PlaneMaps]] | None = None

        def changed() -> Sequence[PlaneMaps]:
            nonlocal cached
            maps = self.maps()
            if cached is None or cached[0] is not maps:
                with torch.inference_mode(False):  # a later pass may train what comes before these maps
                    cached = (maps, [change(index, site_maps) for index, site_maps in enumerate(maps)])
            return cached[1]

        return changed


class Rotations(NamedTuple):
    """The interventions of a model with what its adapters have in common.

    Attributes:
        interventions: one per site.
        sites, variant, group_size: those of the adapters.
    """

    interventions: Sequence[RoadIntervention]
    sites: Sequence[Site]
    variant: Variant
    group_size: int

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The device of every site."""
        return tuple(each.theta.device for each in self.interventions)

    def coefficients(self) -> Coefficients:
        """The maps of the parameters, computed in every pass: a cache could not detect the updates of a fused optimizer."""
        return Coefficients(self.sites, self.group_size, self._maps, self._entries)

    def split(self, theta: Tensor, alpha: Tensor) -> list[PlaneMaps]:
        """The maps of every site from vectors with all sites concatenated; road_1 is computed for all sites at once."""
        variant, group_size, devices = self.variant, self.group_size, self.devices
        sizes = [plane_maps.num_parameters(site.width, variant) for site in self.sites]
        if variant == "road_1" and len(set(devices)) == 1:
            joined = plane_maps.maps_from_parameters(theta.to(devices[0]), alpha.to(devices[0]), variant, group_size)
            return [PlaneMaps(a) for a in joined.a.split(sizes, dim=-1)]
        pairs = zip(theta.split(sizes, dim=-1), alpha.split(sizes, dim=-1), devices, strict=True)
        return [plane_maps.maps_from_parameters(t.to(device), a.to(device), variant, group_size) for t, a, device in pairs]

    def _maps(self) -> list[PlaneMaps]:
        if len(set(self.devices)) > 1:
            return [
                plane_maps.maps_from_parameters(each.theta, each.alpha, self.variant, self.group_size)
                for each in self.interventions
            ]
        theta, alpha = (torch.cat([getattr(each, name) for each in self.interventions]) for name in ("theta", "alpha"))
        return self.split(theta, alpha)

    def _entries(self, index: int) -> Entries:
        each = self.interventions[index]
        return plane_maps.entries_from_parameters(each.theta, each.alpha, self.variant, self.group_size)


class BankMaps:
    """The maps of a bank's adapters, one row per name; the maps of the last batch are cached unless they are trained."""

    def __init__(self) -> None:
        # With the bank itself, because the id of a bank that is gone may be that of a new one.
        self._cached: tuple[RoadBank, Any, list[PlaneMaps]] | None = None

    def coefficients(self, bank: RoadBank, rotations: Rotations, names: Sequence[str]) -> Coefficients:
        """Coefficients that read the bank in every pass, as adapters may be replaced. Raises InputError for unknown names."""
        maps = partial(self._maps, bank, rotations, tuple(names))
        maps()  # checks the names
        version = None if bank.is_trainable else lambda: bank.version
        return Coefficients(rotations.sites, rotations.group_size, maps, partial(_entries_of, maps), version)

    def _maps(self, bank: RoadBank, rotations: Rotations, names: tuple[str, ...]) -> list[PlaneMaps]:
        if bank.is_trainable:
            return _rows_of(bank, rotations, names)
        key = (names, bank.version, rotations.devices)
        cached = self._cached  # read once: another thread may replace it
        if cached is None or cached[0] is not bank or cached[1] != key:
            with torch.inference_mode(False):  # a later pass may train what comes before these maps
                cached = self._cached = (bank, key, _rows_of(bank, rotations, names))
        return cached[2]


def _rows_of(bank: RoadBank, rotations: Rotations, names: Sequence[str]) -> list[PlaneMaps]:
    """The maps of every name; those of equal names are computed once.

    They are contiguous for all names, because compiled code is compiled again for other strides.
    """
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    maps, row = rotations.split(*bank.rows(tuple(number))), [number[name] for name in names]
    return [PlaneMaps(a[row], None if b is None else b[row]) for a, b in maps]


def _entries_of(maps: Callable[[], Sequence[PlaneMaps]], index: int) -> Entries:
    return plane_maps.entries_from_maps(maps()[index])
