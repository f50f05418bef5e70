"""Variables that own coordinates of one rotation: swaps of one leave the others, to the bit, and pyvene carries them."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext

import numpy as np
import pytest
import pyvene
import torch

from helpers.models import random_adapter, tiny_model, token_batch
from road_interp.adapters.bank import RoadBank
from road_interp.errors import InputError
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.models.low_rank_interchange import LowRankInterchangeIntervention
from road_interp.models.road_model import RoadModel
from road_interp.models.variable_coordinates import VariableCoordinates
from road_interp.rotation import butterfly
from road_interp.sites.find import find_sites

WIDTH = 32
COORDINATES = VariableCoordinates({"country": 3, "continent": 5})
MAKERS = {
    "planes": lambda: COORDINATES.road(WIDTH, spread=1.0),
    "stack": lambda: COORDINATES.road(WIDTH, depth=butterfly.full_depth(WIDTH), spread=1.0),
    "low rank": lambda: COORDINATES.low_rank(WIDTH),
}


def states(rows=4, seed=0):
    return torch.randn(2, rows, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_swap_moves_the_variables_own_coordinates_only(kind):
    interchange, (base, source) = MAKERS[kind](), states()
    basis = interchange.basis().double()
    assert basis.shape == (WIDTH, 8)
    for index, (start, stop) in enumerate(COORDINATES.partition):
        swapped = interchange(base, source, subspaces=[[index]] * 4)
        moved = (swapped - base) @ basis
        expected = torch.zeros_like(moved)
        expected[:, start:stop] = ((source - base) @ basis)[:, start:stop]
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(swapped - base, moved @ basis.T, rtol=0, atol=1e-6)  # and nothing outside their span


def test_in_the_rotated_basis_other_coordinates_are_equal_to_the_bit(monkeypatch):
    """Before the inverse of the rotation, whose rounding is another matter."""
    changes = []
    inverse = butterfly.inverse
    monkeypatch.setattr(butterfly, "inverse", lambda theta, change: changes.append(change) or inverse(theta, change))
    interchange, (base, source) = COORDINATES.road(WIDTH, depth=3, spread=1.0), states()
    interchange(base, source, subspaces=COORDINATES.subspaces(["country"] * 4))
    own = list(COORDINATES.rows(WIDTH)[:3])
    (change,) = changes
    assert torch.equal(change[:, own], butterfly.rotate(interchange.theta, source - base)[:, own])
    assert (change[:, own] != 0).all()
    change[:, own] = 0
    assert not change.any()


@pytest.mark.parametrize("kind", MAKERS)
def test_all_variables_together_are_the_swap_of_their_span(kind):
    interchange, (base, source) = MAKERS[kind](), states()
    named = interchange(base, source, subspaces=COORDINATES.subspaces(["country+continent"] * 4))
    assert torch.equal(named, interchange(base, source, subspaces=[[0, 1]] * 4))
    torch.testing.assert_close(named, interchange(base, source), rtol=0, atol=1e-12)
    none = interchange(base, source, subspaces=COORDINATES.subspaces(["__base__"] * 4))
    assert torch.equal(none, base)


@pytest.mark.parametrize("kind", MAKERS)
def test_states_of_several_positions(kind):
    interchange = MAKERS[kind]()
    base, source = torch.randn(2, 3, 4, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    subspaces = COORDINATES.subspaces(["country", "continent", "__base__"])
    together = interchange(base, source, subspaces=subspaces)
    for position in range(4):
        alone = interchange(base[:, position], source[:, position], subspaces=subspaces)
        torch.testing.assert_close(together[:, position], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_row_swaps_its_own_variables(kind):
    interchange, (base, source) = MAKERS[kind](), states()
    names = ["country", "continent", "__base__", "country+continent"]
    together = interchange(base, source, subspaces=COORDINATES.subspaces(names))
    for row, name in enumerate(names):
        alone = interchange(base[row : row + 1], source[row : row + 1], subspaces=COORDINATES.subspaces([name]))
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-12)


def test_low_rank_equals_pyvenes():
    """pyvene orthogonalises by another method; with an orthonormal weight both are the same projection."""
    base, source = (each.float() for each in states())
    theirs = pyvene.LowRankRotatedSpaceIntervention(embed_dim=WIDTH, low_rank_dimension=4)
    ours = LowRankInterchangeIntervention(WIDTH, 4)
    with torch.no_grad():
        ours.weight.copy_(theirs.rotate_layer.weight)
    torch.testing.assert_close(ours(base, source), theirs(base, source), rtol=0, atol=1e-5)


def test_low_rank_gradients_and_arguments():
    interchange, (base, source) = LowRankInterchangeIntervention(WIDTH, 3).double(), states()
    assert interchange.weight.dtype == torch.float32  # for every dtype of the model
    loss = interchange(base, source).square().sum()
    (gradient,) = torch.autograd.grad(loss, interchange.weight)
    assert gradient.abs().min() > 0
    swapped = interchange(base.bfloat16(), source.bfloat16())
    assert swapped.dtype == torch.bfloat16
    assert LowRankInterchangeIntervention(WIDTH, np.int64(3)).weight.shape == (WIDTH, 3)
    assert RoadInterchangeIntervention(WIDTH, depth=np.int64(2)).depth == 2
    for rank in (0, 33, True, 3.0):
        with pytest.raises(InputError, match=f"from 1 to the width 32, not {rank}"):
            LowRankInterchangeIntervention(WIDTH, rank)
    with pytest.raises(InputError, match="needs embed_dim"):
        LowRankInterchangeIntervention()
    with pytest.raises(InputError, match="needs low_rank_dimension"):
        LowRankInterchangeIntervention(WIDTH)
    for partition, message in (([[0, 3], [2, 5]], "overlap"), ([[0, 3], [3, 7]], "entry 5, but there are entries 0 to 4")):
        with pytest.raises(InputError, match=message):
            LowRankInterchangeIntervention(WIDTH, 5, subspace_partition=partition)
        with pytest.raises(InputError, match=message):
            RoadInterchangeIntervention(WIDTH, rows=range(5), subspace_partition=partition)
    for partition in ({"a": [0]}, [0, 1], "a", []):
        with pytest.raises(InputError, match="subspace_partition must hold a list for every subspace"):
            RoadInterchangeIntervention(WIDTH, subspace_partition=partition)
    for depth in (2.0, "2", True, 0):
        with pytest.raises(InputError, match="depth must be a whole number of at least 1"):
            RoadInterchangeIntervention(WIDTH, depth=depth)


def test_the_low_rank_type_needs_its_rank():
    config = {"layer": 1, "component": "block_output", "subspace_partition": [[0, 2], [2, 4]]}
    base, batch = tiny_model("Llama", "causal-lm"), token_batch(2)
    for options in ({"low_rank_dimension": 4}, {}):
        kind = pyvene.IntervenableConfig([{**config, **options}], LowRankInterchangeIntervention)
        model = pyvene.IntervenableModel(kind, base)
        with nullcontext() if options else pytest.raises(InputError, match="give low_rank_dimension in the config"):
            model(batch, [batch], {"sources->base": 1}, subspaces=[[[1], [0]]])


def test_wrong_variables():
    for counts, message in (
        ({}, "at least one variable"),
        ({"a+b": 1}, "cannot be the name"),
        ({"a": 0}, "at least 1, not 0"),
        ({"a": True}, "at least 1, not True"),
        ({1: 2}, "needs str, not int: give the number of coordinates by variable"),
    ):
        with pytest.raises(InputError, match=message):
            VariableCoordinates(counts)
    with pytest.raises(InputError, match="own 8 coordinates, but the state has 4"):
        COORDINATES.rows(4)
    with pytest.raises(InputError, match="unknown variable 'city'; the variables are country, continent"):
        COORDINATES.subspaces(["city"])
    for active in ([["country"]], [0], "country"):
        with pytest.raises(InputError, match="give one text per row, as in"):
            COORDINATES.subspaces(active)
    for make in (COORDINATES.road, COORDINATES.low_rank):
        for width in ("32", 32.0, True):
            with pytest.raises(InputError, match="the width of the state must be a whole number"):
                make(width)
    with pytest.raises(InputError, match="a state of width 9 cannot be divided into planes: use low_rank"):
        COORDINATES.rows(9)
    assert COORDINATES.low_rank(9).width == 9


# ---------------------------------------------------------------- in pyvene


def intervenable(base, interchange, layer=1):
    config = pyvene.IntervenableConfig(
        [{"layer": layer, "component": "block_output", "unit": "pos", "intervention": interchange}]
    )
    return pyvene.IntervenableModel(config, base)


@torch.no_grad()
def swapped_logits(model, batch, names, **options):
    source = {name: values.flip(0) for name, values in batch.items()}
    _, output = model(batch, [source], {"sources->base": 3}, subspaces=[COORDINATES.subspaces(names)], **options)
    return output.logits


@pytest.mark.parametrize("kind", MAKERS)
def test_plain_pyvene_saves_and_loads_them(kind, tmp_path):
    base, batch = tiny_model("Llama", "causal-lm"), token_batch(4)
    names = ["country", "continent", "__base__", "country+continent"]
    model = intervenable(base, MAKERS[kind]())
    expected = swapped_logits(model, batch, names)
    model.save(str(tmp_path))
    loaded = pyvene.IntervenableModel.load(str(tmp_path), base)
    assert torch.equal(swapped_logits(loaded, batch, names), expected)
    assert [each.variables for each in loaded.interventions.values()] == [("country", "continent")]
    assert not torch.equal(expected[0], swapped_logits(model, batch, ["__base__"] * 4)[0])
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "road_interp" in saved["intervention_types"][0]


@torch.no_grad()
def test_more_coordinates_than_planes_are_saved_and_loaded(tmp_path):
    base, batch, owned = tiny_model("Llama", "causal-lm"), token_batch(), VariableCoordinates({"country": 12, "continent": 12})
    entry = {"layer": 1, "component": "block_output", "subspace_partition": owned.partition}
    model = pyvene.IntervenableModel([{**entry, "intervention": owned.road(WIDTH)}], base)
    call = [batch, [{name: values.flip(0) for name, values in batch.items()}], {"sources->base": 3}]
    subspaces = [owned.subspaces(["country", "continent", "__base__"])]
    model.save(str(tmp_path))
    loaded = pyvene.IntervenableModel.load(str(tmp_path), base)
    assert torch.equal(loaded(*call, subspaces=subspaces)[1].logits, model(*call, subspaces=subspaces)[1].logits)
    config = pyvene.IntervenableConfig([{**entry, "intervention_type": RoadInterchangeIntervention}])
    with pytest.raises(InputError, match="subspace_partition contains entry 16, but there are entries 0 to 15"):
        pyvene.IntervenableModel(config, base)(*call, subspaces=subspaces)


@pytest.mark.parametrize("kind", [RoadInterchangeIntervention, LowRankInterchangeIntervention])
def test_an_optimizer_goes_on_after_a_state_is_loaded(kind):
    entry = {"layer": 1, "component": "block_output", "low_rank_dimension": 3 if kind is LowRankInterchangeIntervention else None}
    config = pyvene.IntervenableConfig([{**entry, "intervention_type": kind}])
    model = pyvene.IntervenableModel(config, tiny_model("Llama", "causal-lm"))
    optimizer = torch.optim.SGD(model.get_trainable_parameters(), lr=1.0)
    (interchange,) = model.interventions.values()
    best = {name: copy.deepcopy(values) for name, values in interchange.state_dict().items()}
    interchange.load_state_dict(best)
    base, source = torch.randn(2, 2, 1, WIDTH, generator=torch.Generator().manual_seed(0))
    interchange(base, source).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(values, best[name]) for name, values in interchange.named_parameters())


@pytest.mark.parametrize("given", [RoadInterchangeIntervention(WIDTH, depth=3), LowRankInterchangeIntervention(WIDTH, 5)])
def test_a_state_in_half_precision_is_loaded_as_fp32(given):
    state = {name: v.half() if name in ("theta", "weight") else v for name, v in given.state_dict().items()}
    made = type(given)(embed_dim=WIDTH, component="block_output")  # as pyvene makes it from its type
    made.load_state_dict(state)
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}


def test_an_instance_refuses_a_state_of_other_coordinates():
    state = COORDINATES.road(WIDTH).state_dict()
    other = RoadInterchangeIntervention(WIDTH, rows=[1, 3])
    with pytest.raises(RuntimeError, match="'rows', their partition or its names are other"):
        other.load_state_dict(state)
    with pytest.raises(RuntimeError, match="'rows', their partition or its names are other"):
        RoadInterchangeIntervention(WIDTH, rows=COORDINATES.rows(WIDTH)).load_state_dict(state)
    with pytest.raises(RuntimeError, match="'partition' or its names are other"):
        LowRankInterchangeIntervention(WIDTH, 8).load_state_dict(COORDINATES.low_rank(WIDTH).state_dict())
    named = VariableCoordinates({"country": 3, "language": 5})
    with pytest.raises(RuntimeError, match="their partition or its names are other"):
        named.road(WIDTH).load_state_dict(state)
    with pytest.raises(RuntimeError, match="'partition' or its names are other"):
        named.low_rank(WIDTH).load_state_dict(COORDINATES.low_rank(WIDTH).state_dict())
    del state["_extra_state"]  # of 0.1.0
    with pytest.warns(UserWarning, match="does not hold the swapped rows"):
        COORDINATES.road(WIDTH).load_state_dict(state)


@torch.no_grad()
def test_beside_an_adapter_in_the_same_call():
    """A RoAd adapter at one layer and an interchange of variables at another: the interchange sees the rotated states."""
    base, batch = tiny_model("Llama", "causal-lm"), token_batch(4)
    sites = tuple(site for site in find_sites(base, "all-linear") if site.layer == 0)
    road = RoadModel(base, RoadBank({"a": random_adapter(sites, seed=1), "b": random_adapter(sites, seed=2)}))
    model = intervenable(base, MAKERS["stack"]())
    names = ["country", "continent", "__base__", "country+continent"]
    plain = swapped_logits(model, batch, names)
    with road.attached(["a", "b", "a", "__base__"]):
        both = swapped_logits(model, batch, names)
    rotated = road(base=batch, adapter_names=["a", "b", "a", "__base__"])[1].logits
    torch.testing.assert_close(both[2], rotated[2], rtol=0, atol=1e-5)  # swaps nothing
    torch.testing.assert_close(both[3][0], plain[3][0], rtol=0, atol=1e-5)  # before the swapped token nothing is swapped
    assert not torch.allclose(both[0], plain[0], atol=1e-5)
    assert not torch.allclose(both[0], rotated[0], atol=1e-5)


@pytest.mark.parametrize("make", ["road", "low_rank"])
@pytest.mark.parametrize("subspaces", ["number", ["number"], [[0]], 0])
def test_mibs_form_needs_the_numbers_of_a_variable(make, subspaces, tmp_path):
    owned = VariableCoordinates({"number": 2, "gender": 1})
    interchange = getattr(owned, make)(8)
    with pytest.raises(InputError, match=r"are not subspaces of a row: .* VariableCoordinates.subspaces\(\[name\]\)\[0\]$"):
        interchange.save_mib(tmp_path, "unit", subspaces)
    interchange.save_mib(tmp_path, "unit", owned.subspaces(["number"])[0])
    assert json.loads((tmp_path / "unit_indices").read_text()) == [0, 1]


@pytest.mark.parametrize("make", ["road", "low_rank"])
def test_mibs_form_of_numbers_of_numpy_is_whole(make, tmp_path):
    """The indices are written last: where they cannot be, the track would find a featurizer of all features."""
    kind = RoadInterchangeIntervention if make == "road" else LowRankInterchangeIntervention
    interchange = kind(8, **({"rows": [0, 2, 4]} if make == "road" else {"low_rank_dimension": 3}))
    interchange.save_mib(tmp_path, "unit", np.array([0, 2, 2]))
    assert json.loads((tmp_path / "unit_indices").read_text()) == [0, 2]
    for unit in ("layer/unit", "", None):
        with pytest.raises(InputError, match="the unit begins the names of three files"):
            interchange.save_mib(tmp_path / "other", unit)
    assert not (tmp_path / "other").exists()


def test_coordinates_stay_those_that_were_given():
    counts = {"number": 2, "gender": 1}
    owned = VariableCoordinates(counts)
    counts["gender"] = 0
    assert owned.partition == [[0, 2], [2, 3]]
    for make, option in (("road", "rows"), ("road", "subspace_partition"), ("low_rank", "low_rank_dimension")):
        with pytest.raises(InputError, match=f"'{option}' is set by VariableCoordinates"):
            getattr(owned, make)(8, **{option: 3})
