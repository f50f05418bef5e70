"""Borders of several variables in one basis: consecutive coordinates, as many as training gives them."""

from __future__ import annotations

import pytest
import torch

from road_interp.causal.bases import Columns, Neurons, PlaneRotations
from road_interp.causal.boundless_interchange import RATE_OF_BORDERS, BoundlessInterchange
from road_interp.causal.variables import measure_variables
from road_interp.errors import InputError


def of_parts(*parts: float, width: int = 8) -> BoundlessInterchange:
    """An interchange of neurons with given parts of the coordinates; the last is for no variable."""
    boundless = BoundlessInterchange(len(parts) - 1, Neurons(width))
    with torch.no_grad():
        boundless.logits.copy_(torch.tensor(parts).log() / RATE_OF_BORDERS)
    return boundless


def test_hardened_borders_own_consecutive_coordinates():
    boundless, again = of_parts(0.5, 0.25, 0.25), of_parts(0.1, 0.1, 0.8)
    boundless.harden()
    assert boundless.owned == (4, 2)
    base, source = torch.zeros(4, 8), torch.ones(4, 8)
    expected = [[1] * 4 + [0] * 4, [0] * 4 + [1] * 2 + [0] * 2, [1] * 6 + [0] * 2, [0] * 8]
    again.load_state_dict(boundless.state_dict())
    for each in (boundless, again):
        assert each(base, source, subspaces=[[0], [1], [0, 1], []]).tolist() == expected


def test_a_border_is_moved_to_the_nearest_place_between_two_coordinates():
    boundless = of_parts(0.30, 0.55, 0.15)  # borders at 2.4 and 6.8 of 8
    boundless.harden()
    assert boundless.owned == (2, 5)


@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_the_proportions_of_a_coordinate_are_those_of_the_sigmoids(temperature):
    boundless = of_parts(0.5, 0.25, 0.25)
    boundless.set_temperature(temperature)
    with torch.no_grad():
        first, second, both = boundless(torch.zeros(3, 8), torch.ones(3, 8), subspaces=[[0], [1], [0, 1]])
    places = (torch.arange(8) + 0.5) / 8
    torch.testing.assert_close(first, ((0.5 - places) / temperature).sigmoid())
    torch.testing.assert_close(both, ((0.75 - places) / temperature).sigmoid())
    torch.testing.assert_close(first + second, both)
    assert (second >= 0).all()


def test_at_the_last_temperature_of_a_training_the_borders_are_nearly_hard():
    boundless, states = of_parts(0.5, 0.25, 0.25), (torch.zeros(3, 8), torch.ones(3, 8))
    boundless.set_temperature(boundless.temperatures[1])
    soft = boundless(*states, subspaces=[[0], [1], [0, 1]])
    boundless.harden()
    torch.testing.assert_close(soft.detach(), boundless(*states, subspaces=[[0], [1], [0, 1]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("basis", [Columns(torch.randn(6, 6), trained=True), PlaneRotations(6, 0, depth=4)])
def test_borders_and_basis_are_trained_together(basis):
    boundless = BoundlessInterchange(2, basis)
    base, source = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    boundless(base, source, subspaces=[[0], [1], [0, 1], [0], [1]]).square().sum().backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in boundless.parameters())
    with torch.no_grad():
        swapped = boundless(base, source, subspaces=[[0, 1]] * 5) - base
        rotated = [basis(torch.float32)[0](states) for states in (swapped, source - base)]
    shares = boundless._shares().detach().sum(0)
    torch.testing.assert_close(rotated[0], rotated[1] * shares, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [lambda columns: BoundlessInterchange(2, columns), lambda columns: columns])
def test_a_state_of_a_trained_basis_is_not_that_of_a_fixed_one(make):
    weight = torch.randn(8, 8)
    trained, fixed = make(Columns(weight, trained=True)), make(Columns(torch.linalg.qr(weight).Q))
    for state, other in ((trained, fixed), (fixed, trained)):
        with pytest.raises(RuntimeError, match="the columns are of another kind of basis"):
            other.load_state_dict(state.state_dict())
    kept = {name: value for name, value in trained.state_dict().items() if not name.endswith("_extra_state")}  # of 0.1.0
    make(Columns(torch.zeros(8, 8), trained=True)).load_state_dict(kept)


def test_borders_that_are_measured_before_they_are_hardened_are_warned_of(runs):
    boundless = BoundlessInterchange(2, Neurons(32))
    with pytest.warns(UserWarning, match="this BoundlessInterchange is not hardened"):
        assert measure_variables(runs, boundless, "borders").owned == ()
    boundless.harden()
    assert measure_variables(runs, boundless, "borders").owned == (11, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BoundlessInterchange(9, Neurons(8)), "9 variables do not fit into the 8 coordinates of the basis"),
        (lambda: BoundlessInterchange(0, Neurons(8)), "the number of variables must be a whole number of at least 1, not 0"),
        (lambda: BoundlessInterchange(2, "neurons"), "not str: give causal.Columns, Neurons or PlaneRotations"),
        (lambda: BoundlessInterchange(2, Neurons(8)).set_temperature(0), "the temperature must be above 0, not 0"),
    ],
)
def test_what_borders_cannot_be_made_of_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
