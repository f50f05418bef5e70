"""Continuous batching: every request gets what `generate` gives it alone, whatever else is in the batch."""

from __future__ import annotations

import asyncio
import collections
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM

from helpers.models import random_adapter, tiny_model, token_batch
from helpers.road_models import bank_model, road_model
from helpers.servers import words_tokenizer
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.joined_names import BASE
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.errors import InputError
from road_interp.models import factor_table
from road_interp.models.batching_engine import turn_off_unfollowed
from road_interp.models.factor_table import FactorTable
from road_interp.models.request_adapter import RequestAdapter
from road_interp.models.road_model import RoadModel
from road_interp.sites.find import find_sites

PROMPTS = [[5, 6, 7], [5, 6, 7], [8, 9], [10, 11, 12, 13], [5, 6, 7], [3]]
NAMES = ["a", "b", "c", "a", BASE, "b"]
SETTINGS = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
LONG = GenerationConfig(max_new_tokens=40, do_sample=False, eos_token_id=-1, pad_token_id=0)
SMALL = {"page_size": 4, "num_blocks": 64, "max_batch_tokens": 64}


def alone(model, prompts, **rows):
    """The generated tokens of every prompt, one by one; `rows` are lists with one entry per prompt, or one value for all."""
    generated = []
    for number, prompt in enumerate(prompts):
        options = {name: [values[number]] if isinstance(values, list) else values for name, values in rows.items()}
        _, ids = model.generate({"input_ids": torch.tensor([prompt])}, generation_config=SETTINGS, **options)
        generated.append(ids[0, len(prompt) :].tolist())
    return generated


def together(model, prompts, **options):
    return [each.generated_tokens for each in model.generate_batch(prompts, generation_config=SETTINGS, **options)]


def engine_config():
    from transformers import ContinuousBatchingConfig

    return ContinuousBatchingConfig(**SMALL)


def test_settings_of_the_generation_may_be_given_one_by_one():
    model = bank_model()
    together_at_once = [each.generated_tokens for each in model.generate_batch(PROMPTS, NAMES, **SETTINGS.to_diff_dict())]
    assert together_at_once == together(model, PROMPTS, adapter_names=NAMES)
    assert model.model.generation_config.max_new_tokens != 6


def test_two_callers_that_wait_for_one_request_do_not_wait_for_ever():
    with bank_model().continuous_batching(generation_config=SETTINGS, engine_config=engine_config()) as engine:
        request = engine.add(PROMPTS[0], "a")
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(engine.result, request) for _ in range(2)]
            errors = [each.exception(timeout=20) for each in waiting]
    found = next(error for error in errors if error is not None)
    assert errors.count(None) == 1
    assert "request" in str(found)
    assert isinstance(found, RuntimeError | InputError)  # or the other was served before it asked


def test_a_stream_that_is_left_cancels_its_request():
    with bank_model().continuous_batching(generation_config=LONG, engine_config=engine_config()) as engine:
        request = engine.add(PROMPTS[0], "a", stream=True)
        for _ in engine.stream(request):
            break
        deadline = time.monotonic() + 20
        while engine.is_open(request) and time.monotonic() < deadline:
            engine.result(engine.add(PROMPTS[1], "b", max_new_tokens=2))  # the engine drops a request in a pass of others
        assert not engine.is_open(request)


@pytest.mark.parametrize("positions", ["all", "prompt"])
@pytest.mark.parametrize(("variant", "target_modules"), [("road_1", "all-linear"), ("road_1", "block-output"), ("road_2", "mlp")])
def test_requests_with_different_adapters_equal_generate(variant, target_modules, positions):
    model = bank_model(variant=variant, target_modules=target_modules)
    expected = alone(model, PROMPTS, adapter_names=NAMES, positions=positions)
    assert together(model, PROMPTS, adapter_names=NAMES, positions=positions) == expected
    if target_modules != "mlp":  # whose rotation of the prompt alone changes no token of these
        assert expected != alone(model, PROMPTS, adapter_names=[BASE] * len(PROMPTS))


