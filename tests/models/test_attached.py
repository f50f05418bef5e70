"""RoadModel beside other code: hooks that it leaves alone, `attached`, threads, and what overlaps."""

from __future__ import annotations

import asyncio
import copy
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import transformers
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from helpers.models import random_adapter, tiny_model, token_batch
from helpers.road_models import GREEDY, bank_model, road_model, through_pyvene, untouched
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.models.open_contexts import opened, shared_context
from road_interp.models.road_model import RoadModel
from road_interp.rotation import plane_maps
from road_interp.sites.find import find_sites


def test_hooks_of_other_code_stay_and_receive_the_rotated_output():
    model, batch = road_model(), token_batch()
    outputs, inputs = [], []
    attention = model.model.model.layers[0].self_attn
    handles = [
        attention.q_proj.register_forward_hook(lambda module, args, output: outputs.append(output.clone())),
        attention.register_forward_pre_hook(
            lambda module, args, kwargs: inputs.append(kwargs["hidden_states"]), with_kwargs=True
        ),
    ]
    with torch.no_grad():
        model(base=batch)
        rotated = outputs.pop()
        unrotated = attention.q_proj(inputs[0])
        outputs.clear()
        torch.testing.assert_close(
            rotated, plane_maps.apply(model.adapter.plane_maps("model.layers.0.self_attn.q_proj"), unrotated, model.group_size)
        )
        through_pyvene(model, batch)
        model.generate(batch, **GREEDY)
    assert len(outputs) == 1 + 6
    assert list(attention.q_proj._forward_hooks) == [handles[0].id]


def test_hidden_states_that_transformers_returns_are_rotated():
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    sites = find_sites(base, "block-output", layers=0)
    model = RoadModel(base, random_adapter(sites))
    plain = base(**batch, output_hidden_states=True).hidden_states[1]
    states = model(base={**batch, "output_hidden_states": True})[1].hidden_states[1]
    torch.testing.assert_close(states, plane_maps.apply(model.adapter.plane_maps(sites[0]), plain, 2))


def test_training_with_nested_rotations_and_with_hooks_that_write_in_place():
    inner, batch = road_model(), token_batch()
    outer = RoadModel(inner.model, random_adapter(inner.sites, seed=1))
    with outer.attached():
        nested = inner(base=batch)[1].logits
        nested.square().sum().backward()
    both = RoadModel(inner.model, inner.adapter @ outer.adapter)
    torch.testing.assert_close(nested, both(base=batch)[1].logits, rtol=0, atol=1e-5)
    assert all(
        intervention.theta.grad.abs().sum() > 0 for model in (inner, outer) for intervention in model.interventions.values()
    )
    handle = inner.model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda module, args, output: output.mul_(2))
    inner(base=batch)[1].logits.square().sum().backward()
    handle.remove()


def test_outputs_kept_by_a_replaced_forward_are_not_overwritten():
    model, batch, kept = road_model(), token_batch(), []
    module = model.model.model.layers[0].self_attn.q_proj
    forward = module.forward

    def keep(states):
        kept.append(forward(states))
        return kept[-1]

    module.forward = keep
    with torch.no_grad():
        model.model(**batch)
        model(base=batch)
        with model.attached():
            RoadModel(model.model, RoadAdapter.identity(model.sites))(base=batch)
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])
    assert module.forward is keep


@pytest.mark.parametrize("call", ["forward", "generate", "pyvene"])
def test_hooks_are_removed_after_an_error(call):
    model, batch = road_model(), token_batch()
    handle = model.model.model.layers[1].mlp.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("user's own")))
    with pytest.raises(RuntimeError, match="user's own"):
        {
            "forward": lambda: model(base=batch),
            "generate": lambda: model.generate(batch, **GREEDY),
            "pyvene": lambda: through_pyvene(model, batch),
        }[call]()
    handle.remove()
    assert untouched(model)


