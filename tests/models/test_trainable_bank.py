"""Adapters of one bank that are trained together are those that are trained one by one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from helpers.models import random_adapter, tiny_model, token_batch
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.joined_names import BASE
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel
from road_interp.sites.find import find_sites

NAMES, RATES, STEPS = "abc", (1e-2, 3e-3, 1e-3), 20


def losses(logits, batch):
    """The loss of every row: its next tokens."""
    inner = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
    return inner.mean(1)


def batches(name):
    """Two rows for every step of an adapter."""
    return [token_batch(2, seed=100 * NAMES.index(name) + step) for step in range(STEPS)]


def trained_alone(base, adapter, name, rate):
    model = RoadModel(base, adapter)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0)
    for batch in batches(name):
        optimizer.zero_grad()
        losses(model(base=batch)[1].logits, batch).mean().backward()
        clip_grad_norm_(parameters, 0.5)
        optimizer.step()
    return model.adapter


@pytest.mark.parametrize("target_modules", ["all-linear", "block-output"])
@pytest.mark.parametrize("variant", ["road_1", "road_2"])
def test_together_equals_one_by_one(target_modules, variant):
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, target_modules)
    start = {name: random_adapter(sites, variant, seed=seed, spread=0.1) for seed, name in enumerate(NAMES)}
    expected = {name: trained_alone(base, start[name], name, rate) for name, rate in zip(NAMES, RATES, strict=True)}

    bank = RoadBank(start)
    model, parameters = RoadModel(base, bank), bank.trainable()
    groups = [{"params": parameters[name], "lr": rate} for name, rate in zip(NAMES, RATES, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0)
    for step in zip(*map(batches, NAMES), strict=True):
        batch = {key: torch.cat([each[key] for each in step]) for key in step[0]}
        optimizer.zero_grad()
        rows = losses(model(base=batch, adapter_names=[name for name in NAMES for _ in range(2)])[1].logits, batch)
        (rows.sum() / 2).backward()
        for name in NAMES:
            clip_grad_norm_(parameters[name], 0.5)
        optimizer.step()
    for name in NAMES:
        found = bank[name]
        for site in sites:
            torch.testing.assert_close(found.theta[site.name], expected[name].theta[site.name], rtol=0, atol=1e-5)
            torch.testing.assert_close(found.alpha[site.name], expected[name].alpha[site.name], rtol=0, atol=1e-5)
        assert (found.theta[sites[0].name] - start[name].theta[sites[0].name]).abs().max() > 1e-3


def test_a_rows_loss_reaches_its_own_adapter_only():
    base, batch = tiny_model("Llama", "causal-lm"), token_batch(3)
    bank = RoadBank({name: random_adapter(find_sites(base, "all-linear"), seed=seed) for seed, name in enumerate(NAMES)})
    model, parameters = RoadModel(base, bank), bank.trainable()
    losses(model(base=batch, adapter_names=["a", "b", BASE])[1].logits, batch)[0].backward()
    moved = {name: theta.grad is not None and bool(theta.grad.any()) for name, (theta, _) in parameters.items()}
    assert moved == {"a": True, "b": False, "c": False}


def test_a_second_call_keeps_the_parameters_of_the_first():
    sites = find_sites(tiny_model("Llama", "causal-lm"), "mlp")
    bank = RoadBank({"a": random_adapter(sites)})
    first = bank.trainable()
    bank.add("b", random_adapter(sites, seed=1))
    second = bank.trainable()
    assert all(one is other for one, other in zip(first["a"], second["a"], strict=True))
    assert list(second) == ["a", "b"]


def test_a_trained_bank_is_used_and_saved_as_it_is_now(tmp_path):
    base, batch = tiny_model("Llama", "causal-lm"), token_batch(1)
    bank = RoadBank({"a": random_adapter(find_sites(base, "all-linear"))})
    model = RoadModel(base, bank)
    before = model(base=batch)[1].logits
    theta, _ = bank.trainable()["a"]
    assert torch.equal(model(base=batch)[1].logits, before)
    taken = bank["a"]
    with torch.no_grad():
        theta.add_(0.3)
    after = model(base=batch)[1].logits
    assert not torch.allclose(after, before, atol=1e-3)
    bank["a"].save(tmp_path)
    torch.testing.assert_close(RoadModel(base, RoadAdapter.load(tmp_path))(base=batch)[1].logits, after)
    torch.testing.assert_close(RoadModel(base, taken)(base=batch)[1].logits, before)  # a value of its own


def test_a_state_dict_would_lose_a_bank():
    base = tiny_model("Llama", "causal-lm")
    model = RoadModel(base, RoadBank({"a": random_adapter(find_sites(base, "mlp"))}))
    for holder in (model, torch.nn.ModuleList([model])):
        with pytest.raises(InputError, match=r"the adapters of a bank are not in a state dict: save each with bank\[name\].save"):
            holder.state_dict()
    with pytest.raises(InputError, match="the adapters of a bank are not in a state dict"):
        model.load_state_dict({}, strict=False)
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    batch = token_batch(2)
    assert torch.equal(again(batch)[1].logits, model(batch)[1].logits)
