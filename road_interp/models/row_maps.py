"""RowMaps: the plane maps of a pass, one row per example, repeated for the beams of generation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from road_interp.errors import InputError
from road_interp.rotation.inplace import SMALLEST_INVERTIBLE
from road_interp.rotation.plane_maps import PlaneMaps
from road_interp.sites.site import Site


class RowMaps:
    """The maps of all sites during a pass, reshaped and cached for every site and batch size in it.

    Attributes:
        maps: one per site; with a row axis, one row per example.
    """

    def __init__(self, maps: Sequence[PlaneMaps]) -> None:
        self.maps = maps
        self._shaped: dict[tuple[int, int, int], PlaneMaps] = {}

    @property
    def by_row(self) -> bool:
        """Whether rows have maps of their own."""
        return self.maps[0].a.ndim > 1 and len(self.maps[0].a) > 1

    @cached_property
    def rows(self) -> int:
        """The number of rows that have maps of their own; 1 if all have the same."""
        return len(self.maps[0].a) if self.by_row else 1

    @cached_property
    def invertible(self) -> bool:
        """Whether all scales are large enough for the in-place rotation to compute gradients from its output."""
        if any(site_maps.b is not None for site_maps in self.maps):
            return False
        smallest = [site_maps.a.detach().abs().min() for site_maps in self.maps]
        return bool(torch.stack([value.to(smallest[0].device) for value in smallest]).min() >= SMALLEST_INVERTIBLE)

    def for_batch(self, index: int, hidden: Tensor, site: Site) -> PlaneMaps:
        """The maps of the site with this index, one row per example, repeated where generation expands the batch (beams), and
        where a module joins rows and tokens. Errors name `site`."""
        if self.by_row and hidden.ndim == 2 and len(hidden) != self.rows:  # large, and of another size in every pass
            return self._shape(index, hidden, site)
        key = index, hidden.shape[0], hidden.ndim
        shaped = self._shaped.get(key)
        if shaped is None:
            shaped = self._shaped[key] = self._shape(index, hidden, site) if self.by_row else self.maps[index]
        return shaped

    def _shape(self, index: int, hidden: Tensor, site: Site) -> PlaneMaps:
        batch = checked_batch(self.rows, hidden, site)
        with torch.inference_mode(False):  # a later pass may train what comes before these maps
            return self.maps[index].repeat_rows(batch).broadcast_to(hidden.ndim)


def check_rows(names: int, rows: int | None) -> None:
    """Raise InputError for a batch of `rows` rows, where that is known, unless there is one name per row, or one for all."""
    if rows is not None and names not in (1, rows):
        raise InputError(f"{names} names for a batch of {rows} rows; give one per row")


def checked_batch(names: int, hidden: Tensor, site: Site) -> int:
    """The rows of a site's output. Raises InputError unless they are those of the names, or several for each."""
    if hidden.shape[0] % names:
        raise InputError(f"site '{site.name}': {names} names for a batch of {hidden.shape[0]} rows; give one per row")
    return hidden.shape[0]
