"""The plane maps of a pass."""

from __future__ import annotations

import torch

from road_interp.models.row_maps import RowMaps
from road_interp.rotation.inplace import SMALLEST_INVERTIBLE
from road_interp.rotation.plane_maps import PlaneMaps


def test_maps_are_invertible_down_to_the_smallest_scale():
    smallest = torch.full((4,), SMALLEST_INVERTIBLE, dtype=torch.float32).to(torch.complex64)
    assert RowMaps([PlaneMaps(smallest), PlaneMaps(torch.ones_like(smallest))]).invertible
    assert not RowMaps([PlaneMaps(torch.ones_like(smallest)), PlaneMaps(smallest / 2)]).invertible
    assert not RowMaps([PlaneMaps(torch.ones_like(smallest), torch.ones_like(smallest))]).invertible
