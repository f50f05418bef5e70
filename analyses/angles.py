"""What a learned rotation looks like: angles and magnitudes of its planes, what comes back with another seed, query against key.

python analyses/angles.py RUN [RUN ...] --out figures    # run folders of one recipe, one per seed
python analyses/angles.py --out figures                  # trains them: sentiment-minilm, three seeds
python analyses/angles.py --quick --out figures
python analyses/angles.py --redraw figures --out again   # draws what is there

All figures show the first run, but for the one that compares seeds. Runs that are trained stay under parts/ in the
folder, where other analyses find them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from road_interp import plots
from road_interp.errors import InputError, exit_on_error
from road_interp.files import read_text
from road_interp.measure import AngleReport, QueryKey, SeedStructure, angles, query_key, seed_structure
from road_interp.plots import export
from road_interp.runs.run import Run
from road_interp.training.study import QUICK, log_status, runs_for_seeds, study_options

RESULTS: dict[str, Any] = {"angles": AngleReport, "structure": SeedStructure, "query-key": QueryKey}  # by name of their JSON


def measure(runs: Sequence[Path]) -> dict[str, Any]:
    """Angles of the first run, agreement of all where there are several, and query against key where both are rotated."""
    loaded = [Run.load(folder) for folder in runs]
    reports = [angles(run.adapter) for run in loaded]
    results: dict[str, Any] = {"angles": reports[0]}
    if len(reports) > 1:
        results["structure"] = seed_structure(reports)
    key_heads = getattr(loaded[0].load_model().model.config, "num_key_value_heads", 1)
    try:
        results["query-key"] = query_key(reports[0], key_heads)
    except InputError as error:
        log_status(str(error))
    return results


def read(folder: Path) -> dict[str, Any]:
    """The results that an earlier run left in a folder. Raises InputError where there are none."""
    files = {name: folder / f"{name}.json" for name in RESULTS}
    if not (results := {name: RESULTS[name].from_json(read_text(file)) for name, file in files.items() if file.is_file()}):
        raise InputError(f"'{folder}' holds none of {', '.join(file.name for file in files.values())}")
    return results


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Every figure that there is a result for."""
    drawings = {
        "angle-histogram": ("angles", plots.angle_histogram),
        "shares": ("angles", plots.shares),
        "structure": ("structure", plots.seed_structure),
        "query-key": ("query-key", plots.query_key),
    }
    paths = export.draw_adapter(results["angles"], folder) if "angles" in results else []
    for name, (result, plot) in drawings.items():
        if result in results:
            paths.append(export.save_figure(plot(results[result]), results[result], folder, name))
    return paths


def main() -> None:
    options = study_options(__doc__, "two seeds, two steps", quick_seeds=2, runs=True)
    if options.redraw is not None:
        results = read(options.redraw)
    else:
        changes = QUICK if options.quick else ()
        results = measure(options.runs or runs_for_seeds("sentiment-minilm", changes, options.seeds, options.parts))
    for path in draw(results, options.out):
        print(path)


if __name__ == "__main__":
    with exit_on_error(Path(__file__).name):
        main()
