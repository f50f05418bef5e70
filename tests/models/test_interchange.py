"""RoadInterchangeIntervention, called directly and by pyvene."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import pyvene
import torch

from helpers.models import tiny_model, token_batch
from road_interp.errors import InputError
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.models.intervention import RoadIntervention
from road_interp.models.low_rank_interchange import LowRankInterchangeIntervention
from road_interp.models.variable_coordinates import VariableCoordinates
from road_interp.rotation import butterfly

WIDTH = 32


def states(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def interchange(depth, **options):
    return RoadInterchangeIntervention(WIDTH, depth=depth, spread=3.0, **options)


@pytest.mark.parametrize("depth", [1, 5])
@pytest.mark.parametrize("rows", ["first", [3, 8], "mask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_source_equal_to_the_base_is_bitwise_the_identity(depth, rows, dtype):
    base = states(2, 3, dtype=dtype)
    assert torch.equal(interchange(depth, rows=rows)(base, base.clone()), base)


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_swapping_all_rows_gives_the_source(depth):
    base, source = states(2, 3), states(2, 3, seed=1)
    torch.testing.assert_close(interchange(depth, rows=range(WIDTH))(base, source), source)


@pytest.mark.parametrize("depth", [1, 5])
def test_only_the_given_rows_are_swapped_in_the_rotated_basis(depth):
    base, source = states(4), states(4, seed=1)
    intervention = interchange(depth, rows=[2, 7, 9])
    swapped = butterfly.rotate(intervention.theta, base).clone()
    swapped[:, [2, 7, 9]] = butterfly.rotate(intervention.theta, source)[:, [2, 7, 9]]
    torch.testing.assert_close(intervention(base, source), butterfly.inverse(intervention.theta, swapped))


def test_swapped_planes_do_not_depend_on_their_angles():
    base, source = states(4), states(4, seed=1)
    intervention = interchange(1, rows=[4, 5, 10, 11])
    expected = base.clone()
    expected[:, [4, 5, 10, 11]] = source[:, [4, 5, 10, 11]]
    torch.testing.assert_close(intervention(base, source), expected)


@pytest.mark.parametrize("depth", [1, 5])
def test_the_basis_spans_the_swapped_subspace(depth):
    base, source = states(4), states(4, seed=1)
    intervention = interchange(depth, rows=[9, 2])
    basis = intervention.basis()
    assert basis.shape == (WIDTH, 2)
    torch.testing.assert_close(basis.T @ basis, torch.eye(2))
    torch.testing.assert_close(intervention(base, source), base + (source - base) @ basis @ basis.T)


def test_the_featurizer_equals_the_interchange():
    base, source = states(4), states(4, seed=1)
    intervention = interchange(5)
    featurize, invert, indices = intervention.featurizer()
    features, error = featurize(base)
    features[:, indices] = featurize(source)[0][:, indices]
    torch.testing.assert_close(invert(features, error), intervention(base, source))
    assert indices == list(range(0, WIDTH, 2))


def test_subspaces_select_rows_for_every_example():
    base, source = states(3, 2), states(3, 2, seed=1)
    rows = [9, 2, 30]
    output = interchange(5, rows=rows)(base, source, subspaces=[[0], [2, 1], []])
    for number, selected in enumerate(([9], [30, 2])):
        alone = interchange(5, rows=selected)(base[number], source[number])
        torch.testing.assert_close(output[number], alone)
    assert torch.equal(output[2], base[2])


def test_subspaces_select_ranges_of_a_partition():
    base, source = states(2), states(2, seed=1)
    intervention = interchange(5, rows=[9, 2, 30], subspace_partition=[[0, 2], [2, 3]])
    output = intervention(base, source, subspaces=[[0], [1]])
    torch.testing.assert_close(output[:1], interchange(5, rows=[9, 2])(base[:1], source[:1]))
    torch.testing.assert_close(output[1:], interchange(5, rows=[30])(base[1:], source[1:]))


@pytest.mark.parametrize("make", [np.array, torch.tensor, lambda parts: [range(*part) for part in parts], lambda parts: parts])
@pytest.mark.parametrize("kind", [RoadIntervention, RoadInterchangeIntervention, LowRankInterchangeIntervention])
def test_partitions_of_arrays_and_ranges(make, kind):
    options = {"low_rank_dimension": 8} if kind is LowRankInterchangeIntervention else {}
    given = kind(WIDTH, subspace_partition=make([[0, 2], [4, 8]]), **options)
    assert given.subspace_partition == [[0, 1], [4, 5, 6, 7]]


def test_partitions_equal_those_of_pyvene():
    theirs = pyvene.LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=3, subspace_partition=[[0, 2], [2, 3]])
    ours = interchange(5, rows=[9, 2, 30], subspace_partition=[[0, 2], [2, 3]])
    theirs.rotate_layer.weight = ours.basis()
    base, source = states(2), states(2, seed=1)
    for subspaces in ([[0], [0]], [[1], [1]], [[0, 1], [0, 1]], None):
        torch.testing.assert_close(ours(base, source, subspaces), theirs(base.clone(), source, subspaces))


def test_a_hardened_mask_keeps_the_owners_of_its_coordinates():
    base, source = states(2), states(2, seed=1)
    intervention = interchange(2, rows="mask", subspace_partition=[[0, 4], [4, 10]])
    with torch.no_grad():
        intervention.mask -= 9
        intervention.mask[[3, 5, 8]] = 9.0
    intervention.set_temperature(1e-3)
    before = [intervention(base, source, subspaces=[[index]] * 2) for index in (0, 1)]
    assert intervention.harden() == (3, 5, 8)
    for index, expected in enumerate(before):
        torch.testing.assert_close(intervention(base, source, subspaces=[[index]] * 2), expected)
    alone = interchange(2, rows="mask", subspace_partition=[[0, 4], [4, 10]])
    with torch.no_grad():
        alone.mask -= 9
        alone.mask[2] = 9.0
    with pytest.raises(InputError, match="the mask selects no coordinate of subspace 1"):
        alone.harden()


def test_a_mask_is_trained_and_hardens_to_rows():
    base, source = states(4), states(4, seed=1)
    intervention = interchange(2, rows="mask")
    torch.testing.assert_close(intervention(base, source), (base + source) / 2)
    with torch.no_grad():
        intervention.mask -= 0.1
        intervention.mask[[3, 8]] = 0.2
    intervention(base, source).square().sum().backward()
    assert (intervention.mask.grad != 0).all()
    intervention.set_temperature(1e-3)
    sharp = intervention(base, source)
    assert intervention.harden() == (3, 8)
    torch.testing.assert_close(intervention(base, source), sharp)
    torch.testing.assert_close(sharp, interchange(2, rows=[3, 8])(base, source))
    assert [name for name, _ in intervention.named_parameters()] == ["theta"]
    with pytest.raises(InputError, match="no mask to harden"):
        intervention.harden()


@pytest.mark.parametrize(("depth", "rows"), [(1, "first"), (5, [0]), (2, "mask")])
def test_gradients_agree_with_finite_differences(depth, rows):
    intervention = RoadInterchangeIntervention(6, depth=min(depth, 3), rows=rows, spread=3.0)
    base, source = (torch.randn(2, 6, dtype=torch.float64) for _ in range(2))

    def output(theta):
        intervention.theta = torch.nn.Parameter(theta) if not theta.requires_grad else theta
        return intervention(base, source)

    theta = intervention.theta.detach().double().requires_grad_()
    del intervention.theta
    assert torch.autograd.gradcheck(output, (theta,))


def test_every_initial_angle_has_a_gradient():
    intervention = interchange(1)
    intervention(states(8), states(8, seed=1)).mul(states(8, seed=2)).sum().backward()
    assert intervention.theta.grad.abs().min() > 0
    assert torch.equal(intervention.theta, interchange(1).theta)
    assert not torch.equal(intervention.theta, interchange(1, seed=1).theta)


def test_in_pyvene_at_one_position_of_every_row():
    model = tiny_model("Llama", "causal-lm")
    base, source = token_batch(), token_batch(seed=1)
    intervention = interchange(5, rows=[0, 3])
    wrapped = pyvene.IntervenableModel([{"component": "model.layers[0].output", "intervention": intervention}], model)
    locations = {"sources->base": ([[[1], [2], [0]]], [[[2], [3], [1]]])}
    _, output = wrapped(base, [source], unit_locations=locations)

    hidden = [model(**batch, output_hidden_states=True).hidden_states[1] for batch in (base, source)]
    rows = torch.arange(3)
    changed = hidden[0].clone()
    changed[rows, [2, 3, 1]] = intervention(hidden[0][rows, [2, 3, 1]], hidden[1][rows, [1, 2, 0]])
    handle = model.model.layers[0].register_forward_hook(lambda module, args, output: changed)
    torch.testing.assert_close(output.logits, model(**base).logits)
    handle.remove()
    (output.logits.sum()).backward()
    assert intervention.theta.grad.abs().sum() > 0


def test_in_pyvene_as_a_type_with_several_positions_and_subspaces():
    model = tiny_model("GPT2", "causal-lm")
    config = pyvene.IntervenableConfig(
        [{"layer": 1, "component": "block_output", "intervention_type": RoadInterchangeIntervention, "max_number_of_units": 2}]
    )
    wrapped = pyvene.IntervenableModel(config, model)
    (intervention,) = wrapped.interventions.values()
    assert intervention.theta.shape == (1, 16)
    base, source = token_batch(), token_batch(seed=1)
    plain = model(**base).logits
    locations = {"sources->base": ([[[1, 2]] * 3], [[[1, 2]] * 3])}
    _, output = wrapped(base, [source], unit_locations=locations, subspaces=[[[0, 5], [], [3]]])
    changed = (output.logits != plain).any(-1)
    assert changed[:, 1:3].any(1).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RoadInterchangeIntervention(8, spread=float("nan")), "spread must be a finite number of at least 0, not nan"),
        (lambda: RoadInterchangeIntervention(8, spread="a"), "spread must be a finite number of at least 0, not 'a'"),
        (lambda: RoadInterchangeIntervention("8"), "embed_dim is the width of the hidden state, a whole number, not '8'"),
        (lambda: LowRankInterchangeIntervention(8.0, 2), "embed_dim is the width of the hidden state, a whole number, not 8.0"),
        (
            lambda: RoadInterchangeIntervention(8, max_number_of_units=0),
            "max_number_of_units must be a whole number of at least 1",
        ),
        (lambda: LowRankInterchangeIntervention(8, 2, max_number_of_units=3), "embed_dim 8 cannot be divided into .*=3 equal"),
        (lambda: RoadIntervention(32, max_number_of_units=3), "embed_dim 32 cannot be divided into .*=3 equal"),
    ],
)
def test_widths_units_and_spreads_are_checked(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("made", [interchange(1), LowRankInterchangeIntervention(WIDTH, 4)])
def test_states_of_a_source_without_the_axis_of_tokens(made):
    """As many rows as tokens: torch would give token i of every row the state of source i."""
    model = pyvene.IntervenableModel([{"layer": 1, "component": "block_output", "intervention": made}], tiny_model("Llama"))
    (key,) = model.interventions
    base, source = token_batch(), states(3)
    for given in (source, states(2), source[:, None, :1], states(3, 2)):
        with pytest.raises(InputError, match=r"the source has states of shape .*, the base of shape \(3, 3, 32\)"):
            model(base, unit_locations={"base": [1, 2, 3]}, source_representations={key: given})
    call = {"unit_locations": {"base": [1, 2, 3]}}
    of_rows, of_tokens = (
        model(base, source_representations={key: given}, **call)[1].last_hidden_state
        for given in (source.unsqueeze(1), source.unsqueeze(1).expand(3, 3, WIDTH))
    )
    torch.testing.assert_close(of_rows, of_tokens)
    alike = [model(base, source_representations={key: each}, **call)[1][0] for each in (source[0], source[:1], source[:1, None])]
    assert torch.equal(alike[0], alike[1])
    assert torch.equal(alike[0], alike[2])


@pytest.mark.parametrize(
    ("kind", "rank"), [(RoadInterchangeIntervention, {}), (LowRankInterchangeIntervention, {"low_rank_dimension": 1})]
)
def test_a_type_on_shared_keys_of_which_pyvene_takes_a_wrong_width(kind, rank):
    config = {"layer": 0, "component": "key_output", "intervention_type": kind, **rank}
    model = pyvene.IntervenableModel([config], tiny_model("Llama", num_key_value_heads=2))
    with pytest.raises(InputError, match=f"an interchange of width {WIDTH} got states of width 16: give it embed_dim=16"):
        model(token_batch(), [token_batch()], unit_locations={"sources->base": 1})


def test_the_type_on_an_unknown_component_raises_a_helpful_error():
    config = [{"component": "transformer.h[0].attn.c_attn.output", "intervention_type": RoadInterchangeIntervention}]
    with pytest.raises(InputError, match="needs embed_dim.*Pass an instance"):
        pyvene.IntervenableModel(config, tiny_model("GPT2", "causal-lm"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_angles_stay_fp32_and_states_keep_their_dtype(dtype):
    intervention = interchange(5, rows=[0]).to(dtype)
    assert intervention.theta.dtype == torch.float32
    base, source = states(2, dtype=dtype), states(2, seed=1, dtype=dtype)
    output = intervention(base, source)
    assert output.dtype == dtype
    assert torch.equal(output, intervention(base.float(), source.float()).to(dtype))


def test_misspelt_arguments_are_refused():
    for make, options, message in (
        (RoadInterchangeIntervention, {"dept": 10}, "RoadInterchangeIntervention has no argument 'dept'; did you mean 'depth'?"),
        (RoadInterchangeIntervention, {"row": [0]}, "did you mean 'rows'?"),
        (RoadIntervention, {"varient": "road_2"}, "did you mean 'variant'?"),
        (LowRankInterchangeIntervention, {"low_rank_dimension": 2, "sed": 3}, "did you mean 'seed'?"),
        (LowRankInterchangeIntervention, {"low_rank_dimension": 2, "depth": 3}, "has no argument 'depth'; it has embed_dim, low"),
        (VariableCoordinates({"a": 2}).road, {"dept": 3}, "did you mean 'depth'?"),
        (VariableCoordinates({"a": 2}).low_rank, {"sead": 3}, "did you mean 'seed'?"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            make(WIDTH, **options)


@pytest.mark.parametrize("kind", [RoadInterchangeIntervention, LowRankInterchangeIntervention])
def test_fields_of_a_config_without_effect_are_refused(kind):
    model = tiny_model("Llama", "causal-lm")
    entry = {"layer": 1, "component": "block_output", "intervention_type": kind, "low_rank_dimension": 4}
    if kind is RoadInterchangeIntervention:
        with pytest.raises(InputError, match="swaps rows, not trained directions"):
            pyvene.IntervenableModel(pyvene.IntervenableConfig([entry]), model)
        del entry["low_rank_dimension"]
    config = pyvene.IntervenableConfig([{**entry, "source_representation": torch.zeros(WIDTH)}])
    with pytest.raises(InputError, match="takes its source from every call, not from the config"):
        pyvene.IntervenableModel(config, model)


@pytest.mark.parametrize("given", [RoadIntervention(8), RoadInterchangeIntervention(8), LowRankInterchangeIntervention(8, 2)])
def test_a_number_of_leading_dimensions_is_refused(given):
    given.set_interchange_dim(8)
    for fewer in (4, torch.tensor(4), [0, 1]):
        with pytest.raises(InputError, match=r"has no effect on a rotation of 8 dimensions: give (subspaces|rows|low_rank)"):
            given.set_interchange_dim(fewer)


def test_invalid_arguments_are_refused():
    for options, message in (
        ({"depth": 0}, "depth must be a whole number of at least 1"),
        ({"rows": [32]}, "row 32 does not exist.*0 to 31"),
        ({"rows": []}, "at least one coordinate"),
        ({"rows": [1, 1]}, "none of them twice"),
        ({"rows": "last"}, 'rows is "last"'),
        ({"rows": 0}, 'rows is 0; it must be "first", "mask" or a list of coordinates, as in'),
        ({"rows": 99}, "rows is 99; it must be"),
        ({"rows": [0.5]}, "row 0.5 does not exist"),
        ({"rows": [True]}, "row True does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            RoadInterchangeIntervention(WIDTH, **options)
    assert interchange(1, rows=torch.tensor([3, 1])).rows == (3, 1)
    for options, message in (
        ({"low_rank_dimension": 0}, "from 1 to the width 32, not 0"),
        ({"low_rank_dimension": 33}, "from 1 to the width 32, not 33"),
        ({"low_rank_dimension": 2.5}, "from 1 to the width 32, not 2.5"),
        ({"low_rank_dimension": 4, "rows": [0]}, "has trained directions, not rows: give low_rank_dimension"),
    ):
        with pytest.raises(InputError, match=message):
            LowRankInterchangeIntervention(WIDTH, **options)
    with pytest.raises(InputError, match="width 33"):
        RoadInterchangeIntervention(33)
    intervention = interchange(1, rows=[4, 5])
    with pytest.raises(InputError, match="subspace 2 does not exist"):
        intervention(states(1), states(1), subspaces=[[2]])
    with pytest.raises(InputError, match="list 1 rows, but the batch has 2"):
        intervention(states(2), states(2), subspaces=[[0]])
    with pytest.raises(InputError, match="not hardened"):
        interchange(1, rows="mask").basis()


def test_rows_of_numpy_are_saved_as_numbers():
    given = RoadInterchangeIntervention(8, 2, np.array([0, 2]))
    assert [type(row) for row in given.rows] == [int, int]
    saved = io.BytesIO()
    torch.save(given.state_dict(), saved)
    saved.seek(0)
    assert torch.load(saved, weights_only=True)["_extra_state"]["rows"] == given.get_extra_state()["rows"]


def test_a_state_of_another_form_stays_on_the_device():
    made_by_pyvene = RoadInterchangeIntervention(8, component="block_output").to("meta")
    made_by_pyvene.load_state_dict(RoadInterchangeIntervention(8, depth=2, rows="mask").state_dict())
    assert {parameter.device.type for parameter in made_by_pyvene.parameters()} == {"meta"}
    assert made_by_pyvene.mask is not None