@pytest.mark.parametrize("architecture", ["Gemma3Text", "Mistral"])
def test_models_with_a_sliding_window(architecture):
    base = tiny_model(architecture, "causal-lm", sliding_window=4)
    sites = find_sites(base, "all-linear")
    model = RoadModel(base, RoadBank({name: random_adapter(sites, seed=seed) for seed, name in enumerate("abc")}))
    prompts = [[*range(5, 17)], *PROMPTS[1:]]
    assert together(model, prompts, adapter_names=NAMES) == alone(model, prompts, adapter_names=NAMES)


def test_strengths_and_tasks_of_every_request():
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, "all-linear")
    model = RoadModel(base, random_adapter(sites), planes=TaskPlanes.split(["label", "closing"], sites, "alternating"))
    rows = {
        "tasks": ["label", "closing", "label+closing", BASE, "label+closing", "label"],
        "strengths": [1, 0.5, {"label": 0.5, "closing": 2}, 1, {"label": 3}, -1],
    }
    assert together(model, PROMPTS, **rows) == alone(model, PROMPTS, **rows)


def test_several_adapters_of_one_request():
    model = bank_model()
    rows = {
        "adapter_names": ["a+b", "a+b", "b+c", "a", BASE, "a+b"],
        "strengths": [{"a": 0.5}, 1, {"b": 2, "c": -1}, 0.5, 1, {"a": 0.5}],
    }
    assert together(model, PROMPTS, **rows) == alone(model, PROMPTS, **rows)


def test_a_model_with_a_single_adapter_and_texts():
    model = road_model()
    texts = [" ".join(f"w{token}" for token in prompt) for prompt in PROMPTS]
    assert together(model, texts, tokenizer=words_tokenizer()) == alone(model, PROMPTS)


def test_equal_beginnings_of_prompts_do_not_share_states_of_other_adapters():
    """transformers' cache would share the blocks of equal prompts."""
    model, prompt = bank_model(), [*range(5, 25)]
    expected = alone(model, [prompt] * 3, adapter_names=["a", "b", "c"])
    assert len({tuple(tokens) for tokens in expected}) == 3
    with model.continuous_batching(generation_config=SETTINGS, engine_config=engine_config()) as engine:
        found = [engine.result(engine.add(prompt, name)).generated_tokens for name in "abc"]
    assert found == expected


def test_a_stream_of_an_unknown_request_is_an_error_at_once():
    engine = bank_model().continuous_batching(generation_config=SETTINGS, engine_config=engine_config())
    with engine, pytest.raises(InputError, match="request-7"):
        engine.stream("request-7")


def test_outputs_are_streamed():
    model = bank_model()
    (expected,) = alone(model, PROMPTS[:1], adapter_names=["a"])
    with model.continuous_batching(generation_config=SETTINGS, engine_config=engine_config()) as engine:
        outputs = list(engine.stream(engine.add(PROMPTS[0], "a", stream=True)))
    assert len(outputs) > 1
    assert [each.is_finished() for each in outputs] == [False] * (len(outputs) - 1) + [True]
    assert outputs[-1].generated_tokens == expected


def test_a_cancelled_request_frees_its_place():
    """The cache has room for one of the two requests at a time."""
    model, long = bank_model(), GenerationConfig(max_new_tokens=200, do_sample=False, eos_token_id=-1, pad_token_id=0)
    with model.continuous_batching(generation_config=long, engine_config=engine_config()) as engine:
        first = engine.add([5, 6], "a", stream=True)
        next(engine.stream(first))
        engine.cancel(first)
        with pytest.raises(RuntimeError, match="request-0 was cancelled"):
            engine.result(first)
        found = engine.result(engine.add([5, 6], "b")).generated_tokens
    _, ids = model.generate({"input_ids": torch.tensor([[5, 6]])}, adapter_names=["b"], generation_config=long)
    assert found == ids[0, 2:].tolist()


