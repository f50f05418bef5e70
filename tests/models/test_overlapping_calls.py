"""Calls inside calls, beside merge and beside attached: rotations apply once, where their caller wants them, or not at all."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers import CompileConfig, DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, StaticCache

from helpers.models import padded_batch, random_adapter, tiny_model, token_batch
from helpers.road_models import bank_model, road_model, untouched
from road_interp.adapters.joined_names import BASE
from road_interp.errors import InputError
from road_interp.models.continuous_batching import ContinuousBatching
from road_interp.models.forward_wrapper import ForwardWrapper
from road_interp.models.generate_arguments import compiles_generation
from road_interp.models.open_contexts import is_rotated, opened, shared_context
from road_interp.models.road_model import RoadModel
from road_interp.models.rotation_context import RotationContext
from road_interp.models.row_selection import RowSelection
from road_interp.sites.find import find_sites

EXACT = {"rtol": 0, "atol": 1e-6}


def in_thread(function):
    """What the function returns or raises in a thread of its own."""
    found = []

    def run():
        try:
            found.append(function())
        except InputError as error:
            found.append(error)

    thread = threading.Thread(target=run, name="other")
    thread.start()
    thread.join()
    return found[0]


class During(LogitsProcessor):
    """Calls a function between two passes of `generate` and keeps what it returns."""

    def __init__(self, function):
        self.function, self.found = function, []

    def __call__(self, ids, scores):
        self.found.append(self.function())
        return scores


def generate(model, batch, during, **options):
    settings = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    return model.generate(batch, logits_processor=LogitsProcessorList([during]), **settings, **options)[1]


# ------------------------------------------------------------------ what runs beside what


CALLS = ("call", "compiled call", "plain call", "compiled plain call")
BESIDE = {
    "call": ("call", "plain call", "merged"),
    "compiled call": ("plain call", "merged"),
    "plain call": (*CALLS, "merged"),
    "compiled plain call": ("plain call", "compiled plain call", "merged"),
    "interchange": ("merged",),
    "attached": (*CALLS, "interchange", "merged"),
    "merged": (*CALLS, "interchange", "attached", "merged", "alone"),
    "alone": ("merged",),
    "merge": (),
}


OVERLAP = "^other in MainThread overlaps with one in MainThread: "


def begin(model, name, kind):
    flags = {"rotates": kind in ("call", "compiled call"), "compiles": kind.startswith("compiled")}
    return opened(model, name, "call" if kind in CALLS else kind, **flags)


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("first", BESIDE)
def test_what_may_begin_beside_what(first, kind):
    base = tiny_model("Llama", "causal-lm")
    with begin(base, "one", first) as context:
        assert context.is_ready == (first != "attached")
        context.is_ready = True
        for model in (base, base.model):  # a part of the model, too
            if kind not in BESIDE[first]:
                with pytest.raises(InputError, match=OVERLAP), begin(model, "other", kind):
                    pass
            else:
                with begin(model, "other", kind):
                    assert is_rotated(base) == ({first, kind} != {"merged"})
        context.is_ready = False  # attached rotations are put in place, or removed
        if first == "attached" and kind != "merged":
            with pytest.raises(InputError, match=OVERLAP), begin(base, "other", kind):
                pass
        with begin(tiny_model("Llama", "causal-lm"), "of another model", kind):
            assert shared_context(base) is (context if first in ("attached", "alone", "merge") else None)
    assert not is_rotated(base)
    with begin(base, "later", "merge"):
        pass


def test_a_generator_that_is_closed_while_a_context_is_opened(monkeypatch):
    """As by the garbage collector, which may run at any time."""
    model = road_model()

    def attached():
        with model.attached():
            yield

    generator = attached()
    next(generator)
    monkeypatch.setattr("road_interp.models.open_contexts._contains", lambda *_: bool(generator.close()))
    other = road_model()
    assert not in_thread(lambda: other(base=token_batch(2))[1].logits.isnan().any())
    assert not is_rotated(model.model)


# ------------------------------------------------------------------ calls inside calls


@torch.no_grad()
@pytest.mark.parametrize("names", [["b"] * 2, [BASE] * 2, ["a+b"] * 2])
def test_a_call_inside_generate_has_its_own_rotations(names):
    model, batch = bank_model("ab"), token_batch(2)
    expected = model(base=batch, adapter_names=names)[1].logits
    plain = generate(model, batch, During(lambda: None), adapter_names=["a"] * 2)
    during = During(lambda: model(base=batch, adapter_names=names)[1].logits)
    ids = generate(model, batch, during, adapter_names=["a"] * 2)
    for found in during.found:
        torch.testing.assert_close(found, expected, **EXACT)
    assert torch.equal(ids, plain)


@torch.no_grad()
def test_a_call_of_another_model_inside_generate_has_its_own_rotations():
    model, batch = road_model(positions="last"), token_batch(2)
    other = RoadModel(model.model, random_adapter(model.sites, seed=7))
    expected, plain = other(base=batch)[1].logits, generate(model, batch, During(lambda: None))
    during = During(lambda: other(base=batch)[1].logits)
    assert torch.equal(generate(model, batch, during), plain)
    for found in during.found:
        torch.testing.assert_close(found, expected, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("applied", ["attached", "merged"])
def test_a_call_inside_another_models_generate_finds_its_own_rotations_applied(applied):
    model, batch = road_model(), token_batch(2)
    other = RoadModel(model.model, random_adapter(model.sites, seed=7))
    with model.attached() if applied == "attached" else nullcontext(model.merge()):
        other = other if applied == "attached" else RoadModel(model.model, random_adapter(model.sites, seed=7))
        expected = model(base=batch)[1].logits
        during = During(lambda: model(base=batch)[1].logits)
        generate(other, batch, during)
    for found in during.found:
        torch.testing.assert_close(found, expected, **EXACT)


@torch.no_grad()
def test_the_original_output_inside_generate_is_not_rotated():
    model, batch = road_model(), token_batch(2)
    expected = model.model(**batch).logits
    during = During(lambda: model(base=batch, output_original_output=True)[0].logits)
    generate(model, batch, during)
    for found in during.found:
        torch.testing.assert_close(found, expected, **EXACT)


@torch.no_grad()
def test_a_call_inside_generate_inside_attached_has_a_prompt_and_rows_of_its_own():
    model, batch = road_model(positions="last"), token_batch(2)
    longer = token_batch(2, length=11)
    expected = model(base=longer)[1].logits
    with model.attached():
        plain = generate(model, batch, During(lambda: None))
        during = During(lambda: model(base=longer)[1].logits)
        assert torch.equal(generate(model, batch, during), plain)
    for found in during.found:
        torch.testing.assert_close(found, expected, **EXACT)
    bank = bank_model("ab")
    with bank.attached(["a", "b"]), pytest.raises(InputError, match="2 names for a batch of 4 rows"):
        generate(bank, batch, During(lambda: bank(base=token_batch(4))))


@torch.no_grad()
@pytest.mark.parametrize("applied", ["call", "attached"])
@pytest.mark.parametrize(("inputs", "error"), [({}, None), ({"labels": "none"}, TypeError), ({"attention_mask": None}, None)])
def test_a_pass_inside_a_pass_selects_tokens_of_its_own(applied, inputs, error):
    """Hooks may call the base model between two rotated modules of a pass; the later ones rotate the tokens of that pass."""
    model, batch, longer = road_model(positions="last"), token_batch(2), {**token_batch(3, length=11), **inputs}
    expected, inner, found = model(base=batch)[1].logits, None if error else model(base=longer)[1].logits, []

    def call(*_):
        if not found:
            found.append(None)
            with pytest.raises(error) if error else nullcontext():
                found[0] = model.model(**longer).logits

    with model.attached() if applied == "attached" else nullcontext(), model.model.model.layers[0].register_forward_hook(call):
        outer = (model.model(**batch) if applied == "attached" else model(base=batch)[1]).logits
    torch.testing.assert_close(outer, expected, **EXACT)
    if not error:
        torch.testing.assert_close(found[0], inner, **EXACT)


@pytest.mark.parametrize("beside", ["model", "submodule", "own call"])
@pytest.mark.parametrize("where", ["same thread", "other thread"])
def test_a_pass_keeps_its_maps_beside_another_pass(beside, where):
    model, batch = road_model(), token_batch(2)
    base, layer = model.model, model.model.model.layers[1]
    calls = {"model": lambda: base(**batch), "submodule": lambda: base.model(**batch), "own call": lambda: model(batch)}

    def gradients(during=lambda *inputs: None):
        model.zero_grad()
        hook = layer.register_forward_pre_hook(during)
        with model.attached() as rotated:
            rotated(**batch).logits.square().sum().backward()
        hook.remove()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    done = []

    @torch.no_grad()
    def call():
        calls[beside]()

    def during(*inputs):
        if not done:
            done.append(True)
            call() if where == "same thread" else in_thread(call)

    expected, found = gradients(), gradients(during)
    assert done
    torch.testing.assert_close(found, expected, **EXACT)


def between(monkeypatch, kind, name, what, when):
    """Run `what` once, in the main thread, right after an attribute of a class was set, or right after it was read."""
    waiting = [threading.main_thread()]

    def after(action):
        if action == when and waiting == [threading.current_thread()]:
            waiting.clear()
            what()

    def read(owner):
        value = vars(owner)[name]
        after("read")
        return value

    def write(owner, value):
        vars(owner)[name] = value
        after("set")

    monkeypatch.setattr(kind, name, property(read, write), raising=False)
    return waiting


def test_a_pass_keeps_its_gradients_where_another_thread_makes_the_maps_meanwhile(monkeypatch):
    model, batch = road_model(), token_batch(2)

    @torch.no_grad()
    def other():
        model.model(**batch)

    with model.attached() as base:
        base(**batch)
        waiting = between(monkeypatch, RotationContext, "_maps", lambda: in_thread(other), "set")
        base(**batch).logits.square().sum().backward()
    assert not waiting
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters() if parameter.requires_grad)


@torch.no_grad()
def test_a_pass_keeps_its_tokens_where_another_thread_selects_meanwhile(monkeypatch):
    model = RoadModel(tiny_model("Llama", "causal-lm"), road_model().adapter, positions="last")
    batch, other = (padded_batch(lengths, "right") for lengths in ((7, 5), (2, 7)))
    with model.attached() as base:
        expected = base(**batch).logits
        waiting = between(monkeypatch, RotationContext, "_last", lambda: in_thread(lambda: base(**other)), "set")
        found = base(**batch).logits
    assert not waiting
    torch.testing.assert_close(found, expected, **EXACT)


@torch.no_grad()
def test_a_call_of_the_base_model_while_another_threads_call_ends(monkeypatch):
    model, batch = road_model(), token_batch(2)
    expected, begun, over = model.model(**batch).logits, threading.Event(), threading.Event()

    def hold(*inputs):
        if threading.current_thread() is other:
            begun.set()
            assert over.wait(60)

    other = threading.Thread(target=lambda: model(base=batch))
    with model.model.model.layers[0].register_forward_pre_hook(hold):
        other.start()
        assert begun.wait(60)

        def end():
            over.set()
            other.join()

        waiting = between(monkeypatch, ForwardWrapper, "_registered", end, "read")
        found = model.model(**batch).logits
    assert not waiting
    torch.testing.assert_close(found, expected, **EXACT)


def test_a_pass_keeps_the_adapter_that_is_replaced_during_it():
    model, batch, passes = bank_model(), token_batch(2), []

    def replace(*inputs):
        if not passes:
            passes.append("other")
            model.bank.replace("a", random_adapter(model.sites, seed=7))
            in_thread(lambda: model.model(**batch))

    with torch.no_grad():
        expected = model(batch, adapter_names=["a", "a"])[1].logits
        with model.attached(adapter_names=["a", "a"]) as base, base.model.layers[1].register_forward_pre_hook(replace):
            found = base(**batch).logits
    assert passes
    torch.testing.assert_close(found, expected, **EXACT)


@torch.no_grad()
@pytest.mark.parametrize("applied", ["call", "attached"])
@pytest.mark.parametrize("rows", [2, 3])
def test_a_pass_of_other_texts_inside_generate_is_refused(applied, rows):
    """The positions of generate are those of its prompts, and the base model does not know which pass is of them."""
    model, batch, other = road_model(positions="last"), token_batch(2), token_batch(rows)
    other["attention_mask"][0, 0] = 0
    refused = pytest.raises(InputError, match="called inside it with other rows or another attention_mask")
    with refused, model.attached() if applied == "attached" else nullcontext():
        generate(model, batch, During(lambda: model.model(**other)))


@torch.no_grad()
def test_a_call_that_goes_on_after_the_end_of_attached_is_an_error():
    model, batch = road_model(), token_batch(2)
    inside, ended = threading.Event(), threading.Event()

    def wait(*_):
        inside.set()
        ended.wait(10)

    with model.model.model.layers[1].register_forward_pre_hook(wait), ThreadPoolExecutor(1) as pool:
        with model.attached():
            call = pool.submit(lambda: model(base=batch))
            inside.wait(10)
        ended.set()
        with pytest.raises(InputError, match=r"a call in .* went on after the end of attached\(\)"):
            call.result()


@torch.no_grad()
def test_a_generate_that_goes_on_after_the_end_of_attached_is_an_error_in_both_threads():
    model, batch = road_model(), token_batch(2)
    inside, ended, message = threading.Event(), threading.Event(), r"went on after the end of attached\(\).*, which took off"

    def wait(*_):
        inside.set()
        ended.wait(10)

    def attached():
        with model.attached() as base:
            calls.append(pool.submit(lambda: base.generate(**batch, max_new_tokens=3, do_sample=False)))
            inside.wait(10)

    calls = []
    with model.model.model.layers[1].register_forward_pre_hook(wait), ThreadPoolExecutor(1) as pool:
        with pytest.raises(InputError, match=f"^generate of another thread {message}"):
            attached()
        ended.set()
        with pytest.raises(InputError, match=f"^generate in .* {message}"):
            calls[0].result()
    assert untouched(model)


@torch.no_grad()
@pytest.mark.parametrize("call", ["generate", "forward", "forward of a wrapper"])
@pytest.mark.parametrize("change", ["attached", "merge", "unmerge", "pyvene's loop", "engine", "interchange"])
def test_nothing_changes_the_model_while_another_thread_calls_it_by_itself(call, change):
    model, batch = road_model(), token_batch(2)
    base, inside, over = model.model, threading.Event(), threading.Event()
    if change == "unmerge":
        model.merge()

    def wait(*_):
        inside.set()
        assert over.wait(60)

    plain = {
        "generate": lambda: base.generate(**batch, max_new_tokens=3, do_sample=False),
        "forward": lambda: base(**batch).logits,
        "forward of a wrapper": lambda: nn.Sequential(base)(batch["input_ids"]).logits,
    }[call]
    expected = plain()

    def changed():
        with {
            "attached": model.attached,
            "engine": lambda: model.continuous_batching(sizes=(8, 4, 2)),  # else its cache fills the memory
            "interchange": lambda: opened(base, "interchange runs", "interchange"),
            "merge": lambda: nullcontext(model.merge()),
            "unmerge": lambda: nullcontext(model.unmerge()),
            "pyvene's loop": lambda: nullcontext(model(base=batch, unit_locations={"base": 0})),
        }[change]():
            pass

    with base.model.layers[1].register_forward_pre_hook(wait), ThreadPoolExecutor(1, "other") as pool:
        running = pool.submit(torch.no_grad()(plain))
        assert inside.wait(60)
        try:
            with pytest.raises(InputError, match="overlaps with a call of the base model in other"):
                changed()
        finally:
            over.set()
        assert torch.equal(running.result(), expected)
    changed()


# ------------------------------------------------------------------ beside merge and attached


@torch.no_grad()
@pytest.mark.parametrize("change", ["merge", "attached", "unit_locations"])
def test_nothing_changes_the_model_while_a_call_begins(monkeypatch, change):
    """The window is the whole of the computation of the maps, in which the other thread tries."""
    model, batch = road_model(), token_batch(2)
    expected, refused, coefficients = model(base=batch)[1].logits, [], RowSelection.coefficients

    def slowly(*arguments):
        monkeypatch.setattr(RowSelection, "coefficients", coefficients)
        refused.append(in_thread(changed))
        return coefficients(*arguments)

    def changed():
        if change == "merge":
            return model.merge()
        if change == "unit_locations":
            return model(base=batch, unit_locations={"base": 0})
        with model.attached() as base:
            return base

    monkeypatch.setattr(RowSelection, "coefficients", slowly)
    torch.testing.assert_close(model(base=batch)[1].logits, expected, **EXACT)
    assert "overlaps with a call in MainThread" in str(refused[0])
    assert not model.is_merged


@torch.no_grad()
def test_a_call_is_refused_while_attached_begins(monkeypatch):
    model, batch = road_model(), token_batch(2)
    expected, refused, coefficients = model(base=batch)[1].logits, [], RowSelection.coefficients

    def slowly(*arguments):
        monkeypatch.setattr(RowSelection, "coefficients", coefficients)
        refused.append(in_thread(lambda: model(base=batch)))
        return coefficients(*arguments)

    monkeypatch.setattr(RowSelection, "coefficients", slowly)
    with model.attached():
        torch.testing.assert_close(model(base=batch)[1].logits, expected, **EXACT)
        torch.testing.assert_close(in_thread(lambda: model(base=batch)[1].logits), expected, **EXACT)
    assert "a call in other overlaps with attached()" in str(refused[0])


@torch.no_grad()
@pytest.mark.parametrize("change", ["unmerge", "another merge", "another attached"])
def test_nothing_changes_the_model_during_a_merged_call(change):
    model, batch = road_model(), token_batch(2)
    expected = model(base=batch)[1].logits
    model.merge()
    other, refused = RoadModel(model.model, random_adapter(model.sites, seed=7)), []

    def changed():
        if change == "unmerge":
            return model.unmerge()
        if change == "another merge":
            return other.merge()
        with other.attached() as base:
            return base

    with model.model.model.layers[1].register_forward_pre_hook(lambda *_: refused.append(in_thread(changed))):
        torch.testing.assert_close(model(base=batch)[1].logits, expected, rtol=0, atol=1e-5)
    assert "overlaps with a call in MainThread" in str(refused[0])
    with model.attached() as base:  # merged weights: other calls may run beside it
        torch.testing.assert_close(in_thread(lambda: model(base=batch)[1].logits), base(**batch).logits, **EXACT)
    model.unmerge()
    assert not model.is_merged


@torch.no_grad()
def test_a_call_beside_pyvenes_loop_is_refused():
    model, batch = road_model(), token_batch(2)
    refused = []
    with model.model.model.layers[1].register_forward_pre_hook(lambda *_: refused.append(in_thread(lambda: model(base=batch)))):
        model(base=batch, unit_locations={"base": 0})
    assert "a call in other overlaps with a call through pyvene's loop in MainThread" in str(refused[0])


def test_an_engine_that_was_made_before_a_merge_is_refused():
    model = road_model(target_modules="all-linear")
    engine = model.continuous_batching(generation_config=GenerationConfig(max_new_tokens=2), sizes=(8, 8, 1))
    assert isinstance(engine, ContinuousBatching)
    model.merge()
    with pytest.raises(InputError, match="merged or unmerged since the engine was made"), engine:
        pass
    model.unmerge()


# ------------------------------------------------------------------ modules that are replaced


@torch.no_grad()
@pytest.mark.parametrize("replaced", [False, True])
def test_pyvenes_loop_rotates_the_modules_of_today_or_says_so(replaced):
    base = tiny_model("Llama", "causal-lm")
    model, batch = RoadModel(base, random_adapter(find_sites(base, "q_proj"))), token_batch(2)
    everywhere = {"base": [[list(range(batch["input_ids"].shape[1]))] * 2] * len(model.sites)}
    if not replaced:
        found, expected = model(base=batch, unit_locations=everywhere)[1].logits, model(base=batch)[1].logits
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        return
    attention = base.model.layers[1].self_attn
    other = nn.Linear(attention.q_proj.in_features, attention.q_proj.out_features, bias=False)
    other.weight, attention.q_proj = attention.q_proj.weight, other
    with pytest.raises(InputError, match=r"'model.layers.1.self_attn.q_proj' was replaced .* make the RoadModel again"):
        model(base=batch, unit_locations=everywhere)
    again = RoadModel(base, model.adapter)
    torch.testing.assert_close(
        again(base=batch, unit_locations=everywhere)[1].logits, model(base=batch)[1].logits, rtol=0, atol=1e-5
    )


# ------------------------------------------------------------------ compiled code


def compiled(**options):
    config = CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config, **options}


def test_which_generate_compiles():
    base = tiny_model("Llama", "causal-lm")
    assert not compiles_generation(base, {})
    assert not compiles_generation(base, {"cache_implementation": "static"})  # transformers does not compile it on a CPU
    assert not compiles_generation(base, compiled(cache_implementation="offloaded"))
    assert not compiles_generation(base, compiled(cache_implementation=None))
    assert not compiles_generation(base, compiled(disable_compile=True))
    assert compiles_generation(base, compiled())
    assert compiles_generation(base, {"generation_config": GenerationConfig(**compiled())})
    cache = StaticCache(base.config, max_cache_len=8)
    for name in ("past_key_values", "cache"):
        assert compiles_generation(base, compiled(cache_implementation=None, **{name: cache}))
        assert not compiles_generation(base, compiled(cache_implementation=None, **{name: DynamicCache()}))
    base.generation_config.cache_implementation = "hybrid"  # which transformers sets aside
    assert not compiles_generation(base, {"compile_config": compiled()["compile_config"]})


@torch.no_grad()
def test_a_paged_cache_is_refused():
    model, batch = road_model(), token_batch(2)
    with pytest.raises(InputError, match="use RoadModel.generate_batch"):
        model.generate(batch, cache_implementation="paged", max_new_tokens=2)
    with model.attached() as base, pytest.raises(InputError, match="use RoadModel.generate_batch"):
        base.generate(**batch, cache_implementation="paged", max_new_tokens=2)


@torch.no_grad()
@pytest.mark.parametrize("compiles", [False, True])
def test_calls_beside_a_generate_that_compiles_are_refused(monkeypatch, compiles):
    """Compiled code applies the rotations of every thread; the model's `generate` is replaced by one that calls it in another."""
    model, batch = bank_model("ab"), token_batch(2)
    expected, found = model(base=batch, adapter_names=["b"] * 2)[1].logits, []

    def generate_and_call(**options):
        found.append(in_thread(lambda: model(base=batch, adapter_names=["b"] * 2)[1].logits))
        return batch["input_ids"]

    monkeypatch.setattr(model.model, "generate", generate_and_call)
    model.generate(batch, adapter_names=["a"] * 2, **compiled() if compiles else {})
    if compiles:
        assert "a call in other overlaps with a compiled generate in MainThread" in str(found[0])
    else:
        torch.testing.assert_close(found[0], expected, **EXACT)
    with model.attached(["a"] * 2) as base:  # whose rotations are those of every thread
        monkeypatch.setattr(base, "generate", lambda **options: in_thread(lambda: model(base=batch)[1].logits))
        assert torch.equal(model.generate(batch, **compiled())[1], base(**batch).logits)


