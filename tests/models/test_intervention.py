"""RoadIntervention inside a plain pyvene.IntervenableModel."""

from __future__ import annotations

import copy

import pytest
import pyvene
import torch

from helpers.models import random_adapter, tiny_model, token_batch
from road_interp.errors import InputError
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.models.intervention import RoadIntervention
from road_interp.models.low_rank_interchange import LowRankInterchangeIntervention
from road_interp.rotation import plane_maps
from road_interp.sites.find import find_sites


def intervenable(model, component, intervention):
    return pyvene.IntervenableModel([{"component": component, "unit": "pos", "intervention": intervention}], model)


def random_intervention(width, variant="road_1", group_size=2, seed=0):
    intervention = RoadIntervention(width, variant, group_size)
    with torch.no_grad():
        for parameter in (intervention.theta, intervention.alpha):
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    return intervention


@pytest.mark.parametrize("variant", plane_maps.VARIANTS)
@pytest.mark.parametrize("group_size", [2, 8])
def test_the_initial_intervention_is_bitwise_the_identity(bert, variant, group_size):
    batch = token_batch()
    model = intervenable(bert, "encoder.layer[0].output.dense.output", RoadIntervention(32, variant, group_size))
    _, output = model(batch)
    assert torch.equal(output.last_hidden_state, bert(**batch).last_hidden_state)


def test_an_instance_rotates_all_positions(bert):
    batch = token_batch()
    intervention = random_intervention(32)

    def rotate(module, args, output):
        return plane_maps.apply(plane_maps.maps_from_parameters(intervention.theta, intervention.alpha, "road_1", 2), output, 2)

    handle = bert.encoder.layer[1].attention.self.query.register_forward_hook(rotate)
    expected = bert(**batch).last_hidden_state
    handle.remove()
    _, output = intervenable(bert, "encoder.layer[1].attention.self.query.output", intervention)(batch)
    assert torch.equal(output.last_hidden_state, expected)
    assert not torch.equal(expected, bert(**batch).last_hidden_state)


def test_unit_locations_leave_other_positions_unchanged():
    model = tiny_model("GPT2")
    batch = token_batch()
    plain = model(**batch).last_hidden_state
    intervention = random_intervention(32)
    _, output = intervenable(model, "h[1].output", intervention)(batch, unit_locations={"base": [[[2], [2], [2]]]})
    changed = (output.last_hidden_state != plain).any(-1)
    assert changed.any(0).tolist() == [False, False, True, False, False, False, False]
    _, output = intervenable(model, "h[1].output", random_intervention(32))(
        batch, unit_locations={"base": [[[0, 3], [1, 2], [5, 6]]]}
    )
    assert (output.last_hidden_state != plain).any(-1).nonzero().tolist() == [[0, 0], [0, 3], [1, 1], [1, 2], [2, 5], [2, 6]]


def test_the_type_on_a_component_whose_width_pyvene_knows():
    model = tiny_model("GPT2", "causal-lm")
    config = pyvene.IntervenableConfig(
        [{"layer": 1, "component": "block_output", "intervention_type": RoadIntervention}],
    )
    intervenable_model = pyvene.IntervenableModel(config, model)
    (intervention,) = intervenable_model.interventions.values()
    assert intervention.theta.shape == (16,)
    batch = token_batch()
    _, output = intervenable_model(batch)
    assert torch.equal(output.logits, model(**batch).logits)


def test_the_type_on_an_unknown_component_raises_a_helpful_error():
    model = tiny_model("GPT2", "causal-lm")
    config = [{"component": "transformer.h[0].attn.c_attn.output", "intervention_type": RoadIntervention}]
    with pytest.raises(InputError, match="needs embed_dim.*Pass an instance"):
        pyvene.IntervenableModel(config, model)


@pytest.mark.parametrize("made", [RoadIntervention(8), RoadInterchangeIntervention(8), LowRankInterchangeIntervention(8, 2)])
def test_processes_share_the_values_of_a_shared_intervention(made):
    made.share_memory()
    assert all(parameter.is_shared() for parameter in made.parameters())
    emptied = copy.deepcopy(made).to("meta").half()
    emptied.to_empty(device="cpu")
    assert {(values.dtype, values.device.type) for values in emptied.parameters()} == {(torch.float32, "cpu")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_states_keep_their_dtype_and_rotations_stay_fp32(dtype):
    model = tiny_model("Llama", "causal-lm").to(dtype)
    intervention = random_intervention(32)
    exact = intervention.theta.detach().clone()
    intervenable_model = intervenable(model, "model.layers[0].output", intervention)
    intervenable_model.to(dtype)
    assert torch.equal(intervention.theta, exact)
    _, output = intervenable_model(token_batch())
    assert output.logits.dtype == dtype


def test_gradients_reach_theta_and_alpha(bert):
    intervention = random_intervention(32)
    _, output = intervenable(bert, "encoder.layer[0].output.dense.output", intervention)(token_batch())
    output.last_hidden_state.square().mean().backward()
    assert intervention.theta.grad.abs().min() > 0
    assert intervention.alpha.grad.abs().min() > 0


def test_an_output_slice_of_a_fused_projection():
    model = tiny_model("GPT2")
    query, key = find_sites(model, "attention-qk", layers=0)
    adapter = random_adapter((query, key))
    intervention = RoadIntervention(96, output_slice=key.output_slice)
    with torch.no_grad():
        intervention.theta.copy_(adapter.theta[key.name])
    hidden = torch.randn(2, 3, 96)
    rotated = intervention(hidden)
    changed = (rotated != hidden).any(0).any(0).nonzero().flatten()
    assert changed.tolist() == list(range(32, 64))


def test_invalid_widths_are_refused():
    with pytest.raises(InputError, match="not divisible by group_size 64"):
        RoadIntervention(32, group_size=64)
    with pytest.raises(InputError, match="width 33"):
        RoadIntervention(33)
    for width in ("8", 8.0):
        with pytest.raises(InputError, match=f"embed_dim is the width of the hidden state, a whole number, not {width!r}"):
            RoadIntervention(width)
    with pytest.raises(InputError, match="unknown variant 'road_9'; the variants are road_1, road_2, road_4"):
        RoadIntervention(8, variant="road_9")


def test_the_old_name_of_the_output_slice_is_an_error():
    with pytest.raises(InputError, match="takes output_slice"):
        RoadIntervention(96, part=None)


def test_subspaces_that_overlap_are_an_error():
    with pytest.raises(InputError, match="dimension 2 belongs to the subspaces 0 and 2; subspaces must be disjoint"):
        RoadIntervention(8, subspace_partition=[[0, 1, 2, 3], [4, 5, 6, 7], [2, 3, 3]])
