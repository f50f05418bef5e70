"""Merged weights give the outputs of the rotations, and unmerging restores the originals bitwise."""

from __future__ import annotations

import copy

import accelerate
import peft
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from helpers.models import random_adapter, tiny_model, token_batch
from helpers.road_models import ARCHITECTURES, GREEDY, bank_model, road_model
from road_interp.errors import InputError
from road_interp.models import merging
from road_interp.models.road_model import RoadModel
from road_interp.sites.find import find_sites


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "Gemma2", "Qwen2"])
@pytest.mark.parametrize(("variant", "group_size"), [("road_1", 2), ("road_2", 8), ("road_4", 4)])
@pytest.mark.parametrize("target_modules", ["all-linear", "attention-qk"])
def test_merged_weights_equal_rotations_and_unmerge_is_bitwise_exact(architecture, variant, group_size, target_modules):
    model, batch = road_model(architecture, target_modules, variant, group_size), token_batch()
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    rotated = model(base=batch)[1].logits
    merged = model.merge()
    torch.testing.assert_close(merged(**batch).logits, rotated, rtol=0, atol=2e-5)
    assert torch.equal(model(base=batch)[1].logits, merged(**batch).logits)
    with pytest.raises(InputError, match="already merged"):
        model.merge()
    model.unmerge()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())


def test_weights_are_restored_inside_a_lora():
    model = road_model(target_modules="attention-qk")
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    lora = peft.get_peft_model(model.merge(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    model.unmerge()
    found = {name.replace(".base_layer.", "."): tensor for name, tensor in lora.get_base_model().state_dict().items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in before.items())


def train(base):
    base.requires_grad_(True)
    base(**token_batch()).logits.square().mean().backward()
    torch.optim.SGD(base.parameters(), lr=0.1).step()


def merge_lora(base):
    options = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False}
    peft.get_peft_model(base, peft.LoraConfig(**options)).merge_adapter()


def load_others(base):
    base.load_state_dict(tiny_model("Llama", "causal-lm", seed=5).state_dict())


def offload(base):
    accelerate.cpu_offload(base, torch.device("cpu"))


@pytest.mark.parametrize("change", [train, merge_lora, load_others, offload])
def test_weights_that_have_changed_since_they_were_rotated_are_not_overwritten(change):
    model = road_model(target_modules="attention-qk")
    change(model.merge())
    changed = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    with pytest.raises(InputError, match="weight of 'model.layers.0.self_attn.q_proj' has changed since it was rotated"):
        model.unmerge()
    assert model.is_merged
    assert all(torch.equal(tensor, changed[name]) for name, tensor in model.model.state_dict().items() if not tensor.is_meta)


@torch.no_grad()
def test_a_call_after_original_weights_were_loaded_over_merged_ones_is_refused():
    model, batch = road_model(target_modules="attention-qk"), token_batch()
    original = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    expected = model(base=batch)[1].logits
    rotated = {name: tensor.clone() for name, tensor in model.merge().state_dict().items()}
    model.model.load_state_dict(rotated)
    torch.testing.assert_close(model(base=batch)[1].logits, expected)
    model.model.load_state_dict(original)
    for _ in range(2):
        with pytest.raises(InputError, match="weight of 'model.layers.0.self_attn.q_proj' has changed since it was rotated"):
            model(base=batch)
    model.model.load_state_dict(rotated)
    torch.testing.assert_close(model(base=batch)[1].logits, expected)


def test_a_small_change_beside_one_large_weight_is_seen_in_half_precision():
    base = tiny_model("Llama", "causal-lm").to(torch.bfloat16)
    weight = base.model.layers[0].self_attn.q_proj.weight
    with torch.no_grad():
        weight[0, 0] = 20 * weight.float().square().mean().sqrt()
    model = RoadModel(base, random_adapter(find_sites(base, "attention-qk")))
    model.merge()
    with torch.no_grad():
        weight[2:] *= 1.03  # not in the plane of the large weight
    with pytest.raises(InputError, match="weight of 'model.layers.0.self_attn.q_proj' has changed since it was rotated"):
        model.unmerge()


@pytest.mark.parametrize(
    ("dtype", "alpha"),
    [(torch.float64, 1), (torch.float32, 1), (torch.bfloat16, 0.01), (torch.float16, 0.01)],
)
def test_weights_are_restored_after_changes_that_were_undone(dtype, alpha):
    model = road_model(target_modules="attention-qk")
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    base = model.merge().to(dtype)
    small = {"r": 2, "lora_alpha": alpha, "target_modules": ["q_proj"], "init_lora_weights": False}
    lora = peft.get_peft_model(base, peft.LoraConfig(**small))
    lora.merge_adapter()
    lora.unmerge_adapter()
    lora.unload()
    model.unmerge()
    site = model.sites[0].module
    assert torch.equal(base.get_submodule(site).weight, before[f"{site}.weight"].to(dtype))
    model.merge().to(torch.float32)
    model.unmerge()


@pytest.mark.parametrize("change", [0.1, -0.1])
def test_a_bias_that_has_changed_since_is_not_overwritten(change):
    base = tiny_model("GPT2", "causal-lm")
    model = RoadModel(base, random_adapter(find_sites(base, "mlp.c_fc")))
    model.merge()
    bias = base.transformer.h[1].mlp.c_fc.bias
    with torch.no_grad():
        bias += change
    changed = bias.clone()
    with pytest.raises(InputError, match="the bias of 'transformer.h.1.mlp.c_fc' has changed since it was rotated"):
        model.unmerge()
    assert torch.equal(bias, changed)


def test_a_rotated_module_that_is_gone_is_told():
    base = tiny_model("Llama", "causal-lm")
    model = RoadModel(base, random_adapter(find_sites(base, "lm_head|q_proj")))
    model.merge()
    rotated = base.model.layers[0].self_attn.q_proj.weight.clone()
    base.resize_token_embeddings(80)
    with pytest.raises(InputError, match="'lm_head' was replaced since its weights were rotated"):
        model.unmerge()
    assert torch.equal(base.model.layers[0].self_attn.q_proj.weight, rotated)  # all or nothing


def test_a_merge_that_fails_restores_the_weights(monkeypatch):
    model, rotate, calls = road_model(), merging.rotate_weights, []
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}

    def rotate_two(*arguments):
        calls.append(arguments)
        if len(calls) > 2:
            raise MemoryError
        rotate(*arguments)

    monkeypatch.setattr(merging, "rotate_weights", rotate_two)
    with pytest.raises(MemoryError):
        model.merge()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())
    monkeypatch.undo()
    assert model.merge() is model.model


