"""Figure 4 of the paper: throughput of generation with one adapter per row, for RoAd, LoRA and the bare model.

road-interp study throughput      # SmolLM2-135M
"""

from __future__ import annotations

from pathlib import Path

from road_interp.cli.app import main_of
from road_interp.measure.throughput import ThroughputReport, run_throughput_recipe
from road_interp.plots import export
from road_interp.sources import readable_name
from road_interp.training.study import Condition, Described, Piece, Study, only_result

PANELS = ("length", "rank")  # of the figure
QUICK = ("rounds=1", "requests=[1, 4]", "new_tokens=4", "lengths=[2, 4]", "ranks=[1, 8]")


def measure(piece: Piece) -> ThroughputReport:
    return run_throughput_recipe(piece.recipe, progress=piece.progress)


def draw(found: ThroughputReport, folder: Path) -> list[Path]:
    return [export.draw_throughput(found, folder)]


def describe(found: ThroughputReport) -> Described:
    rows = []
    for timing in found.timings:
        if timing.task not in PANELS:
            name = f"{timing.method}, {timing.rows} at a time" if timing.task == "requests" else f"{timing.task}: {timing.method}"
            low, high = timing.spread
            rows.append((name, f"{timing.ratio:.2f} [{low:.2f}, {high:.2f}]"))
    sentence = (
        f"Time of {readable_name(found.model)} with one adapter per row, as a ratio to the bare model: median and quartiles of "
        f"{found.rounds} rounds on {found.device}. Generation is named by the number of requests, all else by its task; lengths "
        "and ranks are in the figure."
    )
    return sentence, rows


STUDY = Study(
    name="throughput",
    title="Throughput with one adapter per row",
    question="What does one adapter per row cost in generation, with RoAd and with LoRA, by number of requests?",
    caveat=(
        "Ratios of times on one machine, for one model of 135 million parameters and short answers; larger models, longer "
        "answers and other devices have other ratios, and an earlier run had ratios of rotations and stacked LoRA that differ "
        "by about a tenth."
    ),
    recipe="throughput-smollm2",
    conditions={"all": Condition("every method", seeds=1)},
    measure=measure,
    report=only_result,
    result=ThroughputReport,
    draw=draw,
    describe=describe,
    minutes=25,
    quick=QUICK,
)

if __name__ == "__main__":
    main_of(STUDY)
