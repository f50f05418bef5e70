"""Logits of one token per row."""

import pytest
import torch

from road_interp.models.head_logits import logits_at
from tests.helpers.models import tiny_model
from tests.helpers.road_models import ARCHITECTURES


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "Gemma2"])  # Gemma2 changes the logits behind the head
def test_logits_of_one_token_per_row(architecture):
    model = tiny_model(architecture, "causal-lm")
    ids = torch.randint(0, model.config.vocab_size, (3, 5), generator=torch.Generator().manual_seed(0))
    columns = torch.tensor([4, 0, 2])
    read = []
    hook = model.get_output_embeddings().register_forward_hook(lambda module, args, output: read.append(args[0].shape[1]))
    with torch.no_grad():
        found = logits_at(model, columns, input_ids=ids)
        hook.remove()
        complete = model(input_ids=ids).logits
    assert read == [1]
    torch.testing.assert_close(found, complete[torch.arange(3), columns])
