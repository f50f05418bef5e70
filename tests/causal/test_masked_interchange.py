"""Masks of several variables: disjoint, of the number that was asked for."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from road_interp.causal.accuracy import interchange_accuracy
from road_interp.causal.bases import Columns, InBasis, Neurons
from road_interp.causal.masked_interchange import MaskedInterchange
from road_interp.causal.variables import measure_variables, train_variables
from road_interp.errors import InputError
from road_interp.models.interchange import RoadInterchangeIntervention


def test_hardened_masks_own_disjoint_coordinates():
    """The coordinates with the largest sum of claims, also where a low temperature makes all claims equal to 1."""
    masked = MaskedInterchange(2, 6, 2)
    masked.set_temperature(0.05)
    with torch.no_grad():
        masked.logits.copy_(torch.tensor([[5.0, 8, 9, 0, 0, 0], [0, 8.5, 0, 6, 5, 0], [0, 0, 0, 0, 9, 9]]))
    masked.harden()
    assert masked.owners.tolist() == [0, 1, 0, 1, -1, -1]
    base, source = torch.zeros(3, 6), torch.ones(3, 6)
    assert masked(base, source, subspaces=[[0], [1], [0, 1]]).tolist() == [
        [1, 0, 1, 0, 0, 0],
        [0, 1, 0, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
    ]
    again = MaskedInterchange(2, 6, 2)
    again.load_state_dict(masked.state_dict())
    assert torch.equal(again(base, source, subspaces=[[0], [1], [0, 1]]), masked(base, source, subspaces=[[0], [1], [0, 1]]))


@pytest.mark.parametrize(("temperature", "tolerance"), [(1.0, 1e-4), (0.05, 0.15)])
@pytest.mark.parametrize("coordinates", [1, 5, 30])
def test_the_proportions_of_a_mask_add_up_to_its_number_of_coordinates(coordinates, temperature, tolerance):
    masked = MaskedInterchange(2, 100, coordinates)
    torch.nn.init.normal_(masked.logits, generator=torch.Generator().manual_seed(0))
    masked.set_temperature(temperature)
    with torch.no_grad():
        swapped = masked(torch.zeros(3, 100), torch.ones(3, 100), subspaces=[[0], [1], [0, 1]])
    assert swapped.sum(1).tolist() == pytest.approx([coordinates, coordinates, 2 * coordinates], rel=tolerance)
    assert ((swapped >= 0) & (swapped <= 1)).all()
    masked.harden()
    assert [int((masked.owners == index).sum()) for index in range(2)] == [coordinates, coordinates]


def test_masks_own_their_number_where_all_training_pointed_elsewhere():
    masked = MaskedInterchange(2, 9, 2)
    with torch.no_grad():
        masked.logits[2] = 50.0
    masked.harden()
    assert sorted(masked.owners.tolist()) == [-1] * 5 + [0, 0, 1, 1]


def test_masks_that_are_measured_before_they_are_hardened_are_warned_of(runs):
    masked, road = MaskedInterchange(2, 32, 2), RoadInterchangeIntervention(32, rows="mask")
    torch.nn.init.normal_(road.mask, generator=torch.Generator().manual_seed(0))
    for measure in (
        lambda: measure_variables(runs, masked, "masks"),
        lambda: interchange_accuracy(runs.runs, road, "mask"),
    ):
        with pytest.warns(UserWarning, match=r"is not hardened, .* call its harden\(\) before it is measured"):
            measure()
    masked.harden()
    road.harden()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure_variables(runs, masked, "masks")
        interchange_accuracy(runs.runs, road, "mask")


@pytest.mark.parametrize("mask", [MaskedInterchange(2, 8, 3), RoadInterchangeIntervention(8, rows="mask")])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, torch.tensor(0.0)])
def test_a_temperature_without_a_gradient_is_refused(mask, temperature):
    with pytest.raises(InputError, match="the temperature.* must be above 0, not"):
        mask.set_temperature(temperature)
    assert mask.temperature == 1


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="2 variables of 5 coordinates do not fit into the 9 of the basis"):
        MaskedInterchange(2, 9, 5)
    with pytest.raises(InputError, match="the basis is of states of width 8, the interchange of 16"):
        MaskedInterchange(2, 16, 1, Neurons(8))
    with pytest.raises(InputError, match="not str: give causal.Columns, Neurons or PlaneRotations"):
        MaskedInterchange(2, 9, 2, "neurons")


def test_columns_that_are_not_orthonormal_are_refused():
    """A swap of their coordinates would put the state elsewhere."""
    columns = torch.linalg.qr(torch.randn(9, 6, generator=torch.Generator().manual_seed(0))).Q
    for given in (2 * columns, torch.randn(9, 6), columns / float("nan")):
        with pytest.raises(
            InputError, match=r"causal.Columns: the columns are not orthonormal: give torch.linalg.qr\(columns\).Q"
        ):
            Columns(given)
        with pytest.raises(InputError, match="causal.InBasis: the columns are not orthonormal"):
            InBasis(torch.nn.Identity(), given)
    for given in (columns.T, columns[:, 0]):
        with pytest.raises(InputError, match="no more columns than rows, not"):
            Columns(given, trained=True)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert Columns(columns.to(dtype)).count == 6


def test_trained_columns_are_those_of_fp32_and_finite():
    assert Columns(torch.eye(4, 2, dtype=torch.bfloat16), trained=True).weight.dtype == torch.float32
    for weight in (torch.eye(4, 2).long(), torch.full((4, 2), float("nan")), torch.eye(4, 0)):
        with pytest.raises(InputError, match="causal.Columns needs finite columns of floating point, one at least"):
            Columns(weight, trained=True)


def test_a_state_of_other_masks_is_refused():
    columns = torch.linalg.qr(torch.randn(9, 6, generator=torch.Generator().manual_seed(0))).Q
    state = MaskedInterchange(2, 9, 2, Columns(columns, trained=True)).state_dict()
    for coordinates, trained in ((1, True), (2, False)):
        with pytest.raises(RuntimeError, match="it is the state of another interchange"):
            MaskedInterchange(2, 9, coordinates, Columns(columns, trained)).load_state_dict(state)
    older = {name: values for name, values in state.items() if name != "_extra_state"}
    MaskedInterchange(2, 9, 2, Columns(columns, trained=True)).load_state_dict(older)


def test_masks_of_fewer_variables_are_refused(runs):
    for use in (lambda mask: measure_variables(runs, mask, "masks"), lambda mask: train_variables(runs, mask)):
        with pytest.raises(InputError, match="the interchange has 1 subspaces, the runs have 2 variables"):
            use(MaskedInterchange(1, 32, 2))


@pytest.mark.parametrize(
    ("subspaces", "message"),
    [
        ([[0]], "subspaces list 1 rows, but the batch has 4"),
        ([[-1]] * 4, "subspace -1 does not exist: subspaces are 0 to 1"),
        ([[2]] * 4, "subspace 2 does not exist: subspaces are 0 to 1"),
    ],
)
def test_a_mask_checks_its_subspaces(subspaces, message):
    mask, states = MaskedInterchange(2, 32, 2), torch.randn(2, 4, 32)
    with pytest.raises(InputError, match=message):
        mask(*states, subspaces=subspaces)
    torch.testing.assert_close(mask(*states, subspaces=[[0, 0]] * 4), mask(*states, subspaces=[[0]] * 4))


@pytest.mark.parametrize("sizes", [(0, 32, 4), (2, 0, 4), (2, 32, 0), (2, 32, -1)])
def test_numbers_below_one_are_refused(sizes):
    with pytest.raises(InputError, match="causal.MaskedInterchange: the .* must be a whole number of at least 1, not "):
        MaskedInterchange(*sizes)