def test_attached_rotates_inside_the_with_statement_only():
    model, batch = road_model(), token_batch()
    rotated, plain = model(base=batch)[1].logits, model.model(**batch).logits
    with model.attached() as base:
        torch.testing.assert_close(base(**batch).logits, rotated, rtol=0, atol=1e-6)
        torch.testing.assert_close(model(base=batch)[1].logits, rotated, rtol=0, atol=1e-6)
        with pytest.raises(InputError, match="cannot change while the rotations are attached"):
            model(base=batch, positions="last")
    assert torch.equal(model.model(**batch).logits, plain)
    with pytest.raises(ZeroDivisionError), model.attached():
        1 / 0  # noqa: B018
    assert torch.equal(model.model(**batch).logits, plain)


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("threads", [False, True])
def test_gradient_checkpointing_inside_attached(threads, positions):
    """In one thread, or forward and backward in a thread each."""
    run = in_thread if threads else lambda call: call()
    model, batch = road_model(), token_batch()
    model = RoadModel(model.model, model.adapter, positions=positions)
    model(base=batch)[1].logits.square().sum().backward()
    plain = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad()
    model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.model.train()
    with model.attached() as base:
        loss = run(lambda: base(**batch, use_cache=False).logits.square().sum())
        run(loss.backward)
    for parameter, expected in zip((p for p in model.parameters() if p.requires_grad), plain, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-5)


def test_reentrant_gradient_checkpointing_is_refused():
    model = road_model()
    model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.model.train()
    with model.attached() as base:
        with pytest.raises(InputError, match="reentrant gradient checkpointing cannot train rotations"):
            base(**token_batch(), use_cache=False)
        for parameter in model.interventions.parameters():
            parameter.requires_grad_(False)
        base.get_output_embeddings().requires_grad_(True)
        base(**token_batch(), use_cache=False).logits.sum().backward()  # other modules may be trained


@pytest.mark.parametrize("attaches", [False, True])
def test_blocks_that_the_caller_checkpoints_reentrantly_are_refused(attaches):
    model = road_model(target_modules="mlp")
    model.model.enable_input_require_grads()
    for block in model.model.model.layers:
        forward = block.forward
        block.forward = lambda states, forward=forward, **options: checkpoint(
            lambda given: forward(given, **options), states, use_reentrant=True
        )
    with model.attached() if attaches else nullcontext(model.model) as base:
        batch = {**token_batch(), "use_cache": False}
        call = partial(base, **batch) if attaches else partial(model, batch)
        with pytest.raises(InputError, match="reentrant gradient checkpointing cannot train rotations"):
            call()
        with torch.no_grad():
            call()


def test_modules_that_are_replaced_are_told_by_compiled_code_too():
    model, batch = road_model(target_modules="q_proj"), token_batch()
    with model.attached() as base, torch.no_grad():
        compiled = torch.compile(base, backend="eager")
        compiled(**batch)
        attention = base.model.layers[0].self_attn
        original, attention.q_proj = attention.q_proj, copy.deepcopy(attention.q_proj)
        with pytest.raises(InputError, match="a module 'q_proj' was replaced by another one during attached"):
            compiled(**batch)
        attention.q_proj = original
        compiled(**batch)


def test_modules_that_are_replaced_are_told():
    model, batch = road_model(target_modules="q_proj"), token_batch()
    with model.attached() as base:
        rotated = base(**batch).logits
        attention = base.model.layers[0].self_attn
        original, attention.q_proj = attention.q_proj, copy.deepcopy(attention.q_proj)
        for call in (lambda: base(**batch), lambda: model(base=batch)):
            with pytest.raises(InputError, match=r"a module 'q_proj' was replaced by another one during attached\(\)"):
                call()
        attention.q_proj = original
        assert torch.equal(base(**batch).logits, rotated)
        block, base.model.layers[1] = base.model.layers[1], copy.copy(base.model.layers[1])
        with pytest.raises(InputError, match="a module '1' was replaced by another one"):
            base(**batch)
        base.model.layers[1] = block
    base.model.layers[0].self_attn.q_proj = copy.deepcopy(original)
    torch.testing.assert_close(model(base=batch)[1].logits, rotated)  # a call finds the modules as they are


def test_threads_get_their_own_adapters():
    model, batch = bank_model(), token_batch(2, 6)
    expected = {name: model.generate(batch, adapter_names=[name] * 2, **GREEDY)[1] for name in "abc"}
    found: dict[str, list[torch.Tensor]] = {name: [] for name in "abc"}

    def work(name):
        for _ in range(5):
            found[name].append(model.generate(batch, adapter_names=[name] * 2, **GREEDY)[1])

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in "abc":
        assert len(found[name]) == 5
        assert all(torch.equal(ids, expected[name]) for ids in found[name])


