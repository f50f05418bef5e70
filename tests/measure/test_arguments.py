"""Measuring functions name what they expect, and take an adapter from what has one."""

from __future__ import annotations

import inspect
import types
from types import SimpleNamespace

import pytest
import torch

from helpers.models import random_adapter, tiny_model
from road_interp import measure
from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel
from road_interp.sites.find import find_sites


@pytest.fixture
def model():
    base = tiny_model("Bert")
    return RoadModel(base, random_adapter(find_sites(base, "all-linear")))


def functions():
    every = (getattr(measure, name) for name in measure.__all__)
    return [each for each in every if isinstance(each, types.FunctionType)]


@pytest.mark.parametrize("function", functions(), ids=lambda function: function.__name__)
def test_another_first_argument_is_refused(function):
    required = [each for each in inspect.signature(function).parameters.values() if each.default is each.empty]
    positional = [None for each in required[1:] if each.kind is each.POSITIONAL_OR_KEYWORD]
    named = {each.name: None for each in required if each.kind is each.KEYWORD_ONLY}
    for wrong in (object(), 0.5):
        with pytest.raises(InputError, match=rf"measure.{function.__name__}\b.*: give |is not an adapter: give "):
            function(wrong, *positional, **named)


def batches():
    return [{"input_ids": torch.tensor([[3, 4, 5]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}]


def test_angles_are_those_of_an_adapter_a_run_or_a_model(model):
    found = measure.angles(model.adapter)
    assert measure.angles(model) == found
    assert measure.angles(SimpleNamespace(adapter=model.adapter)) == found


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (measure.angles, (3,), "an object of type int is not an adapter: give a RoadAdapter, its folder, a Run or a RoadModel"),
        (measure.query_key, (3,), "measure.query_key needs AngleReport, not int: give measure.angles"),
        (measure.seed_structure, ([1, 2],), "measure.seed_structure needs AngleReport, not int"),
        (measure.seed_structure, (5,), "measure.seed_structure needs a list of AngleReport, not int: give a list of"),
        (measure.text_batches, ("abc", None, 8), "measure.text_batches needs a list of str, not str: give a list of texts"),
        (measure.joint_training, ("gpt2",), "measure.joint_training needs PreTrainedModel, not str: give .*load_model"),
        (measure.read_features, ("gpt2", [], "first"), "measure.read_features needs PreTrainedModel, not str"),
        (measure.throughput, ("gpt2", None), "measure.throughput needs PreTrainedModel, not str"),
        (measure.needs_magnitudes, (3,), "measure.needs_magnitudes needs AblationReport, not int"),
        (measure.bank_cost, (199,), "at least 200 adapters, not of 199"),
        (measure.fails_to_compose, (3,), "needs CompositionReport or MultiTaskAccuracyReport, not int"),
        (measure.hurts_others, (3, "a", "b"), "measure.hurts_others needs InterferenceReport, not int"),
        (measure.drift, ("a", "b", batches()), "measure.drift needs PreTrainedModel, not str"),
    ],
)
def test_another_argument_is_refused(function, arguments, message):
    with pytest.raises(InputError, match=message):
        function(*arguments)


def test_arguments_that_need_more(model):
    with pytest.raises(InputError, match="'scorer' must be a function, not int: give make_scorer"):
        measure.ablation(model, 3, model="m", seed=0)
    with pytest.raises(InputError, match=r"the scorer has no 'task': give make_scorer\(run\)"):
        measure.ablation(model, lambda adapter: [True], model="m", seed=0)
    kept = {"task": "t", "metric": "accuracy", "refitted": None, "__call__": lambda self, adapter: [True]}
    scorer = type("Scorer", (), kept)()
    with pytest.raises(InputError, match=r"by must be a list of names, as in \['layer'\]"):
        measure.ablation(model, scorer, model="m", seed=0, by="layer")
    with pytest.raises(InputError, match=r"by must be a list of names, as in \['layer'\], not \[\['layer'\]\]"):
        measure.ablation(model, scorer, model="m", seed=0, by=[["layer"]])
    with pytest.raises(InputError, match="measure.interference needs Mapping, not list: give a dict of adapters by name"):
        measure.interference([], {}, model="m", seed=0)
    with pytest.raises(InputError, match="'generate' must be a function"):
        measure.composition(3, None, {}, [], [], None)
    with pytest.raises(InputError, match="measure.composition needs MethodLabel, not str: give measure.MethodLabel"):
        measure.composition(lambda prompts, active: [], None, {}, ["review"], ["prompt"], "road_1")
    with pytest.raises(InputError, match=r"by must be a list of names, as in \['layer'\], not None"):
        measure.ablation(model, scorer, model="m", seed=0, by=None)
    adapters = {"a": model, "b": model}
    with pytest.raises(InputError, match="measure.interference needs Mapping, not NoneType: give a dict of scoring functions"):
        measure.interference(adapters, None, model="m", seed=0)
    with pytest.raises(InputError, match=r"'scores\['a'\]' must be a function, not int: give a function of an adapter"):
        measure.interference(adapters, {"a": 3}, model="m", seed=0)
    with pytest.raises(InputError, match="measure.query_key: key_heads must be a whole number of at least 1, not 0"):
        measure.query_key(measure.angles(model), key_heads=0)


def test_drift_takes_the_models_names_and_no_plain_texts(model):
    report = measure.drift(model.model, model, 2 * batches())
    assert (report.base, report.tuned) == ("BertModel", "BertModel, with rotations")
    with pytest.raises(InputError, match="measure.text_batches: size must be a whole number of at least 1, not 0"):
        measure.text_batches(["a"], lambda *given, **options: {}, 8, 0)
    with pytest.raises(InputError, match=r"not str: give measure.text_batches\(texts, tokenizer, max_length\)"):
        measure.drift(model.model, model, ["a text"])
    with pytest.raises(InputError, match="measure.read_features needs batches"):
        measure.read_features(model, ["a text"], "first")
    (batch,) = batches()
    for wrong, message in (
        (None, "measure.{} needs a list of batches, not NoneType"),
        (batch, "measure.{} needs a list of batches, not dict"),
        ([{**batch, "input_ids": batch["input_ids"].tolist()}], "measure.{}: 'input_ids' of a batch is a list, not a tensor"),
        ([{**batch, "attention_mask": batch["attention_mask"][0]}], "measure.{}: the attention_mask has shape .*, not that of"),
    ):
        with pytest.raises(InputError, match=message.format("drift")):
            measure.drift(model.model, model, wrong)
        with pytest.raises(InputError, match=message.format("read_features")):
            measure.read_features(model, wrong, "first")
