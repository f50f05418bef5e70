"""What rotations cost in every way of running a model: forward, generate, continuous batching, compiled, trained.

road-interp study engine     # SmolLM2-135M, and after road-interp models Gemma-3-270M
"""

from __future__ import annotations

from pathlib import Path

from road_interp.cli.app import main_of
from road_interp.measure.engine_cost import EngineCostReport, engine_costs
from road_interp.measure.throughput import ThroughputReport, run_throughput_recipe
from road_interp.plots import export
from road_interp.sources import is_here, readable_name
from road_interp.training.study import Condition, Described, Piece, Pieces, Study

TASKS = "forward, training step, requests, distinct, strengths, continuous batching, compiled forward, compiled decoding"
METHODS = "bare, merged, RoadModel, PEFT RoAd, PEFT LoRA, stacked LoRA"
SETTINGS = ("requests=[1, 8, 16, 32]", "lengths=[]", "ranks=[]", f"tasks=[{TASKS}]", f"methods=[{METHODS}]")
# transformers' static cache of a sliding window makes torch.compile compile every step of the bare Gemma again.
NO_DECODING = TASKS.removesuffix(", compiled decoding")
GEMMA = ("model.id=models://gemma-3-270m", "requests=[1, 8, 32]", "rounds=3", f"tasks=[{NO_DECODING}]")
QUICK = ("rounds=1", "requests=[1, 4]", "new_tokens=2", "tasks=[forward, requests, strengths]")


def measure(piece: Piece) -> ThroughputReport:
    return run_throughput_recipe(piece.recipe, progress=piece.progress)


def report(pieces: Pieces) -> EngineCostReport:
    return engine_costs([found for reports in pieces.values() for found in reports])


def draw(found: EngineCostReport, folder: Path) -> list[Path]:
    return [export.draw_engine_cost(found, folder)]


def describe(found: EngineCostReport) -> Described:
    rows = [
        (
            f"{readable_name(cost.model)}: {cost.what} / {cost.over}",
            f"{cost.median:.3f}" + (f" [{cost.low:.3f}, {cost.high:.3f}]" if cost.low < cost.high else ""),
        )
        for cost in found.costs
    ]
    sentence = (
        "Time of one way of running a model over that of another in the same round, most of them rotations at all linear layers "
        "over something else; below 1 the first is faster: median and quartiles of "
        f"at least {found.rounds} rounds on {found.device}, {found.threads} thread{'s' * (found.threads > 1)}."
    )
    return sentence, rows


STUDY = Study(
    name="engine",
    title="The cost of rotations in every way of running a model",
    question=(
        "What do rotations cost in every way of running a model: forward, generation, continuous batching, compiled, and in "
        "training?"
    ),
    caveat=(
        "Ratios of times on one machine, for models below 300 million parameters. Larger models and other devices have other "
        "ratios. Gemma-3-270M has three rounds, on a machine with noise of a tenth and more, as its ratios below 1 over the bare "
        "model show, which computes less."
    ),
    recipe="throughput-smollm2",
    conditions={
        "smollm2": Condition("SmolLM2-135M", SETTINGS, seeds=1),
        "gemma-3-270m": Condition("Gemma-3-270M", (*SETTINGS, *GEMMA), seeds=1),
    },
    measure=measure,
    report=report,
    result=ThroughputReport,
    draw=draw,
    describe=describe,
    minutes=60,
    quick=QUICK,
    quick_conditions=1,
    applies=lambda recipe: is_here(recipe.model.id),
)

if __name__ == "__main__":
    main_of(STUDY)
