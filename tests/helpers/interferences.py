"""Adapters with known relations, and the interference between their tasks."""

from __future__ import annotations

import numpy as np

from helpers.models import random_adapter
from road_interp import measure
from road_interp.sites.site import Site

SITES = tuple(Site(f"layers.{layer}.fc1", 80, layer, "fc1") for layer in range(2))


def halves():
    """One adapter per layer, and the adapter of the first layer with exponent 3."""
    whole = random_adapter(SITES)
    first, second = (whole.restrict(lambda site, layer=layer: np.full(40, site.layer == layer)) for layer in (0, 1))
    return {"first": first, "second": second, "strong": first**3}


def close_to(expected):
    """A scorer of twenty examples that are correct if the angles of the first site equal those of `expected`."""
    return lambda adapter: np.full(20, np.allclose(adapter.angles(SITES[0]), expected.angles(SITES[0]), atol=1e-4))


def measured(seed=0):
    """The interference report of the first task, with each of the other two adapters composed with its own."""
    adapters = halves()
    return measure.interference(adapters, {"first": close_to(adapters["first"])}, model="m", seed=seed)
