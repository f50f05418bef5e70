"""The plane maps of a pass: what a compiler reads is what an eager pass reads, and a cached product follows both factors."""

from __future__ import annotations

import pytest
import torch

from road_interp.models.coefficients import Coefficients
from road_interp.rotation import plane_maps
from road_interp.rotation.plane_maps import PlaneMaps
from road_interp.sites.site import Site

SITES = (Site("a", 8), Site("b", 4))
ROWS = 3


def random_maps(seed):
    generator = torch.Generator().manual_seed(seed)
    return [PlaneMaps(torch.randn(ROWS, site.width // 2, dtype=torch.complex64, generator=generator)) for site in SITES]


def coefficients(state):
    """Coefficients of the maps that the list holds now."""
    return Coefficients(SITES, 2, lambda: state[0], lambda index: plane_maps.entries_from_maps(state[0][index]))


def masks(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(ROWS, site.width // 2, generator=generator) < 0.5 for site in SITES]


MASKS, STRENGTHS = masks(2), [torch.rand(ROWS, site.width // 2) * 2 for site in SITES]
CHANGES = {
    "planes": lambda given: given.on_planes(MASKS, None),
    "planes, of which some are trained": lambda given: given.on_planes(MASKS, masks(3)),
    "strengths": lambda given: given.to_strengths(STRENGTHS, kinds=range(ROWS)),
    "product": lambda given: given.times(coefficients([random_maps(1)])),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_compiler_reads_the_entries_of_the_maps(name):
    """Entries are asked for under torch.compile only."""
    state = [random_maps(0)]
    changed = CHANGES[name](coefficients(state))
    for seed in (0, 4):
        state[0] = random_maps(seed)
        for index, maps in enumerate(changed.maps()):
            assert not torch.equal(maps.a, state[0][index].a)
            for found, expected in zip(changed.entries(index), plane_maps.entries_from_maps(maps), strict=True):
                torch.testing.assert_close(found, expected)


def test_a_product_follows_both_factors_and_is_computed_once():
    one, other = [random_maps(0)], [random_maps(1)]
    product = coefficients(one).times(coefficients(other))

    def check():
        for found, left, right in zip(product.maps(), one[0], other[0], strict=True):
            torch.testing.assert_close(found.a, left.a * right.a)

    check()
    assert product.maps() is product.maps()
    one[0] = random_maps(2)
    check()
    other[0] = random_maps(3)
    check()


def test_strengths_of_equal_rows_are_those_of_each():
    maps, exponents = random_maps(0), [torch.tensor([[0.5], [2], [0.5]]).expand(ROWS, site.width // 2) for site in SITES]
    maps = [PlaneMaps(each.a[[0, 1, 0]]) for each in maps]
    for found, each, exponent in zip(
        coefficients([maps]).to_strengths(exponents, kinds="xyx").maps(), maps, exponents, strict=True
    ):
        torch.testing.assert_close(found.a, plane_maps.power(each, exponent).a)
