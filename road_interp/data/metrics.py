"""Metrics of predictions: accuracy, Matthews correlation and Pearson correlation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, matthews_corrcoef


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