def test_the_architectures_include_conv1d_and_biases():
    modules = {type(module) for module in tiny_model("GPT2", "causal-lm").modules()}
    assert Conv1D in modules
    assert tiny_model("Llama", "causal-lm").model.layers[0].mlp.up_proj.bias is None
    assert tiny_model("OPT", "causal-lm").model.decoder.layers[0].fc1.bias is not None


def test_merged_generation_gives_the_same_tokens():
    model, batch = road_model(), token_batch(2, 6)
    _, rotated = model.generate(batch, **GREEDY)
    assert torch.equal(model.merge().generate(**batch, **GREEDY), rotated)


def test_merging_one_adapter_of_a_bank():
    model, batch = bank_model(), token_batch()
    rotated = model(base=batch, adapter_names=["b"] * 3)[1].logits
    torch.testing.assert_close(model.merge("b")(**batch).logits, rotated, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="while the rotations are merged"):
        model(base=batch, adapter_names=["b"] * 3)


def test_an_adapter_that_changes_while_it_is_merged_is_told():
    model, batch = bank_model("ab"), token_batch()
    model.merge("b")
    model.bank.replace("a", model.bank["b"])
    model(base=batch)
    model.bank.replace("b", model.bank["b"].inverse())
    with pytest.raises(InputError, match="'b' was replaced since it was merged: call unmerge, and merge it again"):
        model(base=batch)
    model.unmerge()
    expected = model(base=batch, adapter_names=["b"] * 3)[1].logits
    torch.testing.assert_close(model.merge("b")(**batch).logits, expected, rtol=0, atol=1e-5)

    single, other = road_model(), road_model()
    single.merge()
    with pytest.raises(InputError, match="the rotations are merged, and other angles would not change the weights"):
        single.load_state_dict(other.state_dict())


def test_angles_that_change_while_they_are_merged_are_told():
    """As those of an optimizer's step would, which the merged weights do not follow."""
    batch = token_batch()
    single, bank = road_model(), bank_model("ab")
    single.merge()
    parameters = bank.bank.trainable()
    bank.merge("b")
    for model, parameter in ((single, next(single.by_site())[1].alpha), (bank, parameters["b"][0])):
        model(base=batch)
        if model is bank:  # the other adapter is not merged
            parameters["a"][0].data.add_(0.5)
            model(base=batch)
        parameter.data.add_(0.5)
        with pytest.raises(InputError, match="of '.*' have changed since they were merged, and the weights have not"):
            model(base=batch)
        model.unmerge()
        names = None if model is single else ["b"] * 3
        expected = model(base=batch, adapter_names=names)[1].logits
        torch.testing.assert_close(model.merge(names and "b")(**batch).logits, expected, rtol=0, atol=1e-5)
        model(base=batch)


