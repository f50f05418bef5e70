"""The in-place rotation gives the same outputs and gradients as `plane_maps.apply`, and saves fewer tensors."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import CheckpointError, checkpoint

from road_interp.errors import InputError
from road_interp.rotation import plane_maps
from road_interp.rotation.inplace import has_complex_form, rotate_in_place


def random_inputs(rows=(), width=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(*rows, width // 2, generator=generator, dtype=dtype).requires_grad_()
    alpha = (1 + 0.2 * torch.randn(*rows, width // 2, generator=generator, dtype=dtype)).requires_grad_()
    hidden = torch.randn(3, 5, width, generator=generator, dtype=dtype).requires_grad_()
    return theta, alpha, hidden


@pytest.mark.parametrize("rows", [(), (3,)])
@pytest.mark.parametrize("in_place", [False, True])
def test_outputs_and_gradients_equal_those_of_apply(rows, in_place):
    theta, alpha, hidden = random_inputs(rows)
    weight = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    maps = plane_maps.maps_from_parameters(theta, alpha, "road_1", 2)
    plain = plane_maps.apply(maps, hidden, 2)
    expected = torch.autograd.grad((plain * weight).sum(), (theta, alpha, hidden), retain_graph=True)
    rotated = rotate_in_place(
        hidden * 1.0, plane_maps.maps_from_parameters(theta, alpha, "road_1", 2).broadcast_to(3).a, in_place
    )
    torch.testing.assert_close(rotated, plain, rtol=0, atol=1e-14)
    found = torch.autograd.grad((rotated * weight).sum(), (theta, alpha, hidden))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gradients_agree_with_finite_differences():
    theta, alpha, hidden = random_inputs()

    def rotated(theta, alpha, hidden):
        return rotate_in_place(hidden, plane_maps.maps_from_parameters(theta, alpha, "road_1", 2).a, in_place=False)

    assert torch.autograd.gradcheck(rotated, (theta, alpha, hidden))


@pytest.mark.parametrize("rows", [(), (3,)])
@pytest.mark.parametrize("in_place", [False, True])
def test_second_derivatives_agree_with_finite_differences(rows, in_place):
    inputs = random_inputs(rows, width=4)

    def rotated(theta, alpha, hidden):
        factors = plane_maps.maps_from_parameters(theta, alpha, "road_1", 2).broadcast_to(3).a
        return rotate_in_place(hidden * 1.0, factors, in_place).pow(3)

    assert torch.autograd.gradgradcheck(rotated, inputs)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_hessian_vector_product_is_that_of_apply(in_place):
    theta, alpha, hidden = random_inputs()
    maps = plane_maps.maps_from_parameters(theta, alpha, "road_1", 2)
    products = []
    for rotated in (plane_maps.apply(maps, hidden, 2), rotate_in_place(hidden * 1.0, maps.a, in_place)):
        (first,) = torch.autograd.grad(rotated.pow(3).sum(), theta, create_graph=True)
        products.append(torch.autograd.grad(first.sum(), theta, retain_graph=True)[0])
    assert products[0].abs().max() > 1
    torch.testing.assert_close(products[1], products[0])


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 8), (2, 2, 3, 8)])
def test_states_get_a_gradient_when_the_factors_need_none(shape):
    maps = plane_maps.maps_from_parameters(torch.randn(4), torch.rand(4) + 0.5, "road_1", 2)
    hidden, weight = torch.randn(shape, requires_grad=True), torch.randn(shape)
    gradients = [
        torch.autograd.grad((rotated * weight).sum(), hidden)[0]
        for rotated in (plane_maps.apply(maps, hidden, 2), rotate_in_place(hidden * 1.0, maps.a, in_place=True))
    ]
    torch.testing.assert_close(*gradients)


def test_factors_get_a_gradient_when_the_states_need_none():
    theta, alpha, hidden = random_inputs()
    rotated = rotate_in_place(
        hidden.detach().clone(), plane_maps.maps_from_parameters(theta, alpha, "road_1", 2).a, in_place=True
    )
    rotated.square().sum().backward()
    assert theta.grad.abs().max() < 1e-12  # a norm does not depend on the angle
    assert alpha.grad.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states(dtype):
    theta, alpha, hidden = random_inputs(dtype=torch.float32)
    factors = plane_maps.maps_from_parameters(theta, alpha, "road_1", 2).a
    low = hidden.detach().to(dtype).requires_grad_()
    for in_place in (False, True):
        rotated = rotate_in_place(low * 1, factors, in_place)
        assert rotated.dtype == dtype
        assert torch.equal(rotated, plane_maps.apply(plane_maps.PlaneMaps(factors), low.float(), 2).to(dtype))
        grad_hidden, grad_theta = torch.autograd.grad(rotated.float().sum(), (low, theta), retain_graph=True)
        assert grad_hidden.dtype == dtype
        assert grad_theta.dtype == torch.float32


def test_in_place_overwrites_the_states_and_saves_only_output_and_factors():
    theta, alpha, hidden = random_inputs()
    factors = plane_maps.maps_from_parameters(theta, alpha, "road_1", 2).a
    fresh = hidden * 1.0
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        rotated = rotate_in_place(fresh, factors, in_place=True)
    assert rotated.data_ptr() == fresh.data_ptr()
    assert sorted(tensor.numel() for tensor in saved) == [8, rotated.numel()]
    assert {tensor.data_ptr() for tensor in saved} == {rotated.data_ptr(), factors.data_ptr()}


def test_an_output_that_the_model_changes_has_no_gradient():
    theta, alpha, hidden = random_inputs()
    factors = plane_maps.maps_from_parameters(theta.requires_grad_(), alpha, "road_1", 2).a
    rotated = rotate_in_place(hidden * 1.0, factors, in_place=True)
    rotated += 1
    with pytest.raises(InputError, match="the model changed a rotated state in place before its gradient was computed"):
        rotated.sum().backward()


def test_torchs_error_of_a_checkpoint_that_is_computed_otherwise_is_torchs():
    theta, alpha, hidden = random_inputs()
    factors, rotates = plane_maps.maps_from_parameters(theta.requires_grad_(), alpha, "road_1", 2).a, [True]

    def block(state):
        return rotate_in_place(state * 2, factors, in_place=True) if rotates.pop() else state * 2

    rotates.append(False)
    rotates.reverse()
    output = checkpoint(block, hidden.requires_grad_(), use_reentrant=False)
    with pytest.raises(CheckpointError):
        output.sum().backward()


@torch.no_grad()
def test_without_gradients_the_states_are_overwritten_only_in_place():
    theta, alpha, hidden = random_inputs()
    factors = plane_maps.maps_from_parameters(theta, alpha, "road_1", 2).a
    before = hidden.clone()
    elsewhere = rotate_in_place(hidden, factors, in_place=False)
    assert torch.equal(hidden, before)
    assert rotate_in_place(hidden, factors, in_place=True).data_ptr() == hidden.data_ptr()
    assert torch.equal(hidden, elsewhere)


def test_states_that_can_be_rotated_in_place_and_those_that_cannot():
    theta, alpha, _ = random_inputs(())
    maps, states = plane_maps.maps_from_parameters(theta, alpha, "road_1", 2), torch.randn(3 * 16 + 2)
    assert has_complex_form(maps, states[:48].view(3, 16), 2)
    assert has_complex_form(maps, states[2:].view(3, 16), 2)
    for other in (states[1:49].view(3, 16), states[:48].view(16, 3).T):  # an odd offset; not contiguous
        assert not has_complex_form(maps, other, 2)
        with pytest.raises(RuntimeError):
            rotate_in_place(other, maps.a.to(torch.complex64), in_place=True)
    assert not has_complex_form(maps, states[:48].view(3, 16), 4)
    general = plane_maps.maps_from_parameters(theta.new_zeros(2, *theta.shape), alpha.new_ones(2, *alpha.shape), "road_2", 2)
    assert not has_complex_form(general, states[:48].view(3, 16), 2)


def test_one_token_of_a_slice_of_odd_width_has_no_complex_form():
    """Its only axis with several entries is contiguous, so that torch calls it contiguous, and cannot see pairs in it."""
    maps = plane_maps.maps_from_parameters(torch.zeros(4), torch.ones(4), "road_1", 2)
    of_odd_width = torch.zeros(1, 1, 9)[..., :8]
    assert of_odd_width.is_contiguous()
    assert not has_complex_form(maps, of_odd_width, 2)
    assert has_complex_form(maps, torch.zeros(1, 1, 8), 2)
