"""How many tokens a model has embeddings of."""

from __future__ import annotations

from typing import Any


def vocabulary_of(model: Any) -> int | None:
    """Number of tokens of a transformers model's input embeddings; None for embeddings that do not say it."""
    return getattr(model.get_input_embeddings(), "num_embeddings", None)
