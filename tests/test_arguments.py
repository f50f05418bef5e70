"""Values of a wrong type are refused with what to give; text is taken where a folder is natural."""

from __future__ import annotations

import re

import pytest
import torch

import road_interp as ri
from helpers.models import random_adapter, tiny_model
from road_interp.errors import InputError
from road_interp.sites.site import Site

SITES = (Site("a", 8, 0, "a"), Site("b", 16, 0, "b"))
ADAPTER, OTHER = random_adapter(SITES), random_adapter(SITES, seed=1)


class Unpadded:
    """A tokeniser without a padding token, as GPT-2's."""

    pad_token = None
    __call__ = dict


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ri.find_sites("gpt2", "mlp"), "find_sites needs Module, not str: give a model, such as load_model('gpt2')[0]"),
        (lambda: ri.find_sites(tiny_model("Bert"), None), "find_sites needs target_modules, not None: give all-linear"),
        (lambda: ri.RoadAdapter(SITES[0], {}, {}), "RoadAdapter needs a list of Site, not Site: give the sites of find_sites"),
        (lambda: ri.RoadAdapter(SITES, 0.3, {}), "RoadAdapter, theta needs Mapping, not float: give a tensor per site"),
        (lambda: ADAPTER ** "half", "a power of an adapter needs a number, such as 0.5, not str"),
        (lambda: ri.RoadModel("gpt2", ADAPTER), "RoadModel needs Module, not str: give a transformers model"),
        (lambda: ri.RoadAdapter.identity(tiny_model("Bert")), "RoadAdapter.identity needs a list of Site, not BertModel: give"),
        (lambda: ri.RoadAdapter.identity("mlp"), "needs a list of Site, not str: give the sites of find_sites(model, 'mlp')"),
        (lambda: ADAPTER @ torch.eye(2), "an object of type Tensor is not an adapter: give a RoadAdapter, its folder"),
        (lambda: ADAPTER.distance(3), "an object of type int is not an adapter"),
        (lambda: ADAPTER.difference(None), "an object of type NoneType is not an adapter"),
        (lambda: ri.RoadAdapter.mean("folder"), "the mean is of a list of adapters, not str"),
        (lambda: ri.RoadAdapter.mean(ri.RoadBank({"a": ADAPTER})), "not RoadBank; for a bank, give bank.values()"),
        (lambda: ri.RoadAdapter.mean([3]), "an object of type int is not an adapter"),
        (lambda: ADAPTER.angles(0), "0 is not a site: give a Site or its name, such as 'a'"),
        (lambda: ri.RoadAdapter.load(5), "an object of type int is not a folder: give its path"),
        (lambda: ri.Run.load(5), "an object of type int is not a folder: give its path"),
        (lambda: ri.make_scorer(5), "an object of type int is not a folder: give its path"),
        (lambda: ri.VariableCoordinates(["a", "b"]), "VariableCoordinates needs Mapping, not list: give the number of coord"),
        (lambda: ri.train(5), "train needs ClassificationRecipe or MultiTaskClassificationRecipe or"),
        (
            lambda: ri.load_recipe(5),
            "load_recipe needs str or PathLike, not int: give a YAML file, the name of a built-in recipe",
        ),
        (lambda: ri.load_model(5), "load_model needs ModelRecipe, not int: give the id of a model, its folder, or"),
        (lambda: ri.load_tokenizer(5), "load_tokenizer needs ModelRecipe, not int: give the id of a model"),
        (
            lambda: ri.load_labelled("films.csv"),
            "load_labelled needs DataRecipe, not str: give the data of a recipe",
        ),
        (lambda: ri.format_prompts("x", ["a"], None), "format_prompts needs MultiTaskGenerationRecipe, not str: give a recipe"),
        (lambda: ri.RoadModel.load("folder", "gpt2"), "RoadModel.load needs Module, not str: give a transformers model"),
        (
            lambda: ri.measure.text_batches(["a"], print, 0),
            "measure.text_batches: max_length must be a whole number of at least 1, not 0",
        ),
        (
            lambda: ri.measure.text_batches(["a"], "gpt2", 8),
            "measure.text_batches: 'tokenizer' must be a function, not str",
        ),
        (
            lambda: ri.measure.text_batches(["a"], Unpadded(), 8),
            "the tokeniser has no padding token: load_tokenizer(id) gives it one",
        ),
        (
            lambda: ri.measure.AblationReport.over_seeds([ADAPTER]),
            "AblationReport.over_seeds needs AblationReport, not Road",
        ),
        (lambda: ri.measure.CompositionReport.over_seeds("x"), "CompositionReport.over_seeds needs a list of CompositionReport"),
        (lambda: ri.load_model("x", "causal_lm"), "unknown auto_class 'causal_lm'; use backbone, causal-lm, classifier"),
    ],
)
def test_a_wrong_type_is_refused_with_what_to_give(call, message):
    with pytest.raises(InputError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    "report",
    [
        ri.measure.AblationReport,
        ri.measure.CapacityReport,
        ri.measure.CompositionReport,
        ri.measure.DisentangleReport,
        ri.measure.InterferenceReport,
        ri.measure.MultiTaskAccuracyReport,
        ri.causal.DepthReport,
    ],
)
def test_no_reports_cannot_be_combined(report):
    with pytest.raises(InputError, match=f"{report.__name__}.over_seeds needs one report at least"):
        report.over_seeds([])


def test_a_file_is_no_folder_of_an_adapter(tmp_path):
    ADAPTER.save(tmp_path / "saved")
    with pytest.raises(InputError, match=r"this is a file; give the folder with adapter.json\)$"):
        ri.RoadAdapter.load(tmp_path / "saved" / "adapter.json")
    with pytest.raises(InputError, match="adapter.json' is a file, not a folder$"):
        ADAPTER.save(tmp_path / "saved" / "adapter.json")
    base = tiny_model("Llama", "causal-lm")
    ri.RoadModel(base, random_adapter(ri.find_sites(base, "mlp"))).save(tmp_path / "model")
    with pytest.raises(InputError, match=r"adapter.json is missing; RoadModel.load reads this folder\)$"):
        ri.RoadAdapter.load(tmp_path / "model")


def test_a_folder_is_as_good_as_an_adapter(tmp_path):
    OTHER.save(tmp_path)
    assert (ADAPTER @ str(tmp_path)).distance(ADAPTER @ OTHER) == 0
    assert ADAPTER.distance(tmp_path) == ADAPTER.distance(OTHER) > 0
    assert ADAPTER.difference(tmp_path).distance(ADAPTER.difference(OTHER)) == 0
    assert ri.RoadAdapter.mean([ADAPTER, tmp_path]).distance(ri.RoadAdapter.mean([ADAPTER, OTHER])) == 0
    assert ADAPTER.with_sites_of(tmp_path, lambda site: True).distance(OTHER) < 1e-6


def test_a_model_is_loaded_from_a_path(tmp_path):
    tiny_model("Bert").save_pretrained(tmp_path)
    assert type(ri.load_model(tmp_path)[0]).__name__ == "BertModel"
