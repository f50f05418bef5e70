"""Rotations and PEFT's LoRA on one model: rotating the LoRA output or the frozen linear only; trained and saved together."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model

import road_interp as ri
from helpers.models import random_adapter, tiny_model, token_batch
from helpers.road_models import through_pyvene

# The rotated output: that of the linear with LoRA, z = R (W + BA) x, or that of the frozen linear only, z = (R W + BA) x.
SITES = {"with LoRA": "model.layers.*.self_attn.v_proj", "without LoRA": "model.layers.*.self_attn.v_proj.base_layer"}


def with_lora(seed=0):
    """A tiny Llama with a random LoRA on its values."""
    torch.manual_seed(seed)
    return get_peft_model(
        tiny_model("Llama", "causal-lm"), LoraConfig(r=4, target_modules=["v_proj"], init_lora_weights=False, lora_alpha=4)
    ).eval()


def logits(model, batch):
    return model(base=batch)[1].logits


@pytest.mark.parametrize("rotated", SITES)
def test_rotation_and_lora_equal_one_dense_map(rotated):
    batch, peft_model = token_batch(), with_lora()
    model = peft_model.get_base_model()
    sites = ri.find_sites(model, SITES[rotated])
    adapter = random_adapter(sites)
    expected = tiny_model("Llama", "causal-lm")
    for layer, site in zip(range(2), sites, strict=True):
        values = model.model.layers[layer].self_attn.v_proj
        weight, lora = values.base_layer.weight, values.get_delta_weight("default")
        rotation = adapter.matrix(site)
        dense = rotation @ (weight + lora) if rotated == "with LoRA" else rotation @ weight + lora
        expected.model.layers[layer].self_attn.v_proj.weight.data.copy_(dense)
    torch.testing.assert_close(logits(ri.RoadModel(model, adapter), batch), expected(**batch).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rotated", SITES)
@pytest.mark.parametrize("both", [True, False])
def test_rotations_train_with_lora_or_alone(rotated, both):
    batch, peft_model = token_batch(), with_lora()
    model = peft_model.get_base_model()
    road = ri.RoadModel(model, ri.RoadAdapter.identity(ri.find_sites(model, SITES[rotated])))
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
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == (set(low_rank) if both else set())
    assert all(road.adapter.angles(site).abs().max() > 0 for site in road.adapter.sites)


@pytest.mark.parametrize("rotated", SITES)
def test_rotations_and_lora_save_into_one_folder(rotated, tmp_path):
    batch, peft_model = token_batch(), with_lora()
    model = peft_model.get_base_model()
    road = ri.RoadModel(model, random_adapter(ri.find_sites(model, SITES[rotated])))
    expected = logits(road, batch)
    peft_model.save_pretrained(tmp_path / "both")
    road.adapter.save(tmp_path / "both")
    again = PeftModel.from_pretrained(tiny_model("Llama", "causal-lm"), tmp_path / "both").eval()
    loaded = ri.RoadModel(again.get_base_model(), ri.RoadAdapter.load(tmp_path / "both"))
    assert torch.equal(logits(loaded, batch), expected)


def test_every_row_has_its_own_rotation_over_one_lora():
    batch, model = token_batch(), with_lora().get_base_model()
    adapter = random_adapter(ri.find_sites(model, "all-linear"))
    road = ri.RoadModel(model, ri.RoadBank({"a": adapter}))
    found = road(base=batch, adapter_names=["a", "__base__", "a"])[1].logits
    torch.testing.assert_close(found[0], logits(ri.RoadModel(model, adapter), batch)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], model(**batch).logits[1], atol=1e-5, rtol=1e-5)


def test_a_peft_lora_model_as_base_model():
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    lora = get_peft_model(base, config).eval()
    plain = lora(**batch).logits
    model = ri.RoadModel(lora, random_adapter(ri.find_sites(lora, "all-linear")))
    fast = model(base=batch)[1].logits
    torch.testing.assert_close(fast, through_pyvene(model, batch), rtol=0, atol=1e-6)
    assert torch.equal(lora(**batch).logits, plain)
    with pytest.raises(ri.InputError, match="not a plain linear layer"):
        model.merge()


@pytest.mark.parametrize("positions", ["last", "prompt"])
def test_the_generate_of_a_peft_model_calls_the_model_inside_it_where_positions_are_not_known(positions):
    lora, batch, greedy = with_lora(), token_batch(), {"max_new_tokens": 4, "do_sample": False}
    outer = ri.RoadModel(lora, random_adapter(ri.find_sites(lora, "attention")), positions)
    with pytest.raises(ri.InputError, match=r"found in the inputs of PeftModel, .* peft_model.get_base_model\(\)"):
        outer.generate(batch, **greedy)
    inside = lora.get_base_model()
    inner = ri.RoadModel(inside, random_adapter(ri.find_sites(inside, "attention")), positions)
    expected = inner.generate(batch, **greedy)[1]
    with inner.attached():
        assert torch.equal(lora.generate(**batch, **greedy), expected)
    assert torch.equal(inner(base=batch)[1].logits, outer(base=batch)[1].logits)


@pytest.mark.parametrize("kind", [PrefixTuningConfig, PromptTuningConfig])
def test_virtual_tokens_before_the_prompt_of_a_generate_leave_no_positions(kind):
    """The token in the place of the prompt's last one was rotated, which is another one behind virtual tokens."""
    learned = get_peft_model(tiny_model("Llama", "causal-lm"), kind(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    inside, batch = learned.get_base_model(), token_batch()
    model = ri.RoadModel(inside, random_adapter(ri.find_sites(inside, "attention")), "last")
    with model.attached(), pytest.raises(ri.InputError, match="PEFT's prompt learning puts tokens or keys of its own"):
        learned.generate(**batch, max_new_tokens=2)
    assert model.generate(batch, max_new_tokens=2, do_sample=False)[1].shape == (3, 9)
    with model.attached(positions="all"):
        assert learned.generate(**batch, max_new_tokens=2).shape == (3, 9)
