"""Adapters whose relation is known, and what they do to each other's tasks."""

from __future__ import annotations

import numpy as np

from helpers.models import random_adapter
from road_interp import measure
from road_interp.sites.site import Site

SITES = tuple(Site(f"layers.{layer}.fc1", 80, layer, "fc1") for layer in range(2))


def halves():
    """Two tasks on the two layers, and a third adapter that is the first at three times its strength."""
    whole = random_adapter(SITES)
    first, second = (whole.restrict(lambda site, layer=layer: np.full(40, site.layer == layer)) for layer in (0, 1))
    return {"first": first, "second": second, "strong": first**3}


def close_to(wanted):
    """Twenty examples, right while the first layer is as wanted there."""
    return lambda adapter: np.full(20, np.allclose(adapter.angles(SITES[0]), wanted.angles(SITES[0]), atol=1e-4))


def measured(seed=0):
    """The first task with the other two adapters composed on its own."""
    adapters = halves()
    return measure.interference(adapters, {"first": close_to(adapters["first"])}, model="m", seed=seed)