def test_a_request_that_an_earlier_statement_left_is_not_waited_for():
    engine = bank_model().continuous_batching(generation_config=LONG, engine_config=engine_config())
    with engine:
        left = engine.add([5, 6, 7], "a")
    with engine:
        assert not engine.is_open(left)
        with pytest.raises(InputError, match=f"'{left}' is not a request of this engine"):
            engine.result(left)
        assert engine.result(engine.add([5, 6, 7], "a", max_new_tokens=3)).is_finished()


def test_requests_from_several_threads():
    model = bank_model()
    expected = alone(model, PROMPTS, adapter_names=NAMES)
    with model.continuous_batching(generation_config=SETTINGS, engine_config=engine_config()) as engine:

        def ask(number):
            time.sleep(0.01 * (number % 3))
            row = number % len(PROMPTS)
            return engine.result(engine.add(PROMPTS[row], NAMES[row])).generated_tokens

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, range(24))) == expected * 4


def test_other_calls_of_the_model_are_errors_until_it_ends():
    """transformers' engine makes attention bidirectional for whatever else calls the model, and may leave it so."""
    model, batch = bank_model(), token_batch()
    logits = model(base=batch, adapter_names=["c"] * 3)[1].logits
    names = r"a call in MainThread overlaps with continuous batching in MainThread"
    with model.continuous_batching(generation_config=SETTINGS, engine_config=engine_config()) as engine:
        request = engine.add(PROMPTS[0], "a", max_new_tokens=30)
        for call in (lambda: model(base=batch, adapter_names=["c"] * 3), lambda: model.model(**batch)):
            with pytest.raises(InputError, match=names):
                call()
        with pytest.raises(InputError, match=r"attached\(.* overlaps with continuous batching"):
            model.attached(["a"]).__enter__()
        engine.result(request)
    assert torch.equal(model(base=batch, adapter_names=["c"] * 3)[1].logits, logits)
    assert not hasattr(model.model.config, "is_causal")


def test_adapters_are_added_and_replaced_while_it_runs():
    model = bank_model("a")
    new, other = (random_adapter(model.sites, seed=seed) for seed in (7, 8))
    (old,) = alone(model, PROMPTS[:1], adapter_names=["a"])
    with model.continuous_batching(generation_config=SETTINGS, engine_config=engine_config()) as engine:
        first = engine.add(PROMPTS[0], "a")
        model.bank.add("new", new)
        added = engine.result(engine.add(PROMPTS[0], "new")).generated_tokens
        model.bank.replace("a", other)
        replaced = engine.result(engine.add(PROMPTS[0], "a")).generated_tokens
        assert engine.result(first).generated_tokens == old
    assert [added, replaced] == alone(model, PROMPTS[:1] * 2, adapter_names=["new", "a"])


def test_an_engine_of_another_bank_is_made_again():
    model = bank_model()
    engine = model.continuous_batching(generation_config=SETTINGS, engine_config=engine_config())
    model.bank = RoadBank({name: random_adapter(model.sites, seed=9) for name in "ab"})
    with pytest.raises(InputError, match="bank, planes or device of the model have changed since the engine was made"), engine:
        pass
    with model.continuous_batching(generation_config=SETTINGS, engine_config=engine_config()) as again:
        again.add(PROMPTS[0], "a")


def test_layers_that_the_engine_does_not_have_are_refused():
    base = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4))
    model = RoadModel(base, RoadAdapter.identity(find_sites(base, "all-linear")))
    with (
        pytest.raises(InputError, match="cannot run MambaForCausalLM .*: use generate"),
        model.continuous_batching(sizes=(8, 4, 4)),
    ):
        pass


@pytest.mark.parametrize("variant", ["road_1", "road_2"])
def test_parameters_that_change_while_it_runs_count_for_later_requests(variant):
    model = road_model(variant=variant)
    (before,) = alone(model, PROMPTS[:1])
    with model.continuous_batching(generation_config=SETTINGS, engine_config=engine_config()) as engine:
        found = [engine.result(engine.add(PROMPTS[0])).generated_tokens for _ in range(2)]
        with torch.no_grad():
            for _, intervention in model.by_site():
                intervention.theta += 0.5
        found.append(engine.result(engine.add(PROMPTS[0])).generated_tokens)
    (after,) = alone(model, PROMPTS[:1])
    assert found == [before, before, after]
    assert before != after


