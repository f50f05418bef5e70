"""torch.compile: equal results, no graph break, and no new compilation from step to step or from adapter to adapter."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from transformers import CompileConfig, GenerationConfig

from helpers.models import needs_compiler, random_adapter, token_batch
from helpers.road_models import bank_model, road_model
from road_interp.adapters.bank import BASE

pytestmark = [needs_compiler, pytest.mark.slow]
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.compiled)]
ROWS = (["a", "b", "c", BASE], ["b", "b", "a", "a"], ["c", BASE, "a", "b"])
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def fresh_compiler():
    """No compiled code of other tests."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def nothing_is_compiled():
    """Inside this, compiling anything is an error."""
    return torch.compiler.set_stance("fail_on_recompile")


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("variant", "target_modules"), [("road_1", "all-linear"), ("road_2", "block-output")])
def test_other_adapters_are_not_compiled_again(backend, variant, target_modules):
    model, batch = bank_model(variant=variant, target_modules=target_modules), token_batch(4)
    compiled = torch.compile(model.model, backend=backend, fullgraph=True)
    found = []
    for number, names in enumerate(ROWS):
        with model.attached(names), nothing_is_compiled() if number else nullcontext():
            found.append(compiled(**batch).logits)
    for names, logits in zip(ROWS, found, strict=True):
        torch.testing.assert_close(logits, model(base=batch, adapter_names=names)[1].logits, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strengths", [None, [0.5, 1, 2, -1]])
def test_decoding_with_a_static_cache(backend, strengths):
    """Nothing is compiled after the first call: not in 20 steps, nor for other adapters."""
    model, batch = bank_model(), token_batch(4)
    settings = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    config = CompileConfig(fullgraph=True, dynamic=False, backend=backend, mode=None)
    config._compile_all_devices = True
    static = GenerationConfig(**settings, cache_implementation="static", compile_config=config)
    found = []
    for number, names in enumerate(ROWS):
        with nothing_is_compiled() if number else nullcontext():
            found.append(model.generate(batch, adapter_names=names, strengths=strengths, generation_config=static)[1])
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 2  # one for the prompt, one for every step
    for names, ids in zip(ROWS, found, strict=True):
        assert torch.equal(ids, model.generate(batch, adapter_names=names, strengths=strengths, **settings)[1])


@torch.no_grad()
def test_an_adapter_that_is_replaced_inside_attached_counts():
    model, batch = bank_model("a"), token_batch()
    compiled = torch.compile(model.model, backend="aot_eager", fullgraph=True)
    with model.attached() as base:
        before = compiled(**batch).logits
        model.bank.replace("a", random_adapter(model.sites, seed=9))
        found, expected = compiled(**batch).logits, base(**batch).logits
    torch.testing.assert_close(found, expected, **CLOSE)
    assert not torch.allclose(found, before, **CLOSE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_steps_are_not_compiled_again(backend):
    model, batch = road_model(), token_batch(4)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], 0.1)
    losses, compiled = [], torch.compile(model.model, backend=backend, fullgraph=True)
    for step in range(4):
        with model.attached(), nothing_is_compiled() if step else nullcontext():
            loss = compiled(**batch, labels=batch["input_ids"], use_cache=False).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    again = float(model(base={**batch, "use_cache": False}, labels=batch["input_ids"])[1].loss)
    assert again < losses[-1] < losses[0]


@torch.no_grad()
def test_the_unrotated_model_stays_itself():
    """Code that was compiled with rotations is not run after they are detached."""
    model, batch = bank_model("a"), token_batch()
    expected = model.model(**batch).logits
    compiled = torch.compile(model.model, backend="aot_eager", fullgraph=True)
    with model.attached():
        assert not torch.allclose(compiled(**batch).logits, expected, **CLOSE)
    torch.testing.assert_close(compiled(**batch).logits, expected, **CLOSE)
