"""Logits of one token per row of a batch."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel


def logits_at(model: PreTrainedModel, columns: Int[Tensor, " rows"], **inputs: Any) -> Float[Tensor, "rows vocabulary"]:
    """Logits of the token in column `columns[row]` of every row. The head over the vocabulary reads these tokens only.

    Args:
        model: a causal language model.
        inputs: its inputs, without `logits_to_keep`, whose columns are those of all rows.
    """
    head: nn.Module = model.get_output_embeddings()

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        states = args[0]
        return states[torch.arange(len(states), device=states.device), columns.to(states.device)].unsqueeze(1)

    hook = head.register_forward_pre_hook(select)
    try:
        logits: Tensor = model(**inputs).logits
    finally:
        hook.remove()
    return logits.squeeze(1)
