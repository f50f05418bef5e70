"""The interchanges that are compared, and the bases that they are made in."""

from __future__ import annotations

import pytest
import torch

from helpers.things import VARIABLES
from road_interp.causal.bases import InBasis, principal_components, whitening
from road_interp.causal.variable_methods import FROM_COMPONENTS, KNOWN_METHODS, MethodInputs, SeparateInterchanges
from road_interp.errors import InputError
from road_interp.models.variable_coordinates import VariableCoordinates


@pytest.mark.parametrize("name", KNOWN_METHODS)
def test_every_method_swaps_nothing_of_an_equal_source(name):
    states = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    interchange = KNOWN_METHODS[name].make(MethodInputs(32, VARIABLES, 2, states, seed=1))
    torch.testing.assert_close(interchange(states, states.clone(), subspaces=[[0], [1]] * 20), states, rtol=0, atol=1e-5)
    assert not torch.allclose(interchange(states, states.flip(0), subspaces=[[0], [1]] * 20), states, atol=1e-2)


def test_a_basis_of_components_needs_as_many_states_as_coordinates():
    states = torch.randn(10, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="own 16 coordinates, but the 10 training states have only 10 principal components"):
        KNOWN_METHODS[FROM_COMPONENTS].make(MethodInputs(32, VARIABLES, 8, states, seed=1))


def test_principal_components_are_ordered_and_orthonormal():
    spread = torch.tensor([5.0, 3.0, 1.0])
    states = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * spread + 7
    basis = principal_components(states)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3), rtol=0, atol=1e-5)
    assert (basis[:, 0].abs().argmax(), basis[:, 1].abs().argmax()) == (0, 1)


def test_a_whitened_state_has_the_identity_as_covariance():
    spread = torch.tensor([0.5, 3.0, 1.0, 2.0])
    states = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0)) * spread + 7
    columns, deviations = whitening(states)
    torch.testing.assert_close(columns.T @ columns, torch.eye(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cov((states @ columns / deviations).T), torch.eye(4), rtol=0, atol=0.01)
    assert deviations == pytest.approx(torch.tensor([3.0, 2.0, 1.0, 0.5]), rel=0.02)
    assert whitening(states[:3])[1].min() > 0.1  # with fewer states than dimensions, too


def test_an_interchange_of_a_whitened_state_swaps_coordinates_in_units_of_their_deviation():
    states = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9, 8)
    columns, deviations = whitening(states)
    base, source = states[:100], states[100:]
    rotation = VariableCoordinates({"colour": 4, "shape": 4}).road(8, depth=3, seed=1, spread=1.0)
    inside = InBasis(rotation, columns, deviations)
    torch.testing.assert_close(inside(base, source, [[0, 1]] * 100), source, rtol=0, atol=1e-5)  # all coordinates
    white = [each @ columns / deviations for each in (base, source)]
    expected = rotation(*white, subspaces=[[1]] * 100) * deviations @ columns.T
    torch.testing.assert_close(inside(base, source, [[1]] * 100), expected, rtol=0, atol=1e-4)
    plain = InBasis(rotation, columns)(base, source, [[1]] * 100)
    assert not torch.allclose(plain, expected, atol=0.1)


def test_subspaces_of_separate_interchanges_are_checked():
    interchange, states = SeparateInterchanges(2, 8, 2, 0), torch.randn(3, 8)
    for subspaces, message in (([[-1]] * 3, "subspace -1 does not exist"), ([[0]], "subspaces list 1 rows, but the batch has 3")):
        with pytest.raises(InputError, match=message):
            interchange(states, states, subspaces)


@pytest.mark.parametrize("name", KNOWN_METHODS)
def test_interchanges_stay_in_fp32_beside_a_model_in_bf16(name):
    states = torch.randn(80, 16, generator=torch.Generator().manual_seed(0))
    interchange = KNOWN_METHODS[name].make(MethodInputs(16, ("a", "b"), 2, states, 0))
    inputs = {"base": states[:4], "source": states[4:8], "subspaces": [[0], [1], [0, 1], []]}
    with torch.no_grad():
        expected = interchange(**inputs)
        assert torch.equal(interchange.to(torch.bfloat16)(**inputs), expected)
