"""What of a learned rotation does the work: angles or magnitudes, which layers and modules, how many planes.

python analyses/ablation.py RUN [RUN ...] --out figures    # run folders of one recipe, one per seed
python analyses/ablation.py --out figures                  # trains them: sentiment-minilm, three seeds
python analyses/ablation.py --quick --out figures
python analyses/ablation.py --redraw figures/ablation.json --out figures

Every run leaves its JSON under parts/ in the folder, and one that is there is not measured again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from road_interp import figures
from road_interp.adapter import DESCRIPTION
from road_interp.files import read_json_object, write_atomically
from road_interp.measure.ablation import AblationReport, ablation
from road_interp.recipe import Recipe
from road_interp.run import ADAPTER, Run
from road_interp.scorer import RunScorer
from road_interp.seeds import runs_for_seeds

QUICK = ["training.max_steps=2", "data.per_class=200", "data.validation_size=0.2", "data.test_size=0.2"]


def measure(parts: Path, runs: Sequence[Path], most: int | None) -> AblationReport:
    """All runs taken apart, as one report."""
    parts.mkdir(parents=True, exist_ok=True)
    reports = []
    for folder in runs:
        run = Run.load(folder)
        digest = read_json_object(folder / ADAPTER / DESCRIPTION)["sha256"][:8]
        path = parts / f"ablation of {folder.name} {digest}.json"  # a run that was trained again is another one
        if not path.is_file():
            scorer = RunScorer(run, most)
            recipe = run.recipe
            assert isinstance(recipe, Recipe)  # or else there were no scorer
            report = ablation(
                run.adapter,
                scorer,
                model=recipe.model.name,
                task=recipe.data.id.rpartition("/")[2],
                seed=recipe.seed,
                refitted=scorer.refitted,
                progress=lambda name, done, total: tell(f"{done + 1} of {total}: {name}"),
            )
            write_atomically(path, report.to_json())
        reports.append(AblationReport.from_json(path.read_text()))
    return AblationReport.over_seeds(reports)


def tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="*", help="finished run folders; by default they are trained")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="one seed, two steps, forty texts")
    parser.add_argument("--redraw", type=Path, help="draw from the JSON of an earlier run instead of measuring")
    options = parser.parse_args()
    if options.redraw is not None:
        report = AblationReport.from_json(options.redraw.read_text())
    else:
        parts = options.out / ("parts-quick" if options.quick else "parts")
        seeds, changes = (options.seeds[:1], QUICK) if options.quick else (options.seeds, [])
        runs = options.runs or runs_for_seeds("sentiment-minilm", changes, seeds, parts, tell)
        report = measure(parts, runs, 40 if options.quick else None)
    print(figures.draw_ablation(report, options.out))


if __name__ == "__main__":
    main()
