"""What rotations cost in every way of running a model, beside the bare model and other adapters: time over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from road_interp.measure.throughput import ThroughputReport
from road_interp.results import Result

LORAS = ("PEFT LoRA", "stacked LoRA")
COMPILED = ("compiled forward", "compiled decoding")
LARGEST = ("distinct", "strengths", "continuous batching")  # timed with the largest number of requests


@dataclass(frozen=True)
class Cost:
    """The time, or memory, of one method over that of another.

    Attributes:
        model: name of the base model.
        what: what is done, and by which method.
        over: the other method.
        median, low, high: of the rounds, with quartiles.
    """

    model: str
    what: str
    over: str
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class EngineCostReport(Result):
    """All costs of several models.

    Attributes:
        rounds: timings per method, the fewest of the models.
        threads: of torch.
        device: name of the GPU, or "cpu".
        costs: one per model and comparison.
    """

    rounds: int
    threads: int
    device: str
    costs: tuple[Cost, ...]


def engine_costs(reports: Sequence[ThroughputReport]) -> EngineCostReport:
    """The costs in the timings of several models on one machine. Timings of tasks that a report lacks are left out."""
    costs = tuple(cost for report in reports for cost in _costs(report))
    first = reports[0]
    return EngineCostReport(min(report.rounds for report in reports), first.threads, first.device, costs)


def _costs(report: ThroughputReport) -> list[Cost]:
    timed = {(each.task, each.method, each.rows) for each in report.timings}
    rows = sorted({each.rows for each in report.timings if each.task == "requests"})
    largest = max((each.rows for each in report.timings if each.task in LARGEST), default=0)
    of_rows = [(f"generate, {_requests(number)}", "requests", number, "RoadModel", "bare") for number in rows]
    lora = [
        (f"generate, {_requests(number)}{'' if method == 'RoadModel' else ', no adapter'}", "requests", number, method, other)
        for number in rows
        for other in LORAS
        for method in ("RoadModel", "bare")
    ]
    wanted = [
        *(("forward, 8 x 64 tokens", "forward", 8, "RoadModel", other) for other in ("bare", *LORAS)),
        *of_rows,
        ("continuous batching, all different", "continuous batching", largest, "RoadModel, all different", "bare"),
        (
            "continuous batching, all different",
            "continuous batching",
            largest,
            "RoadModel, all different",
            "stacked LoRA, all different",
        ),
        ("generate, all different", "distinct", largest, "RoadModel, all different", "RoadModel, one adapter"),
        *(
            ("generate, a strength per row", "strengths", largest, "RoadModel, strengths", other)
            for other in ("RoadModel", "stacked LoRA, strengths")
        ),
        *((task, task, 8, "RoadModel", other) for task in COMPILED for other in ("bare", "stacked LoRA")),
        *(("training step, 4 x 128 tokens", "training step", 4, "RoadModel", other) for other in ("bare", "PEFT RoAd", *LORAS)),
        ("training step, 4 x 128 tokens, no adapter", "training step", 4, "bare", "PEFT RoAd"),
        *lora,
    ]
    costs = [
        Cost(report.model, what, other, *report.quotient(task, method, other, number))
        for what, task, number, method, other in wanted
        if {(task, method, number), (task, other, number)} <= timed
    ]
    if {("training step", "RoadModel", 4), ("training step", "PEFT RoAd", 4)} <= timed:
        saved = [report.of("training step", method).saved_bytes for method in ("RoadModel", "PEFT RoAd")]
        costs.append(Cost(report.model, "bytes saved for the backward pass", "PEFT RoAd", *[saved[0] / saved[1]] * 3))
    return costs


def _requests(number: int) -> str:
    return f"{number} request{'s' if number > 1 else ''}"
