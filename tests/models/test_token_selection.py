"""The tokens that a pass rotates: of prompts, of caches, and again in backward passes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache

from helpers.models import padded_batch, random_adapter, tiny_model, token_batch
from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel
from road_interp.models.token_selection import (
    EVERY_TOKEN,
    NO_TOKEN,
    CheckpointedSelections,
    Selection,
    prompt_mask,
    select_tokens,
)
from road_interp.sites.find import find_sites


def selected(*tokens, rows=1):
    mask = torch.zeros(rows, 4, dtype=torch.bool)
    mask[:, list(tokens)] = True
    return Selection(True, mask)


@pytest.mark.parametrize(
    "other", [selected(1), selected(0, rows=2), Selection(True, torch.ones(1, 1).bool()), EVERY_TOKEN, NO_TOKEN]
)
def test_backward_knows_the_selection_of_equal_passes_only(other):
    recorded = CheckpointedSelections("first")
    assert recorded.in_backward() is None
    for _ in range(2):  # the first pass after a backward pass replaces all others
        recorded.add(selected(0))
        recorded.add(selected(0))
        assert torch.equal(recorded.in_backward().mask, selected(0).mask)
        recorded.add(other)
        assert recorded.in_backward() is other
    recorded.add(other)
    recorded.add(other)
    recorded.add(selected(0))
    with pytest.raises(InputError, match="positions 'first' are different tokens in them: call backward after every pass$"):
        recorded.in_backward()


def test_tokens_behind_a_cache_are_of_an_unknown_prompt():
    model = tiny_model("Llama", "causal-lm")
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(**token_batch(2, 3), past_key_values=cache)
    one, two = ({"input_ids": torch.full((2, length), 5), "past_key_values": cache} for length in (1, 2))
    assert select_tokens(model, "last", None, one) is NO_TOKEN
    with pytest.raises(InputError, match="the cache holds 3 tokens and the call 2 more, .* the whole prompt with an empty"):
        select_tokens(model, "last", None, two)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_needs_a_mask(side):
    """Without one, the last token of a shorter row would be padding, which a head that pools before it never reads."""
    model = tiny_model("Llama", "classifier")
    model.config.pad_token_id = 2
    batch = padded_batch((3, 5), side)
    road = RoadModel(model, random_adapter(find_sites(model, "block-output")), positions="last")
    rotated = road(batch)[1].logits
    with pytest.raises(InputError, match="inputs hold the padding token 2 without an attention_mask .*: give the attention_mask"):
        road({"input_ids": batch["input_ids"]})
    whole = {"input_ids": batch["input_ids"][1:]}
    torch.testing.assert_close(road(whole)[1].logits, rotated[1:])


def test_a_call_with_other_rows_or_another_mask_is_none_of_the_prompt():
    model, prompt = tiny_model("Llama", "causal-lm"), torch.ones(2, 3, dtype=torch.long)
    for rows, mask in ((3, None), (2, torch.tensor([[0, 1, 1], [1, 1, 1]]))):
        inputs = {"input_ids": torch.full((rows, 3), 5), "attention_mask": mask}
        with pytest.raises(
            InputError, match=r"positions 'last' are those of the prompts of generate, .* call the RoadModel, whose"
        ):
            select_tokens(model, "last", prompt, inputs)
    found = select_tokens(model, "last", prompt, {"input_ids": torch.full((4, 3), 5)})  # two beams per row
    assert found.mask.tolist() == [[False, False, True]] * 4


def test_states_without_tokens_name_the_inputs_that_have_some():
    with pytest.raises(InputError, match="need an input that has tokens: input_ids, "):
        select_tokens(tiny_model("Llama"), "last", None, {})


def test_a_recurrent_cache_does_not_count_its_tokens():
    inputs = {"input_ids": torch.full((1, 2), 5), "cache_params": SimpleNamespace()}
    with pytest.raises(
        InputError, match="does not count its tokens; generate with use_cache=False, or rotate with positions='all'$"
    ):
        select_tokens(tiny_model("Llama"), "last", None, inputs)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, [[1, 1, 0]]),
        ({"pad_token_id": 2, "eos_token_id": 1}, [[0, 1, 1]]),
        ({"pad_token_id": 2, "eos_token_id": None}, [[0, 1, 1]]),
        ({"pad_token_id": 2, "eos_token_id": 2}, [[1, 1, 1]]),
        ({"pad_token_id": 2, "eos_token_id": [1, 2]}, [[1, 1, 1]]),
        ({"pad_token_id": None, "eos_token_id": 1}, [[1, 1, 1]]),
    ],
)
def test_the_mask_of_a_prompt_is_the_one_that_transformers_infers(given, expected):
    model = tiny_model("Llama", "causal-lm")
    model.generation_config.pad_token_id = model.generation_config.eos_token_id = None
    found = prompt_mask(model, {"input_ids": torch.tensor([[2, 5, 6]]), **given})
    assert (found.tolist(), found.dtype) == (expected, torch.long)


def test_a_cache_without_layers_holds_no_tokens():
    inputs = {"input_ids": torch.full((1, 2), 5), "past_key_values": DynamicCache()}
    assert select_tokens(tiny_model("Llama"), "last", None, inputs).mask.tolist() == [[False, True]]
