"""Logits of one token per row of a batch."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from road_interp.errors import InputError


def logits_at(model: PreTrainedModel, columns: Int[Tensor, " rows"], **inputs: Any) -> Float[Tensor, "rows vocabulary"]:
    """Logits of the token in column `columns[row]` of every row. The head over the vocabulary reads these tokens only.

    Args:
        model: a causal language model.
        inputs: its inputs, without `logits_to_keep`, whose columns are those of all rows.

    Raises InputError for a model that puts tokens of its own before the texts, as prompt tuning does.
    """
    head: nn.Module = model.get_output_embeddings()
    tokens = inputs["input_ids"].shape[1]

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        states = args[0]
        if states.shape[1] != tokens:
            raise InputError(
                f"{type(model).__name__} reads {states.shape[1]} tokens where it is given {tokens}: tokens are read and "
                "exchanged by their numbers, so that a model with virtual tokens, as of prompt tuning, cannot be used"
            )
        return states[torch.arange(len(states), device=states.device), columns.to(states.device)].unsqueeze(1)

    hook = head.register_forward_pre_hook(select)
    try:
        logits: Tensor = model(**inputs).logits
    finally:
        hook.remove()
    return logits.squeeze(1)
