"""Rotations together with PEFT's LoRA on one model: over its output, or beside it; learned together; kept together."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import road_interp as ri
from helpers.models import random_adapter, tiny_model, token_batch

# What a site rotates: the linear's output with what LoRA adds, z = R (W + BA) x, or the frozen linear's alone, z = (R W + BA) x.
PLACES = {"over": "model.layers.*.self_attn.v_proj", "beside": "model.layers.*.self_attn.v_proj.base_layer"}


def with_lora(seed=0):
    """A tiny Llama with a random LoRA on its values."""
    torch.manual_seed(seed)
    return get_peft_model(
        tiny_model("Llama", "causal-lm"), LoraConfig(r=4, target_modules=["v_proj"], init_lora_weights=False, lora_alpha=4)
    ).eval()


def logits(model, batch):
    return model(base=batch)[1].logits


@pytest.mark.parametrize("place", PLACES)
def test_both_make_one_dense_map(place):
    batch, peft_model = token_batch(), with_lora()
    model = peft_model.get_base_model()
    sites = ri.find_sites(model, PLACES[place])
    adapter = random_adapter(sites)
    expected = tiny_model("Llama", "causal-lm")
    for layer, site in zip(range(2), sites, strict=True):
        values = model.model.layers[layer].self_attn.v_proj
        weight, lora = values.base_layer.weight, values.get_delta_weight("default")
        rotation = adapter.matrix(site)
        dense = rotation @ (weight + lora) if place == "over" else rotation @ weight + lora
        expected.model.layers[layer].self_attn.v_proj.weight.data.copy_(dense)
    torch.testing.assert_close(logits(ri.RoadModel(model, adapter), batch), expected(**batch).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("both", [True, False])
def test_they_learn_together_or_rotations_alone(place, both):
    batch, peft_model = token_batch(), with_lora()
    model = peft_model.get_base_model()
    road = ri.RoadModel(model, ri.RoadAdapter.identity(ri.find_sites(model, PLACES[place])))
    low_rank = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    for parameter in low_rank.values():
        parameter.requires_grad_(both)
    trained = [parameter for parameter in road.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 + (len(low_rank) if both else 0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(8):
        loss = road(base={**batch, "labels": batch["input_ids"]})[1].loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == (set(low_rank) if both else set())
    assert all(road.adapter.angles(site).abs().max() > 0 for site in road.adapter.sites)


@pytest.mark.parametrize("place", PLACES)
def test_they_are_kept_together(place, tmp_path):
    batch, peft_model = token_batch(), with_lora()
    model = peft_model.get_base_model()
    road = ri.RoadModel(model, random_adapter(ri.find_sites(model, PLACES[place])))
    expected = logits(road, batch)
    peft_model.save_pretrained(tmp_path / "both")
    road.adapter.save(tmp_path / "both")
    again = PeftModel.from_pretrained(tiny_model("Llama", "causal-lm"), tmp_path / "both").eval()
    loaded = ri.RoadModel(again.get_base_model(), ri.RoadAdapter.load(tmp_path / "both"))
    assert torch.equal(logits(loaded, batch), expected)


def test_every_row_has_its_own_rotation_over_one_lora():
    batch, model = token_batch(), with_lora().get_base_model()
    adapter = random_adapter(ri.find_sites(model, "all-linear"))
    road = ri.RoadModel(model, ri.RoadBank({"turned": adapter}))
    found = road(base=batch, adapter_names=["turned", "__base__", "turned"])[1].logits
    torch.testing.assert_close(found[0], logits(ri.RoadModel(model, adapter), batch)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], model(**batch).logits[1], atol=1e-5, rtol=1e-5)
