"""LoRA and LoReFT owned by tasks: rows for themselves, gradients only to those who learn."""

from __future__ import annotations

import pytest
import torch

from helpers.models import tiny_model, token_batch
from road_interp.errors import InputError
from road_interp.sites.find import find_sites
from road_interp.training.low_rank import LowRankModel

TASKS = ("a", "b")


def low_rank_model(method, moved=True):
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, "all-linear" if method == "LoRA" else "block-output")
    model = LowRankModel(base, sites, TASKS, 2, method)
    if moved:
        for number, adapter in enumerate(model.adapters):
            torch.manual_seed(number)
            moving = adapter.up if method == "LoRA" else adapter.source.weight
            moving.data += 0.3 * torch.randn_like(moving)
    return model


@pytest.mark.parametrize("method", ["LoRA", "LoReFT"])
def test_inactive_tasks_change_nothing(method):
    model, batch = low_rank_model(method), token_batch()
    plain = model.model(**batch).logits
    assert torch.equal(model(batch, ["__base__"] * 3)[1].logits, plain)
    assert not torch.allclose(model(batch, ["a"] * 3)[1].logits, plain, atol=1e-3)
    assert not any(module._forward_hooks for module in model.model.modules())


def test_lora_starts_at_the_identity_and_deltas_add():
    batch = token_batch()
    untrained = low_rank_model("LoRA", moved=False)
    torch.testing.assert_close(untrained(batch, ["a+b"] * 3)[1].logits, untrained.model(**batch).logits)
    adapter = low_rank_model("LoRA").adapters[0]
    taken, given = torch.randn(1, 3, 32), torch.zeros(1, 3, adapter.up.shape[0])
    on = torch.tensor([[[True, True, False, False]]])
    alone = [adapter(taken, given, mask, mask) for mask in (on, ~on)]
    torch.testing.assert_close(adapter(taken, given, on | ~on, on), alone[0] + alone[1])


def test_loreft_writes_into_its_own_rows_only():
    adapter = low_rank_model("LoReFT").adapters[0]
    given = torch.randn(2, 3, 32)
    on = torch.tensor([[[True, True, False, False]]])
    change = adapter(None, given, on, on) - given
    rows = adapter.rows.weight
    torch.testing.assert_close(rows @ rows.T, torch.eye(4), atol=1e-5, rtol=0)
    torch.testing.assert_close((change @ rows.T)[..., 2:], torch.zeros(2, 3, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(change, change @ rows.T @ rows, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["LoRA", "LoReFT"])
def test_a_row_is_as_if_alone(method):
    model, batch = low_rank_model(method), token_batch()
    mixed = model(batch, ["a", "a+b", "__base__"])[1].logits
    for row, tasks in enumerate(["a", "a+b", "__base__"]):
        alone = model({key: value[row : row + 1] for key, value in batch.items()}, [tasks])[1].logits
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=0, atol=1e-5)


def test_only_the_learning_task_gets_a_gradient():
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


@pytest.mark.parametrize("learning", [0, 1])
def test_loreft_turns_the_others_rows_less_than_its_own(learning):
    adapter = low_rank_model("LoReFT").adapters[0]
    before = adapter.rows.weight.detach().clone()
    mine = torch.tensor([[[learning == 0] * 2 + [learning == 1] * 2]])
    optimizer = torch.optim.Adam(adapter.parameters(), lr=5e-3)
    torch.manual_seed(0)
    for _ in range(50):
        optimizer.zero_grad()
        given = torch.randn(2, 3, 32)
        (adapter(None, given, torch.ones_like(mine), mine) - given.roll(1, -1)).square().sum().backward()
        optimizer.step()
    moved = (adapter.rows.weight.detach() - before).norm(dim=1)
    assert moved[mine.flatten()].mean() > moved[~mine.flatten()].mean()


def test_generation_and_unknown_tasks():
    model, batch = low_rank_model("LoRA"), token_batch()
    options = {"do_sample": False, "max_new_tokens": 3, "pad_token_id": 2}
    ids = model.generate(batch, ["a", "b", "__base__"], **options)[1]
    assert torch.equal(ids[2:], model.model.generate(**{key: value[2:] for key, value in batch.items()}, **options))
    with pytest.raises(InputError, match="unknown task 'c'; the tasks are a, b"):
        model(batch, ["c"] * 3)
