"""Directions between two classes of states, found without training an interchange, and the swap along them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from sklearn.cluster import KMeans
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from road_interp.causal.interchange_runs import Interchange, InterchangeRuns
from road_interp.errors import InputError


def swap_along(basis: Float[Tensor, "width k"]) -> Interchange:
    """The interchange that replaces the coordinates along the orthonormal columns of `basis` by those of the source."""

    def swap(base: Tensor, source: Tensor) -> Tensor:
        dtype = torch.promote_types(base.dtype, basis.dtype)
        columns, wide = basis.to(dtype), base.to(dtype)
        return (wide + (source.to(dtype) - wide) @ columns @ columns.T).to(base.dtype)

    return swap


def mean_difference(runs: InterchangeRuns) -> Float[Tensor, "width 1"]:
    """Unit vector from the mean state of the first class to that of the second.

    Raises InputError unless there are two classes.
    """
    states, second = _states_by_class(runs)
    return nn.functional.normalize(states[second].mean(0) - states[~second].mean(0), dim=0).unsqueeze(1)


def probe_direction(runs: InterchangeRuns) -> Float[Tensor, "width 1"]:
    """Unit normal of the boundary between two classes found by logistic regression on standardised states.

    Where both classes have the same states, as at a word before those that differ, it is the difference of class means, 0.

    Raises InputError unless there are two classes.
    """
    states, second = _states_by_class(runs)
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(states.cpu().numpy(), second.cpu().numpy())
    return _unit(fitted[1].coef_[0] / fitted[0].scale_, states) if fitted[1].coef_.any() else mean_difference(runs)


def discriminant_direction(runs: InterchangeRuns) -> Float[Tensor, "width 1"]:
    """Unit normal of the boundary between two classes found by linear discriminant analysis.

    The common covariance is shrunk as Ledoit & Wolf (2004) do, because states are wider than most tasks have texts. Where the
    states of a class are all equal, as at a word that every text of it has, it is the difference of class means.

    Raises InputError unless there are two classes.
    """
    states, second = _states_by_class(runs)
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(states.cpu().numpy(), second.cpu().numpy())
    return _unit(fitted.coef_[0], states) if fitted.coef_.any() else mean_difference(runs)


def cluster_direction(runs: InterchangeRuns, seed: int) -> Float[Tensor, "width 1"]:
    """Unit vector between the centroids of two clusters of the states, found by k-means without the classes.

    Args:
        seed: of the initial centroids.
    """
    states = all_states(runs)
    first, second = KMeans(2, n_init=10, random_state=seed % 2**32).fit(states.cpu().numpy()).cluster_centers_
    return _unit(second - first, states)


def all_states(runs: InterchangeRuns) -> Float[Tensor, "states width"]:
    """States at the span from base and source runs, `(2 * pairs, width)`, fp32. Raises InputError if all are equal."""
    states = torch.cat((runs.bases, runs.sources)).float()
    if (states == states[0]).all():
        raise InputError(f"the states at '{runs.span}' do not differ, so that no direction parts them: choose another span")
    return states


def _unit(direction: np.ndarray, states: Tensor) -> Float[Tensor, "width 1"]:
    """The direction with norm 1, in the dtype and on the device of `states`."""
    return torch.as_tensor(direction / np.linalg.norm(direction), dtype=states.dtype, device=states.device).unsqueeze(1)


def _states_by_class(runs: InterchangeRuns) -> tuple[Tensor, Tensor]:
    """The states of `all_states`, and whether each is of the second class."""
    labels = [*runs.pairs.base_class, *runs.pairs.source_class]
    classes = sorted(set(labels))
    if len(classes) != 2:
        raise InputError(f"a direction needs two classes; {runs.pairs.name} has {len(classes)} ({', '.join(classes[:5])})")
    states = all_states(runs)
    return states, torch.tensor([label == classes[1] for label in labels], device=states.device)
