"""RoadAdapter: group arithmetic, restrictions, means, and what an adapter knows of its model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.models import random_adapter, tiny_model, token_batch
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.base_model import BaseModelSignature
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel
from road_interp.rotation import plane_maps
from road_interp.sites.find import find_sites
from road_interp.sites.site import OutputSlice, Site

SITES = (Site("a.query", 8, 0, "query"), Site("a.fused[key]", 16, 1, "fused[key]", OutputSlice(48, 16, 32)))
seeds = st.integers(0, 10_000)


def maps(adapter):
    return torch.cat(
        [torch.stack(tuple(part for part in adapter.plane_maps(site) if part is not None)).flatten() for site in SITES]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": ["a.query"]}, r"RoadAdapter needs Site, not str: give the sites of find_sites\(model, \.\.\.\)"),
        ({"sites": ()}, "an adapter needs at least one site"),
        ({"theta": 3}, r"RoadAdapter, theta needs Mapping, not int: give a tensor per site, as in {site.name: tensor}"),
        ({"alpha": {"a.query": [1.0] * 4, "a.fused[key]": None}}, "site 'a.query': alpha must be a tensor, not list"),
    ],
)
def test_what_no_adapter_is_made_of_is_refused(changes, message):
    given = RoadAdapter.identity(SITES)
    with pytest.raises(InputError, match=f"^{message}$"):
        RoadAdapter(**({"sites": SITES, "theta": given.theta, "alpha": given.alpha} | changes))


def test_what_is_no_site_and_no_exponent_is_refused():
    message = r"^RoadAdapter.identity needs Site, not str: give the sites of find_sites\(model, 'mlp'\)$"
    with pytest.raises(InputError, match=message):
        RoadAdapter.identity(["a.query"])
    with pytest.raises(InputError, match=r"^a power of an adapter needs a number, such as 0.5, not str$"):
        random_adapter(SITES) ** "2"
    assert (random_adapter(SITES) ** np.float32(0.5)).distance(random_adapter(SITES) ** 0.5) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_angles_in_half_precision_are_computed_with_in_fp32(dtype):
    given = random_adapter(SITES)
    low = RoadAdapter(SITES, *({name: values.to(dtype) for name, values in part.items()} for part in (given.theta, given.alpha)))
    wide = RoadAdapter(SITES, *({name: values.float() for name, values in part.items()} for part in (low.theta, low.alpha)))
    for site in SITES:
        assert torch.equal(low.angles(site), wide.angles(site))
        assert torch.equal(low.matrix(site), wide.matrix(site))
    for change in (lambda adapter: adapter @ adapter, lambda adapter: adapter**0.5, RoadAdapter.inverse):
        assert torch.equal(maps(change(low)), maps(change(wide)))


@given(seeds, seeds)
@settings(max_examples=30, deadline=None)
def test_road_1_is_a_commutative_group(first, second):
    a, b = random_adapter(SITES, seed=first, spread=0.2), random_adapter(SITES, seed=second, spread=0.2)
    assert (a @ b).distance(b @ a) < 1e-5
    assert (a @ a.inverse()).distance(RoadAdapter.identity(SITES)) < 1e-5
    assert (a**0).distance(RoadAdapter.identity(SITES)) < 1e-6
    assert (a**-1).distance(a.inverse()) < 1e-5
    assert (a**0.5 @ a**0.5).distance(a) < 1e-4


@given(seeds, seeds, seeds)
@settings(max_examples=30, deadline=None)
def test_distance_is_a_metric(first, second, third):
    a, b, c = (random_adapter(SITES, seed=seed, spread=0.2) for seed in (first, second, third))
    assert a.distance(a) == 0
    assert a.distance(b) == pytest.approx(b.distance(a), abs=1e-9)
    assert a.distance(c) <= a.distance(b) + b.distance(c) + 1e-9
    assert (a @ c).distance(b @ c) == pytest.approx(a.distance(b), abs=1e-4)


@pytest.mark.parametrize("outer", plane_maps.VARIANTS)
@pytest.mark.parametrize("inner", plane_maps.VARIANTS)
def test_composition_is_exact_for_all_variants(outer, inner):
    a, b = random_adapter(SITES, outer, seed=1), random_adapter(SITES, inner, seed=2)
    both = a @ b
    assert both.variant == ("road_1" if outer == inner == "road_1" else "road_2")
    for site in SITES:
        torch.testing.assert_close(both.matrix(site), a.matrix(site) @ b.matrix(site), rtol=1e-5, atol=1e-5)


def test_distance_sums_angles_and_log_magnitudes_over_all_sites():
    sites = (Site("a", 2), Site("b", 2))
    one = torch.ones(1)
    first = RoadAdapter(sites, {"a": 3 * one, "b": 0 * one}, {"a": one, "b": 2 * one})
    second = RoadAdapter(sites, {"a": -3 * one, "b": 0.5 * one}, {"a": one, "b": one})
    angles = (6 - 2 * torch.pi) ** 2 + 0.5**2
    assert first.distance(second) == pytest.approx((angles + torch.tensor(2.0).log().item() ** 2) ** 0.5, abs=1e-6)


@pytest.mark.parametrize("variant", plane_maps.VARIANTS)
def test_magnitudes_are_square_roots_of_determinants(variant):
    adapter = random_adapter(SITES, variant, spread=0.8)
    for site in SITES:
        areas = plane_maps.determinant(adapter.plane_maps(site)).abs()
        torch.testing.assert_close(adapter.magnitudes(site) ** 2, areas, rtol=1e-4, atol=1e-5)
    stretched = RoadAdapter(
        SITES[:1], {"a.query": torch.zeros(8)}, {"a.query": torch.tensor([8.0, 1, 1, 1, 2, 1, 1, 1])}, "road_2"
    )
    torch.testing.assert_close(stretched.magnitudes("a.query")[0], torch.tensor(8.0).sqrt())


@pytest.mark.parametrize(("variant", "group_size"), [("road_1", 2), ("road_4", 8)])
def test_identity_like_keeps_the_family(variant, group_size):
    base = BaseModelSignature("somewhere/bert", "bert", 32, 2)
    adapter = replace(random_adapter(SITES, variant, group_size), base=base)
    identity = adapter.identity_like()
    assert (identity.sites, identity.variant, identity.group_size, identity.base) == (SITES, variant, group_size, base)
    assert all(torch.equal(identity.matrix(site), torch.eye(site.width)) for site in SITES)


def test_a_product_records_the_base_of_either_factor():
    base = BaseModelSignature("somewhere/bert", "bert", 32, 2)
    known, unknown = replace(random_adapter(SITES), base=base), random_adapter(SITES)
    assert (known @ unknown).base == (unknown @ known).base == base
    assert (unknown @ unknown).base is None
    other = replace(random_adapter(SITES), base=replace(base, model_type="roberta"))
    for first, second in ((known, unknown), (unknown, known)):
        assert RoadAdapter.mean([first, second]).base == first.with_sites_of(second, lambda site: True).base == base
    with pytest.raises(InputError, match="adapters of different models"):
        RoadAdapter.mean([unknown, known, other])


@pytest.mark.parametrize("size", [1e-25, 1e-6, 1.0, 1e25])
@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_magnitudes_and_inverses_of_any_size(variant, size):
    of_one = random_adapter((Site("a", 8),), variant)
    of_one = replace(of_one, alpha={"a": torch.ones_like(of_one.alpha["a"])})
    adapter = replace(of_one, alpha={"a": size * of_one.alpha["a"]})
    torch.testing.assert_close(adapter.magnitudes("a") / size, of_one.magnitudes("a"))
    product = adapter.inverse().matrix("a").double() @ adapter.matrix("a").double()
    torch.testing.assert_close(product, torch.eye(8).double(), rtol=0, atol=1e-5)


def test_the_mean_of_one_adapter_is_that_adapter():
    adapter = random_adapter(SITES)
    assert RoadAdapter.mean([adapter]).distance(adapter) < 1e-6


def test_an_adapter_is_shown_in_one_line():
    adapter = random_adapter(SITES)
    shown = f"RoadAdapter(road_1 at {len(SITES)} sites, {adapter.num_parameters} parameters, positions all)"
    assert repr(adapter) == str(adapter) == shown


def test_what_is_no_site_of_the_adapter_is_refused():
    adapter = random_adapter(SITES)
    names = ", ".join(site.name for site in SITES)
    with pytest.raises(InputError, match=f"^'nowhere' is not a site of this adapter; its sites are {re.escape(names)}$"):
        adapter.angles("nowhere")
    with pytest.raises(InputError, match=f"^3 is not a site: give a Site or its name, such as '{re.escape(SITES[0].name)}'$"):
        adapter.angles(3)


def test_restrict_is_the_identity_on_other_planes():
    adapter = random_adapter(SITES)
    kept = adapter.restrict({"a.query": [1, 3]})
    assert (kept.angles("a.query") != 0).tolist() == [False, True, False, True]
    assert torch.equal(kept.angles("a.fused[key]"), torch.zeros(8))
    halves = adapter.restrict(lambda site: range(site.width // 4)) @ adapter.restrict(
        lambda site: range(site.width // 4, site.width // 2)
    )
    assert halves.distance(adapter) < 1e-5
    with pytest.raises(InputError, match="planes 0 to 3"):
        adapter.restrict([4])
    with pytest.raises(InputError, match="mask of shape"):
        adapter.restrict(torch.ones(3, dtype=torch.bool))
    with pytest.raises(InputError, match="not a site"):
        adapter.restrict({"elsewhere": [0]})
    with pytest.raises(InputError, match=r"boolean mask, not torch.float32; for a mask of 0 and 1, give mask.bool\(\)"):
        adapter.restrict(torch.tensor([0.0, 0.0, 1.0, 1.0]))
    for mask in ([0, 1, 1, 0], torch.tensor([0, 1, 1, 0], dtype=torch.uint8)):  # not the planes 0 and 1
        with pytest.raises(InputError, match=r"a plane is listed twice; for a mask of 0 and 1, give mask.bool\(\)"):
            adapter.restrict({"a.query": mask})
    with pytest.raises(InputError, match="planes are whole numbers or a boolean mask"):
        adapter.restrict([2.9])
    with pytest.raises(InputError, match="'mlp' are no planes; give their indices or a boolean mask"):
        adapter.restrict("mlp")


def test_angles_and_magnitudes_of_every_variant():
    site = SITES[0]
    rotated = RoadAdapter(SITES[:1], {site.name: torch.tensor([0.5, -0.5, 4.0, 0.0])}, {site.name: torch.tensor([2.0, 1, 1, 1])})
    torch.testing.assert_close(rotated.angles(site), torch.tensor([0.5, -0.5, 4.0 - 2 * torch.pi, 0.0]))
    torch.testing.assert_close(rotated.magnitudes("a.query"), torch.tensor([2.0, 1, 1, 1]))
    as_road_2 = rotated @ RoadAdapter.identity(SITES[:1], "road_2")
    assert as_road_2.variant == "road_2"
    torch.testing.assert_close(as_road_2.angles(site), rotated.angles(site))
    torch.testing.assert_close(as_road_2.magnitudes(site), rotated.magnitudes(site))
    assert rotated.num_parameters == 8


def test_undefined_arithmetic_is_refused():
    a = random_adapter(SITES)
    other = random_adapter(SITES[:1])
    for combine, action in (
        (lambda: a @ other, "compose"),
        (lambda: a.with_sites_of(other, bool), "mix"),
        (lambda: a.distance(other), "measure the distance of"),
    ):
        with pytest.raises(InputError, match=f"^cannot {action} adapters of different sites: they differ at 'a.fused\\[key\\]'$"):
            combine()
    with pytest.raises(InputError, match="group_size 2 and 4"):
        a @ random_adapter(SITES, group_size=4)
    with pytest.raises(InputError, match="road_1 only"):
        random_adapter(SITES, "road_2") ** 2
    with pytest.raises(InputError, match="^the distance is defined for road_1 adapters only$"):
        a.distance(random_adapter(SITES, "road_4"))
    alpha = {**a.alpha, "a.query": torch.tensor([1.0, 0.0, 1.0, 1.0])}
    broken = RoadAdapter(SITES, a.theta, alpha)
    with pytest.raises(InputError, match="site 'a.query': plane 1 cannot be inverted"):
        broken.inverse()
    for raising, action in (
        (lambda: broken**0.5, "raise to a power"),
        (lambda: broken.distance(a), "measure the distance of"),
        (lambda: a.distance(broken), "measure the distance of"),
        (lambda: RoadAdapter.mean([a, broken]), "take the mean of"),
    ):
        with pytest.raises(InputError, match=f"^site 'a.query': cannot {action} this adapter, plane 1 has alpha 0$"):
            raising()
    with pytest.raises(InputError, match="'elsewhere' is not a site"):
        a.angles("elsewhere")


def test_constructor_checks():
    with pytest.raises(InputError, match="unknown variant"):
        RoadAdapter.identity(SITES, "road_9")
    with pytest.raises(InputError, match="listed twice"):
        RoadAdapter.identity((SITES[0], SITES[0]))
    with pytest.raises(InputError, match="not divisible by group_size 32"):
        RoadAdapter.identity(SITES, group_size=32)
    with pytest.raises(InputError, match="width 5 cannot be paired"):
        Site("odd", 5)


# ---------------------------------------------------------------- difference and mean


@given(seeds, seeds)
@settings(max_examples=30, deadline=None)
def test_a_difference_composed_with_its_second_operand_is_the_first(first, second):
    a, b = random_adapter(SITES, seed=first, spread=0.2), random_adapter(SITES, seed=second, spread=0.2)
    assert (a.difference(b) @ b).distance(a) < 1e-4
    assert a.difference(a).distance(RoadAdapter.identity(SITES)) < 1e-5


@given(seeds, seeds, seeds)
@settings(max_examples=30, deadline=None)
def test_the_mean_is_the_midpoint_and_commutes_with_composition(first, second, third):
    a, b, c = (random_adapter(SITES, seed=seed, spread=0.2) for seed in (first, second, third))
    middle = RoadAdapter.mean([a, b])
    assert middle.distance(a) == pytest.approx(middle.distance(b), abs=1e-4)
    assert middle.distance(a) == pytest.approx(a.distance(b) / 2, abs=1e-4)
    assert RoadAdapter.mean([a, a, a]).distance(a) < 1e-5
    assert RoadAdapter.mean([a, b], [1, 0]).distance(a) < 1e-5
    assert RoadAdapter.mean([a, b], [1, 3]).distance(RoadAdapter.mean([a, b, b, b])) < 1e-5
    assert RoadAdapter.mean([c @ a, c @ b]).distance(c @ middle) < 1e-4


def test_angles_are_averaged_on_the_circle():
    site = Site("a", 2)
    near_pi = [
        RoadAdapter((site,), {"a": torch.tensor([angle])}, {"a": torch.tensor([size])})
        for angle, size in ((3.1, 1.0), (-3.1, 4.0))
    ]
    middle = RoadAdapter.mean(near_pi)
    assert middle.angles("a").abs().item() == pytest.approx(torch.pi, abs=1e-5)
    assert middle.magnitudes("a").item() == pytest.approx(2.0, abs=1e-5)
    opposite = [RoadAdapter((site,), {"a": torch.tensor([angle])}, {"a": torch.ones(1)}) for angle in (0.0, torch.pi)]
    with pytest.raises(InputError, match="site 'a', plane 0: the angles cancel"):
        RoadAdapter.mean(opposite)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: RoadAdapter.mean([]), "^the mean needs at least one adapter$"),
        (
            lambda a: RoadAdapter.mean({"a": a}),
            r"^the mean .* list of adapters, not dict; for a bank, give bank.values\(\)$",
        ),
        (lambda a: RoadAdapter.mean(a), "^the mean is of a list of adapters, not RoadAdapter;"),
        (lambda a: RoadAdapter.mean([a, a], [1]), "2 adapters needs as many finite weights"),
        (lambda a: RoadAdapter.mean([a, a], 5), "^the mean needs a list of weights, one per adapter, not 5$"),
        (lambda a: replace(a, positions=[[0]]), r"^positions of an adapter must be text, .* not \[\[0\]\]$"),
        (lambda a: RoadAdapter.mean([a, a], [1, -1]), "none negative"),
        (lambda a: RoadAdapter.mean([a, a], ["1", "2"]), r"2 adapters needs as many finite weights, .*, not \['1', '2'\]$"),
        (lambda a: RoadAdapter.mean([a, a], [float("inf"), 1]), "as many finite weights"),
        (lambda a: replace(a, base="x"), "^RoadAdapter, base needs BaseModelSignature or NoneType, not str"),
        (lambda a: replace(a, modules_to_save=3), "^RoadAdapter, modules_to_save needs str or NoneType, not int"),
        (lambda a: replace(a, theta={1: None, None: None}), "^theta has values for '1', which is not a site of this adapter$"),
        (lambda a: a.restrict({site: [0] for site in SITES}), "is not a site of this adapter$"),
        (lambda a: a.to_peft(None), "^to_peft needs str or PathLike, not NoneType: give a folder$"),
        (lambda a: a.to_peft("folder", "base"), "^to_peft, base needs Module or NoneType, not str"),
        (lambda a: RoadAdapter.from_peft("folder", base="base"), "^from_peft, base needs Module or NoneType, not str"),
        (lambda a: RoadBank({"a": a}).rows(["z", 3]), "^a bank needs str, not int: give the name of an adapter$"),
        (lambda a: RoadBank({"a": a})[["a"]], "^a bank needs str, not list: give the name of an adapter$"),
        (lambda a: RoadBank({"a": a}).add(["a"], a), "cannot be the name of an adapter: it must be text"),
        (lambda a: a.save(None), "^save needs str or PathLike, not NoneType: give a folder$"),
        (lambda a: RoadAdapter.mean([a, a], [0, 0]), "not all zero"),
        (lambda a: RoadAdapter.mean([a, random_adapter(SITES, "road_2")]), "road_1 only, not for road_2"),
        (lambda a: RoadAdapter.mean([a, random_adapter(SITES[:1])]), "^cannot take the mean of adapters of different sites"),
        (lambda a: a.difference(random_adapter(SITES[:1])), "^cannot subtract adapters of different sites"),
    ],
)
def test_undefined_means_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make(random_adapter(SITES))


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_an_adapter_is_its_angles_composed_with_its_magnitudes(variant):
    adapter = random_adapter(SITES, variant, spread=0.8)
    angles, magnitudes = adapter.angles_only(), adapter.magnitudes_only()
    for site in SITES:
        torch.testing.assert_close((angles @ magnitudes).matrix(site), adapter.matrix(site), rtol=0, atol=1e-5)
        torch.testing.assert_close(angles.angles(site), adapter.angles(site), rtol=0, atol=1e-5)
        torch.testing.assert_close(angles.magnitudes(site), torch.ones(site.width // 2), rtol=0, atol=1e-5)
        torch.testing.assert_close(magnitudes.magnitudes(site), adapter.magnitudes(site), rtol=0, atol=1e-5)
        assert magnitudes.angles(site).abs().max() < 1e-5


@pytest.mark.parametrize("variant", ["road_1", "road_4"])
def test_the_product_of_all_layers_is_the_adapter(variant):
    adapter = random_adapter(SITES, variant)
    first, second = adapter.by_layer().values()
    assert list(adapter.by_layer()) == [0, 1]
    for site in SITES:
        torch.testing.assert_close((first @ second).matrix(site), adapter.matrix(site), rtol=0, atol=1e-5)
    torch.testing.assert_close(first.matrix(SITES[1]), torch.eye(16))


def test_with_sites_of_takes_the_maps_of_selected_sites():
    mine, theirs = random_adapter(SITES), random_adapter(SITES, "road_2", seed=1)
    mixed = mine.with_sites_of(theirs, lambda site: site == SITES[0])
    torch.testing.assert_close(mixed.matrix(SITES[0]), theirs.matrix(SITES[0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(mixed.matrix(SITES[1]), mine.matrix(SITES[1]), rtol=0, atol=1e-6)


def test_an_adapter_records_its_base_model(tmp_path):
    bert = tiny_model("Bert")
    trained = RoadModel(bert, random_adapter(find_sites(bert, "fc1"))).adapter
    trained.save(tmp_path)
    found = RoadAdapter.load(tmp_path)
    assert found.base == trained.base == BaseModelSignature(bert.name_or_path, "bert", 32, 2)
    assert (found**2 @ found.inverse()).restrict([0]).base == found.base
    assert RoadModel(tiny_model("Bert", seed=5), found).adapter.distance(found) == 0  # another model of the same shape
    deeper = tiny_model("Bert", num_hidden_layers=3)
    message = "made for another model, an unnamed bert, not for an unnamed bert: num_hidden_layers is 3, not 2$"
    with pytest.raises(InputError, match=message):
        RoadModel(deeper, found)
    with pytest.raises(InputError, match=message):
        RoadModel(deeper, RoadBank({"a": tmp_path}))
    other = BaseModelSignature("", "llama", 32, 3)
    assert found.base.difference(other) == "model_type is 'llama', not 'bert', num_hidden_layers is 3, not 2"
    foreign = RoadModel(deeper, replace(found, base=None)).adapter
    for refused in (lambda: found @ foreign, lambda: RoadBank({"a": found, "b": foreign})):
        with pytest.raises(InputError, match="num_hidden_layers is 3, not 2"):
            refused()
    description = json.loads((tmp_path / "adapter.json").read_text())
    del description["base"]  # as in files of earlier versions
    (tmp_path / "adapter.json").write_text(json.dumps(description))
    assert RoadAdapter.load(tmp_path).base is None
    RoadModel(deeper, RoadAdapter.load(tmp_path))


def test_an_adapter_knows_its_positions(tmp_path):
    """A model takes them, its adapter keeps them in its file, and arguments of a model or call come first."""
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    sites = find_sites(base, "block-output")
    model = RoadModel(base, random_adapter(sites), positions="last")
    model.adapter.save(tmp_path)
    loaded = RoadAdapter.load(tmp_path)
    assert loaded.positions == loaded.identity_like().positions == (loaded**0.5).positions == "last"
    with torch.no_grad():
        expected, everywhere = model(base=batch)[1].logits, model(base=batch, positions="all")[1].logits
        assert not torch.allclose(expected, everywhere, atol=1e-3)
        assert torch.equal(RoadModel(base, loaded)(base=batch)[1].logits, expected)
        assert torch.equal(RoadModel(base, RoadBank({"a": loaded}))(base=batch)[1].logits, expected)
        assert torch.equal(RoadModel(base, loaded, positions="all")(base=batch)[1].logits, everywhere)
    with pytest.raises(InputError, match="cannot compose adapters of the positions 'last' and 'all'"):
        loaded @ random_adapter(sites)
    assert loaded.distance(random_adapter(sites)) < 1e-6  # of the maps alone
    with pytest.raises(InputError, match="does not fit this bank: its positions is all, not last"):
        RoadBank({"a": loaded, "b": random_adapter(sites)})
    with pytest.raises(InputError, match="positions 'last' cannot be expressed in PEFT"):
        loaded.to_peft(tmp_path / "peft")
    with pytest.raises(InputError, match="'middle' is not a position"):
        replace(loaded, positions="middle")


def test_fractions_are_powers_and_weights():
    adapter, other = random_adapter(SITES), random_adapter(SITES, seed=1)
    half = Fraction(1, 2)
    assert (adapter**half).distance(adapter**0.5) == 0
    assert RoadAdapter.mean([adapter, other], [half, half]).distance(RoadAdapter.mean([adapter, other])) == 0


def test_a_multiple_of_an_adapter_is_an_error_that_names_the_power():
    adapter = random_adapter(SITES)
    for multiple in (lambda: 0.5 * adapter, lambda: adapter * 2, lambda: np.float64(0.5) * adapter, lambda: adapter * adapter):
        with pytest.raises(InputError, match=r"^an adapter has no multiples: `adapter \*\* 0.5` turns half as far"):
            multiple()
