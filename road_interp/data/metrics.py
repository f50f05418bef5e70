"""The class that a head chooses, and metrics of predictions: accuracy, Matthews correlation and Pearson correlation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from scipy import stats
from sklearn.metrics import accuracy_score, matthews_corrcoef

from road_interp.errors import InputError


def chosen_classes(logits: Float[np.ndarray, "texts num_labels"]) -> Int[np.ndarray, " texts"]:
    """The index of the greatest output for every text. Raises InputError as `check_logits`."""
    check_logits(logits)
    return logits.argmax(1)


def check_logits(logits: np.ndarray) -> None:
    """Raise InputError for outputs of a head that are NaN: numpy's argmax would choose a class all the same."""
    if wrong := int(np.isnan(logits).any(axis=tuple(range(1, logits.ndim))).sum()):
        raise InputError(
            f"the head's outputs are NaN for {wrong} of {len(logits)} texts: states of the model have overflowed; use an adapter "
            "of smaller magnitudes, or model.dtype=float32"
        )


def _pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Pearson correlation; 0 if either input is constant, where the correlation is undefined."""
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(stats.pearsonr(labels, predictions).statistic)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda labels, predictions: float(accuracy_score(labels, predictions)),
    "matthews": lambda labels, predictions: float(matthews_corrcoef(labels, predictions)),
    "pearson": _pearson,
}
