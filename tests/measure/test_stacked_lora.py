"""Stacked LoRA, a peer of the throughput benchmark: a batch computes what PEFT's formula gives for every row alone."""

from __future__ import annotations

import pytest
import torch

from helpers.models import tiny_model, token_batch
from road_interp.measure.stacked_lora import StackedLora
from road_interp.measure.throughput_methods import ThroughputMethods
from road_interp.sites.find import find_sites


@pytest.fixture(scope="module")
def base():
    base = tiny_model("Llama", "causal-lm").requires_grad_(False)
    base.generation_config.eos_token_id = None
    return base


@pytest.fixture
def lora(base):
    return StackedLora(base, find_sites(base, "all-linear"), rows=3, rank=4)


def test_a_layer_adds_the_product_with_the_factors_of_its_row(base):
    lora = StackedLora(base, find_sites(base, "all-linear")[:1], rows=2, rank=4)
    (layer,), ((down, up),) = lora._modules, lora._pairs
    states = torch.randn(2, 5, down.shape[1])
    with lora.per_row(2):
        found = layer(states)
    for row in range(2):
        torch.testing.assert_close(found[row], layer(states)[row] + states[row] @ down[row] @ up[row])


def test_each_row_has_its_own_adapter_or_all_have_the_first(base, lora):
    inputs = token_batch(1, 5)
    with lora.per_row(1):
        first = lora.model(**inputs).logits
    repeated = {name: value.repeat(3, 1) for name, value in inputs.items()}
    with lora.per_row(3):
        different = lora.model(**repeated).logits
    with lora.one_adapter():
        same = lora.model(**repeated).logits
    torch.testing.assert_close(same, first.expand(3, -1, -1))
    torch.testing.assert_close(different[:1], first)
    assert (different[1] - first[0]).abs().max() > 1e-3
    torch.testing.assert_close(lora.model(**inputs).logits, base(**inputs).logits, rtol=0, atol=0)


def test_strength_1_is_the_adapter_and_0_the_bare_model(base, lora):
    inputs = token_batch(2, 5)
    with lora.per_row(2):
        whole = lora.model(**inputs).logits
    with lora.per_row(2, torch.tensor([1.0, 0.0])):
        found = lora.model(**inputs).logits
    torch.testing.assert_close(found[0], whole[0])
    torch.testing.assert_close(found[1], base(**inputs).logits[1])


def test_a_training_step_has_gradients_of_the_first_adapter(lora):
    inputs = token_batch(2, 5)
    with lora.one_adapter():
        lora.model(**inputs, labels=inputs["input_ids"]).loss.backward()
    for factor in (each for pair in lora._pairs for each in pair):
        assert factor.grad[0].abs().max() > 0
        assert factor.grad[1:].abs().max() == 0


@torch.no_grad()
def test_continuous_batching_generates_as_every_prompt_alone(base, monkeypatch):
    """The tokens of the engine's requests, which have different lengths, are those of `generate` with the adapter of the row."""
    prompts = []
    methods = ThroughputMethods(base, 3)
    draw = "road_interp.measure.throughput_methods.draw_ids"
    monkeypatch.setattr(draw, lambda model, rows, length: prompts.append(torch.randint(10, 60, (rows, length))) or prompts[-1])
    calls = methods.continuous(3, 6)
    lora, expected, of_first = methods.stacked, [], []
    for row, prompt in enumerate(prompts):
        adapted = torch.cat([prompt] * 3)
        options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "attention_mask": torch.ones_like(adapted)}
        with lora.per_row(3):
            tokens = lora.model.generate(adapted, **options)[:, prompt.shape[1] :].tolist()
        expected.append(tokens[row])
        of_first.append(tokens[0])
    assert calls["stacked LoRA, all different"]() == expected
    assert calls["stacked LoRA, one adapter"]() == of_first
    assert expected[1:] != of_first[1:]
