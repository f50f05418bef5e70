"""What of a learned rotation does the work: angles or magnitudes, which layers and modules, how many planes.

python analyses/ablation.py RUN [RUN ...] --out figures    # run folders of one recipe, one per seed
python analyses/ablation.py --out figures                  # trains them: sentiment-minilm, three seeds
python analyses/ablation.py RUN [RUN ...] --only planes --most 128    # no layers and modules, which are many in a deep model
python analyses/ablation.py --quick --out figures
python analyses/ablation.py --redraw figures/ablation.json --out figures

Runs of one classification task are scored by their accuracy, those of behaviours (`road-interp train composition-smollm2`) by the
answers that show all of them. Runs that learned one part alone (`adapter.learn=angles` or `magnitudes`) stand beside the run of
their seed that learned both, and the second form trains them too. Every run leaves its JSON under parts/ in the folder, and one
that is there is not measured again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from road_interp.adapters.storage import DESCRIPTION
from road_interp.errors import InputError, exit_on_error
from road_interp.files import read_json_object, read_text, write_atomically
from road_interp.measure.ablation import ANGLES, BY, MAGNITUDES, AblationReport, ablation
from road_interp.plots import export
from road_interp.runs.run import Run
from road_interp.runs.run_files import ADAPTER
from road_interp.training.scoring import make_scorer
from road_interp.training.study import QUICK, log_status, runs_for_seeds, settings_hash, study_options

ALONE = {"angles": ANGLES, "magnitudes": MAGNITUDES}


def measure(parts: Path, folders: Sequence[Path], by: Sequence[str], most: int | None) -> AblationReport:
    """The runs that learned both parts, taken apart, as one report; beside each those of its seed that learned one part."""
    parts.mkdir(parents=True, exist_ok=True)
    runs = [Run.load(folder) for folder in folders]
    whole: dict[int, Run] = {}
    for run in runs:
        if run.recipe.adapter.learn == "both":
            if run.recipe.seed in whole:
                raise InputError(f"'{run.folder}' and '{whole[run.recipe.seed].folder}' are of one seed")
            whole[run.recipe.seed] = run
    alone = [run for run in runs if run.recipe.adapter.learn != "both"]
    for run in alone:
        adapter = replace(run.recipe.adapter, learn="both")
        if run.recipe.seed not in whole or whole[run.recipe.seed].recipe != replace(run.recipe, adapter=adapter):
            raise InputError(f"no run of the recipe and seed of '{run.folder}' that learned both parts is there to stand beside")
    reports: dict[int, AblationReport] = {}
    for seed, run in whole.items():
        path = kept(parts, run, sorted(by), most)
        if not path.is_file():
            write_atomically(path, taken_apart(run, by, most).to_json())
        reports[seed] = AblationReport.from_json(path.read_text())
    for run in alone:
        path, seed = kept(parts, run, most), run.recipe.seed
        if not path.is_file():
            log_status(f"score {run.folder.name}")
            write_atomically(path, json.dumps({"correct": make_scorer(run, most)(run.adapter).tolist()}))
        part = ALONE[run.recipe.adapter.learn]
        reports[seed] = reports[seed].with_trained_alone(part, read_json_object(path)["correct"])
    return AblationReport.over_seeds(list(reports.values()))


def kept(parts: Path, run: Run, *settings: object) -> Path:
    """Where a run's outcomes are kept; a run that was trained again is another one."""
    digest = read_json_object(run.folder / ADAPTER / DESCRIPTION)["sha256"][:8]
    return parts / f"ablation of {run.folder.name} {digest}, {settings_hash(*settings)}.json"


def taken_apart(run: Run, by: Sequence[str], most: int | None) -> AblationReport:
    """One run."""
    scorer = make_scorer(run, most)
    return ablation(
        run.adapter,
        scorer,
        model=run.recipe.model.name,
        task=scorer.task,
        seed=run.recipe.seed,
        metric=scorer.metric,
        refitted=scorer.refitted,
        by=by,
        progress=lambda name, done, total: log_status(f"{done + 1} of {total}: {name}"),
    )


def main() -> None:
    options = study_options(__doc__, "one seed, two steps, forty texts", runs=True, only=BY, quick_most=40)
    if options.redraw is not None:
        report = AblationReport.from_json(read_text(options.redraw))
    else:
        changes = QUICK if options.quick else ()
        runs = options.runs or [
            folder
            for part in ("both", *ALONE)
            for folder in runs_for_seeds("sentiment-minilm", (*changes, f"adapter.learn={part}"), options.seeds, options.parts)
        ]
        report = measure(options.parts, runs, options.only, options.most)
    print(export.draw_ablation(report, options.out))


if __name__ == "__main__":
    with exit_on_error(Path(__file__).name):
        main()
