"""Strengths per row, and per row and task: exact powers of road_1, in forward, in generation and through pyvene's loop."""

from __future__ import annotations

import pytest
import torch

from helpers.models import needs_compiler, random_adapter, tiny_model, token_batch
from helpers.road_models import GREEDY, bank_model, road_model
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.joined_names import BASE
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel
from road_interp.rotation import plane_maps
from road_interp.sites.find import find_sites

CLOSE = {"rtol": 0, "atol": 1e-5}


@torch.no_grad()
def logits(model, batch, **options):
    return model(base=batch, **options)[1].logits


def with_tasks():
    """A model with two tasks on alternating planes."""
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, "all-linear")
    return RoadModel(base, random_adapter(sites), planes=TaskPlanes.split(["label", "closing"], sites, "alternating"))


def test_every_row_has_the_power_of_its_strength():
    model, batch, strengths = road_model(), token_batch(5), [1, 0.5, 0, -1, 2.5]
    found = logits(model, batch, strengths=strengths)
    for row, strength in enumerate(strengths):
        one = {name: values[row : row + 1] for name, values in batch.items()}
        expected = logits(RoadModel(model.model, model.adapter**strength), one)
        torch.testing.assert_close(found[row : row + 1], expected, **CLOSE)
    assert torch.equal(logits(model, batch, strengths=[1] * 5), logits(model, batch))
    with torch.no_grad():
        torch.testing.assert_close(logits(model, batch, strengths=[0] * 5), model.model(**batch).logits, rtol=0, atol=0)


def test_adapters_of_a_bank_have_strengths_too():
    model, batch = bank_model(), token_batch(4)
    names, strengths = ["a", "b", BASE, "a"], [0.5, 2, 3, 0.5]
    found = logits(model, batch, adapter_names=names, strengths=strengths)
    for row, (name, strength) in enumerate(zip(names, strengths, strict=True)):
        one = {key: values[row : row + 1] for key, values in batch.items()}
        adapter = model.bank.template if name == BASE else model.bank[name] ** strength
        torch.testing.assert_close(found[row : row + 1], logits(RoadModel(model.model, adapter), one), **CLOSE)


def test_every_task_has_a_strength_of_its_own():
    model, batch = with_tasks(), token_batch(4)
    tasks = ["label+closing", "label", "closing", "label+closing"]
    strengths = [{"label": 0.5, "closing": 2}, {"label": 0.5, "closing": 2}, {"label": 0.5}, 0.25]
    found = logits(model, batch, tasks=tasks, strengths=strengths)
    powers = [{"label": 0.5, "closing": 2}, {"label": 0.5}, {"closing": 1}, {"label": 0.25, "closing": 0.25}]
    for row, by_task in enumerate(powers):
        adapter = model.adapter.identity_like()
        for task, strength in by_task.items():
            adapter = adapter @ (model.adapter**strength).restrict(model.planes.of(task))
        one = {name: values[row : row + 1] for name, values in batch.items()}
        torch.testing.assert_close(found[row : row + 1], logits(RoadModel(model.model, adapter), one), **CLOSE)
    torch.testing.assert_close(logits(model, batch, strengths=strengths[:1] * 4)[0], found[0], **CLOSE)


def test_joined_adapters_are_multiplied_each_at_its_strength():
    model, batch = bank_model(), token_batch(5)
    names = ["a+b", "b+a", "a", "a+b+c", "a+__base__"]
    strengths = [{"a": 0.5}, {"a": 0.5, "b": 1}, {"a": 2}, 0.5, 1]
    a, b, c = (model.bank[name] for name in "abc")
    found = logits(model, batch, adapter_names=names, strengths=strengths)
    for row, adapter in enumerate((a**0.5 @ b, a**0.5 @ b, a**2, a**0.5 @ b**0.5 @ c**0.5, a)):
        one = {key: values[row : row + 1] for key, values in batch.items()}
        torch.testing.assert_close(found[row : row + 1], logits(RoadModel(model.model, adapter), one), **CLOSE)
    plain = logits(model, batch, adapter_names=names)
    one = {key: values[:1] for key, values in batch.items()}
    torch.testing.assert_close(plain[:1], logits(RoadModel(model.model, a @ b), one), **CLOSE)
    model.bank.replace("b", c)  # the product is of the adapters that the bank holds now
    torch.testing.assert_close(logits(model, one, adapter_names=["a+b"]), logits(RoadModel(model.model, a @ c), one), **CLOSE)
    with pytest.raises(InputError, match="'a\\+b' cannot be the name of an adapter"):  # which would hide the product
        model.bank.add("a+b", b)


