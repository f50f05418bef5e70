"""The trained interchanges that are compared: RoAd's, DAS in its thin form, and pyvene's boundless DAS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from road_interp.causal.interchange_runs import InterchangeRuns
from road_interp.causal.training import train_interchange
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.models.intervention import pyvene
from road_interp.models.low_rank_interchange import LowRankInterchangeIntervention
from road_interp.models.seeding import seeded
from road_interp.progress import Progress, prefixed
from road_interp.rotation import butterfly

STACKED, PLANES, DAS = "stacked RoAd, one row", "RoAd, a row of every plane", "DAS, rank 1"


class Method(NamedTuple):
    """A constructor of an interchange from a width, and the arguments with which `train_interchange` trains it."""

    make: Callable[[int], nn.Module]
    training: dict[str, Any]


def methods(seed: int = 0, spread: float = 0.1) -> dict[str, Method]:
    """The trained interchanges that are compared, by name.

    Args:
        seed: of the initial values.
        spread: of RoAd's initial angles (radians), as in RoadInterchangeIntervention.
    """

    def stacked(width: int) -> nn.Module:
        return RoadInterchangeIntervention(width, butterfly.full_depth(width), [0], seed, spread)

    def planes(width: int) -> nn.Module:
        return RoadInterchangeIntervention(width, seed=seed, spread=spread)

    def low_rank(rank: int) -> Callable[[int], nn.Module]:
        return lambda width: LowRankInterchangeIntervention(width, rank, seed=seed)

    def boundless(width: int) -> nn.Module:
        with seeded(seed):
            interchange = pyvene.BoundlessRotatedSpaceIntervention(embed_dim=width)
        interchange.temperature.requires_grad_(False)  # the schedule of the training sets it
        return interchange

    return {
        STACKED: Method(stacked, {"learning_rate": 0.05}),
        PLANES: Method(planes, {"learning_rate": 0.05}),
        DAS: Method(low_rank(1), {"learning_rate": 0.01}),
        "DAS, rank 8": Method(low_rank(8), {"learning_rate": 0.01}),
        "boundless DAS": Method(boundless, {"learning_rate": 1e-3, "temperatures": (50.0, 0.1)}),
    }


def learning_rates(*names: str) -> dict[str, float]:
    """The learning rate of each named method."""
    return {name: methods()[name].training["learning_rate"] for name in names}


def train_method(train: InterchangeRuns, name: str, method: Method, *, seed: int, steps: int, progress: Progress) -> nn.Module:
    """A new interchange of a method, trained on `train`; `name` is its name in progress messages."""
    interchange = method.make(train.site.width).to(train.model.device)
    train_interchange(train, interchange, steps, seed=seed, progress=prefixed(progress, name), **method.training)
    return interchange
