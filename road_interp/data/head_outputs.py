"""The outputs of a classification head: the class that it chooses, and NaN, which chooses none."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from road_interp.errors import InputError


def chosen_classes(logits: Float[np.ndarray, "texts num_labels"]) -> Int[np.ndarray, " texts"]:
    """The index of the greatest output for every text. Raises InputError as `check_logits`."""
    check_logits(logits)
    return logits.argmax(1)


def check_logits(logits: np.ndarray) -> None:
    """Raise InputError for outputs of a head that are NaN: numpy's argmax would choose a class all the same."""
    if wrong := int(np.isnan(logits).any(axis=tuple(range(1, logits.ndim))).sum()):
        raise InputError(
            f"the head's outputs are NaN for {wrong} of {len(logits)} texts: states of the model have overflowed; train with a "
            "lower training.learning_rate, use an adapter of smaller magnitudes, or model.dtype=float32"
        )
