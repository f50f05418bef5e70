"""RowMaps: the plane maps of a pass, one row per example, repeated for the beams of generation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from road_interp.errors import InputError
from road_interp.rotation.inplace import SMALLEST_INVERTIBLE
from road_interp.rotation.plane_maps import PlaneMaps
from road_interp.sites.site import Site


class RowMaps:
    """The maps of all sites during a pass, reshaped and cached for every batch size in it.

    Attributes:
        maps: one per site; with a row axis, one row per example.
    """

    def __init__(self, maps: Sequence[PlaneMaps]) -> None:
        self.maps = maps
        self._shaped: dict[tuple[int, int], Sequence[PlaneMaps]] = {}
        self._invertible: bool | None = None

    @property
    def by_row(self) -> bool:
        """Whether rows have maps of their own."""
        return self.maps[0].a.ndim > 1

    @property
    def invertible(self) -> bool:
        """Whether all scales are large enough for the in-place rotation to compute gradients from its output."""
        if self._invertible is None:
            self._invertible = _invertible(self.maps)
        return self._invertible

    def check_rows(self, rows: int | None) -> None:
        """Raise InputError for a batch of `rows` rows, where that is known, unless there is one map per row, or one for all."""
        names = len(self.maps[0].a)
        if rows is not None and names not in (1, rows):
            raise InputError(f"{names} names for a batch of {rows} rows; give one per row")

    def for_batch(self, batch: int, axes: int, site: Site) -> Sequence[PlaneMaps]:
        """The maps with one row per example, repeated where generation expands the batch (beams). Errors name `site`."""
        shaped = self._shaped.get((batch, axes))
        if shaped is None:
            shaped = self._shaped[batch, axes] = self._shape(batch, axes, site)
        return shaped

    def _shape(self, batch: int, axes: int, site: Site) -> Sequence[PlaneMaps]:
        if not self.by_row:
            return self.maps
        rows = len(self.maps[0].a)
        if batch % rows:
            raise InputError(f"site '{site.name}': {rows} names for a batch of {batch} rows; give one per row")
        return [site_maps.repeat_rows(batch).broadcast_to(axes) for site_maps in self.maps]


def _invertible(maps: Sequence[PlaneMaps]) -> bool:
    if any(site_maps.b is not None for site_maps in maps):
        return False
    smallest = [site_maps.a.detach().abs().min() for site_maps in maps]
    return bool(torch.stack([value.to(smallest[0].device) for value in smallest]).min() >= SMALLEST_INVERTIBLE)