def test_sites_that_cannot_be_merged_are_refused():
    with pytest.raises(InputError, match=r"site 'model\.layers\.0' cannot be merged: LlamaDecoderLayer is not a plain linear"):
        road_model(target_modules="block-output").merge()
    with pytest.raises(InputError, match="positions 'last' cannot be merged"):
        road_model(positions="last").merge()
    base = tiny_model("Llama", "causal-lm", tie_word_embeddings=True)
    base.model.embed_tokens.weight = base.lm_head.weight
    tied = RoadModel(base, random_adapter(find_sites(base, "lm_head")))
    with pytest.raises(InputError, match="'lm_head' cannot be merged: its weight is tied"):
        tied.merge()
    assert tied(base=token_batch())[1].logits.shape == (3, 7, 60)
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.data)  # another parameter in the same memory
    with pytest.raises(InputError, match="'lm_head' cannot be merged: its weight is tied"):
        tied.merge()


def test_a_bias_that_two_linears_share_is_not_rotated_twice():
    base = tiny_model("GPTNeoX", "causal-lm")
    first, second = (layer.mlp.dense_h_to_4h for layer in base.gpt_neox.layers)
    second.bias = first.bias
    model = RoadModel(base, random_adapter(find_sites(base, "dense_h_to_4h")))
    weights = {name: values.clone() for name, values in base.state_dict().items()}
    with pytest.raises(InputError, match="'gpt_neox.layers.0.mlp.dense_h_to_4h' cannot be merged: its bias is tied"):
        model.merge()
    assert all(torch.equal(values, weights[name]) for name, values in base.state_dict().items())


def test_a_sparse_parameter_has_no_memory_that_others_share():
    model = road_model(target_modules="attention")
    model.model.register_parameter("graph", torch.nn.Parameter(torch.eye(3).to_sparse()))
    expected = model(token_batch())[1].logits
    assert torch.allclose(model.merge()(**token_batch()).logits, expected, atol=1e-5)


def test_a_bias_of_another_shape_is_refused_before_a_weight_changes():
    base = tiny_model("GPT2", "causal-lm")
    model = RoadModel(base, random_adapter(find_sites(base, "mlp")))
    last = base.get_submodule(model.sites[-1].module)
    last.bias = torch.nn.Parameter(last.bias[:1].clone())
    before = copy.deepcopy(base.state_dict())
    with pytest.raises(InputError, match=r"cannot be merged: its bias has shape \(1,\) for 32 outputs"):
        model.merge()
    assert all(torch.equal(before[name], values) for name, values in base.state_dict().items())


@torch.no_grad()
def test_a_model_that_another_has_merged_into_is_not_rotated_again():
    """Its rotations would be applied on top of those of the other."""
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    sites = find_sites(base, "all-linear")
    first, second = (RoadModel(base, random_adapter(sites, seed=seed)) for seed in (1, 2))
    expected = second(base=batch)[1].logits
    first.merge()
    changed = "another RoadModel has merged its rotations into them, or unmerged them, since this one was made"
    inputs = {"input_ids": batch["input_ids"]}
    for call in (
        lambda: second(base=batch),
        lambda: second.generate(inputs, max_new_tokens=1),
        lambda: second.attached().__enter__(),
        second.merge,
        lambda: second.continuous_batching(),
        lambda: second(base=batch, subspaces=[None] * len(sites)),
    ):
        with pytest.raises(InputError, match=changed):
            call()
    above = RoadModel(base, second.adapter)  # made for the merged weights
    both = above(base=batch)[1].logits
    assert (both - expected).abs().max() > 1e-4
    above.merge()
    torch.testing.assert_close(base(**batch).logits, both, rtol=0, atol=1e-4)
    with pytest.raises(InputError, match="another RoadModel has merged its rotations into the same weights since"):
        first.unmerge()
    copied = copy.deepcopy(above)
    torch.testing.assert_close(copied(base=batch)[1].logits, both, rtol=0, atol=1e-4)
    copied.unmerge()
    torch.testing.assert_close(copied(base=batch)[1].logits, both, rtol=0, atol=1e-4)
    above.unmerge()
    first.unmerge()
    assert torch.equal(second(base=batch)[1].logits, expected)
    with pytest.raises(InputError, match=changed):
        above(base=batch)


@torch.no_grad()
def test_a_merge_into_a_part_of_the_model_is_seen():
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    outer = RoadModel(base, random_adapter(find_sites(base, "mlp")))
    inner = RoadModel(base.model, random_adapter(find_sites(base.model, "attention"), seed=1))
    before = outer(base=batch)[1].logits
    inner.merge()
    with pytest.raises(InputError, match="the weights of the base model have changed"):
        outer(base=batch)
    inner.unmerge()
    assert torch.equal(outer(base=batch)[1].logits, before)