def test_asyncio_tasks_get_their_own_adapters():
    """Every task's calls run in a worker thread with a copy of the task's context, while the calls of the others run too."""
    model, batch = bank_model(), token_batch()
    expected = {name: model(base=batch, adapter_names=[name] * 3)[1].logits for name in "abc"}

    async def work(name):
        for _ in range(3):
            _, output = await asyncio.to_thread(model, base=batch, adapter_names=[name] * 3)
            assert torch.equal(output.logits, expected[name])

    async def work_together():
        await asyncio.gather(*map(work, "abc"))

    asyncio.run(work_together())
    assert untouched(model)


def in_thread(call):
    """The result of `call` in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


class Logits(torch.utils.data.Dataset):
    """A data set whose only item is the output of a model, computed in the worker process of a DataLoader."""

    def __init__(self, base, batch):
        self.base, self.batch = base, batch

    def __len__(self):
        return 1

    def __getitem__(self, index):
        with torch.no_grad():
            return self.base(**self.batch).logits


@pytest.mark.parametrize("positions", ["all", "last"])
def test_attached_rotates_the_calls_of_every_thread(positions):
    model, batch = road_model(), token_batch()
    with torch.no_grad():
        rotated, plain = model(base=batch, positions=positions)[1].logits, model.model(**batch).logits
        with model.attached(positions=positions) as base:
            loader = torch.utils.data.DataLoader(
                Logits(base, batch), num_workers=1, batch_size=None, multiprocessing_context="fork", timeout=60
            )
            found = {
                "same thread": base(**batch).logits,
                "thread": in_thread(lambda: base(**batch).logits),
                "RoadModel in a thread": in_thread(lambda: model(base=batch)[1].logits),
                "asyncio": asyncio.run(asyncio.to_thread(lambda: base(**batch).logits)),
                "DataLoader worker": next(iter(loader)),
            }
        for where, logits in found.items():
            torch.testing.assert_close(logits, rotated, rtol=0, atol=1e-6, msg=where)
        assert torch.equal(in_thread(lambda: model.model(**batch).logits), plain)


def test_threads_inside_attached_have_their_own_token_masks():
    """Batches of different shapes at once: the positions of one are not those of the other."""
    model, batches = road_model(), [token_batch(2, 6), token_batch(3, 9)]
    expected = [model(base=batch, positions="last")[1].logits for batch in batches]
    with model.attached(positions="last") as base, ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda number: base(**batches[number % 2]).logits, range(20)))
    for number, logits in enumerate(found):
        torch.testing.assert_close(logits, expected[number % 2], rtol=0, atol=1e-6)


def test_transformers_continuous_batching_inside_attached_is_rotated():
    """`generate_batch` runs the model in a thread of its own."""
    model = road_model()
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    settings = transformers.GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    expected = [model.generate({"input_ids": torch.tensor([ids])}, **GREEDY)[1][0, len(ids) :].tolist() for ids in prompts]
    bare = [model.model.generate(torch.tensor([ids]), **GREEDY)[0, len(ids) :].tolist() for ids in prompts]
    with model.attached() as base:
        small = transformers.ContinuousBatchingConfig(page_size=4, num_blocks=64, max_batch_tokens=64)
        outputs = base.generate_batch(prompts, generation_config=settings, continuous_batching_config=small)
    found = [output.generated_tokens for output in sorted(outputs.values(), key=lambda each: int(each.request_id.split("_")[-1]))]
    assert found == expected
    assert expected != bare
    with model.attached(positions="last") as base, pytest.raises(InputError, match="packed"):
        base(input_ids=torch.tensor([[5, 6, 7]]), cu_seq_lens_q=torch.tensor([0, 2, 3]))


@pytest.mark.parametrize("shape", [(3, 5), (3, 9), (2, 7), (3, 1, 7, 7)])
def test_a_mask_of_another_shape_than_the_tokens_is_an_error(shape):
    batch = {**token_batch(), "attention_mask": torch.ones(shape)}
    with pytest.raises(InputError, match=r"attention_mask has shape .*; positions 'last' need \(3, 7\)"):
        road_model(positions="last")(base=batch)


def test_a_mask_per_kind_of_attention_is_an_error():
    batch = {**token_batch(), "attention_mask": {"full_attention": torch.ones(3, 1, 7, 7, dtype=torch.bool)}}
    with pytest.raises(InputError, match=r"attention_mask has the type dict; positions 'last' need \(3, 7\)"):
        road_model(positions="last")(base=batch)


def test_positions_of_audio_models_are_an_error():
    torch.manual_seed(0)
    convolutions = {"conv_dim": [16, 16], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_feat_extract_layers": 2}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.Wav2Vec2Config(**sizes, **convolutions, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)
    base = transformers.AutoModel.from_config(config).eval()
    model, batch = RoadModel(base, random_adapter(find_sites(base, "all-linear"))), {"input_values": torch.randn(2, 1000)}
    assert not torch.allclose(model(base=batch)[1].last_hidden_state, base(**batch).last_hidden_state, atol=1e-3)
    with pytest.raises(InputError, match="positions 'last' need an input that has tokens"):
        model(base=batch, positions="last")
    with model.attached(positions="last"), pytest.raises(InputError, match="positions 'last' need an input that has tokens"):
        base(**batch)


def test_overlapping_attached_statements_are_an_error_that_names_both():
    model = bank_model()
    other = RoadModel(model.model, random_adapter(model.sites))
    names = r"attached\(.*\) of road_1 at 14 sites in .* overlaps with attached\(adapter_names=\['a'\]\) .* in MainThread"
    with model.attached(adapter_names=["a"]) as base:
        for overlapping in (lambda: model.attached(["b"]), other.attached):
            for call in (in_thread, lambda enter: enter()):
                with pytest.raises(InputError, match=names):
                    call(lambda: overlapping().__enter__())  # noqa: B023
        expected = base(**token_batch(1)).logits
    with model.attached(adapter_names=["b"]) as base:
        assert not torch.allclose(base(**token_batch(1)).logits, expected)
    assert untouched(model)


def test_a_call_through_pyvenes_loop_overlaps_with_attached():
    """Its hooks are on the modules, for every thread."""
    model, batch = road_model(target_modules="block-output"), token_batch()
    with model.attached(), pytest.raises(InputError, match=r"pyvene's loop in MainThread overlaps with attached\("):
        model(base=batch, subspaces=[[[0]] * 3] * len(model.sites))
    model(base=batch, subspaces=[[[0]] * 3] * len(model.sites))


def test_attached_cannot_begin_during_a_call_of_another_thread():
    model, batch, inside, done = road_model(), token_batch(), threading.Event(), threading.Event()

    def wait(*_):
        inside.set()
        done.wait(10)

    handle = model.model.model.layers[0].register_forward_hook(wait)
    with ThreadPoolExecutor(1, "caller") as pool:
        running = pool.submit(model, base=batch)
        assert inside.wait(10)
        with pytest.raises(InputError, match="attached.* overlaps with a call in caller"):
            model.attached().__enter__()
        done.set()
        running.result()
    handle.remove()
    with model.attached() as base:
        base(**batch)
    assert untouched(model)


def test_a_replaced_adapter_takes_effect_inside_attached():
    model, batch = bank_model("a"), token_batch()
    with model.attached() as base, torch.no_grad():
        before = base(**batch).logits
        model.bank.replace("a", random_adapter(model.sites, seed=9))
        assert not torch.equal(before, base(**batch).logits)


def test_an_encoder_called_directly_uses_the_updated_parameters():
    base = tiny_model("T5", "backbone")
    model, batch = RoadModel(base, random_adapter(find_sites(base, "mlp", stack="encoder.block"))), token_batch()
    with model.attached(), torch.no_grad():
        before = base.get_encoder()(**batch).last_hidden_state
        for _, intervention in model.by_site():
            intervention.theta += 0.3
        assert not torch.equal(before, base.get_encoder()(**batch).last_hidden_state)


@pytest.mark.parametrize("fails", [False, True])
@torch.no_grad()
def test_a_layer_called_after_its_encoder_uses_the_updated_parameters(fails):
    base = tiny_model("T5", "backbone")
    model, batch = RoadModel(base, random_adapter(find_sites(base, "mlp", stack="encoder.block"))), token_batch()
    layer, states = base.get_submodule(model.sites[0].name), torch.randn(3, 7, 32)
    with model.attached():
        inputs = {"inputs_embeds": "no tensor"} if fails else batch
        with pytest.raises(AttributeError) if fails else nullcontext():
            base.get_encoder()(**inputs)
        before = layer(states)
        for _, intervention in model.by_site():
            intervention.theta += 0.3
        assert not torch.equal(before, layer(states))
        base(**batch, decoder_input_ids=batch["input_ids"])
        assert not torch.equal(before, layer(states))


def test_a_hook_that_another_thread_removes_is_called_without_keyword_arguments():
    """torch looks up whether a hook takes them after it has listed the hooks, and may find it removed."""
    model, inputs, failed = road_model(), token_batch(), []

    def in_another_thread(hook):
        try:
            hook(model.model, ())
        except TypeError as error:
            failed.append(error)

    def during_the_call(module, args):
        for hook in list(model.model._forward_pre_hooks.values()):
            if hook is not during_the_call:
                thread = threading.Thread(target=in_another_thread, args=(hook,))
                thread.start()
                thread.join()

    with model.model.register_forward_pre_hook(during_the_call):
        model(base=inputs)
    assert not failed


def test_the_open_context_that_is_shared_is_found():
    model = road_model()
    assert shared_context(model.model) is None
    with model.attached() as base:
        found = shared_context(base)
        assert (found.kind, found.owner) == ("attached", model)
        assert found.name.startswith("attached() of road_1 at ")
        assert shared_context(tiny_model("Llama", "causal-lm")) is None
    assert shared_context(model.model) is None
    with opened(model.model, "a call", "call"):
        assert shared_context(model.model) is None


@pytest.mark.parametrize("patched", ["by accelerate", "by hand"])
def test_a_forward_that_is_put_back_is_told(patched):
    model, batch = road_model(target_modules="q_proj"), token_batch()
    layer = model.model.model.layers[0].self_attn.q_proj
    original = layer.forward
    if patched == "by accelerate":
        add_hook_to_module(layer, ModelHook())
    else:
        layer.forward = lambda states: original(states)
    rotated = model(base=batch)[1].logits
    with model.attached() as base:
        if patched == "by hand":
            add_hook_to_module(layer, ModelHook())  # around the rotation
            torch.testing.assert_close(base(**batch).logits, rotated)
        layer.forward = original
        for call in (lambda: base(**batch), lambda: model(base=batch)):
            with pytest.raises(InputError, match=r"the forward of '.*q_proj' was replaced during attached\(\)"):
                call()
        add_hook_to_module(layer, ModelHook())  # accelerate's own forward has the rotation only in the second case
        if patched == "by hand":
            torch.testing.assert_close(base(**batch).logits, rotated)
        else:
            with pytest.raises(InputError, match=r"the forward of '.*q_proj' was replaced during attached\(\)"):
                base(**batch)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_forward_that_is_set_while_it_is_attached_has_to_call_the_one_before_it(positions, grad):
    model, batch = road_model(target_modules="q_proj"), token_batch()
    layer, other = (model.model.model.layers[number].self_attn.q_proj for number in (0, 1))
    rotated = model(base=batch, positions=positions)[1].logits
    with torch.set_grad_enabled(grad):
        with model.attached(positions=positions) as base:
            rotating = layer.forward
            layer.forward = lambda states: rotating(states)
            for call in (lambda: base(**batch), lambda: base(**batch)):
                torch.testing.assert_close(call().logits, rotated)
            other.forward = lambda states: torch.nn.functional.linear(states, other.weight)
            for call in (lambda: base(**batch), lambda: model(base=batch), lambda: base.generate(**batch, max_new_tokens=2)):
                with pytest.raises(InputError, match=r"layers\.1.*' was replaced .* by one that does not call the one before"):
                    call()
            other.forward = type(other).forward.__get__(other)
            with pytest.raises(InputError, match=r"layers\.1.*' was replaced during attached.*, and is not rotated"):
                base(**batch)
            del layer.forward, other.forward
        assert not any((*each._forward_hooks, *each._forward_pre_hooks) for each in (layer, other))
        torch.testing.assert_close(model(base=batch, positions=positions)[1].logits, rotated)


def test_modules_that_are_replaced_are_told_where_a_part_is_called():
    model, batch = road_model(target_modules="q_proj"), token_batch()
    with model.attached() as base:
        get_peft_model(base, LoraConfig(target_modules=["q_proj"]))
        with pytest.raises(InputError, match="a module 'q_proj' was replaced by another one during attached"):
            base.model(**batch)
        get_peft_model(base, LoraConfig(target_modules=["q_proj"])).unload()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with model.attached() as base:
            attention = base.model.layers[0].self_attn
            attention.q_proj = copy.deepcopy(attention.q_proj)
    assert ["what was called since then was not rotated there" in str(each.message) for each in told] == [True]


def test_checkpoints_around_blocks_are_refused_in_a_call_with_frozen_rotations():
    """They compute the blocks again in backward, when the rotations have ended: gradients of other weights were wrong."""
    model, batch = road_model(target_modules="q_proj"), {**token_batch(), "use_cache": False}
    model.requires_grad_(False)
    for block in model.model.model.layers:
        block.mlp.requires_grad_(True)

    def gradients(call):
        model.zero_grad()
        call().logits.square().sum().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]

    def attached():
        with model.attached() as base:
            base(**batch).logits.square().sum().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]

    embeds = model.model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_(True)
    whole = partial(checkpoint, lambda states: model({**batch, "input_ids": None, "inputs_embeds": states})[1], embeds)
    expected = gradients(lambda: model(base=batch)[1])
    for gradient, own in zip(gradients(partial(whole, use_reentrant=False)), expected, strict=True):
        torch.testing.assert_close(gradient, own)  # the whole call is computed again
    apply_activation_checkpointing(model.model, check_fn=lambda module: isinstance(module, LlamaDecoderLayer))
    with pytest.raises(InputError, match="train inside `with model.attached"):
        model(base=batch)
    model.zero_grad()
    for gradient, own in zip(attached(), expected, strict=True):
        torch.testing.assert_close(gradient, own)


def checkpointed(positions):
    """A model with frozen weights whose blocks are computed again in backward, but not by transformers' own checkpointing."""
    model = road_model(target_modules="q_proj", positions=positions)
    model.model.requires_grad_(False).train()
    for block in model.model.model.layers:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return model