def test_adapters_with_tasks_have_strengths_by_either():
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, "all-linear")
    planes = TaskPlanes.split(["label", "closing"], sites, "alternating")
    bank = RoadBank({name: random_adapter(sites, seed=seed) for seed, name in enumerate("ab")})
    model, batch = RoadModel(base, bank, planes=planes), token_batch(3)
    names, strengths = ["a", "a+b", "a"], [{"a": 0.5}, {"b": 2}, {"label": 0.5}]
    found = logits(model, batch, adapter_names=names, strengths=strengths)
    a, b = bank["a"], bank["b"]
    halved = (a**0.5).restrict(planes.of("label")) @ a.restrict(planes.of("closing"))
    for row, adapter in enumerate((a**0.5, a @ b**2, halved)):
        one = {key: values[row : row + 1] for key, values in batch.items()}
        torch.testing.assert_close(found[row : row + 1], logits(RoadModel(base, adapter), one), **CLOSE)


def test_a_name_of_an_adapter_and_a_task_is_ambiguous():
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, "block-output")
    planes = TaskPlanes.split(["a", "b"], sites)
    bank = RoadBank({name: random_adapter(sites, seed=1) for name in "ax"})
    model, batch = RoadModel(base, bank, planes=planes), token_batch(1)
    expected = logits(RoadModel(base, bank["x"].restrict(planes.of("b"))), batch)
    found = logits(model, batch, adapter_names=["x"], strengths=[{"a": 0.0}])
    torch.testing.assert_close(found, expected, **CLOSE)
    with pytest.raises(InputError, match="strengths: 'a' is an adapter of its row and a task: give one of them another name"):
        logits(model, batch, adapter_names=["a"], strengths=[{"a": 0.0}])


def test_one_row_names_adapters_or_tasks():
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, "block-output")
    bank = RoadBank({name: random_adapter(sites, seed=1) for name in "ab"})
    model = RoadModel(base, bank, planes=TaskPlanes.split(["x", "y"], sites))
    with pytest.raises(InputError, match="'a' is an adapter of its row and 'x' is none: name adapters or tasks, not both"):
        logits(model, token_batch(1), adapter_names=["a+b"], strengths=[{"a": 0.5, "x": 0.2}])


def test_joined_adapters_that_cannot_be():
    model, batch = bank_model(), token_batch(2)
    for options, message in (
        ({"adapter_names": ["a+d", "a"]}, "unknown adapter 'd'; the bank holds a, b, c"),
        ({"adapter_names": ["a+b", "a"], "strengths": [{"c": 1}, 1]}, "unknown adapter 'c' in strengths; .* are a, b"),
    ):
        with pytest.raises(InputError, match=message):
            logits(model, batch, **options)
    with pytest.raises(InputError, match=r"'a\+b': adapters joined by '\+' .* road_2 does not: compose them first"):
        logits(bank_model(variant="road_2"), batch, adapter_names=["a+b", "a"])


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_equals_that_of_each_row_alone(beams):
    model, batch, strengths = bank_model(), token_batch(3), [0.5, 1, 2]
    options = {**GREEDY, "num_beams": beams}
    _, found = model.generate(batch, adapter_names=["a", "b", "a"], strengths=strengths, **options)
    for row, (name, strength) in enumerate(zip("aba", strengths, strict=True)):
        one = {key: values[row : row + 1] for key, values in batch.items()}
        _, expected = RoadModel(model.model, model.bank[name] ** strength).generate(one, **options)
        assert torch.equal(found[row], expected[0])


