"""Stacked plane rotations."""

from __future__ import annotations

import pytest
import torch

from road_interp.rotation import butterfly, plane_maps

WIDTHS = (2, 4, 6, 10, 32, 96)


def angles(width, depth, seed=0, dtype=torch.float64):
    return torch.randn(depth, width // 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_inverse_undoes_rotate_and_the_matrix_is_orthogonal(width, depth):
    theta = angles(width, depth)
    hidden = torch.randn(3, 4, width, dtype=torch.float64)
    rotated = butterfly.rotate(theta, hidden)
    torch.testing.assert_close(butterfly.inverse(theta, rotated), hidden)
    dense = butterfly.matrix(theta)
    torch.testing.assert_close(rotated, hidden @ dense.T)
    torch.testing.assert_close(dense @ dense.T, torch.eye(width, dtype=torch.float64))


@pytest.mark.parametrize("width", WIDTHS)
def test_one_level_equals_road_1(width):
    theta, hidden = angles(width, 1, dtype=torch.float32), torch.randn(5, width)
    road = plane_maps.apply(plane_maps.maps_from_parameters(theta[0], torch.ones(width // 2), "road_1", 2), hidden, 2)
    assert torch.equal(butterfly.rotate(theta, hidden), road)


@pytest.mark.parametrize("width", [*WIDTHS, 384, 576])
def test_full_depth_is_the_smallest_depth_that_mixes_all_dimensions(width):
    theta = angles(width, butterfly.full_depth(width))
    assert (butterfly.matrix(theta) != 0).all()
    if len(theta) > 1:
        assert (butterfly.matrix(theta[:-1]) == 0).any()


def test_full_depth_of_known_widths():
    assert [butterfly.full_depth(width) for width in (2, 4, 384, 576, 2048)] == [1, 2, 9, 10, 11]


def test_levels_without_angles_interleave_the_halves():
    order = list(range(10))
    for level in range(4):
        assert butterfly.rotate(torch.zeros(level + 1, 5), torch.arange(10.0)).tolist() == order
        order = [order[place] for place in (0, 5, 1, 6, 2, 7, 3, 8, 4, 9)]


def test_columns_are_rows_of_the_matrix():
    theta = angles(10, 4)
    assert torch.equal(butterfly.columns(theta, torch.tensor([7, 0])), butterfly.inverse(theta, torch.eye(10).double()[[7, 0]]).T)
    torch.testing.assert_close(butterfly.columns(theta, torch.tensor([7, 0])), butterfly.matrix(theta)[[7, 0]].T)


def test_one_row_of_the_full_depth_stack_can_be_any_direction():
    width = 12
    wanted = torch.nn.functional.normalize(torch.randn(width, generator=torch.Generator().manual_seed(3)), dim=0)
    theta = angles(width, butterfly.full_depth(width), dtype=torch.float32).requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.05)
    for _ in range(300):
        loss = 1 - (wanted @ butterfly.columns(theta, torch.tensor([0]))).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1e-4


def test_gradients_agree_with_finite_differences():
    theta, hidden = angles(6, 3).requires_grad_(), torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(butterfly.rotate, (theta, hidden))
    assert torch.autograd.gradcheck(butterfly.inverse, (theta, hidden))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [butterfly.rotate, butterfly.inverse])
def test_half_precision_is_computed_in_fp32(dtype, function):
    theta, hidden = angles(32, 5, dtype=torch.float32), torch.randn(4, 32).to(dtype)
    rotated = function(theta, hidden)
    assert rotated.dtype == dtype
    assert torch.equal(rotated, function(theta, hidden.float()).to(dtype))


def test_non_contiguous_states():
    theta, hidden = angles(6, 3, dtype=torch.float32), torch.randn(6, 5, 7)
    strided = hidden.transpose(0, 2)[1:]
    torch.testing.assert_close(butterfly.rotate(theta, strided), butterfly.rotate(theta, strided.contiguous()))
