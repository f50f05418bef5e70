"""Reading states: block outputs and inputs of final normalisations, with and without rotations."""

from __future__ import annotations

import pytest
import torch
from tokenizers import models, processors

from helpers.models import padded_batch, random_adapter, tiny_model, token_batch
from helpers.taught import word_tokenizer
from road_interp import RoadAdapter, RoadModel, find_sites
from road_interp.errors import InputError
from road_interp.models.hidden_states import (
    evaluation_mode,
    find_read_points,
    read_states,
    select_states,
    text_token,
    unwrap_model,
)


@pytest.mark.parametrize("architecture", ["Bert", "Roberta", "DistilBert", "Electra"])
def test_blocks_that_end_in_a_norm_have_a_read_point_before_it(architecture):
    model, batch = tiny_model(architecture), token_batch()
    read_points = find_read_points(model, batch)
    assert [(point.layer, point.before_norm) for point in read_points] == [(0, True), (0, False), (1, True), (1, False)]
    states = read_states(model, read_points, batch)
    hidden = model(**batch, output_hidden_states=True).hidden_states
    for before, after, expected in ((*states[:2], hidden[1]), (*states[2:], hidden[2])):
        assert torch.equal(after, expected)
        assert torch.allclose(torch.nn.functional.layer_norm(before, (32,), eps=1e-12), after, atol=1e-4)


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Gemma2"])
def test_pre_norm_blocks_have_no_read_point_before_a_norm(architecture):
    read_points = find_read_points(tiny_model(architecture), token_batch())
    assert [point.name for point in read_points] == ["block 0", "block 1"]


def test_states_include_attached_rotations():
    base, batch = tiny_model("Bert"), token_batch()
    road = RoadModel(base, random_adapter(find_sites(base, "block-output")))
    read_points = find_read_points(base, batch)
    with evaluation_mode(road) as rotated:
        states = read_states(rotated, read_points, batch)
    bare = read_states(base, read_points, batch)
    assert torch.equal(states[0], bare[0])  # the first rotation acts after the first norm
    assert not torch.allclose(states[1], bare[1], atol=1e-2)
    assert torch.equal(states[3], road(base={**batch, "output_hidden_states": True})[1].last_hidden_state)
    identity = RoadModel(base, RoadAdapter.identity(find_sites(base, "all-linear")))
    with evaluation_mode(identity) as same:
        assert all(map(torch.equal, read_states(same, read_points, batch), bare))


def test_evaluation_mode_restores_the_mode_of_every_module():
    model = tiny_model("Bert").train()
    with evaluation_mode(model) as base:
        assert base is unwrap_model(model) is model
        assert not model.training
    assert model.training
    road = RoadModel(tiny_model("Bert"), RoadAdapter.identity(find_sites(model, "all-linear"))).train()
    road.model.eval()
    with evaluation_mode(road) as base:
        assert not base.training
    assert road.training
    assert not road.model.training


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_are_selected_without_padding(side):
    mask = padded_batch((2, 4, 3), side)["attention_mask"]
    states = torch.arange(12.0).view(3, 4, 1).expand(3, 4, 2)
    starts = (2, 4, 9) if side == "left" else (0, 4, 8)
    for token, expected in (("first", starts), ("last", [s + n - 1 for s, n in zip(starts, (2, 4, 3), strict=True)])):
        selected, rows = select_states(states, mask, token)
        assert selected[:, 0].tolist() == list(expected)
        assert rows.tolist() == [0, 1, 2]
    means = select_states(states, mask, "mean")[0][:, 0]
    assert means.tolist() == pytest.approx([s + (n - 1) / 2 for s, n in zip(starts, (2, 4, 3), strict=True)])
    every, rows = select_states(states, mask, "all")
    assert rows.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert every.shape == (9, 2)


def test_states_of_other_rows_or_tokens_are_refused():
    """Gemma-3n's blocks return several streams; Longformer pads more tokens, behind the others."""
    mask = torch.ones(3, 7, dtype=torch.long)
    for states, token in ((torch.ones(3, 3, 7, 2), "first"), (torch.ones(7, 3, 2), "last"), (torch.ones(3, 8, 2), "mean")):
        with pytest.raises(InputError, match=rf"\(.*, 2\) are not those of 3 rows with 7 tokens: token '{token}' cannot be read"):
            select_states(states, mask, token)
    assert select_states(torch.ones(3, 8, 2), mask, "first")[0].shape == (3, 2)


def test_a_norm_that_is_never_called_ends_no_block():
    model = tiny_model("GPT2", add_cross_attention=True)
    assert [point.name for point in find_read_points(model, token_batch())] == ["block 0", "block 1"]


def test_two_stacks_need_a_choice():
    model = tiny_model("T5")
    with pytest.raises(InputError, match=r"choose one block stack; T5Model has encoder\.block, decoder\.block"):
        find_read_points(model, token_batch())


@pytest.mark.parametrize(
    ("template", "token"), [("[CLS] $A", "first"), ("$A", "last"), ("[SEP] $A", "last"), ("$A [CLS]", "last")]
)
def test_a_text_is_read_at_cls_only_where_the_tokeniser_puts_it_first(template, token):
    tokenizer = word_tokenizer("a")
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    special = [("[CLS]", tokenizer.cls_token_id), ("[SEP]", tokenizer.sep_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(template, special_tokens=special)
    assert text_token(tokenizer) == token


def test_words_that_a_vocabulary_lacks_are_not_taken_for_cls():
    tokenizer = word_tokenizer("a")
    tokenizer.add_special_tokens({"cls_token": "[UNK]"})
    tokenizer.backend_tokenizer.model = models.WordLevel({"[UNK]": 0, "[PAD]": 1}, "[UNK]")
    assert text_token(tokenizer) == "last"
