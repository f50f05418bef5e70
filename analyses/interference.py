"""How the rotations of two tasks get into each other's way: each task scored with the other's adapter composed on its own.

python analyses/interference.py --out figures    # multitask-minilm, every task trained alone on all planes, three seeds
python analyses/interference.py --quick --out figures
python analyses/interference.py --redraw figures/interference.json --out figures

The other's adapter is taken whole and restricted to single layers. Every run, and every seed's JSON, stays under parts/ in the
folder, and what is there is not trained or measured again; analyses/heads.py leaves and finds the same runs there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path

from matplotlib.pyplot import subplots
from matplotlib.style import context
from road_interp.head_scorer import MultiTaskScorer

from road_interp import plots
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import exit_on_error
from road_interp.files import read_text, write_atomically
from road_interp.measure import InterferenceReport, hurts_others, interference
from road_interp.plots import export
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.schema import MixtureRecipe
from road_interp.runs.run import Run
from road_interp.training.study import log_status, settings_hash, study_options, train_once

QUICK = ["training.max_steps=2", *(f"tasks.{task}.labels.per_class=200" for task in ("sentiment", "source"))]


def measure(parts: Path, seeds: Sequence[int], changes: Sequence[str]) -> InterferenceReport:
    """All seeds as one report."""
    parts.mkdir(parents=True, exist_ok=True)
    reports = []
    for seed in seeds:
        recipe = load_recipe("multitask-minilm", [*changes, f"seed={seed}"])
        assert isinstance(recipe, MixtureRecipe)
        path = parts / f"interference, seed {seed}, {settings_hash(recipe)}.json"
        if not path.is_file():
            write_atomically(path, between(alone(recipe, parts), recipe).to_json())
        reports.append(InterferenceReport.from_json(path.read_text()))
    return InterferenceReport.over_seeds(reports)


def alone(recipe: MixtureRecipe, parts: Path) -> dict[str, Run]:
    """Every task's run by itself, on all planes."""
    runs = {}
    for task, what in recipe.tasks.items():
        name = f"{task} alone, seed {recipe.seed}"
        log_status(name)
        runs[task] = train_once(replace(recipe, tasks={task: what}), parts / name)
    return runs


def between(runs: Mapping[str, Run], recipe: MixtureRecipe) -> InterferenceReport:
    """Every task with its own adapter, and with the whole of the other's and its single layers composed on it."""
    adapters = {task: whole_and_layers(task, run.adapter) for task, run in runs.items()}
    model = recipe.model.name
    compare = partial(interference, model=model, seed=recipe.seed, progress=log_status)
    correct: dict[str, Mapping[str, tuple[bool, ...]]] = {}
    for task, run in runs.items():
        others = {name: part for other, parts in adapters.items() if other != task for name, part in parts.items()}
        correct.update(compare({task: run.adapter, **others}, {task: MultiTaskScorer(run, task)}).correct)
    every = {name: part for parts in adapters.values() for name, part in parts.items()}
    return replace(compare(every, {}), correct=correct)


def whole_and_layers(task: str, adapter: RoadAdapter) -> dict[str, RoadAdapter]:
    """The adapter, and what it is restricted to each of its layers, by name."""
    return {task: adapter, **{f"{task} layer {layer}": part for layer, part in adapter.by_layer().items()}}


def main() -> None:
    options = study_options(__doc__, "one seed, two steps")
    if options.redraw is not None:
        report = InterferenceReport.from_json(read_text(options.redraw))
    else:
        report = measure(options.parts, options.seeds, QUICK if options.quick else ())
    with context(plots.STYLE):
        ax = subplots(figsize=(1.5 + 0.65 * len(report.names), 2.6), layout="constrained")[1]
    print(export.save_figure(plots.interference(report, ax), report, options.out, "interference"))
    for control, other in permutations(report.correct, 2):
        check = hurts_others(report, control, other)
        print(f"{check.question} {check.verdict} ({check.reason})")


if __name__ == "__main__":
    with exit_on_error(Path(__file__).name):
        main()
