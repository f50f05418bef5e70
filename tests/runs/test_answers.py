"""The answers of a run to its test texts, and the states that it rotates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Qwen2MoeConfig, Qwen2MoeModel, XLNetConfig, XLNetModel

from helpers.models import random_adapter, tiny_model
from helpers.recipes import recipe_for
from road_interp.data.labelled import load_labelled
from road_interp.measure.answers import Answers, in_turn
from road_interp.models.loading import load_tokenizer
from road_interp.models.road_model import RoadModel
from road_interp.rotation.plane_maps import apply
from road_interp.runs.answers import answers_of, states_before
from road_interp.sites.find import find_sites
from road_interp.training.api import train


def test_answers_are_those_of_the_scores(finished):
    steps = []
    answers = answers_of(finished, lambda *step: steps.append(step))
    passes = [(f"test texts {which} the rotations", start, 40) for which in ("with", "without") for start in (0, 32)]
    assert steps == [(f"loading model and data of {finished.folder}",), *passes]
    assert (answers.labels == answers.rotated).mean() == finished.metrics["test"]["accuracy"]
    assert answers.confusion.sum() == len(answers.texts) == 40
    assert np.trace(answers.confusion) == (answers.labels == answers.rotated).sum()
    assert answers.confusion.sum(1).tolist() == np.bincount(answers.labels).tolist()
    batch = load_tokenizer(finished.recipe.model)(list(answers.texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        unrotated = finished.load_model().model(**batch).logits.argmax(1)
    assert answers.without.tolist() == unrotated.tolist()
    assert (answers.labels == answers.without).mean() < 0.8


def test_what_became_right_comes_first_of_what_changed():
    labels, rotated, without = (np.array(row) for row in ([0, 0, 1, 1, 0], [1, 0, 1, 1, 0], [0, 1, 0, 1, 0]))
    answers = Answers(tuple("abcde"), ("no", "yes"), labels, rotated, without, (), {})
    assert answers.changed == [1, 2, 0]
    assert answers.confusion.tolist() == [[2, 1], [0, 2]]


def test_classes_take_turns_where_data_are_sorted_by_label():
    labels = np.array([0] * 4 + [1] * 3 + [2])
    assert in_turn(range(8), labels) == [0, 4, 7, 1, 5, 2, 6, 3]
    assert in_turn([1, 2, 6], labels) == [1, 6, 2]
    answers = Answers(tuple("abcdefgh"), ("no", "yes", "so"), labels, labels, 2 - labels, (), {})
    assert answers.changed == [0, 7, 1, 2, 3]


@pytest.mark.training
def test_states_of_every_class_are_read(workplace, tmp_path):
    rows = sorted((workplace / "data.csv").read_text().splitlines()[1:], key=lambda line: line.split(",")[1])
    (tmp_path / "sorted.csv").write_text("\n".join([(workplace / "data.csv").read_text().splitlines()[0], *rows]) + "\n")
    overrides = (f"data.id={tmp_path / 'sorted.csv'}", "data.test_size=100", "data.validation_size=20", "training.max_steps=1")
    answers = answers_of(train(recipe_for(workplace, *overrides), tmp_path / "run", progress=False))
    assert len(answers.read) == 60 < len(answers.texts)
    assert set(answers.labels[list(answers.read)]) == {0, 1}
    assert abs(answers.labels[list(answers.read)].mean() - 0.5) < 0.1


@pytest.mark.parametrize("positions", ["all", "last"])
def test_states_are_those_in_front_of_the_rotations(finished, positions):
    """[CLS], whose state is read, is not rotated where positions are "last"."""
    finished = replace(finished, adapter=replace(finished.adapter, positions=positions))
    answers = answers_of(finished)
    tokenizer = load_tokenizer(finished.recipe.model)
    texts = load_labelled(finished.recipe.data).test["text"][:]
    texts = [texts[row] for row in answers.read]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    behind = {}
    with finished.load_model().attached() as model, torch.no_grad():
        for site in finished.adapter.sites:
            module = model.get_submodule(site.module)
            module.register_forward_hook(lambda module, args, output, name=site.name: behind.update({name: output}))
        model(**batch)
    for site in finished.adapter.sites:
        states = torch.from_numpy(answers.states[site.name])
        before = torch.view_as_real(states).flatten(-2)
        rotated = apply(finished.adapter.plane_maps(site), before, 2) if positions == "all" else before
        torch.testing.assert_close(rotated, behind[site.name][:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "where"), [("Bert", "pooler.dense"), ("XLNet", "ff.layer_1"), ("Qwen2Moe", "gate_proj")])
def test_states_are_found_behind_a_pooler_and_where_tokens_come_first(workplace, kind, where):
    """XLNet's blocks return (tokens, rows, width), shared experts (rows times tokens, width)."""
    tokenizer, texts = load_tokenizer(workplace / "model"), ["fine w1", "poor " * 7, "dull w3 w4", "w2"]
    sizes = {"vocab_size": len(tokenizer), "num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 32}
    experts = {"num_experts": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 32, "num_key_value_heads": 2}
    torch.manual_seed(0)
    if kind == "Qwen2Moe":
        base = Qwen2MoeModel(Qwen2MoeConfig(**sizes, **experts, num_experts_per_tok=1)).eval()
    elif kind == "XLNet":
        base = XLNetModel(XLNetConfig(vocab_size=len(tokenizer), d_model=32, n_layer=1, n_head=2, d_inner=32)).eval()
    else:
        base = tiny_model(kind, vocab_size=len(tokenizer))
    model = RoadModel(base, random_adapter(find_sites(base, where)))
    (site,) = model.sites
    with model.attached() as rotated, torch.no_grad():
        states = states_before(rotated, model.adapter, tokenizer, texts, 16)[site.name]
        behind = []
        rotated.get_submodule(site.module).register_forward_hook(lambda module, args, output: behind.append(output))
        for text in texts:
            rotated(**tokenizer([text], return_tensors="pt"))
    first = torch.stack([each.reshape(-1, site.width)[0] for each in behind])
    found = apply(model.adapter.plane_maps(site), torch.view_as_real(torch.from_numpy(states)).flatten(-2), 2)
    torch.testing.assert_close(found, first, rtol=1e-4, atol=1e-4)


def test_a_run_without_classes_has_none(workplace):
    overrides = ["data.problem_type=regression", "data.label=score", "training.max_steps=1"]
    assert answers_of(train(recipe_for(workplace, *overrides), workplace / "numbers", progress=False)) is None
