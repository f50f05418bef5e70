"""The throughput benchmark: the methods compute the same maps, and the report is complete. No test asserts a time."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch

from helpers.models import needs_compiler, tiny_model, token_batch
from road_interp import plots
from road_interp.errors import InputError
from road_interp.measure.call_cost import gc_paused, peak_bytes, saved_bytes
from road_interp.measure.engine_cost import engine_costs
from road_interp.measure.stacked_lora import StackedLora
from road_interp.measure.throughput import ThroughputReport, Timing, throughput
from road_interp.measure.throughput_methods import RANK, ThroughputMethods, draw_ids
from road_interp.models.seeding import seeded
from road_interp.recipes.schema import ModelRecipe, ThroughputRecipe
from road_interp.sites.find import find_sites

TASKS = ["forward", "training step", "requests", "distinct", "strengths", "continuous batching"]


def recipe(**options):
    return ThroughputRecipe(ModelRecipe("tiny"), **{"requests": [2], "rounds": 1, "new_tokens": 2, "tasks": TASKS, **options})


@pytest.fixture(scope="module")
def report():
    settings = recipe(rounds=2, requests=[1, 3], new_tokens=3, lengths=[2, 4], ranks=[1, 2])
    return throughput(tiny_model("Llama", "causal-lm"), settings)


@pytest.mark.parametrize("lengths", [[], [4]])
def test_costs_of_the_largest_batch_are_there_beside_timings_of_eight_requests(lengths):
    """Generation by length has eight rows, whatever the numbers of requests are."""
    timed = [("distinct", 4, ("bare", "RoadModel, one adapter", "RoadModel, all different"))]
    timed.append(("strengths", 4, ("bare", "RoadModel", "RoadModel, strengths", "stacked LoRA, strengths")))
    timed += [("length", 8, ("bare",)) for _ in lengths]
    timings = tuple(
        Timing(task, method, rows, 2, 0, (float(number),), (1.0,), 8)
        for task, rows, methods in timed
        for number, method in enumerate(methods, 1)
    )
    found = engine_costs([ThroughputReport("tiny", 1, "cpu", "float32", 1, 1, timings)])
    assert {(each.what, each.over): each.median for each in found.costs} == {
        ("generate, all different", "RoadModel, one adapter"): 1.5,
        ("generate, a strength per row", "RoadModel"): 1.5,
        ("generate, a strength per row", "stacked LoRA, strengths"): 0.75,
    }


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_as_before_the_measurement(enabled):
    (gc.enable if enabled else gc.disable)()
    try:
        with gc_paused():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_frozen_objects_are_as_before_the_measurement():
    gc.unfreeze()
    with gc_paused():
        assert gc.get_freeze_count()
    assert gc.get_freeze_count() == 0
    gc.freeze()
    with gc_paused():
        pass
    assert gc.get_freeze_count()


@pytest.mark.slow
def test_every_method_is_timed_at_every_task(report):
    assert report.of("forward", "bare").ratios == (1.0, 1.0)
    assert {t.method for t in report.timings if t.task == "forward"} == {
        "bare",
        "merged",
        "RoadModel",
        "pyvene loop",
        "PEFT RoAd",
        "PEFT LoRA",
        "PEFT OFT",
        "stacked LoRA",
    }
    assert {(t.task, t.rows) for t in report.timings} == {
        ("forward", 8),
        ("training step", 4),
        ("requests", 1),
        ("requests", 3),
        ("distinct", 3),
        ("strengths", 3),
        ("continuous batching", 3),
        ("length", 8),
        ("rank", 8),
    }
    assert all(len(t.seconds) == 2 and min(t.seconds) > 0 for t in report.timings)
    assert report.of("requests", "RoadModel", rows=3).tokens == 9
    with pytest.raises(InputError, match="2 timings of bare"):
        report.of("requests", "bare")


@pytest.mark.slow
def test_some_methods_alone():
    few = ["forward", "requests", "distinct"]
    timed = throughput(tiny_model("Llama", "causal-lm"), recipe(methods=["bare", "RoadModel"], tasks=few)).timings
    assert {each.method for each in timed if each.task in ("forward", "requests")} == {"bare", "RoadModel"}
    assert [each.method for each in timed if each.task == "distinct"] == [
        "bare",
        "RoadModel, one adapter",
        "RoadModel, all different",
    ]
    timed = throughput(tiny_model("Llama", "causal-lm"), recipe(methods=["bare", "PEFT LoRA"], tasks=few)).timings
    assert {each.task for each in timed} == {"forward", "requests"}  # the other setting has no timing of PEFT's LoRA
    timed = throughput(tiny_model("Llama", "causal-lm"), recipe(tasks=["strengths"])).timings
    of_rotations = ["bare", "RoadModel", "RoadModel, strengths"]
    assert [each.method for each in timed] == [*of_rotations, "stacked LoRA", "stacked LoRA, strengths"]
    with pytest.raises(InputError, match="'methods' must be a list that contains 'bare'"):
        recipe(methods=["RoadModel"])
    with pytest.raises(InputError, match="unknown method 'road'; the methods are bare, merged, RoadModel"):
        throughput(tiny_model("Llama", "causal-lm"), recipe(methods=["bare", "road"]))


def test_the_callers_random_numbers_and_model_stay():
    model = tiny_model("Llama", "causal-lm").train().requires_grad_(True)
    model.lm_head.requires_grad_(False).eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    throughput(model, recipe(tasks=["forward"], methods=["bare", "merged"]))
    assert torch.equal(torch.rand(3), expected)
    assert {name for name, module in model.named_modules() if not module.training} == {"lm_head"}
    assert {name for name, each in model.named_parameters() if not each.requires_grad} == {"lm_head.weight"}


def test_the_head_of_every_method_reads_states_that_are_no_slice():
    """As in the generation of RoadModel: a slice costs a CPU a product per row."""
    model, read = tiny_model("Llama", "causal-lm"), []
    with model.lm_head.register_forward_hook(lambda module, args, output: read.append(args[0].is_contiguous())):
        throughput(model, recipe(tasks=["requests", "distinct", "strengths"], lengths=[2], ranks=[2], requests=[3]))
    assert len(read) > 20
    assert all(read)


def test_the_seed_is_that_of_tokens_and_lora_on_every_device():
    model = tiny_model("Llama", "causal-lm").to("meta")  # a device whose random numbers are not those of the CPU
    for draw in (lambda: draw_ids(model, 2, 3), lambda: StackedLora(model, find_sites(model, "attention"), 2, 4)):
        before = torch.get_rng_state()
        draw()
        assert not torch.equal(torch.get_rng_state(), before)


def test_settings_that_time_no_method_are_refused():
    for options in ({"methods": ["bare", "PEFT LoRA"], "tasks": ["distinct"]}, {"tasks": []}):
        with pytest.raises(InputError, match="nothing is timed: of the methods .* only the bare model is part of the tasks"):
            throughput(tiny_model("Llama", "causal-lm"), recipe(**options))


@pytest.mark.slow
def test_quotients_are_of_times_in_the_same_round(report):
    timings = (replace(report.timings[0], seconds=(1.0, 2.0, 4.0)), replace(report.timings[1], seconds=(2.0, 2.0, 2.0)))
    found = replace(report, timings=timings).quotient("forward", timings[1].method, "bare")
    assert found == (1.0, 0.75, 1.5)


def test_continuous_batching_generates_for_every_prompt():
    base = tiny_model("Llama", "causal-lm")
    base.generation_config.eos_token_id = None
    calls = ThroughputMethods(base, 3).continuous(3, 4)
    for method in ("bare", "stacked LoRA, one adapter", "stacked LoRA, all different"):
        assert [len(tokens) for tokens in calls[method]()] == [4, 4, 4]
    outputs = calls["RoadModel, all different"]()
    assert [len(each.generated_tokens) for each in outputs] == [4, 4, 4]
    assert [len(each.prompt_ids) for each in outputs] == [8, 16, 24]


@needs_compiler
@pytest.mark.compiled
def test_compiled_methods_are_timed():
    settings = recipe(tasks=["compiled forward", "compiled decoding"], new_tokens=3)
    timed = throughput(tiny_model("Llama", "causal-lm"), settings).timings
    assert [(each.task, each.method) for each in timed] == [
        ("compiled forward", "bare"),
        ("compiled forward", "RoadModel"),
        ("compiled forward", "stacked LoRA"),
        ("compiled decoding", "bare"),
        ("compiled decoding", "RoadModel"),
        ("compiled decoding", "stacked LoRA"),
    ]


@needs_compiler
@pytest.mark.compiled
def test_compiled_stacked_lora_is_that_of_eager_code():
    methods, ids = ThroughputMethods(tiny_model("Llama", "causal-lm"), 8), token_batch(8, 5)["input_ids"]
    with torch.no_grad():
        with seeded(0):
            compiled = methods.compiled_forward(ids)["stacked LoRA"]
        with seeded(0):
            stacked = StackedLora(methods.base, methods.sites, 8, RANK)
        with stacked.per_row(8):
            expected = stacked.model(input_ids=ids).logits
        torch.testing.assert_close(compiled().logits, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(compiled().logits, expected, rtol=0, atol=1e-5)
    assert (expected - methods.base(input_ids=ids).logits).abs().max() > 1e-4


@pytest.mark.slow
def test_reports_come_back_from_json_and_draw(report):
    assert ThroughputReport.from_json(report.to_json()) == report
    ax = plots.throughput(report)
    assert [text.get_text() for text in ax.get_legend().get_texts()][:3] == ["bare", "merged", "RoadModel"]
    assert [int(tick.get_text()) for tick in plots.throughput(report, task="rank").get_xticklabels()] == [1, 2]
    with pytest.raises(InputError, match="no timings of generation by length"):
        plots.throughput(replace(report, timings=report.timings[:3]), task="length")
    with pytest.raises(InputError, match="'model' is missing"):
        ThroughputReport.from_json("{}")


def test_methods_compute_the_same_maps():
    base = tiny_model("Llama", "causal-lm")
    methods, ids = ThroughputMethods(base, 2), token_batch(2, 5)["input_ids"]
    with torch.no_grad():
        outputs = {method: call() for method, call in methods.forward(ids).items()}
    rotated = outputs["RoadModel"][1].logits
    torch.testing.assert_close(outputs["pyvene loop"][1].logits, rotated, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs["merged"].logits, rotated, rtol=0, atol=1e-5)
    for other in ("bare", "PEFT RoAd", "PEFT LoRA", "stacked LoRA"):
        assert (outputs[other].logits - rotated).abs().max() > 1e-4
    assert torch.equal(base(input_ids=ids).logits, outputs["bare"].logits)


def test_lora_is_stacked_at_layers_of_gpt2_whose_weights_are_transposed():
    methods, ids = ThroughputMethods(tiny_model("GPT2", "causal-lm"), 2), token_batch(2, 5)["input_ids"]
    with torch.no_grad():
        outputs = {method: methods.forward(ids)[method]().logits for method in ("bare", "stacked LoRA")}
    assert (outputs["stacked LoRA"] - outputs["bare"]).abs().max() > 1e-4


@pytest.mark.parametrize("rows", [1, 16])
def test_rotations_keep_less_for_the_backward_pass_than_peft(rows):
    """Of all adapters of the benchmark a training step has one; LoRA saves the same states in both of its forms."""
    base = tiny_model("Llama", "causal-lm")
    methods = ThroughputMethods(base, rows)
    losses = methods.training(token_batch(2, 16)["input_ids"])
    saved = {method: saved_bytes(loss, base) for method, loss in losses.items()}
    assert saved["bare"] < saved["RoadModel"] < saved["PEFT RoAd"]
    assert saved["stacked LoRA"] == saved["PEFT LoRA"]
    losses["stacked LoRA"]().backward()
    assert all(len(factor.grad) == 1 for pair in methods.lora._pairs for factor in pair)


def test_saved_bytes_are_those_of_states_without_weights():
    linear, states = torch.nn.Linear(4, 3), torch.ones(5, 4)
    scale = torch.nn.Parameter(torch.ones(2, 1))
    frozen = torch.nn.Linear(3, 3).requires_grad_(False)
    assert saved_bytes(lambda: (frozen(linear(states)) * scale[0]).sum(), frozen) == 4 * (5 * 4 + 5 * 3)


def test_every_method_of_a_forward_pass_has_one_adapter_for_all_rows():
    methods, ids = ThroughputMethods(tiny_model("Llama", "causal-lm"), 2), token_batch(1, 5)["input_ids"].repeat(2, 1)
    with torch.no_grad():
        for method, call in methods.forward(ids).items():
            output = call()
            logits = (output[1] if isinstance(output, tuple) else output).logits
            torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5, msg=method)


def test_peak_memory_counts_what_is_alive_at_one_time():
    def call():
        first = torch.ones(1000, 1000)
        del first
        return torch.ones(1000, 1500), torch.ones(1000, 500)

    assert peak_bytes(call, torch.device("cpu")) == 4 * 1000 * 2000
