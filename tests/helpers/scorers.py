"""Scorers with known outcomes, and ablations with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helpers.models import random_adapter
from road_interp import RoadAdapter, measure
from road_interp.measure.ablation import AblationReport, ScoreFn
from road_interp.sites.site import Site

SITES = tuple(Site(f"layers.{layer}.{kind}", 8, layer, kind) for layer in (0, 1) for kind in ("query", "fc1"))


@dataclass(frozen=True)
class FunctionScorer:
    """A scorer that calls a function; `refitted` is the function for a refitted head."""

    score: ScoreFn
    task: str = "t"
    metric: str = "accuracy"
    refitted: ScoreFn | None = None

    def __call__(self, adapter: RoadAdapter) -> np.ndarray:
        return self.score(adapter)


def needs(what, where=lambda site: True):
    """A function that scores ten examples: all correct if the adapter has `what` at the selected sites, else every second."""

    def score(adapter):
        values = {
            "angles": lambda site: adapter.angles(site).abs().min() > 0.01,
            "magnitudes": lambda site: (adapter.magnitudes(site) - 1).abs().min() > 0.01,
        }
        whole = all(values[what](site) for site in adapter.sites if where(site))
        return np.array([whole or number % 2 == 0 for number in range(10)])

    return score


def moved_adapter(variant="road_1"):
    """An adapter with large angles and magnitudes in every plane."""
    adapter = random_adapter(SITES, variant)
    theta = {name: 0.5 + values.abs() for name, values in adapter.theta.items()}
    return RoadAdapter(SITES, theta, {name: 1.5 + values.abs() for name, values in adapter.alpha.items()}, variant)


def taken_apart(score, variant="road_1", seed=0, refitted=None, **options) -> AblationReport:
    """The ablation report of `moved_adapter` with a function as scorer."""
    scorer = FunctionScorer(score, refitted=refitted)
    return measure.ablation(moved_adapter(variant), scorer, model="m", seed=seed, **options)
