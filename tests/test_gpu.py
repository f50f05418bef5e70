"""What CPUs cannot tell: the same properties on a CUDA device."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from transformers import CompileConfig, GenerationConfig

from helpers.models import random_adapter, tiny_model, token_batch
from helpers.recipes import recipe_for
from helpers.road_models import GREEDY, bank_model, road_model
from road_interp import measure
from road_interp.measure.throughput import run_throughput_recipe
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.models.road_model import RoadModel
from road_interp.recipes.schema import ModelRecipe, ThroughputRecipe
from road_interp.runs.run import Run
from road_interp.sites.find import find_sites
from road_interp.training.api import evaluate, train

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")]


def on_device(model, dtype=torch.float32):
    model.model.to(DEVICE, dtype)
    return model.to(DEVICE)


def batch_there(rows=3):
    return {name: values.to(DEVICE) for name, values in token_batch(rows).items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("where", ["all-linear", "block-output"])
def test_every_row_has_its_own_adapter(dtype, tolerance, where):
    model, batch = on_device(bank_model(target_modules=where), dtype), batch_there()
    with torch.no_grad():
        together = model(base=batch, adapter_names=["a", "b", "__base__"])[1].logits
        for row, name in enumerate(["a", "b", "__base__"]):
            alone = model(base={key: values[row : row + 1] for key, values in batch.items()}, adapter_names=[name])[1].logits
            torch.testing.assert_close(together[row], alone[0], rtol=0, atol=tolerance)


def test_as_on_the_cpu_and_as_merged():
    model, batch = road_model(), token_batch()
    with torch.no_grad():
        expected = model(base=batch)[1].logits
        found = on_device(model)(base=batch_there())[1].logits
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(model.merge()(**batch_there()).logits, found, rtol=0, atol=1e-4)


def test_it_generates_as_merged():
    model = on_device(road_model())
    _, hooked = model.generate(batch_there(2), **GREEDY)
    assert torch.equal(model.merge().generate(**batch_there(2), **GREEDY), hooked)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_compiled_by_inductor(dtype, tolerance):
    model, inputs = on_device(road_model(), dtype), {**batch_there(), "use_cache": False}
    expected = model(base=inputs)[1].logits
    torch._dynamo.reset()
    with model.attached() as base, torch.no_grad():
        compiled = torch.compile(base, fullgraph=True)
        torch.testing.assert_close(compiled(**inputs).logits, expected, rtol=0, atol=tolerance)


@torch.no_grad()
def test_every_row_has_its_own_strength_and_several_adapters():
    model, batch = on_device(bank_model()), batch_there()
    names, strengths = ["a+b", "a", "b+c"], [{"a": 0.5}, 2, 1]
    found = model(base=batch, adapter_names=names, strengths=strengths)[1].logits
    for row, adapter in enumerate(
        (model.bank["a"] ** 0.5 @ model.bank["b"], model.bank["a"] ** 2, model.bank["b"] @ model.bank["c"])
    ):
        alone = RoadModel(model.model, adapter)(base={key: values[row : row + 1] for key, values in batch.items()})[1].logits
        torch.testing.assert_close(found[row], alone[0], rtol=0, atol=1e-5)


def test_continuous_batching_generates_as_alone():
    model, prompts = on_device(bank_model()), [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    settings = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    rows = {"adapter_names": ["a", "b", "a+c"], "strengths": [1, 0.5, {"a": 2}]}
    found = [each.generated_tokens for each in model.generate_batch(prompts, generation_config=settings, **rows)]
    for number, prompt in enumerate(prompts):
        options = {name: values[number : number + 1] for name, values in rows.items()}
        _, ids = model.generate({"input_ids": torch.tensor([prompt], device=DEVICE)}, generation_config=settings, **options)
        assert found[number] == ids[0, len(prompt) :].tolist()


@torch.no_grad()
def test_decoding_in_cuda_graphs_compiles_nothing_for_other_adapters():
    model, batch = on_device(bank_model()), batch_there()
    settings = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    config = CompileConfig(fullgraph=True, dynamic=False, mode="reduce-overhead" if DEVICE == "cuda" else "default")
    config._compile_all_devices = True
    static = GenerationConfig(**settings, cache_implementation="static", compile_config=config)
    torch._dynamo.reset()
    for number, names in enumerate((["a", "b", "c"], ["b", "b", "a"], ["c", "a", "__base__"])):
        with torch.compiler.set_stance("fail_on_recompile") if number else nullcontext():
            _, found = model.generate(batch, adapter_names=names, generation_config=static)
        assert torch.equal(found, model.generate(batch, adapter_names=names, **settings)[1])
    torch._dynamo.reset()


def test_adapters_train_together_as_apart():
    model, batch = on_device(bank_model()), batch_there()
    parameters = model.bank.trainable()

    def gradients(names, rows):
        inputs = {key: values[rows] for key, values in batch.items()}
        logits = model(base=inputs, adapter_names=names)[1].logits
        logits.square().sum().backward()
        found = {name: parameters[name][0].grad.clone() for name in names}
        for name in names:
            parameters[name][0].grad = parameters[name][1].grad = None
        return found

    together = gradients(["a", "b", "c"], slice(None))
    for row, name in enumerate("abc"):
        torch.testing.assert_close(gradients([name], slice(row, row + 1))[name], together[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_learns_and_comes_back(workplace, tmp_path, precision):
    run = train(recipe_for(workplace, f"training.precision={precision}"), tmp_path / "run", device=DEVICE, progress=False)
    frozen = run.metrics["frozen backbone, trained head"]["test"]["accuracy"]
    assert run.metrics["test"]["accuracy"] > frozen
    assert evaluate(Run.load(tmp_path / "run"), device=DEVICE)["accuracy"] == run.metrics["test"]["accuracy"]


def test_states_move_as_far_as_on_the_cpu():
    base = tiny_model("Bert")
    turned = RoadModel(copy.deepcopy(base), random_adapter(find_sites(base, "fc1")))
    reports = []
    for place in ("cpu", DEVICE):
        turned.model.to(place)
        batches = [{name: values.to(place) for name, values in token_batch(8).items()}]
        reports.append(measure.drift(base.to(place), turned.to(place), batches, base_name="base", tuned_name="turned"))
    for layer in (0, 1):
        first, second = (report.place(layer, before_norm=True) for report in reports)
        assert second.angle == pytest.approx(first.angle, abs=1e-2)  # degrees
        assert second.dM == pytest.approx(first.dM, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_equal_source_changes_no_bit(dtype):
    states = torch.randn(4, 5, 32, device=DEVICE, dtype=dtype)
    stack = RoadInterchangeIntervention(32, depth=5, rows=[0], spread=torch.pi).to(DEVICE)
    assert torch.equal(stack(states, states.clone()), states)
    assert not torch.equal(stack(states, states.flip(0)), states)


def test_the_benchmark_counts_the_devices_bytes(tmp_path):
    tiny_model("Llama", "causal-lm").save_pretrained(tmp_path)
    recipe = ThroughputRecipe(ModelRecipe(str(tmp_path)), rounds=1, requests=[2], new_tokens=2, methods=["bare", "RoadModel"])
    report = run_throughput_recipe(recipe, DEVICE)
    assert report.device == torch.cuda.get_device_name()
    assert all(timing.peak_bytes > 0 for timing in report.timings)
