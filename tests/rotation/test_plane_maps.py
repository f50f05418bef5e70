"""The algebra of plane maps, compared between its forms, with dense matrices and with PEFT's RoadLayer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import RoadConfig
from peft.tuners.road.layer import Linear as PeftRoadLinear

from road_interp.errors import InputError
from road_interp.rotation import plane_maps

WIDTH = 128
VARIANTS = list(plane_maps.VARIANTS)
GROUPS = [2, 4, 32, 64]


def random_parameters(variant, width=WIDTH, seed=0, dtype=torch.float64, rows=(), spread=0.5):
    generator = torch.Generator().manual_seed(seed)
    size = plane_maps.num_parameters(width, variant)
    theta = spread * torch.randn(*rows, size, generator=generator, dtype=dtype)
    alpha = 1 + spread * torch.randn(*rows, size, generator=generator, dtype=dtype)
    return theta, alpha


def maps_of(variant, group_size, **options):
    return plane_maps.maps_from_parameters(*random_parameters(variant, **options), variant, group_size)


def states(*shape, dtype=torch.float64, seed=9):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("group_size", GROUPS)
class TestEveryVariant:
    def test_the_identity_is_bitwise_exact(self, variant, group_size):
        size = plane_maps.num_parameters(WIDTH, variant)
        maps = plane_maps.maps_from_parameters(torch.zeros(size), torch.ones(size), variant, group_size)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            hidden = states(2, 3, WIDTH, dtype=dtype)
            assert torch.equal(plane_maps.apply(maps, hidden, group_size), hidden)

    def test_inverse_undoes_apply(self, variant, group_size):
        maps, hidden = maps_of(variant, group_size), states(5, WIDTH)
        back = plane_maps.apply(plane_maps.inverse(maps), plane_maps.apply(maps, hidden, group_size), group_size)
        condition = (plane_maps.polar(maps).major / plane_maps.polar(maps).minor).max().item()
        assert (back - hidden).abs().max() < 1e-12 * max(1.0, condition / 100)

    def test_compose_equals_apply_twice(self, variant, group_size):
        outer, inner, hidden = maps_of(variant, group_size, seed=1), maps_of(variant, group_size, seed=2), states(5, WIDTH)
        twice = plane_maps.apply(outer, plane_maps.apply(inner, hidden, group_size), group_size)
        once = plane_maps.apply(plane_maps.compose(outer, inner), hidden, group_size)
        torch.testing.assert_close(once, twice, rtol=0, atol=1e-12)

    def test_complex_form_equals_real_form_equals_dense_matrix(self, variant, group_size):
        theta, alpha = random_parameters(variant)
        maps, hidden = plane_maps.maps_from_parameters(theta, alpha, variant, group_size), states(2, 5, WIDTH)
        real = plane_maps.apply_entries(plane_maps.entries_from_parameters(theta, alpha, variant, group_size), hidden, group_size)
        dense = hidden @ plane_maps.matrix(maps, group_size).T
        torch.testing.assert_close(plane_maps.apply(maps, hidden, group_size), real, rtol=0, atol=1e-12)
        torch.testing.assert_close(dense, real, rtol=0, atol=1e-12)

    def test_peft_gives_the_same_output(self, variant, group_size):
        torch.manual_seed(0)
        linear = torch.nn.Linear(16, WIDTH)
        layer = PeftRoadLinear(linear, "default", RoadConfig(variant=variant, group_size=group_size, init_weights=False))
        theta, alpha = layer.road_theta["default"].detach(), layer.road_alpha["default"].detach()
        inputs = states(4, 7, 16, dtype=torch.float32)
        ours = plane_maps.apply(plane_maps.maps_from_parameters(theta, alpha, variant, group_size), linear(inputs), group_size)
        torch.testing.assert_close(ours, layer(inputs), rtol=1e-6, atol=1e-6)

    def test_polar_decomposition_reconstructs_the_maps(self, variant, group_size):
        maps = maps_of(variant, group_size, spread=1.5)
        polar = plane_maps.polar(maps)
        d0, o0, o1, d1 = plane_maps.entries_from_maps(maps)
        dense = torch.stack((torch.stack((d0, o0), -1), torch.stack((o1, d1), -1)), -2)
        expected = torch.linalg.svdvals(dense)
        torch.testing.assert_close(torch.stack((polar.major, polar.minor), -1), expected, rtol=0, atol=1e-12)
        assert torch.equal(polar.reflection, torch.linalg.det(dense) < 0)
        cosine, sine = polar.angle.cos(), polar.angle.sin()
        sign = torch.where(polar.reflection, -1.0, 1.0).to(cosine)
        factor = torch.stack((torch.stack((cosine, -sign * sine), -1), torch.stack((sine, sign * cosine), -1)), -2)
        stretch = factor.transpose(-1, -2) @ dense
        torch.testing.assert_close(stretch, stretch.transpose(-1, -2), rtol=0, atol=1e-12)
        assert (torch.linalg.eigvalsh(stretch) > -1e-12).all()

    def test_rows_are_rotated_by_their_own_maps(self, variant, group_size):
        theta, alpha = random_parameters(variant, rows=(3,))
        hidden = states(3, 4, WIDTH)
        together = plane_maps.apply(plane_maps.maps_from_parameters(theta, alpha, variant, group_size), hidden, group_size)
        for row in range(3):
            alone = plane_maps.apply(
                plane_maps.maps_from_parameters(theta[row], alpha[row], variant, group_size), hidden[row], group_size
            )
            assert torch.equal(together[row], alone)

    def test_gradients_agree_with_finite_differences(self, variant, group_size):
        theta, alpha = (values.requires_grad_() for values in random_parameters(variant, width=64))
        hidden = states(2, 3, 64).requires_grad_()

        def rotated(theta, alpha, hidden):
            return plane_maps.apply(plane_maps.maps_from_parameters(theta, alpha, variant, group_size), hidden, group_size)

        assert torch.autograd.gradcheck(rotated, (theta, alpha, hidden), fast_mode=True)

    def test_half_precision_keeps_its_dtype_and_is_computed_in_fp32(self, variant, group_size):
        theta, alpha = random_parameters(variant, dtype=torch.float32)
        maps, hidden = (
            plane_maps.maps_from_parameters(theta, alpha, variant, group_size),
            states(2, 3, WIDTH, dtype=torch.float32),
        )
        for dtype in (torch.bfloat16, torch.float16):
            low = plane_maps.apply(maps, hidden.to(dtype), group_size)
            assert low.dtype == dtype
            exact = plane_maps.apply(maps, hidden.to(dtype).float(), group_size)
            assert torch.equal(low, exact.to(dtype))


@pytest.mark.parametrize("group_size", GROUPS)
def test_parameters_from_maps_inverts_maps_from_parameters(group_size):
    general = maps_of("road_4", group_size)
    again = plane_maps.maps_from_parameters(*plane_maps.parameters_from_maps(general, "road_2", group_size), "road_2", group_size)
    torch.testing.assert_close(torch.stack(again), torch.stack(general), rtol=0, atol=1e-13)
    rows = plane_maps.PlaneMaps(*(values.repeat(3, 1) for values in general))
    for found, alone in zip(
        plane_maps.parameters_from_maps(rows, "road_2", group_size),
        plane_maps.parameters_from_maps(general, "road_2", group_size),
        strict=True,
    ):
        assert torch.equal(found, alone.expand(3, -1))
    scaled = maps_of("road_1", group_size)
    again = plane_maps.maps_from_parameters(*plane_maps.parameters_from_maps(scaled, "road_1", group_size), "road_1", group_size)
    torch.testing.assert_close(again.a, scaled.a, rtol=0, atol=1e-14)


def test_group_size_2_pairs_adjacent_dimensions_and_larger_groups_pair_their_halves():
    quarter = plane_maps.maps_from_parameters(torch.tensor([math.pi / 2, 0.0]), torch.ones(2), "road_1", 2)
    hidden = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(plane_maps.apply(quarter, hidden, 2), torch.tensor([-2.0, 1.0, 3.0, 4.0]))
    torch.testing.assert_close(plane_maps.apply(quarter, hidden, 4), torch.tensor([-3.0, 2.0, 1.0, 4.0]))
    assert [dimensions.tolist() for dimensions in plane_maps.plane_dimensions(4, 4)] == [[0, 1], [2, 3]]


def test_rotations_with_scale_1_preserve_norms():
    theta, _ = random_parameters("road_1")
    hidden = states(10, WIDTH)
    rotated = plane_maps.apply(plane_maps.maps_from_parameters(theta, torch.ones_like(theta), "road_1", 2), hidden, 2)
    torch.testing.assert_close(rotated.norm(dim=-1), hidden.norm(dim=-1), rtol=1e-14, atol=0)


def test_non_contiguous_states_take_the_equivalent_real_form():
    maps = maps_of("road_1", 2)
    hidden = states(WIDTH, 6).T
    torch.testing.assert_close(
        plane_maps.apply(maps, hidden, 2), plane_maps.apply(maps, hidden.contiguous(), 2), rtol=0, atol=1e-14
    )


def test_the_error_names_the_plane_of_a_singular_map():
    theta, alpha = random_parameters("road_1", width=8)
    alpha[2] = 0
    with pytest.raises(InputError, match="plane 2 cannot be inverted.*singular"):
        plane_maps.inverse(plane_maps.maps_from_parameters(theta, alpha, "road_1", 2))
    flat = plane_maps.maps_from_parameters(torch.zeros(4), torch.tensor([1.0, 1.0, 1.0, 0.0]), "road_2", 2)
    with pytest.raises(InputError, match="plane 1"):
        plane_maps.inverse(flat)


def test_angles_are_wrapped():
    theta = torch.tensor([3.5, -3.5, math.pi, -math.pi, 7.0])
    angle = plane_maps.polar(plane_maps.maps_from_parameters(theta, torch.ones(5), "road_1", 2)).angle
    expected = torch.tensor([3.5 - 2 * math.pi, 2 * math.pi - 3.5, math.pi, math.pi, 7.0 - 2 * math.pi])
    torch.testing.assert_close(angle.cos(), expected.cos())
    assert (angle > -math.pi).all()
    torch.testing.assert_close(angle[[0, 1, 4]], expected[[0, 1, 4]])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_half_turn_is_positive(dtype):
    half_turn = plane_maps.PlaneMaps(torch.complex(torch.tensor([-1.0]), torch.tensor([-0.0])).to(dtype))
    assert plane_maps.polar(half_turn).angle.item() > 3
    assert plane_maps.parameters_from_maps(half_turn, "road_1", 2)[0].item() > 3


def test_general_plane_maps_have_no_powers_and_no_road_1_or_road_4_parameters():
    general = maps_of("road_2", 2)
    with pytest.raises(InputError, match="^real powers exist for road_1 only: a general plane map has no unique real power$"):
        plane_maps.power(general, 0.5)
    with pytest.raises(InputError, match="^road_1 expresses scaled rotations only, not a general plane map; use road_2$"):
        plane_maps.parameters_from_maps(general, "road_1", 2)
    with pytest.raises(InputError, match="^road_4 has eight parameters .* use road_2, which has any plane map$"):
        plane_maps.parameters_from_maps(general, "road_4", 2)


planes = st.integers(1, 6)
exponents = st.floats(-2, 2)


@given(planes, exponents, exponents, st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_exponents_add_up(count, first, second, seed):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(count, generator=generator, dtype=torch.float64)
    alpha = 0.2 + torch.rand(count, generator=generator, dtype=torch.float64)
    maps = plane_maps.maps_from_parameters(theta, alpha, "road_1", 2)
    split = plane_maps.compose(plane_maps.power(maps, first), plane_maps.power(maps, second))
    torch.testing.assert_close(split.a, plane_maps.power(maps, first + second).a, rtol=1e-10, atol=1e-10)


@given(st.sampled_from(VARIANTS), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_composition_is_associative_and_determinants_multiply(variant, seed):
    a, b, c = (maps_of(variant, 2, width=8, seed=seed + shift) for shift in (0, 1, 2))
    left, right = plane_maps.compose(plane_maps.compose(a, b), c), plane_maps.compose(a, plane_maps.compose(b, c))
    torch.testing.assert_close(left.a, right.a, rtol=1e-9, atol=1e-11)
    product = plane_maps.determinant(a) * plane_maps.determinant(b)
    torch.testing.assert_close(plane_maps.determinant(plane_maps.compose(a, b)), product, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("variant", VARIANTS)
def test_polar_factors_are_orthogonal_and_symmetric(variant):
    maps = maps_of(variant, 2, spread=1.5)
    rotation, stretch = plane_maps.polar_factors(maps)
    product = plane_maps.matrix(plane_maps.compose(rotation, stretch), 2)
    torch.testing.assert_close(product, plane_maps.matrix(maps, 2), rtol=0, atol=1e-12)
    orthogonal, symmetric = plane_maps.matrix(rotation, 2), plane_maps.matrix(stretch, 2)
    torch.testing.assert_close(orthogonal @ orthogonal.T, torch.eye(WIDTH, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(symmetric, symmetric.T, rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(symmetric).min() > -1e-12
    reflection = plane_maps.polar(maps).reflection
    assert torch.equal(plane_maps.determinant(rotation) < 0, reflection)
    assert reflection.any() == (variant != "road_1")


def test_a_projection_is_no_reflection():
    """A map of rank 1 has a rotation and a reflection as its orthogonal factor; the rotation is taken."""
    equal = torch.full((2,), 0.5, dtype=torch.complex128)
    assert not plane_maps.polar(plane_maps.PlaneMaps(equal, equal)).reflection.any()


def test_polar_factors_of_zero_are_the_identity_and_zero():
    zero = torch.zeros(3, dtype=torch.complex128)
    for maps in (plane_maps.PlaneMaps(zero), plane_maps.PlaneMaps(zero, zero)):
        rotation, stretch = plane_maps.polar_factors(maps)
        assert torch.equal(plane_maps.matrix(rotation, 2), torch.eye(6, dtype=torch.float64))
        assert not plane_maps.matrix(stretch, 2).any()


FORMS = (plane_maps.maps_from_parameters, plane_maps.entries_from_parameters)
ACTIVE = torch.tensor([True, False, False, True])


def paired_tensors(*forms):
    """The corresponding tensors of several PlaneMaps or Entries; `b` of road_1 is None in all of them and left out."""
    for tensors in zip(*forms, strict=True):
        if tensors[0] is None:
            assert tensors == (None,) * len(forms)
        else:
            yield tensors


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_copies_of_a_row_are_adjacent(variant, form):
    maps = form(*random_parameters(variant, 8, rows=(2,)), variant, 2)
    for tensor, repeated in paired_tensors(maps, maps.repeat_rows(6)):
        assert torch.equal(repeated, tensor[[0, 0, 0, 1, 1, 1]])
    assert all(same is tensor for tensor, same in paired_tensors(maps, maps.repeat_rows(2)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_maps_with_rows_broadcast_over_states_with_more_axes(variant):
    maps = maps_of(variant, 2, width=8, rows=(3,))
    for tensor, aligned in paired_tensors(maps, maps.broadcast_to(4)):
        assert aligned.shape == (3, 1, 1, 4)
        assert torch.equal(aligned[:, 0, 0], tensor)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_inactive_planes_are_the_identity(variant, form):
    maps = form(*random_parameters(variant, 8), variant, 2)
    size = plane_maps.num_parameters(8, variant)
    identity = form(torch.zeros(size).double(), torch.ones(size).double(), variant, 2)
    for tensor, masked, unchanged in paired_tensors(maps, maps.masked(ACTIVE), identity):
        assert torch.equal(masked[ACTIVE], tensor[ACTIVE])
        assert torch.equal(masked[~ACTIVE], unchanged[~ACTIVE])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_selected_planes_get_a_gradient(variant, form):
    theta, alpha = (values.requires_grad_() for values in random_parameters(variant, 8))
    maps = form(theta, alpha, variant, 2)
    for tensor, trainable in paired_tensors(maps, maps.detach_outside(ACTIVE)):
        assert torch.equal(trainable, tensor)
        if tensor.requires_grad:
            (gradient,) = torch.autograd.grad(torch.view_as_real(trainable + 0j).sum(), tensor, retain_graph=True)
            assert (gradient != 0).tolist() == ACTIVE.tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_maps_move_to_another_device(variant):
    maps = maps_of(variant, 2)
    assert all(
        moved.device.type == "meta" and moved.shape == tensor.shape for tensor, moved in paired_tensors(maps, maps.to("meta"))
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_row_has_its_own_dense_matrix(variant):
    theta, alpha = random_parameters(variant, 8, rows=(2, 3))
    together = plane_maps.matrix(plane_maps.maps_from_parameters(theta, alpha, variant, 4), 4)
    for row in range(2):
        for column in range(3):
            alone = plane_maps.matrix(plane_maps.maps_from_parameters(theta[row, column], alpha[row, column], variant, 4), 4)
            assert torch.equal(together[row, column], alone)
    meta = plane_maps.matrix(maps_of(variant, 4, width=8).to(torch.device("meta")), 4)
    assert (meta.device.type, meta.shape) == ("meta", (8, 8))
    assert plane_maps.plane_dimensions(8, 4, torch.device("meta"))[0].device.type == "meta"


def test_the_error_names_row_and_stretches_of_a_singular_map():
    theta, alpha = random_parameters("road_1", width=8, rows=(3,))
    alpha[1, 2] = alpha[2, 0] = 0
    message = r"^plane 2 of row 1 cannot be inverted: its map is singular \(stretches 0 and 0; 2 such planes\)$"
    with pytest.raises(InputError, match=message):
        plane_maps.inverse(plane_maps.maps_from_parameters(theta, alpha, "road_1", 2))


@pytest.mark.parametrize(("size", "is_singular"), [(1.0, False), (1e-30, False), (1e30, False), (0.0, True)])
def test_small_and_large_maps_are_not_singular(size, is_singular):
    assert plane_maps.singular(plane_maps.PlaneMaps(torch.tensor([size], dtype=torch.complex128))).tolist() == [is_singular]
    uneven = plane_maps.PlaneMaps(*(torch.tensor([size * factor], dtype=torch.complex128) for factor in (1.0, 1 - 1e-17)))
    assert plane_maps.singular(uneven).tolist() == [True]  # the smaller stretch is below the rounding error of the larger one


def test_which_states_take_the_complex_multiplication():
    maps = maps_of("road_1", 2)
    for dtype in (torch.float32, torch.float64):
        fitting = plane_maps.PlaneMaps(maps.a.to(torch.complex64 if dtype == torch.float32 else torch.complex128))
        assert plane_maps._is_complex_view(fitting, states(3, WIDTH, dtype=dtype), 2)
    hidden = states(3, WIDTH)
    others = {
        "other planes": (maps, hidden, 4),
        "half precision": (maps, hidden.half(), 2),
        "maps of another precision": (maps, hidden.float(), 2),
        "strided dimensions": (maps, states(WIDTH, 4).T, 2),
        "an odd stride behind an even one": (maps, states(2, 4, WIDTH + 1)[..., :WIDTH], 2),
        "an odd storage offset": (maps, states(3 * WIDTH + 1)[1:].view(3, WIDTH), 2),
        "rows of odd length": (maps, states(3, WIDTH + 1)[:, :WIDTH], 2),
    }
    for name, case in others.items():
        assert not plane_maps._is_complex_view(*case), name


def test_torch_compile_traces_the_real_form(monkeypatch):
    maps, hidden = maps_of("road_1", 2), states(3, WIDTH)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not plane_maps._is_complex_view(maps, hidden, 2)
    real = plane_maps.apply_entries(plane_maps.entries_from_maps(maps), hidden, 2)
    assert torch.equal(plane_maps.apply(maps, hidden, 2), real)


def test_states_of_another_width_are_refused():
    maps = plane_maps.maps_from_parameters(torch.zeros(4), torch.ones(4), "road_1", 2)
    with pytest.raises(InputError, match="^states of width 6 cannot be rotated in 4 planes$"):
        plane_maps.apply(maps, torch.zeros(5, 3, 6), 2)
