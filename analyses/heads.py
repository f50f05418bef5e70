"""Two classification heads on one state of MiniLM: what each loses when the other's planes are active too.

python analyses/heads.py --out figures            # with and without co-activation, and each task alone, three seeds
python analyses/heads.py --quick --out figures
python analyses/heads.py --redraw figures/heads.json --out figures

Every condition and seed leaves its own run folder under parts/ in the folder, and one that is finished is not run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from road_interp import plots
from road_interp.errors import exit_on_error
from road_interp.files import read_text
from road_interp.measure.multitask_accuracy import MultiTaskAccuracyReport, MultiTaskAccuracyStudy
from road_interp.plots import export
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.schema import MixtureRecipe
from road_interp.training.study import log_status, study_options, train_once

QUICK = ["training.max_steps=2", *(f"tasks.{task}.labels.per_class=200" for task in ("sentiment", "source"))]


def measure(parts: Path, seeds: Sequence[int], changes: Sequence[str]) -> MultiTaskAccuracyStudy:
    """The recipe with and without co-activation, and every task by itself on all planes, over all seeds."""
    together: dict[str, list[MultiTaskAccuracyReport]] = {}
    alone: dict[str, list[MultiTaskAccuracyReport]] = {}

    def run(name: str, recipe: MixtureRecipe) -> MultiTaskAccuracyReport:
        log_status(f"{name}, seed {recipe.seed}")
        found = train_once(recipe, parts / f"{name}, seed {recipe.seed}").composition
        assert isinstance(found, MultiTaskAccuracyReport)
        return replace(found, method=name)

    for seed in seeds:
        recipe = load_recipe("multitask-minilm", [*changes, f"seed={seed}"])
        assert isinstance(recipe, MixtureRecipe)
        for probability in (0.5, 0.0):
            name = f"co-activation {probability:g}"
            together.setdefault(name, []).append(run(name, replace(recipe, co_activation=probability)))
        for task, what in recipe.tasks.items():
            alone.setdefault(task, []).append(run(f"{task} alone", replace(recipe, tasks={task: what})))
    over_seeds = MultiTaskAccuracyReport.over_seeds
    return MultiTaskAccuracyStudy(
        tuple(map(over_seeds, together.values())), {task: over_seeds(each) for task, each in alone.items()}
    )


def main() -> None:
    options = study_options(__doc__, "one seed, two steps")
    if options.redraw is not None:
        study = MultiTaskAccuracyStudy.from_json(read_text(options.redraw))
    else:
        study = measure(options.parts, options.seeds, QUICK if options.quick else ())
    print(export.save_figure(plots.heads(study), study, options.out, "heads"))


if __name__ == "__main__":
    with exit_on_error(Path(__file__).name):
        main()