# ------------------------------------------------------------------ rows and tokens


@torch.no_grad()
@pytest.mark.parametrize("tracing", [False, True])
@pytest.mark.parametrize("target_modules", ["mlp", "block-output"])
def test_names_for_other_rows_are_refused(monkeypatch, target_modules, tracing):
    model = bank_model("ab", target_modules=target_modules)
    with model.attached(["a", "b"]) as base:
        expected = base(**token_batch(2)).logits
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: tracing)
        for rows in (1, 4):
            with pytest.raises(InputError, match=f"2 names for a batch of {rows} rows"):
                base(**token_batch(rows))
        torch.testing.assert_close(base(**token_batch(2)).logits, expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 4])
def test_names_for_other_rows_of_a_submodule_are_refused(rows):
    model = bank_model("ab")
    with model.attached(["a", "b"]) as base:
        base.model(**token_batch(2))
        with pytest.raises(InputError, match=f"2 names for a batch of {rows} rows"):
            base.model(**token_batch(rows))


@torch.no_grad()
def test_rows_and_tokens_that_a_submodule_joins():
    model = bank_model("ab", architecture="OPT")
    expected = model(base={**token_batch(2), "output_hidden_states": True}, adapter_names=["a", "b"])[1].hidden_states[-1]
    with model.attached(["a", "b"]) as base:
        torch.testing.assert_close(base.base_model(**token_batch(2)).last_hidden_state, expected, rtol=0, atol=1e-5)
        with pytest.raises(InputError, match="2 names for a batch of 4 rows"):
            base.base_model(**token_batch(4))


