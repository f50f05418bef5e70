"""Sites and inputs whose first axis is not that of the rows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from helpers.models import tiny_model
from road_interp.errors import InputError
from road_interp.models.row_sites import check_dense_head, rows_differ, site_in_experts, site_outside_text
from road_interp.sites.find import find_sites
from road_interp.sites.site import Site

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS, IMAGES = torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("inputs", "placeholder", "differ"),
    [
        ({"input_ids": IDS}, 3, False),
        ({"pixel_values": IMAGES}, 3, False),
        ({"input_ids": IDS, "pixel_values": IMAGES}, None, False),
        ({"input_ids": IDS, "pixel_values": IMAGES}, 3, True),
        ({"input_ids": IDS, "pixel_values": IMAGES[:1]}, None, True),
        ({"inputs_embeds": torch.zeros(2, 5, 8), "pixel_values": IMAGES[:1]}, None, True),
        ({"input_ids": IDS, "image_sizes": [(4, 4)]}, None, True),
        ({"input_ids": IDS, "image_grid_thw": torch.ones(3, 3, dtype=torch.long)}, 3, False),
        ({"input_ids": IDS, "attention_bias": torch.zeros(1, 5)}, 3, False),
    ],
)
def test_media_differ_from_the_rows_by_number_or_by_placeholders(inputs, placeholder, differ):
    model = SimpleNamespace(config=SimpleNamespace(image_token_id=placeholder))
    assert rows_differ(model, inputs) is differ


def test_experts_are_found_by_name():
    model = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(4, 4)]), "gate": nn.Linear(4, 4)})
    gate, expert = Site("gate", 4), Site("experts.0", 4)
    assert site_in_experts(model, [gate, expert]) == "experts.0"
    assert site_in_experts(model, [gate]) is None


def test_what_is_outside_the_text_model():
    vision, text = CLIPVisionConfig(**SIZES, image_size=16, patch_size=8), LlamaConfig(**SIZES, vocab_size=64)
    llava = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=60))
    for pattern, outside in ((".*vision.*q_proj", True), (".*projector.*linear_1", True), (".*language_model.*q_proj", False)):
        sites = find_sites(llava, pattern)
        assert site_outside_text(llava, sites) == (sites[0].name if outside else None)
    assert site_outside_text(llava, find_sites(llava, "lm_head")) is None
    llama = tiny_model("Llama", "causal-lm")
    assert site_outside_text(llama, find_sites(llama, "all-linear")) is None


def test_only_a_head_that_reads_labelled_tokens_only_is_refused():
    config = SimpleNamespace(sparse_prediction=True)
    model = SimpleNamespace(config=config, base_model_prefix="model")
    base = tiny_model("Llama", "causal-lm")
    head, inside = find_sites(base, "lm_head"), find_sites(base, "q_proj")
    check_dense_head(model, head, {"labels": None})
    check_dense_head(model, inside, {"labels": IDS})
    with pytest.raises(InputError, match=r"of all rows together; only one adapter for all rows works there$"):
        check_dense_head(model, (*inside, *head), {"labels": IDS})
    for other in (SimpleNamespace(sparse_prediction=False), SimpleNamespace()):
        check_dense_head(SimpleNamespace(config=other, base_model_prefix="model"), head, {"labels": IDS})
