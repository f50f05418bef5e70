"""Generation gives the head contiguous states, which it multiplies once for all rows."""

from __future__ import annotations

import pytest
import torch

from helpers.models import token_batch
from helpers.road_models import GREEDY, bank_model, road_model, untouched


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "OPT"])
@pytest.mark.parametrize("where", ["generate", "attached"])
def test_the_head_reads_contiguous_states(architecture, where):
    model, batch, seen = road_model(architecture), token_batch(3), []
    expected = model.generate(batch, **GREEDY)[1]
    head = model.model.get_output_embeddings()
    with head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].is_contiguous())):
        if where == "generate":
            found = model.generate(batch, **GREEDY)[1]
        else:
            with model.attached() as base:
                found = base.generate(**batch, **GREEDY)
        generated = len(seen)
        plain = model.model(**batch, logits_to_keep=1).logits
    assert torch.equal(found, expected)
    assert all(seen[:generated])
    assert not seen[-1]  # outside generation nothing is changed
    assert plain.shape[1] == 1
    assert untouched(model)


def test_beams_and_rows_of_a_bank_have_the_same_answers_as_before():
    model, batch = bank_model("ab"), token_batch(2)
    beams = {**GREEDY, "num_beams": 2}
    together = model.generate(batch, adapter_names=["a", "b"], **beams)[1]
    for row, name in enumerate("ab"):
        alone = model.generate({key: values[[row]] for key, values in batch.items()}, adapter_names=[name], **beams)[1]
        assert torch.equal(together[row], alone[0])