@torch.no_grad()
def test_traced_rows_are_repeated_for_beams(monkeypatch):
    model, batch = bank_model("ab"), token_batch(2)
    settings = {"adapter_names": ["a", "b"], "num_beams": 2, "do_sample": False, "max_new_tokens": 3, "pad_token_id": 0}
    expected = model.generate(batch, **settings)[1]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(model.generate(batch, **settings)[1], expected)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2])
def test_positions_at_a_site_with_one_state_per_row_are_refused(rows):
    """Also where the state is as wide as the text is long."""
    base = tiny_model("Bert", "classifier")
    model = RoadModel(base, random_adapter(find_sites(base, "bert.pooler.dense")), positions="first")
    tokens = torch.randint(5, 50, (rows, base.config.hidden_size))
    with pytest.raises(InputError, match="token positions to choose from"):
        model(base={"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})


@torch.no_grad()
def test_guidance_with_positions_is_refused():
    model, batch = road_model(positions="prompt"), token_batch(2)
    match = "guidance_scale=3.0 computes a second prompt, in which positions 'prompt' cannot be found"
    with pytest.raises(InputError, match=match):
        model.generate(batch, guidance_scale=3.0, max_new_tokens=2, pad_token_id=0)
    with model.attached() as base, pytest.raises(InputError, match=match):
        base.generate(**batch, guidance_scale=3.0, max_new_tokens=2, pad_token_id=0)
    model.generate(batch, positions="all", guidance_scale=3.0, max_new_tokens=2, pad_token_id=0)
    model.generate(batch, guidance_scale=1, max_new_tokens=2, pad_token_id=0)
    with model.attached(positions="all"):
        model.generate(batch, guidance_scale=3.0, max_new_tokens=2, pad_token_id=0)


@pytest.mark.parametrize("strengths", [None, [0.5, 0.7]])
def test_a_pass_in_inference_mode_does_not_spoil_later_ones(strengths):
    model, batch = bank_model("ab"), token_batch(2)
    model.model.get_input_embeddings().weight.requires_grad_()
    with model.attached(["a", "b+a"], strengths=strengths) as base:
        model.bank.replace("a", random_adapter(model.sites, seed=7))
        with torch.inference_mode():
            base(**batch)
        base(**batch, labels=batch["input_ids"]).loss.backward()
    assert model.model.get_input_embeddings().weight.grad.abs().sum() > 0
