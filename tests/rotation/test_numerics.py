"""The error of fp32, bf16 and fp16 relative to the exact result, by operation: the bounds of docs/explanation/numerics.md."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.models import random_adapter
from road_interp.adapters.bank import RoadBank
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.models.merging import rotate_weights
from road_interp.rotation import butterfly, plane_maps
from road_interp.rotation.inplace import rotate_in_place
from road_interp.sites.site import Site

WIDTH, ROWS = 512, 256
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SITE = Site("a", WIDTH)


def bound(dtype, roundings=1):
    """Half a unit in the last place per rounding in half precision; fp32 has a few more roundings in its own arithmetic."""
    return roundings * torch.finfo(dtype).eps * (4 if dtype == torch.float32 else 0.5)


def error(found, exact):
    """The norm of the error over all states, relative to that of the exact result."""
    assert found.dtype != exact.dtype
    return ((found.double() - exact).norm() / exact.norm()).item()


def states(dtype):
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)


def in_fp64(maps):
    return plane_maps.PlaneMaps(*(None if values is None else values.to(torch.complex128) for values in maps))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", plane_maps.VARIANTS)
def test_a_rotation_is_rounded_once(dtype, variant):
    maps, hidden = random_adapter((SITE,), variant).plane_maps(SITE), states(dtype)
    exact = plane_maps.apply(in_fp64(maps), hidden.double(), 2)
    assert error(plane_maps.apply(maps, hidden, 2), exact) <= bound(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_place", [False, True])
def test_the_in_place_rotation_is_rounded_once(dtype, in_place):
    maps, hidden = random_adapter((SITE,)).plane_maps(SITE), states(dtype)
    exact = plane_maps.apply(in_fp64(maps), hidden.double(), 2)
    assert error(rotate_in_place(hidden, maps.a, in_place), exact) <= bound(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rotation_and_its_inverse_are_rounded_twice(dtype):
    maps, hidden = random_adapter((SITE,)).plane_maps(SITE), states(dtype)
    back = plane_maps.apply(plane_maps.inverse(maps), plane_maps.apply(maps, hidden, 2), 2)
    assert error(back, hidden.double()) <= bound(dtype, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_bank_are_rounded_once(dtype):
    bank = RoadBank({name: random_adapter((SITE,), seed=seed) for seed, name in enumerate("abc")})
    maps, hidden = plane_maps.maps_from_parameters(*bank.rows("abca"), "road_1", 2), states(dtype).view(4, -1, WIDTH)
    exact = plane_maps.apply(in_fp64(maps), hidden.double(), 2)
    assert error(plane_maps.apply(maps, hidden, 2), exact) <= bound(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_butterfly_stack_is_rounded_once(dtype):
    theta = torch.randn(butterfly.full_depth(WIDTH), WIDTH // 2, generator=torch.Generator().manual_seed(1))
    rotated = butterfly.rotate(theta, states(dtype))
    assert error(rotated, butterfly.rotate(theta.double(), states(dtype).double())) <= bound(dtype)
    assert error(butterfly.inverse(theta, rotated), states(dtype).double()) <= bound(dtype, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [1, butterfly.full_depth(WIDTH)])
def test_an_interchange_is_rounded_twice(dtype, depth):
    swap = RoadInterchangeIntervention(WIDTH, depth=depth, rows=[0, 3, 5])
    with torch.no_grad():
        swap.theta.normal_(generator=torch.Generator().manual_seed(2))
    base, source = states(dtype).unsqueeze(1), states(dtype).flip(0).unsqueeze(1)
    theta = swap.theta.detach().double().view(depth, -1)
    rotated, other = butterfly.rotate(theta, base.double()), butterfly.rotate(theta, source.double())
    rotated[..., [0, 3, 5]] = other[..., [0, 3, 5]]
    exact = butterfly.inverse(theta, rotated)
    assert error(swap(base, source).detach(), exact) <= bound(dtype, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_merged_weights_are_rounded_once(dtype):
    maps, module = random_adapter((SITE,)).plane_maps(SITE), nn.Linear(ROWS, WIDTH, bias=False, dtype=dtype)
    exact = plane_maps.apply(in_fp64(maps), module.weight.detach().T.double(), 2).T
    with torch.no_grad():
        rotate_weights(module, maps, 2, SITE)
    assert error(module.weight.detach(), exact) <= bound(dtype)
