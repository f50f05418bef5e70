"""What of a learned rotation does the work: angles or magnitudes, which layers and modules, how many planes.

python analyses/ablation.py RUN [RUN ...] --out figures    # run folders of one recipe, one per seed
python analyses/ablation.py --out figures                  # trains them: sentiment-minilm, three seeds
python analyses/ablation.py --quick --out figures
python analyses/ablation.py --redraw figures/ablation.json --out figures

Runs that learned one part alone (`adapter.learn=angles` or `magnitudes`) stand beside the run of their seed that learned both,
and the second form trains them too. Every run leaves its JSON under parts/ in the folder, and one that is there is not measured
again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from road_interp import figures
from road_interp.adapter import DESCRIPTION
from road_interp.errors import InputError
from road_interp.files import read_json_object, write_atomically
from road_interp.measure.ablation import ANGLES, MAGNITUDES, AblationReport, ablation
from road_interp.recipe import Recipe
from road_interp.run import ADAPTER, Run
from road_interp.scorer import RunScorer
from road_interp.study import QUICK, runs_for_seeds, study_options, tell

ALONE = {"angles": ANGLES, "magnitudes": MAGNITUDES}


def measure(parts: Path, runs: Sequence[Path], most: int | None) -> AblationReport:
    """The runs that learned both parts, taken apart, as one report; beside each those of its seed that learned one part."""
    parts.mkdir(parents=True, exist_ok=True)
    reports: dict[int, AblationReport] = {}
    alone: dict[int, list[tuple[str, list[bool]]]] = {}
    for folder in runs:
        run = Run.load(folder)
        digest = read_json_object(folder / ADAPTER / DESCRIPTION)["sha256"][:8]
        path = parts / f"ablation of {folder.name} {digest}.json"  # a run that was trained again is another one
        if run.recipe.adapter.learn != "both":
            if not path.is_file():
                tell(f"score {folder.name}")
                write_atomically(path, json.dumps({"correct": RunScorer(run, most)(run.adapter).tolist()}))
            outcomes = read_json_object(path)["correct"]
            alone.setdefault(run.recipe.seed, []).append((ALONE[run.recipe.adapter.learn], outcomes))
            continue
        if not path.is_file():
            write_atomically(path, taken_apart(run, most).to_json())
        reports[run.recipe.seed] = AblationReport.from_json(path.read_text())
    for seed, found in alone.items():
        if seed not in reports:
            raise InputError(f"there is no run of seed {seed} that learned both parts to stand beside")
        for part, outcomes in found:
            reports[seed] = reports[seed].with_trained_alone(part, outcomes)
    return AblationReport.over_seeds(list(reports.values()))


def taken_apart(run: Run, most: int | None) -> AblationReport:
    """One run."""
    scorer = RunScorer(run, most)
    recipe = run.recipe
    assert isinstance(recipe, Recipe)  # or else there were no scorer
    return ablation(
        run.adapter,
        scorer,
        model=recipe.model.name,
        task=recipe.data.id.rpartition("/")[2],
        seed=recipe.seed,
        refitted=scorer.refitted,
        progress=lambda name, done, total: tell(f"{done + 1} of {total}: {name}"),
    )


def main() -> None:
    options = study_options(__doc__, "one seed, two steps, forty texts", runs=True)
    if options.redraw is not None:
        report = AblationReport.from_json(options.redraw.read_text())
    else:
        changes, most = (QUICK, 40) if options.quick else ((), None)
        runs = options.runs or [
            folder
            for part in ("both", *ALONE)
            for folder in runs_for_seeds("sentiment-minilm", (*changes, f"adapter.learn={part}"), options.seeds, options.parts)
        ]
        report = measure(options.parts, runs, most)
    print(figures.draw_ablation(report, options.out))


if __name__ == "__main__":
    main()