def test_more_adapters_than_the_first_table_holds():
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, "block-output")
    names = [f"adapter {number}" for number in range(70)]
    model = RoadModel(base, RoadBank({name: random_adapter(sites, seed=seed) for seed, name in enumerate(names)}))
    prompts = [[5 + number % 7, 6] for number in range(70)]
    assert together(model, prompts, adapter_names=names) == alone(model, prompts, adapter_names=names)


def test_the_table_keeps_its_size_when_kinds_of_requests_come_and_go(monkeypatch):
    """Every strength is a kind of request: a client that varies it must not fill the memory."""
    monkeypatch.setattr(factor_table, "ROWS", 4)
    model = road_model()
    strengths = [0.1 * number for number in range(12)]
    with model.continuous_batching(generation_config=SETTINGS, engine_config=engine_config()) as engine:
        table = engine._table
        before = [buffer.a.data_ptr() for buffer in table._buffers.values()]
        found = [engine.result(engine.add([5, 6, 7], strength=each)).generated_tokens for each in strengths * 2]
        again = [engine.result(engine.add([5, 6, 7], strength=1.0)).generated_tokens for _ in range(3)]
        assert [buffer.a.data_ptr() for buffer in table._buffers.values()] == before
        assert engine._requests == {}
    expected = alone(model, [[5, 6, 7]] * 12, strengths=strengths)
    assert found == expected * 2
    assert again == [alone(model, [[5, 6, 7]])[0]] * 3


def test_adapters_that_come_and_go_in_a_small_table_keep_their_rotations(monkeypatch):
    """A row of the table that another adapter gets is no longer that of the adapter before."""
    monkeypatch.setattr(factor_table, "ROWS", 4)
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, "block-output")
    model = RoadModel(base, RoadBank({name: random_adapter(sites, seed=seed) for seed, name in enumerate("abcdefgh")}))
    names = [*"abcdefgh", *"aceg", "h"]
    with model.continuous_batching(generation_config=SETTINGS, engine_config=engine_config()) as engine:
        found = [engine.result(engine.add([5, 6, 7], name)).generated_tokens for name in names]
    expected = dict(zip("abcdefgh", alone(model, [[5, 6, 7]] * 8, adapter_names=[*"abcdefgh"]), strict=True))
    assert found == [expected[name] for name in names]
    assert len({*map(tuple, expected.values())}) > 4


def test_rows_of_requests_in_flight_are_not_given_away(monkeypatch):
    monkeypatch.setattr(factor_table, "ROWS", 3)
    table = FactorTable(road_model()._selection)
    rows = [table.acquire(RequestAdapter(strength=each)) for each in (1.0, 2.0, 1.0, 3.0)]
    assert rows == [1, 2, 1, 3]  # the third kind needs a longer buffer
    table.release(1)
    assert table.acquire(RequestAdapter(strength=4.0)) == 4
    table.release(1)
    assert [table.acquire(RequestAdapter(strength=each)) for each in (5.0, 6.0, 7.0)] == [5, 1, 6]
    assert table.acquire(RequestAdapter(strength=2.0)) == 2


def test_requests_for_the_base_model_are_checked():
    with pytest.raises(InputError, match="adapter_names needs a model with a RoadBank"):
        together(road_model(), [[5, 6, 7]], adapter_names=[BASE])
    with pytest.raises(InputError, match="task"):
        together(bank_model(), [[5, 6, 7]], adapter_names=[BASE], tasks=["nosuch"])


