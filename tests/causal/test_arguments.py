"""Functions of `causal` name what they expect, before any forward pass."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import is_dataclass, replace

import pytest
import torch

from helpers.models import random_adapter, tiny_model
from road_interp import causal
from road_interp.causal.counterfactuals import Splits
from road_interp.causal.stored_keys import fills_cache
from road_interp.causal.trained_values import effective_parameters
from road_interp.errors import InputError
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.models.low_rank_interchange import LowRankInterchangeIntervention

WITHOUT_CHECKS = {"full_swap", "no_swap", "no_variable", "number_and_gender", "whole_state"}  # of tensors, and without arguments


def functions():
    """All that is called with arguments: no values."""
    every = [getattr(causal, name) for name in causal.__all__ if name not in WITHOUT_CHECKS]
    return [each for each in every if not is_dataclass(each) and not hasattr(each, "_fields")]


@pytest.fixture(scope="module")
def runs(taught):
    return causal.InterchangeRuns(*taught, 0, "name")


@pytest.mark.parametrize("function", functions(), ids=lambda function: function.__name__)
def test_another_first_argument_is_refused(function):
    required = [each for each in inspect.signature(function).parameters.values() if each.default is each.empty]
    positional = [each for each in required if each.kind is each.POSITIONAL_OR_KEYWORD]
    by_name = {each.name: None for each in required if each.kind is each.KEYWORD_ONLY}
    for wrong, name in ((object(), "object"), (5.0, "float")):
        other = rf" needs .*not {name}: give |: .* must be a whole number of at least 1, not "
        with pytest.raises(InputError, match=rf"causal.{function.__name__}(?:{other})"):
            function(wrong, *[None] * (len(positional) - 1), **by_name)


def test_a_model_that_answers_in_a_text_of_its_own(taught):
    with pytest.raises(InputError, match="InterchangeRuns needs .*T5ForConditionalGeneration is an encoder and decoder"):
        causal.InterchangeRuns(tiny_model("T5", "seq2seq"), taught[1], 0, "name")


def test_an_interchange_of_another_width_or_kind(runs):
    adapter = random_adapter((runs.site,))
    for function in (causal.interchange_accuracy, causal.train_interchange):
        name = f"causal.{function.__name__}"
        for wrong, message in (
            (adapter, f"{name}: 'interchange' must be a function, not RoadAdapter: give .*RoadInterchangeIntervention"),
            (LowRankInterchangeIntervention, rf"{name} .* not a class: give an instance, Road.*\(32\)"),
            (RoadInterchangeIntervention(16), f"{name}: the interchange is made for states of width 16, these have 32"),
            (lambda base, source: base[:, :3], rf"{name}: the interchange returns .* \(1, 3\) for states of shape \(1, 32\)"),
            (lambda base: base, f"{name}: the interchange cannot be applied"),
            (lambda base, source: None, f"{name}: the interchange returns NoneType"),
        ):
            with pytest.raises(InputError, match=message):
                function(runs, wrong, "x") if function is causal.interchange_accuracy else function(runs, wrong)


def test_what_cannot_be_trained(runs):
    rotation = RoadInterchangeIntervention(32)
    for steps in (0, -1, 2.5, True):
        with pytest.raises(InputError, match=f"steps must be a whole number of at least 1, not {steps}"):
            causal.train_interchange(runs, rotation, steps)
    for rate in (-1, float("nan"), "fast", True):
        with pytest.raises(InputError, match=f"learning_rate must be a finite number of at least 0, not {rate!r}"):
            causal.train_interchange(runs, rotation, 1, rate)
    with pytest.raises(InputError, match="the training needs Module, not function"):
        causal.train_interchange(runs, causal.full_swap)
    with pytest.raises(InputError, match="a RoadInterchangeIntervention without trainable parameters"):
        causal.train_interchange(runs, rotation.requires_grad_(False))


def test_a_scan_is_given_what_makes_an_interchange(taught):
    model, pairs = taught
    splits = Splits(pairs, pairs, replace(pairs, base=tuple(f"{text} again" for text in pairs.base)))
    for make, training, message in (
        (causal.full_swap, {}, "make is called with a width and returns an interchange; for one that exists and is not to"),
        (lambda width: causal.full_swap, {"step": 3}, "train_interchange has no argument 'step'; did you mean 'steps'?"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            causal.scan(model, splits, [0], ["name"], make, "x", **training)


def test_pairs_of_another_tokeniser_are_refused(taught):
    model, pairs = taught
    vocabulary = model.config.vocab_size
    other = replace(pairs, source_ids=(*pairs.source_ids[:-1], (vocabulary,)))
    with pytest.raises(InputError, match=f"the texts contain token {vocabulary}, and .* has {vocabulary} tokens: encode them"):
        causal.InterchangeRuns(model, other, 0, "name")


def test_the_tokeniser_is_the_second_argument(tokenizer, tmp_path):
    with pytest.raises(InputError, match="causal.encode_pairs needs a list of Pair, not "):
        causal.encode_pairs(tokenizer, "pairs.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="empty.jsonl holds no pairs"):
        causal.encode_pairs(tmp_path / "empty.jsonl", tokenizer)


def test_pairs_that_are_not_divided(taught):
    model, pairs = taught
    for function, layers in ((causal.depth_by_rows, 0), (causal.score_methods, [0])):
        with pytest.raises(InputError, match=f"^causal.{function.__name__} needs Splits.*not CounterfactualPairs"):
            function(model, pairs, layers, "name", seed=0, steps=1)
    splits = Splits(pairs, pairs, pairs)
    for layers, spans, message in (
        (0, ["name"], r"scan needs a list of int, not int: give the numbers of blocks, as in \[0, 1\]"),
        ([0], "name", "scan needs a list of str, not str: give spans of the pairs, as in "),
    ):
        with pytest.raises(InputError, match=message):
            causal.scan(model, splits, layers, spans, lambda width: causal.full_swap, "full swap")


def test_pairs_are_read_from_a_file(tokenizer, tmp_path):
    pair = causal.Pair("the man cried because", "the woman cried because", " he", " she")
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(pair._asdict()))
    assert (
        causal.encode_pairs(file, tokenizer)
        == causal.encode_pairs(str(file), tokenizer)
        == causal.encode_pairs([pair], tokenizer)
    )
    for wrong in ([tuple(pair)], "gone.jsonl", [5]):
        with pytest.raises(InputError, match="encode_pairs needs Pair, not|gone.jsonl does not exist"):
            causal.encode_pairs(wrong, tokenizer)


def test_variables_and_their_pairs(taught, tokenizer):
    task = causal.number_and_gender()
    with pytest.raises(InputError, match="draw_variable_pairs needs a list of Question, not str"):
        causal.draw_variable_pairs(task, "train", tokenizer, "train", 4)
    with pytest.raises(InputError, match="unknown split 'validation'; use train, val, test"):
        causal.draw_variable_pairs(task, [], tokenizer, "validation", 4)
    with pytest.raises(InputError, match="causal.draw_variable_pairs: count must be a whole number of at least 1, not 0"):
        causal.draw_variable_pairs(task, [], tokenizer, "train", 0)
    with pytest.raises(InputError, match="answered_rightly needs EntityTask, not str"):
        causal.answered_rightly(taught[0], tokenizer, "cities", [])
    with pytest.raises(InputError, match="VariableRuns needs VariablePairs, not CounterfactualPairs"):
        causal.VariableRuns(*taught, 0, ["number"])
    with pytest.raises(InputError, match="load_ravel needs a list of str, not str: give their names"):
        causal.load_ravel("folder", "city", "Country")
    assert torch.is_grad_enabled()


def test_running_out_of_memory_is_no_property_of_a_model_or_an_interchange(runs):
    class Full(torch.nn.Module):
        device = "cpu"

        def __init__(self):
            super().__init__()
            self.value = torch.nn.Parameter(torch.ones(32))

        def forward(self, *args, past_key_values=None, **options):
            raise torch.OutOfMemoryError("out of memory")

    for use in (
        lambda: fills_cache(Full(), [1, 2]),
        lambda: effective_parameters(Full(), 32),
        lambda: causal.interchange_accuracy(runs, Full(), "full"),
    ):
        with pytest.raises(torch.OutOfMemoryError):
            use()
