"""torch.compile: equal results, no graph break, and no new compilation from step to step or from adapter to adapter."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from transformers import CompileConfig, GenerationConfig, LogitsProcessor, LogitsProcessorList

from helpers.models import needs_compiler, random_adapter, token_batch
from helpers.road_models import bank_model, road_model
from road_interp.adapters.joined_names import BASE
from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel

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


def compiled_decoding(**settings):
    config = CompileConfig(fullgraph=True, dynamic=False, backend="aot_eager", mode=None)
    config._compile_all_devices = True
    return GenerationConfig(cache_implementation="static", compile_config=config, do_sample=False, pad_token_id=0, **settings)


@torch.no_grad()
def test_compiled_beams_have_the_adapter_of_their_row():
    model, batch = bank_model(), token_batch(2)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": 2}
    eager = GenerationConfig(do_sample=False, pad_token_id=0, **settings)
    found, expected = (
        model.generate(batch, adapter_names=["a", "b"], generation_config=each)[1]
        for each in (compiled_decoding(**settings), eager)
    )
    assert torch.equal(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("part", ["model", "forward"])
def test_compiled_parts_refuse_what_they_refuse_without_compiling(part):
    """The hook of the model does not run there: "last" was every token, or that of the pass before."""
    model, batch = road_model(positions="last"), token_batch()
    with model.attached() as base:
        compiled = torch.compile(getattr(base, part), backend="aot_eager")
        for before in (lambda: None, lambda: base(**batch)):
            before()
            with pytest.raises(InputError, match="is called by itself: positions 'last' are found in the inputs of LlamaForC"):
                compiled(**batch)
    banked = bank_model(target_modules="block-output")
    with banked.attached(["a", "b"]) as base, pytest.raises(InputError, match="2 names for a batch of 4 rows"):
        torch.compile(getattr(base, part), backend="aot_eager")(**token_batch(4))


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 4])
def test_compiled_code_refuses_other_rows_than_names(rows):
    model = bank_model(target_modules="block-output")
    compiled = torch.compile(model.model, backend="aot_eager")
    with model.attached(["a", "b"]):
        with pytest.raises(InputError, match=f"2 names for a batch of {rows} rows"):
            compiled(**token_batch(rows))
        found = compiled(**token_batch(2)).logits
    torch.testing.assert_close(found, model(base=token_batch(2), adapter_names=["a", "b"])[1].logits, **CLOSE)


@torch.no_grad()
def test_a_call_inside_compiled_decoding_is_refused():
    """Compiled code would apply the rotations of both."""
    model, batch = bank_model(), token_batch(2)

    class Other(LogitsProcessor):
        def __call__(self, ids, scores):
            model(base=batch, adapter_names=["b", "b"])
            return scores

    config = compiled_decoding(max_new_tokens=6, min_new_tokens=6)
    expected = model.generate(batch, adapter_names=["a", "a"], generation_config=config)[1]
    with pytest.raises(InputError, match="a call in MainThread overlaps with a compiled generate in MainThread"):
        model.generate(batch, adapter_names=["a", "a"], generation_config=config, logits_processor=LogitsProcessorList([Other()]))
    assert torch.equal(model.generate(batch, adapter_names=["a", "a"], generation_config=config)[1], expected)


@torch.no_grad()
def test_a_call_inside_the_generate_of_a_compiled_model_has_its_own_rotations():
    """Compiled code cannot tell them apart: it is left for the time of the inner call."""
    model, batch = bank_model(), token_batch(2)
    expected, found = model(base=batch, adapter_names=["b", "b"])[1].logits, []

    def call(ids, scores):
        found.append(model(base=batch, adapter_names=["b", "b"])[1].logits)
        return scores

    model.model.compile(backend="eager")
    settings = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0, "logits_processor": LogitsProcessorList([call])}
    model.generate(batch, adapter_names=["a", "a"], **settings)
    for logits in found:
        torch.testing.assert_close(logits, expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("applied", ["attached", "merged", "original"])
def test_calls_beside_compiled_decoding_without_rotations_of_its_own(applied):
    """A call with other rotations is refused: compiled code would apply them, too."""
    model, batch = bank_model("a"), token_batch(2)

    def call(ids, scores):
        with pytest.raises(InputError, match="overlaps with a c"):
            RoadModel(model.model, random_adapter(model.sites, seed=9))(base=batch)
        return scores

    options = {"logits_processor": LogitsProcessorList([call]), "generation_config": compiled_decoding(max_new_tokens=4)}
    if applied == "merged":
        model.merge("a")
    with model.attached(["a"]) if applied == "attached" else nullcontext():
        model.generate(batch, output_original_output=applied == "original", **options)


@pytest.mark.parametrize("positions", ["all", "last"])
def test_compiled_blocks_are_trained_in_reentrant_checkpoints(positions):
    """Their graphs compute the plane maps inside, so that a block shares none with the next."""
    model, batch = RoadModel(road_model().model, road_model().adapter, positions), {**token_batch(), "use_cache": False}
    model.model.train().enable_input_require_grads()

    def gradients():
        model.zero_grad()
        with model.attached() as base:
            base(**batch).logits.square().sum().backward()
        return [parameter.grad.clone() for parameter in model.interventions.parameters() if parameter.requires_grad]

    expected = gradients()
    model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    for block in model.model.model.layers:
        block.compile(backend="aot_eager")
    for gradient, own in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(gradient, own, rtol=1e-4, atol=1e-6)