WRONG_REQUESTS = {
    "a list in place of a strength": ({"strengths": [[0.5]]}, "is not a strength"),
    "no strength": ({"strengths": [None]}, "is not a strength"),
    "a batch in place of a prompt": ({"prompts": [torch.tensor([[5, 6]])]}, r"not a tensor of shape \(1, 2\)"),
    "words in place of tokens": ({"prompts": [["a", "b"]]}, "holds token ids, not 'a'"),
    "fractions in place of tokens": ({"prompts": [[1.5]]}, "holds token ids, not 1.5"),
}


@pytest.mark.parametrize("given", WRONG_REQUESTS.values(), ids=list(WRONG_REQUESTS))
def test_wrong_requests_are_refused(given):
    changes, message = given
    with pytest.raises(InputError, match=message):
        together(road_model(), **{"prompts": [[5, 6]], **changes})


def test_cancelled_requests_leave_nothing_behind():
    model = bank_model()
    long = GenerationConfig(max_new_tokens=100, do_sample=False, eos_token_id=-1, pad_token_id=0)
    with model.continuous_batching(generation_config=long, engine_config=engine_config()) as engine:
        kept = engine.add(PROMPTS[0], "a")
        for number in range(20):
            request = engine.add(PROMPTS[number % 6], "abc"[number % 3], stream=True)
            if number % 2:
                next(engine.stream(request))
            engine.cancel(request)
        engine.result(kept)
        engine.result(engine.add(PROMPTS[0], "a", max_new_tokens=4))
        assert engine._requests == {}
        assert sorted(engine._table._uses) == [0, 0, 0, 1]


def test_a_manager_that_transformers_kept_is_not_used():
    """It shares the blocks of equal prompts, whose states differ between adapters."""
    model, prompt = bank_model(), [*range(5, 25)]
    expected = alone(model, [prompt] * 3, adapter_names=["a", "b", "c"])
    model.model.generate_batch([prompt], SETTINGS, continuous_batching_config=engine_config(), persistent_manager=True)
    with model.continuous_batching(generation_config=SETTINGS, engine_config=engine_config()) as engine:
        assert not engine._manager.batch_processor.cache.use_prefix_sharing
        found = [engine.result(engine.add(prompt, name)).generated_tokens for name in "abc"]
    assert found == expected


def test_a_cache_that_cannot_be_made_is_an_error_at_once():
    from transformers import ContinuousBatchingConfig

    settings = ContinuousBatchingConfig(page_size=4, num_blocks=10**9, max_batch_tokens=64)
    with pytest.raises(RuntimeError, match=r"the engine could not start: .*memory"):
        bank_model().continuous_batching(generation_config=SETTINGS, engine_config=settings).__enter__()


def test_a_short_request_does_not_wait_for_a_long_one():
    model = bank_model()
    long = GenerationConfig(max_new_tokens=150, do_sample=False, eos_token_id=-1, pad_token_id=0)
    with (
        model.continuous_batching(generation_config=long, engine_config=engine_config()) as engine,
        ThreadPoolExecutor(2) as pool,
    ):
        slow = engine.add([5, 6], "a")
        first = pool.submit(engine.result, slow)
        time.sleep(0.05)
        quick = pool.submit(engine.result, engine.add([7, 8], "b", max_new_tokens=2))
        assert len(quick.result(60).generated_tokens) == 2
        assert not first.done()
        assert len(first.result(60).generated_tokens) == 150


def test_outputs_in_an_asyncio_loop():
    model = bank_model()

    async def ask(engine, prompt, name):
        finished = asyncio.get_running_loop().create_future()
        engine.add(prompt, name, on_output=finished.set_result)
        return (await finished).generated_tokens

    async def ask_all():
        return await asyncio.gather(*(ask(engine, prompt, name) for prompt, name in zip(PROMPTS, NAMES, strict=True)))

    expected = alone(model, PROMPTS, adapter_names=NAMES)
    with model.continuous_batching(generation_config=SETTINGS, engine_config=engine_config()) as engine:
        assert asyncio.run(ask_all()) == expected
        assert engine._requests == {}


def failing(output):
    raise asyncio.InvalidStateError("as of a future that was cancelled")


