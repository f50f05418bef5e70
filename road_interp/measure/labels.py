"""What a report says about itself beside its numbers."""

from __future__ import annotations

from typing import NamedTuple


class MethodLabel(NamedTuple):
    """Which model was trained how.

    Attributes:
        model: name of the base model.
        method: what was trained, or how the model was asked.
        seed: of the training.
    """

    model: str
    method: str
    seed: int
