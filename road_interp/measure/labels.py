"""The names that identify a report."""

from __future__ import annotations

from typing import NamedTuple


class MethodLabel(NamedTuple):
    """The model and method of a report.

    Attributes:
        model: name of the base model.
        method: what was trained, or how the model was prompted.
        seed: of the training.
    """

    model: str
    method: str
    seed: int
