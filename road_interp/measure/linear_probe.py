"""Linear probes of states: logistic regression for classes, ridge regression for numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from road_interp.data.metrics import METRICS
from road_interp.progress import Progress, silent

C_GRID = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # scikit-learn's C of the logistic regression; for ridge regression 1 / alpha
Examples = tuple[np.ndarray, np.ndarray]  # states (examples, width), and labels


def fit_probe(
    train: Examples, validation: Examples, metric: str, regression: bool, progress: Progress = silent
) -> tuple[Any, float]:
    """The probe of standardised states with the best validation score, and its C; the smaller C wins in a tie.

    Args:
        metric: a name in METRICS.
    """
    best, chosen, best_score = None, 0.0, -np.inf
    for number, C in enumerate(C_GRID):
        progress("linear heads", number, len(C_GRID))
        estimator = Ridge(alpha=1 / C) if regression else LogisticRegression(C=C, max_iter=2000)
        fitted = make_pipeline(StandardScaler(), estimator).fit(*train)
        score = METRICS[metric](validation[1], fitted.predict(validation[0]))
        if best is None or score > best_score:
            best, chosen, best_score = fitted, C, score
    return best, chosen