def test_pyvenes_loop_and_attached_use_the_strengths():
    model, batch, strengths = road_model(target_modules="block-output"), token_batch(), [0.5, 1, 2]
    expected = logits(model, batch, strengths=strengths)
    everywhere = {"subspaces": [[list(range(model.sites[0].width // 2))] * 3] * len(model.sites)}
    torch.testing.assert_close(logits(model, batch, strengths=strengths, **everywhere), expected, **CLOSE)
    with torch.no_grad(), model.attached(strengths=strengths) as base:
        torch.testing.assert_close(base(**batch).logits, expected, **CLOSE)


def test_one_entry_stands_for_all_rows_of_an_attached_model():
    model, batch, strengths = bank_model(), token_batch(3), [1.0, 0.5, 2.0]
    expected = logits(model, batch, adapter_names=["a"] * 3, strengths=strengths)
    with model.attached(adapter_names=["a"], strengths=strengths) as base, torch.no_grad():
        assert torch.equal(base(**batch).logits, expected)
    expected = logits(model, batch, adapter_names=["a", "b", "c"], strengths=[0.5] * 3)
    with model.attached(adapter_names=["a", "b", "c"], strengths=[0.5]) as base, torch.no_grad():
        assert torch.equal(base(**batch).logits, expected)


def test_each_distinct_strength_is_computed_once(monkeypatch):
    rows = []

    def counted(maps, exponent):
        rows.append(len(exponent))
        return power(maps, exponent)

    power = plane_maps.power
    monkeypatch.setattr(plane_maps, "power", counted)
    model = bank_model()
    model.generate(token_batch(4), adapter_names=["a", "a", "b", "a"], strengths=[0.5, 0.5, 0.5, 1], **GREEDY)
    assert rows == [3] * len(model.sites)


def test_parameters_get_the_gradient_of_the_power():
    model, batch = road_model(), token_batch(2)
    model(base=batch, strengths=[0.5, 0.5])[1].logits.square().sum().backward()
    (_, first), *_ = model.by_site()
    found = first.theta.grad.clone()
    half = RoadModel(model.model, model.adapter**0.5)
    half(base=batch)[1].logits.square().sum().backward()
    (_, other), *_ = half.by_site()
    torch.testing.assert_close(found, 0.5 * other.theta.grad, rtol=1e-3, atol=1e-4)


@needs_compiler
def test_compiled_strengths_are_equal():
    model, batch = road_model(target_modules="block-output"), token_batch(2)
    expected = logits(model, batch, strengths=[0.5, 2])
    with torch.no_grad(), model.attached(strengths=[0.5, 2]) as base:
        compiled = torch.compile(base, backend="aot_eager")
        torch.testing.assert_close(compiled(**batch, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)


def test_invalid_strengths_are_errors():
    model, tasks = road_model(), with_tasks()
    for wrong, options, message in (
        (model, {"strengths": [1.0]}, "1 strengths for a batch of 3 rows"),
        (model, {"strengths": [1.0, float("nan"), 1.0]}, "nan is not a strength"),
        (model, {"strengths": ["1", 1, 1]}, "'1' is not a strength"),
        (model, {"strengths": 0.5}, r"strengths must be a list, one per row, as in \[0.5\], not 0.5"),
        (model, {"strengths": torch.tensor(0.5)}, r"strengths are numbers, one per row: give strengths.tolist\(\)"),
        (model, {"strengths": {"label": 1}}, "strengths must be a list, one per row"),
        (model, {"strengths": [{"label": 1}, 1, 1]}, "strengths by name need a model with planes or a bank"),
        (tasks, {"strengths": [{"lable": 1}, 1, 1]}, "unknown task 'lable' in strengths; the tasks are label, closing"),
        (road_model(variant="road_2"), {"strengths": [1, 1, 1]}, "exist for road_1 only; this model is road_2"),
    ):
        with pytest.raises(InputError, match=message):
            logits(wrong, token_batch(), **options)


def test_a_strength_whose_power_is_no_finite_number_is_refused():
    model, batch = road_model(), token_batch(2)
    assert logits(model, batch, strengths=[1, 10]).isfinite().all()
    for strength in (1e4, -1e4):
        with pytest.raises(InputError, match="strengths up to 10000 make powers of scales that are not finite"):
            logits(model, batch, strengths=[1, strength])
    with pytest.raises(InputError, match="strengths up to 10000 make powers of scales that are not finite"):
        model.generate(batch, strengths=[1, 1e4], max_new_tokens=2)


def test_the_scales_of_planes_that_are_not_active_may_have_any_power():
    model, batch = with_tasks(), token_batch(2)
    for site in model.sites:
        scales = torch.where(model.planes.owned["label"][site.name], 1.0, 2.0)
        model.interventions[list(model.interventions)[model.sites.index(site)]].alpha.data.copy_(scales)
    assert logits(model, batch, tasks=["label"] * 2, strengths=[500.0, 500.0]).isfinite().all()
    with pytest.raises(InputError, match="strengths up to 500 make powers of scales that are not finite"):
        logits(model, batch, tasks=["label", "closing"], strengths=[500.0, 500.0])
