"""LoRA and LoReFT with rows owned by tasks: batch rows are independent, and only trainable tasks get a gradient."""

from __future__ import annotations

import pytest
import torch

from helpers.models import tiny_model, token_batch
from road_interp.errors import InputError
from road_interp.sites.find import find_sites
from road_interp.training.low_rank import LowRankModel

TASKS = ("a", "b")


def low_rank_model(method, perturbed=True):
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, "all-linear" if method == "LoRA" else "block-output")
    model = LowRankModel(base, sites, TASKS, 2, method)
    if perturbed:
        for number, adapter in enumerate(model.adapters):
            torch.manual_seed(number)
            weight = adapter.up if method == "LoRA" else adapter.source.weight
            weight.data += 0.3 * torch.randn_like(weight)
    return model


@pytest.mark.parametrize("method", ["LoRA", "LoReFT"])
def test_inactive_tasks_change_nothing(method):
    model, batch = low_rank_model(method), token_batch()
    plain = model.model(**batch).logits
    assert torch.equal(model(batch, ["__base__"] * 3)[1].logits, plain)
    assert not torch.allclose(model(batch, ["a"] * 3)[1].logits, plain, atol=1e-3)
    assert not any(module._forward_hooks for module in model.model.modules())


@pytest.mark.parametrize("method", ["LoRA", "LoReFT"])
def test_models_of_other_dtypes_keep_their_dtype(method):
    model, batch = low_rank_model(method), token_batch()
    expected = model(batch, ["a"] * 3)[1].logits
    model.model.to(torch.bfloat16)
    found = model(batch, ["a"] * 3)[1].logits
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.05)


def test_lora_starts_at_the_identity_and_deltas_add():
    batch = token_batch()
    untrained = low_rank_model("LoRA", perturbed=False)
    torch.testing.assert_close(untrained(batch, ["a+b"] * 3)[1].logits, untrained.model(**batch).logits)
    adapter = low_rank_model("LoRA").adapters[0]
    inputs, outputs = torch.randn(1, 3, 32), torch.zeros(1, 3, adapter.up.shape[0])
    active = torch.tensor([[[True, True, False, False]]])
    alone = [adapter(inputs, outputs, mask, mask) for mask in (active, ~active)]
    torch.testing.assert_close(adapter(inputs, outputs, active | ~active, active), alone[0] + alone[1])


def test_loreft_edits_along_its_own_rows_only():
    adapter = low_rank_model("LoReFT").adapters[0]
    states = torch.randn(2, 3, 32)
    active = torch.tensor([[[True, True, False, False]]])
    change = adapter(None, states, active, active) - states
    rows = adapter.rows.weight
    torch.testing.assert_close(rows @ rows.T, torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close((change @ rows.T)[..., 2:], torch.zeros(2, 3, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(change, change @ rows.T @ rows, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["LoRA", "LoReFT"])
def test_a_row_gives_the_output_of_its_own_batch(method):
    model, batch = low_rank_model(method), token_batch()
    mixed = model(batch, ["a", "a+b", "__base__"])[1].logits
    for row, tasks in enumerate(["a", "a+b", "__base__"]):
        alone = model({key: value[row : row + 1] for key, value in batch.items()}, [tasks])[1].logits
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=0, atol=1e-5)


def test_only_the_trainable_task_gets_a_gradient():
    model, batch = low_rank_model("LoRA"), token_batch()
    model(batch, ["a+b"] * 3, trainable_tasks=["a"] * 3)[1].logits.square().sum().backward()
    for adapter in model.adapters:
        assert adapter.down.grad[:2].abs().sum() > 0
        assert adapter.up.grad[:, :2].abs().sum() > 0
        assert adapter.down.grad[2:].abs().sum() == 0
        assert adapter.up.grad[:, 2:].abs().sum() == 0
    model = low_rank_model("LoReFT")
    model(batch, ["a+b"] * 3, trainable_tasks=["b"] * 3)[1].logits.square().sum().backward()
    assert model.adapters[0].source.weight.grad[2:].abs().sum() > 0
    assert model.adapters[0].source.weight.grad[:2].abs().sum() == 0
    assert model.adapters[0].source.bias.grad[:2].abs().sum() == 0


@pytest.mark.parametrize("trained", [0, 1])
def test_loreft_moves_the_rows_of_other_tasks_less_than_its_own(trained):
    adapter = low_rank_model("LoReFT").adapters[0]
    before = adapter.rows.weight.detach().clone()
    own = torch.tensor([[[trained == 0] * 2 + [trained == 1] * 2]])
    optimizer = torch.optim.Adam(adapter.parameters(), lr=5e-3)
    torch.manual_seed(0)
    for _ in range(50):
        optimizer.zero_grad()
        states = torch.randn(2, 3, 32)
        (adapter(None, states, torch.ones_like(own), own) - states.roll(1, -1)).square().sum().backward()
        optimizer.step()
    moved = (adapter.rows.weight.detach() - before).norm(dim=1)
    assert moved[own.flatten()].mean() > moved[~own.flatten()].mean()


def test_generation_and_unknown_tasks():
    model, batch = low_rank_model("LoRA"), token_batch()
    options = {"do_sample": False, "max_new_tokens": 3, "pad_token_id": 2}
    ids = model.generate(batch, ["a", "b", "__base__"], **options)[1]
    assert torch.equal(ids[2:], model.model.generate(**{key: value[2:] for key, value in batch.items()}, **options))
    with pytest.raises(InputError, match="unknown task 'c'; the tasks are a, b"):
        model(batch, ["c"] * 3)


def test_the_random_numbers_of_the_gpus_are_left_alone(monkeypatch):
    base = tiny_model("Llama", "causal-lm")
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    LowRankModel(base, find_sites(base, "all-linear"), TASKS, 2, "LoRA")
    assert not seeded
