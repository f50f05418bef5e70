"""Cost of an interchange: time of the intervention's forward and backward pass, without a model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from road_interp.arguments import check_count
from road_interp.causal.trained_values import count_trained_values, effective_parameters
from road_interp.errors import InputError
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.models.intervention import pyvene
from road_interp.models.low_rank_interchange import LowRankInterchangeIntervention
from road_interp.models.seeding import seeded
from road_interp.progress import Progress, silent
from road_interp.results import Result, columns, entry
from road_interp.rotation import butterfly

SHALLOW, STACKED, DEEP = "RoAd", "stacked RoAd", "deep RoAd, 32 rows"
VECTOR, ONE = "DAS, unit vector", "DAS, rank 1 by QR"
RANKS = (8, 32, 256)  # by QR, as far as they are below half the width
HALF_BY_QR, HALF_BY_STACK = "DAS, half of all coordinates by QR", "stacked RoAd, half of all coordinates"
FEW, SLOW = 3, 10.0  # number of rounds, and seconds of a step
PYVENE_ONE, PYVENE_EIGHT, FULL = "pyvene's DAS, rank 1", "pyvene's DAS, rank 8", "pyvene's DAS, full rotation"


class UnitVectorInterchange(nn.Module):
    """DAS of rank 1 in its shortest form: the coordinate along one trained unit vector is swapped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, base: Float[Tensor, "batch width"], source: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """`base` with the coordinate of `source`."""
        direction = nn.functional.normalize(self.weight, dim=0)
        return base + ((source - base) @ direction).unsqueeze(-1) * direction


@dataclass(frozen=True)
class MethodCost:
    """One interchange.

    Attributes:
        method: its name.
        parameters: number of trained values.
        effective: number of those with a gradient that is not 0: angles that no swapped coordinate reads have none.
            None in results of 0.1.0.
        seconds: of a forward and backward pass in every round.
    """

    method: str
    parameters: int
    effective: int | None
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class CostReport(Result):
    """Timings of all interchanges on one machine, one after the other in every round.

    Attributes:
        width, batch: shape of the states.
        device: "cpu".
        threads: of torch.
        methods: one per interchange.
    """

    width: int
    batch: int
    device: str
    threads: int
    methods: tuple[MethodCost, ...]

    def records(self) -> list[dict[str, Any]]:
        """A row per interchange, with the median seconds."""
        return [columns(each) | {"seconds": median(each.seconds)} for each in self.methods]

    def of(self, method: str) -> MethodCost:
        """The timings of a method. Raises InputError if there are none."""
        return entry({each.method: each for each in self.methods}, method, "timings of")


def cost(
    width: int = 2048,
    batch: int = 16,
    rounds: int = 9,
    progress: Progress = silent,
) -> CostReport:
    """Time interchanges on random states `(batch, width)` on the CPU: RoAd in three depths, DAS in thin forms, and pyvene's.

    Full depth lets a coordinate read all dimensions. For 32 coordinates "deep RoAd" has two levels more for each. DAS of rank 1
    is a swap along one unit vector; higher ranks need the QR decomposition of a matrix with as many columns. pyvene makes a
    square orthogonal matrix for any rank and recomputes it in every step: its times are those of the parametrisation. Each
    interchange runs once to warm up. A step of the full rotation takes many seconds at a width of several thousand: an
    interchange whose step takes more than 10 seconds has three rounds.

    Args:
        width, batch: of the states.
        rounds: timed steps of every interchange, in turn with the others.

    Raises:
        InputError: a number below 1, or an odd width.
    """
    check_count("causal.cost", "width", width)
    if width % 2:
        raise InputError(f"causal.cost: width must be even, not {width}: RoAd rotates pairs of dimensions")
    check_count("causal.cost", "batch", batch)
    check_count("causal.cost", "rounds", rounds)
    with seeded(0):
        interchanges = _interchanges(width)
    base, source = torch.randn(2, batch, width, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {method: [] for method in interchanges}
    for number in range(rounds + 1):
        for method, interchange in interchanges.items():
            if len(seconds[method]) == FEW and seconds[method][-1] > SLOW:
                continue
            progress(method, number, rounds + 1)
            elapsed = _seconds(interchange, base, source)
            if number:
                seconds[method].append(elapsed)
    costs = tuple(
        MethodCost(method, count_trained_values(each), effective_parameters(each, width), tuple(seconds[method]))
        for method, each in interchanges.items()
    )
    return CostReport(width, batch, "cpu", torch.get_num_threads(), costs)


def _interchanges(width: int) -> dict[str, nn.Module]:
    """The interchanges that are timed, by name."""
    full, half = butterfly.full_depth(width), list(range(width // 2))
    return {
        VECTOR: UnitVectorInterchange(width),
        ONE: LowRankInterchangeIntervention(width, 1),
        **{f"DAS, rank {rank} by QR": LowRankInterchangeIntervention(width, rank) for rank in RANKS if rank < width // 2},
        HALF_BY_QR: LowRankInterchangeIntervention(width, len(half)),
        SHALLOW: RoadInterchangeIntervention(width),
        STACKED: RoadInterchangeIntervention(width, depth=full, rows=[0]),
        HALF_BY_STACK: RoadInterchangeIntervention(width, depth=full, rows=half),
        DEEP: RoadInterchangeIntervention(width, depth=full + 64, rows=list(range(min(32, width)))),
        PYVENE_ONE: pyvene.LowRankRotatedSpaceIntervention(embed_dim=width, low_rank_dimension=1),
        PYVENE_EIGHT: pyvene.LowRankRotatedSpaceIntervention(embed_dim=width, low_rank_dimension=8),
        FULL: pyvene.RotatedSpaceIntervention(embed_dim=width),
    }


def _seconds(interchange: nn.Module, base: Tensor, source: Tensor) -> float:
    """Mean seconds of a forward and backward pass, repeated for a tenth of a second and at least once."""
    calls, started = 0, time.perf_counter()
    while not calls or time.perf_counter() - started < 0.1:
        interchange.zero_grad()
        interchange(base, source).square().sum().backward()
        calls += 1
    return (time.perf_counter() - started) / calls