def test_other_tokens_of_two_passes_are_not_computed_again_by_checkpoints_of_others():
    model, batch = checkpointed("last"), token_batch(2)
    other = {**batch, "attention_mask": batch["attention_mask"].clone()}
    other["attention_mask"][:, -1] = 0
    with model.attached() as base:
        base(**batch, use_cache=False).logits.sum().backward()
        both = base(**batch, use_cache=False).logits.sum() - base(**other, use_cache=False).logits.sum()
        with pytest.raises(InputError, match="positions 'last' are different tokens in them: call backward after every pass"):
            both.backward()


def test_a_pass_without_gradients_between_forward_and_backward_leaves_checkpoints_alone():
    model, batch = checkpointed("all"), token_batch(2)

    def gradients(between):
        model.zero_grad()
        with model.attached() as base:
            loss = base(**batch, use_cache=False).logits.square().sum()
            if between:
                with torch.no_grad():
                    base(**token_batch(3), use_cache=False)
            loss.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]

    expected = gradients(False)
    assert len(expected) == 4
    for found, gradient in zip(gradients(True), expected, strict=True):
        torch.testing.assert_close(found, gradient)


def test_a_part_is_not_generated_with_without_a_cache():
    """Every pass has an empty cache then, and "last" was another token in each."""
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    part = RoadModel(base.model, random_adapter(find_sites(base.model, "block-output")), positions="last")
    whole = RoadModel(base, random_adapter(find_sites(base, "block-output")), positions="last")
    expected = whole.generate(batch, **GREEDY)[1]
    with part.attached():
        assert torch.equal(base.generate(**batch, **GREEDY), expected)
        with pytest.raises(InputError, match="LlamaModel is generated with and has no cache"):
            base.generate(**batch, **GREEDY, use_cache=False)
        base.model(**batch, use_cache=False)