def test_a_callback_that_fails_leaves_those_of_other_requests_alone():
    """Also those of outputs that come in the same pass."""

    async def ask(engine):
        finished = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        engine.add([5, 6, 7], "a", stream=True, on_output=failing)
        engine.add([8, 9], "b", max_new_tokens=6, on_output=finished.set_result)
        return await asyncio.wait_for(finished, 20)

    with bank_model().continuous_batching(generation_config=LONG, engine_config=engine_config()) as engine:
        assert len(asyncio.run(ask(engine)).generated_tokens) == 6


def test_outputs_come_in_the_loop_of_their_own_request():
    """Two loops of two threads, and one that ends before its request does."""

    async def ask(engine):
        threads, finished = set(), asyncio.Event()

        def note(output):
            threads.add(threading.current_thread())
            if output.is_finished():
                finished.set()

        engine.add([5, 6, 7], "a", stream=True, on_output=note)
        await asyncio.wait_for(finished.wait(), 20)
        return threads == {threading.current_thread()}

    async def leave(engine):
        engine.add([5, 6, 7], "a", max_new_tokens=100, stream=True, on_output=print)

    with bank_model().continuous_batching(generation_config=LONG, engine_config=engine_config()) as engine:
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(lambda _: asyncio.run(ask(engine)), range(2))) == [True, True]
        asyncio.run(leave(engine))
        for _ in range(3):
            assert engine.result(engine.add([8, 9], "b", max_new_tokens=6)).is_finished()
        assert engine._requests == {}


def test_what_it_cannot_do_is_an_error():
    model = bank_model()
    for options, message in (
        ({"adapter_names": ["a"]}, "1 adapter names for 6 prompts"),
        ({"adapter_names": ["d"] * 6}, "unknown adapter 'd'"),
        ({"adapter_names": NAMES, "positions": "last"}, "its positions can be all or prompt, not 'last'"),
        ({"adapter_names": NAMES, "tasks": ["x"] * 6}, "tasks needs a model with planes"),
        ({}, "holds 3 adapters: name one per row"),
    ):
        with pytest.raises(InputError, match=message):
            together(model, PROMPTS, **options)
    with pytest.raises(InputError, match="need tokenizer="):
        together(model, ["text"], adapter_names=["a"])
    with pytest.raises(InputError, match="at least one token"):
        together(model, [[]], adapter_names=["a"])
    with model.attached(["a"]), pytest.raises(InputError, match="are attached: continuous batching would apply them twice"):
        model.continuous_batching()
    assert model.generate_batch([]) == []
    for prompts, message in (("Hello", "not str"), (torch.ones(2, 3), "not Tensor"), ([5, 6], "a prompt is a text or a list of")):
        with pytest.raises(InputError, match=message):
            model.generate_batch(prompts, max_new_tokens=2)
    with pytest.raises(InputError, match="'do_smaple' is neither an argument of generate_batch nor a setting of GenerationConf"):
        together(model, PROMPTS, adapter_names=NAMES, do_smaple=False)
    with pytest.raises(InputError, match="cannot rotate them"):
        RoadModel(model.model, random_adapter(find_sites(model.model, "lm_head"))).continuous_batching()
    sizes = model.continuous_batching(generation_config=SETTINGS, sizes=(8, 6, 2))
    with sizes as engine, pytest.raises(InputError, match="10 tokens and 6 new ones are more than the 14 tokens for which"):
        engine.add([5] * 10, "a")
    with pytest.raises(InputError, match="does not follow num_return_sequences=2: add a request several times"):
        model.continuous_batching(generation_config=GenerationConfig(num_return_sequences=2, do_sample=True))
    with model.continuous_batching(engine_config=engine_config()) as engine:
        with pytest.raises(InputError, match="neither the request nor the generation config says how many tokens"):
            engine.add([5, 6], "a")
        for token in (60, -1):
            with pytest.raises(InputError, match=f"{token} is not a token of the model, which has 60"):
                engine.add([5, token], "a", max_new_tokens=2)
        with pytest.raises(RuntimeError, match="no running event loop"):
            engine.add([5, 6], "a", max_new_tokens=2, on_output=print)
        assert engine._requests == {}
        for new_tokens, most in ((1_000_000, r"\d+ positions of the model"), (200, "256 places of the engine's cache")):
            with pytest.raises(InputError, match=f"60 tokens and {new_tokens} new ones are more than the {most}"):
                engine.add([5] * 60, "a", max_new_tokens=new_tokens)
        engine._manager.add_request([5, 6], "stranger")
        with pytest.raises(InputError, match="a prompt of the engine holds token ids, not a text"):
            engine.add("w5 w6", "a")
        with pytest.raises(InputError, match="'stranger' is not a request of this engine"):
            engine.result("stranger")
        with pytest.raises(RuntimeError, match="stopped before|failed|takes no more"):  # never unrotated
            collections.deque((engine.result(engine.add([5, 6], "a", max_new_tokens=2)) for _ in range(100)), maxlen=0)


