"""Agreement between seeds, and the relation of query and key, on adapters with a known result."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import T5Config, T5Model

from helpers.models import random_adapter, tiny_model, token_batch
from road_interp import RoadAdapter, RoadModel, find_sites, measure, plots
from road_interp.errors import InputError
from road_interp.measure.structure import QueryKey, SeedStructure, query_key, seed_structure
from road_interp.sites.site import Site

SITES = tuple(Site(f"layers.{layer}.q", 64, layer, "q") for layer in range(12))


def report(pattern=0.0, common=0.0, own=0.0, seed=0):
    """|angle| is the sum of a term that grows with the layer, one per plane that all seeds share, and one per plane and seed.

    Their sizes are `pattern`, `common` and `own`.
    """
    shared, mine = (torch.Generator().manual_seed(number) for number in (99, seed))
    theta = {}
    for site in SITES:
        noise = common * torch.randn(32, generator=shared) + own * torch.randn(32, generator=mine)
        theta[site.name] = 0.02 + pattern * site.layer + noise
    return measure.angles(RoadAdapter(SITES, theta, {site.name: 1 + theta[site.name].abs() for site in SITES}))


def test_angles_are_those_of_the_adapter_to_the_last_bit_and_short():
    adapter = random_adapter(SITES[:1], "road_2")
    found, polar = measure.angles(adapter), adapter.polar(SITES[0])
    for name in ("angle", "major", "minor"):
        assert torch.equal(torch.tensor(getattr(found.sites[0], name)), getattr(polar, name))
        assert max(len(str(value)) for value in getattr(found.sites[0], name)) <= 15
    assert found.sites[0].reflection == tuple(polar.reflection.tolist())


def test_sites_of_several_block_stacks_are_told_apart():
    """An encoder and a decoder have the same layers and kinds: a rotation of one must not be shown as the other's."""
    sites = find_sites(tiny_model("T5"), r"SelfAttention\.[qk]")
    theta = {site.name: torch.full((site.width // 2,), 1.0 if site.name.startswith("encoder") else 0.1) for site in sites}
    found = measure.angles(RoadAdapter(sites, theta, {site.name: torch.ones(site.width // 2) for site in sites}))
    assert len({(site.layer, site.kind) for site in found.sites}) == len(sites)
    shown = plots.angles(found).images[0].get_array()
    assert sorted({round(float(value), 1) for value in shown.ravel()}) == [5.7, 57.3]
    pairs = measure.query_key(found)
    assert sorted({round(float(angle), 2) for angles in pairs.query_angles for angle in angles}) == [0.1, 1.0]


def test_queries_of_several_kinds_are_named():
    found = measure.query_key(measure.angles(random_adapter(find_sites(tiny_model("T5"), r".*Attention\.[qk]"))))
    kinds = ["encoder.block: layer.0.SelfAttention.q", "decoder.block: layer.0.SelfAttention.q", "layer.1.EncDecAttention.q"]
    assert found.query.split(", ") == kinds
    assert found.key.split(", ") == [f"{kind.removesuffix('q')}k" for kind in kinds]
    frame = found.to_frame()
    assert list(frame["query"].unique()) == kinds
    assert not frame.duplicated(["query", "layer", "plane"]).any()
    assert QueryKey.from_json(found.to_json()) == found


@pytest.mark.parametrize("preset", ["all-linear", "block-output"])
def test_block_stacks_of_different_depth_keep_their_kinds(preset):
    """The layers that only the deeper stack has are in the row of its other layers."""
    model = T5Model(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_decoder_layers=3, num_heads=2))
    sites = [site for stack in ("encoder", "decoder") for site in find_sites(model, preset, stack=f"{stack}.block")]
    found = measure.angles(random_adapter(sites))
    layers = {kind: [site.layer for site in found.sites if site.kind == kind] for kind in found.kinds}
    kind = {"all-linear": "layer.0.SelfAttention.q", "block-output": "block-output"}[preset]
    assert layers[f"encoder.block: {kind}"] == [0]
    assert layers[f"decoder.block: {kind}"] == [0, 1, 2]
    assert kind not in layers


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_sites_say_nothing_about_agreement(count):
    few = [replace(report(0.01, 0.1, seed=seed), sites=report(0.01, 0.1, seed=seed).sites[:count]) for seed in range(2)]
    assert seed_structure(few).planes[1:] == (-1, 1)


def test_equal_adapters_agree_everywhere():
    found = seed_structure([report(0.01, 0.1), report(0.01, 0.1)])
    for name in ("sites", "planes", "planes_within_sites", "signed", "magnitudes"):
        assert getattr(found, name) == pytest.approx((1, 1, 1))


def test_a_pattern_of_sites_is_told_from_single_planes():
    found = seed_structure([report(0.1, 0, 0.1, seed) for seed in range(3)])
    assert found.seeds == 3
    assert found.sites[1] > 0.9
    assert found.planes[0] > 0.7
    assert abs(found.planes_within_sites[0]) < 0.15
    assert found.planes_within_sites[2] - found.planes_within_sites[1] < 0.3
    alone = seed_structure([report(0, 0.2, 0.05, seed) for seed in range(3)])
    assert alone.planes_within_sites[1] > 0.5
    assert alone.signed[1] > 0.8
    assert alone.magnitudes[1] > 0.5


def test_query_and_key_are_paired():
    base = tiny_model("Bert")
    adapter = random_adapter(find_sites(base, "attention-qk"))
    mirrored = {name.replace("query", "key"): -values for name, values in adapter.theta.items() if "query" in name}
    same = {name.replace("query", "key"): values for name, values in adapter.alpha.items() if "query" in name}
    opposite = RoadAdapter(adapter.sites, {**adapter.theta, **mirrored}, {**adapter.alpha, **same})
    found = query_key(measure.angles(opposite))
    assert found.layers == (0, 1)
    assert (found.query, found.key) == ("attention.self.query", "attention.self.key")
    assert found.correlations() == pytest.approx({"angles": -1, "log magnitudes": 1})
    assert abs(query_key(measure.angles(adapter)).correlations()["angles"]) < 0.9
    assert QueryKey.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("architecture", "kinds"),
    [
        ("GPTNeoX", ("attention.query_key_value[query]", "attention.query_key_value[key]")),
        ("GPT2", ("attn.c_attn[query]", "attn.c_attn[key]")),
        ("Phi3", ("self_attn.qkv_proj[query]", "self_attn.qkv_proj[key]")),
        ("DistilBert", ("attention.q_lin", "attention.k_lin")),
    ],
)
def test_query_and_key_are_found_in_other_architectures(architecture, kinds):
    model = tiny_model(architecture)
    adapter = random_adapter(find_sites(model, "attention-qk"))
    found = query_key(measure.angles(adapter), getattr(model.config, "num_key_value_heads", 1))
    assert found.layers == (0, 1)
    assert (found.query, found.key) == kinds


def test_query_heads_that_share_a_key_head_are_averaged():
    base = tiny_model("Llama")  # four query heads, two key heads, eight dimensions each
    adapter = random_adapter(find_sites(base, "attention-qk"))
    found = query_key(measure.angles(adapter), key_heads=2)
    query = adapter.angles(adapter.sites[0]).numpy()
    assert found.query_angles[0] == pytest.approx([*(query[0:4] + query[4:8]) / 2, *(query[8:12] + query[12:16]) / 2], rel=1e-4)
    assert len(found.key_angles[0]) == 8
    with pytest.raises(InputError, match="16 query and 8 key planes for 3 key heads"):
        query_key(measure.angles(adapter), key_heads=3)


def test_planes_that_reach_over_heads_are_not_averaged_over_the_heads_of_a_key():
    sites = find_sites(tiny_model("Llama"), "attention-qk")
    assert query_key(measure.angles(random_adapter(sites, group_size=8)), key_heads=2).layers == (0, 1)
    with pytest.raises(InputError, match="layer 0: groups of 16 dimensions do not divide key heads of 8"):
        query_key(measure.angles(random_adapter(sites, group_size=16)), key_heads=2)
    ungrouped = find_sites(tiny_model("Bert"), "attention-qk")
    assert query_key(measure.angles(random_adapter(ungrouped, group_size=16)), key_heads=4).layers == (0, 1)


def trained_query_key(group_size, optimizer):
    """The adapter of queries and keys of a Llama with grouped keys in float64, after five steps from the identity."""
    base = tiny_model("Llama", "causal-lm").double()  # four query heads, two key heads, eight dimensions each
    model = RoadModel(base, RoadAdapter.identity(find_sites(base, "attention-qk"), group_size=group_size))
    steps = optimizer([values for values in model.parameters() if values.requires_grad])
    batch = token_batch()
    for _ in range(5):
        _, output = model(base=batch)
        steps.zero_grad()
        cross_entropy(output.logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten()).backward()
        steps.step()
    return model.adapter


def left_of_the_sum(adapter):
    """Key angles plus the sum of those of their query heads, over the largest key angle; the largest over planes and layers."""
    queries, keys = adapter.sites[::2], adapter.sites[1::2]
    sums = [adapter.theta[site.name].reshape(2, 2, -1).sum(1).flatten() for site in queries]
    found = [adapter.theta[site.name] for site in keys]
    return max(float((key + total).abs().max() / key.abs().max()) for key, total in zip(found, sums, strict=True))


def test_a_key_angle_is_minus_the_sum_of_its_query_heads_in_the_pairs_of_the_rotary_encoding():
    """By plain gradient descent, which is what the symmetry of the gradients is about; Adam scales each gradient by itself."""
    descent = partial(torch.optim.SGD, lr=50)
    in_pairs = trained_query_key(8, descent)
    assert min(float(in_pairs.theta[site.name].abs().max()) for site in in_pairs.sites) > 1e-3
    assert left_of_the_sum(in_pairs) < 1e-6
    assert query_key(measure.angles(in_pairs), key_heads=2).correlations()["angles"] == pytest.approx(-1, abs=1e-4)
    assert left_of_the_sum(trained_query_key(2, descent)) > 0.1
    assert left_of_the_sum(trained_query_key(8, partial(torch.optim.Adam, lr=1e-2))) > 0.1


def test_what_does_not_vary_has_no_correlation():
    still = seed_structure([report(), report(seed=1)])  # all planes of all seeds are equal
    assert (still.sites, still.planes, still.signed) == (None, None, None)
    base = tiny_model("Bert")
    turning = random_adapter(find_sites(base, "attention-qk")).angles_only()
    found = query_key(measure.angles(turning)).correlations()
    assert found["log magnitudes"] is None
    assert found["angles"] is not None
    assert seed_structure([measure.angles(turning), measure.angles(turning)]).magnitudes is None


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="at least two adapters, not 1"):
        seed_structure([report()])
    with pytest.raises(InputError, match="different sites"):
        seed_structure([report(), measure.angles(random_adapter(SITES[:3]))])
    wider = tuple(replace(site, width=2 * site.width) for site in SITES)
    with pytest.raises(InputError, match="different sites"):
        seed_structure([report(), measure.angles(random_adapter(wider))])
    with pytest.raises(InputError, match="different variants or group sizes"):
        seed_structure([measure.angles(random_adapter(SITES, group_size=size)) for size in (2, 4)])
    with pytest.raises(InputError, match="no layer rotates query and key; the sites are fc1"):
        query_key(measure.angles(random_adapter((Site("a.fc1", 8, 0, "fc1"),))))
    for kind, first in ((SeedStructure, "seeds"), (QueryKey, "layers")):
        for text, message in (("[1]", f"the JSON of {kind.__name__} must hold one object"), ("{}", f"'{first}' is missing")):
            with pytest.raises(InputError, match=message):
                kind.from_json(text)
    found = seed_structure([report(0.1), report(0.1, seed=1)])
    assert SeedStructure.from_json(found.to_json()) == found
    assert np.isfinite([value for name in ("sites", "signed") for value in getattr(found, name)]).all()


def test_a_plane_of_magnitude_0_has_no_logarithm():
    found = report(common=0.1)
    first = replace(found.sites[0], stretches=((0.0, *found.sites[0].major[1:]),))
    with pytest.raises(InputError, match="^site 'layers.0.q': plane 0 has magnitude 0, whose logarithm is not finite$"):
        seed_structure([found, replace(found, sites=(first, *found.sites[1:]))])
    pair = (replace(first, stretches=found.sites[0].stretches), replace(first, name="layers.0.k", kind="k"))
    with pytest.raises(InputError, match="^site 'layers.0.k': plane 0 has magnitude 0"):
        query_key(replace(found, sites=pair))


def test_agreement_is_drawn_with_its_intervals():
    found = seed_structure([report(0.1, 0, 0.1, seed) for seed in range(3)])
    ax = plots.seed_structure(found)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[0] == "mean |angle| of a site"
    assert len(labels) == 5
    dots, _, (bars,) = ax.containers[0]
    assert dots.get_xdata().tolist()[:2] == [found.sites[0], found.planes[0]]
    assert bars.get_segments()[0][:, 0] == pytest.approx(found.sites[1:])


def test_query_and_key_are_drawn_by_layer():
    found = query_key(measure.angles(random_adapter(find_sites(tiny_model("Bert"), "attention-qk"))))
    ax = plots.query_key(found)
    (points,) = ax.collections
    wanted = np.degrees([np.concatenate(found.query_angles), np.concatenate(found.key_angles)]).T
    np.testing.assert_allclose(points.get_offsets(), wanted)
    assert points.get_array().tolist() == [0] * 16 + [1] * 16
    assert f"{found.correlations()['angles']:.3f}" in ax.get_title()
    (line,) = ax.lines
    assert (line.get_xdata() == -np.asarray(line.get_ydata())).all()


def test_grouped_keys_need_their_number_of_heads():
    base = tiny_model("Llama")
    with pytest.raises(InputError, match="layer 0 has 16 query and 8 key planes: give key_heads=config.num_key_value_heads"):
        query_key(measure.angles(random_adapter(find_sites(base, "attention-qk"))))