def test_modes_of_parts_are_kept():
    base = tiny_model("Llama", "causal-lm").train()
    base.model.layers[0].eval()
    modes = [module.training for module in base.modules()]
    model = RoadModel(base, random_adapter(find_sites(base, "q_proj")))
    assert [module.training for module in base.modules()] == modes
    assert all(module.training for module in model.interventions.values())


def test_a_model_is_not_pickled_while_it_is_rotated(tmp_path):
    model = road_model()
    with model.attached() as base, pytest.raises(InputError, match="cannot be pickled during attached"):
        torch.save(base, tmp_path / "model.pt")
    torch.save(model.model, tmp_path / "model.pt")


def test_a_model_that_is_made_in_inference_mode_is_trained():
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    adapter = random_adapter(find_sites(base, "q_proj"))
    with torch.inference_mode():
        made = RoadModel(base, adapter)
    gradients = []
    for model in (made, RoadModel(base, adapter)):
        model(base=batch)[1].logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.interventions.parameters()])
    for gradient, own in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, own)


@torch.no_grad()
def test_compiled_parts_are_found_and_named():
    model, batch = road_model(target_modules="q_proj"), token_batch()
    expected = model(base=batch)[1].logits
    model.model.model = torch.compile(model.model.model, backend="eager")
    with model.attached() as base:
        torch.testing.assert_close(base(**batch).logits, expected)
    with pytest.raises(InputError, match="in a part that torch.compile wraps"):
        RoadModel(model.model, model.adapter)