def test_a_pass_that_fails_names_the_architecture():
    model = bank_model()

    def fail(module, args, output):
        raise AttributeError("'PagedAttentionCache' object has no attribute 'get_seq_length'")

    handle = model.model.model.layers[0].register_forward_hook(fail)
    message = "request-0 failed in transformers' continuous batching of LlamaForCausalLM: .*get_seq_length'. .*; generate does"
    with model.continuous_batching(engine_config=engine_config()) as engine, pytest.raises(RuntimeError, match=message):
        engine.result(engine.add([5, 6], "a", max_new_tokens=2))
    handle.remove()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 4),
        ("min_new_tokens", 6),
        ("min_length", 6),
        ("repetition_penalty", 3.0),
        ("no_repeat_ngram_size", 2),
        ("bad_words_ids", [[5]]),
        ("begin_suppress_tokens", [5]),
        ("max_time", 0.0),
        ("stop_strings", ["a"]),
        ("guidance_scale", 2.0),
    ],
)
def test_settings_that_the_engine_does_not_follow_are_refused(name, value):
    model = bank_model()
    with pytest.raises(InputError, match=f"continuous batching does not follow {name}="):
        together(model, PROMPTS, adapter_names=NAMES, **{name: value})
    setattr(model.model.generation_config, name, value)  # as checkpoints have it
    with pytest.raises(InputError, match=f"continuous batching does not follow {name}="):
        model.generate_batch(PROMPTS, adapter_names=NAMES, max_new_tokens=2)


def test_a_setting_of_the_checkpoint_can_be_turned_off():
    model = bank_model()
    expected = together(model, PROMPTS, adapter_names=NAMES)
    model.model.generation_config.repetition_penalty = 1.1
    found = model.generate_batch(PROMPTS, NAMES, repetition_penalty=1.0, **SETTINGS.to_diff_dict())
    assert [output.generated_tokens for output in found] == expected


@pytest.mark.parametrize(("name", "value"), [("repetition_penalty", 1.1), ("bad_words_ids", [[5]]), ("forced_eos_token_id", 2)])
def test_a_checkpoint_is_relieved_of_what_the_engine_does_not_follow(name, value):
    model = bank_model()
    expected = together(model, PROMPTS, adapter_names=NAMES)
    setattr(model.model.generation_config, name, value)
    with pytest.raises(InputError, match=f"does not follow {name}=.*, or {name}="):
        model.continuous_batching(generation_config=SETTINGS)
    turn_off_unfollowed(model.model.generation_config)
    assert together(model, PROMPTS, adapter_names=NAMES) == expected


def test_settings_that_a_config_leaves_out_are_those_of_the_checkpoint():
    model = bank_model()
    unsuppressed = alone(model, PROMPTS, adapter_names=NAMES)
    model.model.generation_config.suppress_tokens = [unsuppressed[0][0]]
    expected = alone(model, PROMPTS, adapter_names=NAMES)
    assert expected != unsuppressed
    assert together(model, PROMPTS, adapter_names=NAMES) == expected
    assert together(model, PROMPTS, adapter_names=NAMES, suppress_tokens=None) == unsuppressed
    with model.continuous_batching(generation_config=SETTINGS, engine_config=engine_config()) as engine:
        assert engine.result(engine.add(PROMPTS[0], "a")).generated_tokens == expected[0]
    model.model.generation_config.repetition_penalty = 1.5
    with pytest.raises(InputError, match="does not follow repetition_penalty=1.5"):
        together(model, PROMPTS, adapter_names=NAMES)


