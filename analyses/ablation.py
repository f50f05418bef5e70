"""What of a learned rotation does the work: angles or magnitudes, which layers and modules, how many planes.

python analyses/ablation.py RUN [RUN ...] --out figures    # run folders of one recipe, one per seed
python analyses/ablation.py --out figures                  # trains them: sentiment-minilm, three seeds
python analyses/ablation.py --quick --out figures
python analyses/ablation.py --redraw figures/ablation.json --out figures

Every run leaves its JSON under parts/ in the folder, and one that is there is not measured again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from road_interp import figures
from road_interp.adapter import DESCRIPTION
from road_interp.files import read_json_object, write_atomically
from road_interp.measure.ablation import AblationReport, ablation
from road_interp.recipe import Recipe
from road_interp.run import ADAPTER, Run
from road_interp.scorer import RunScorer
from road_interp.study import QUICK, runs_for_seeds, study_options, tell


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


def main() -> None:
    options = study_options(__doc__, "one seed, two steps, forty texts", runs=True)
    if options.redraw is not None:
        report = AblationReport.from_json(options.redraw.read_text())
    else:
        changes, most = (QUICK, 40) if options.quick else ((), None)
        runs = options.runs or runs_for_seeds("sentiment-minilm", changes, options.seeds, options.parts)
        report = measure(options.parts, runs, most)
    print(figures.draw_ablation(report, options.out))


if __name__ == "__main__":
    main()
