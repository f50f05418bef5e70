"""Two classification heads on one state of MiniLM: what each loses when the other's planes are active too.

python analyses/heads.py --out figures            # with and without co-activation, and each task alone, three seeds
python analyses/heads.py --quick --out figures
python analyses/heads.py --redraw figures/heads.json --out figures

Every condition and seed leaves its own run folder under parts/ in the folder, and one that is finished is not run again.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from road_interp import figures, plots
from road_interp.measure.heads import HeadsReport, HeadsStudy
from road_interp.recipe import MixtureRecipe, load_recipe
from road_interp.run import HEADS
from road_interp.training import train

QUICK = ["training.max_steps=2"]


def conditions(recipe: MixtureRecipe) -> Iterator[tuple[str, MixtureRecipe]]:
    """The recipe with and without co-activation, and every task by itself on all planes."""
    for probability in (0.5, 0.0):
        yield f"co-activation {probability:g}", replace(recipe, co_activation=probability)
    for name, task in recipe.tasks.items():
        yield f"{name} alone", replace(recipe, tasks={name: task})


def measured(recipe: MixtureRecipe, folder: Path) -> HeadsReport:
    """The scores in a run folder, which is trained first if it is not finished."""
    if not (folder / HEADS).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        train(recipe, folder, progress=False)
    return HeadsReport.from_json((folder / HEADS).read_text())


def measure(out: Path, seeds: list[int], quick: bool) -> HeadsStudy:
    """All conditions over all seeds."""
    reports: dict[str, list[HeadsReport]] = {}
    for seed in seeds:
        recipe = load_recipe("multitask-minilm", [*(QUICK if quick else []), f"seed={seed}"])
        assert isinstance(recipe, MixtureRecipe)
        for name, changed in conditions(recipe):
            print(f"{name}, seed {seed}", flush=True)
            report = measured(changed, out / "parts" / f"{name}, seed {seed}")
            reports.setdefault(name, []).append(replace(report, method=name))
    return HeadsStudy(tuple(HeadsReport.over_seeds(each) for each in reports.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="one seed, two steps")
    parser.add_argument("--redraw", type=Path, help="draw from the JSON of an earlier run instead of measuring")
    options = parser.parse_args()
    if options.redraw is not None:
        study = HeadsStudy.from_json(options.redraw.read_text())
    else:
        study = measure(options.out, options.seeds[: 1 if options.quick else None], options.quick)
    print(figures.save_figure(plots.heads(study), study, options.out, "heads"))


if __name__ == "__main__":
    main()