@pytest.mark.parametrize("sequence_bias", [{(5, 6): -9.0}, [[[5, 6], -9.0]]])
def test_a_bias_of_several_tokens_is_refused(sequence_bias):
    with pytest.raises(InputError, match="sequence_bias of several tokens"):
        together(bank_model(), PROMPTS, adapter_names=NAMES, sequence_bias=sequence_bias)
    both = bank_model()
    single = {(alone(both, PROMPTS[:1], adapter_names=["a"])[0][0],): -9.0}
    found = together(both, PROMPTS[:1], adapter_names=["a"], sequence_bias=single)
    assert found == alone(both, PROMPTS[:1], adapter_names=["a"], sequence_bias=single)


def test_requests_of_other_types_are_refused_and_leave_the_engine_running():
    with bank_model().continuous_batching(generation_config=SETTINGS, engine_config=engine_config()) as engine:
        for names in (3, ["a"], {"a": 1}):
            with pytest.raises(InputError, match="adapter names: .* is not a name"):
                engine.add(PROMPTS[0], names)
        for strength in ("x", [1], True):
            with pytest.raises(InputError, match="is not a strength"):
                engine.add(PROMPTS[0], "a", strength=strength)
        for most in ("2", 2.5, True, 0):
            with pytest.raises(InputError, match=f"max_new_tokens must be a whole number of at least 1, not {most!r}"):
                engine.add(PROMPTS[0], "a", max_new_tokens=most)
        with pytest.raises(InputError, match=r"'\[1\]' is not a request of this engine"):
            engine.result([1])
        assert len(engine.result(engine.add(PROMPTS[0], "a")).generated_tokens) == 6
    with pytest.raises(InputError, match="max_new_tokens must be a whole number of at least 1, not '2'"):
        together(bank_model(), PROMPTS, adapter_names=NAMES, max_new_tokens="2")


@pytest.mark.parametrize("sizes", [(8, 4), "abc", (8.5, 4, 4), [8, 4, 4]])
def test_sizes_and_settings_of_other_forms_are_refused(sizes):
    with pytest.raises(InputError, match=r"sizes are three whole numbers, \(longest prompt, most new tokens, requests\), not"):
        bank_model().continuous_batching(generation_config=SETTINGS, sizes=sizes)
    engine = bank_model().continuous_batching(generation_config=SETTINGS, engine_config={})
    with pytest.raises(InputError, match="engine_config needs ContinuousBatchingConfig, not dict"):
        engine.__enter__()


def test_an_encoder_decoder_has_no_engine():
    base = tiny_model("T5", "seq2seq")
    model = RoadModel(base, random_adapter(find_sites(base, "mlp", stack="decoder.block")))
    with pytest.raises(InputError, match="continuous batching runs decoders only, and T5.* has an encoder: use generate"):
        model.generate_batch(PROMPTS, max_new_tokens=2)


def test_an_engine_that_was_not_entered_says_so():
    assert bank_model().continuous_batching(generation_config=SETTINGS).fatal_error is None
    with pytest.raises(InputError, match="the engine is not started: add requests inside `with"):
        bank_model().continuous_batching(generation_config=SETTINGS).add(PROMPTS[0], "a")


def test_another_bank_is_refused_while_the_engine_runs():
    model = bank_model()
    other = RoadBank({"a": random_adapter(model.sites, seed=9)})
    with (
        model.continuous_batching(generation_config=SETTINGS, engine_config=engine_config()),
        pytest.raises(InputError, match="the rotations are those of continuous batching in .*: set the bank before or after"),
    ):
        model.bank = other
    model.bank = other
