"""Interference between the adapters of two tasks: each task scored with the other's adapter composed with its own.

    road-interp study interference      # multitask-minilm, every task trained alone on all planes, three seeds

The other adapter is composed whole, and restricted to each layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from matplotlib.pyplot import subplots
from matplotlib.style import context

from road_interp import plots
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.cli.app import main_of
from road_interp.measure import InterferenceReport, interference
from road_interp.plots import export
from road_interp.training.scoring import MultiTaskScorer
from road_interp.training.study import Condition, Described, Piece, Pieces, Study, with_interval
from road_interp.training.study_runs import run_of

QUICK = ("training.max_steps=2", *(f"tasks.{task}.labels.per_class=200" for task in ("sentiment", "source")))


def measure(piece: Piece) -> InterferenceReport:
    """Accuracy of every task with its own adapter, alone and composed with the other adapter or one layer of it."""
    recipe = piece.recipe
    runs = {task: run_of(piece._replace(recipe=replace(recipe, tasks={task: each}))) for task, each in recipe.tasks.items()}
    by_task = {task: whole_and_layers(task, run.adapter) for task, run in runs.items()}
    compare = partial(interference, model=recipe.model.name, seed=recipe.seed, progress=piece.progress)
    correct: dict[str, Mapping[str, tuple[bool, ...]]] = {}
    for task, run in runs.items():
        others = {name: each for other, adapters in by_task.items() if other != task for name, each in adapters.items()}
        correct.update(compare({task: run.adapter, **others}, {task: MultiTaskScorer(run, task=task)}).correct)
    every = {name: each for adapters in by_task.values() for name, each in adapters.items()}
    return replace(compare(every, {}), correct=correct)


def whole_and_layers(task: str, adapter: RoadAdapter) -> dict[str, RoadAdapter]:
    """The adapter, and its restriction to each layer, by name."""
    return {task: adapter, **{f"{task} layer {layer}": each for layer, each in adapter.by_layer().items()}}


def report(pieces: Pieces) -> InterferenceReport:
    (reports,) = pieces.values()
    return InterferenceReport.over_seeds(reports)


def draw(found: InterferenceReport, folder: Path) -> list[Path]:
    with context(plots.STYLE):
        ax = subplots(figsize=(min(7, 1.5 + 0.65 * len(found.names)), 2.6), layout="constrained")[1]
    return [export.save_figure(plots.interference(found, ax), found, folder, "interference")]


def describe(found: InterferenceReport) -> Described:
    costs = {(task, other): found.cost(task, other) for task in found.correct for other in found.others(task)}
    (task, other), worst = max(costs.items(), key=lambda item: item[1][0])
    sentence = f"The largest cost is that of '{other}' to '{task}': {with_interval(worst)} of accuracy."
    return sentence, [(f"{task} with {other}", with_interval(cost)) for (task, other), cost in costs.items()]


STUDY = Study(
    name="interference",
    title="Interference between adapters",
    question="Does composing one adapter with that of another task cost accuracy, and which of its layers do?",
    caveat=(
        "One model, two tasks on film reviews and three seeds. Small costs of single layers were not corrected for their number."
    ),
    recipe="multitask-minilm",
    conditions={"alone": Condition("each task trained alone")},
    measure=measure,
    report=report,
    result=InterferenceReport,
    draw=draw,
    describe=describe,
    minutes=20,
    seeds=(3, 4, 5),
    quick=QUICK,
)

if __name__ == "__main__":
    main_of(STUDY)
