"""File names in a run folder, whether the run has finished, and the version of its format."""

from __future__ import annotations

from pathlib import Path

from road_interp.adapters.file_names import RUN_ADAPTER, RUN_HEAD, RUN_RECIPE
from road_interp.errors import InputError
from road_interp.files import is_dir, is_file, read_json_object
from road_interp.formats import check_format, release_of

RUN_FORMAT = 1
RECIPE, ADAPTER, HEAD, METRICS, LOG = RUN_RECIPE, RUN_ADAPTER, RUN_HEAD, "metrics.json", "log.jsonl"
ENVIRONMENT, CLASSES, FIGURES, CHECKPOINTS = "environment.json", "classes.json", "figures", "checkpoints"
PLANES, COMPOSITION, EXACT_MATCH = "planes.json", "composition.json", "exact-match.json"
ORIGIN = "origin.json"
FROZEN = "frozen backbone, trained head"  # the scores of this baseline in metrics.json
MULTITASK_ACCURACY = "multitask-accuracy.json"
MULTITASK_ACCURACY_0_1 = "heads.json"  # its name in run folders of release 0.1.0


def own_files(folder: Path) -> list[str]:
    """The files that make a run, and the folder of its adapter: nothing else may be written to them."""
    start = (RECIPE, ORIGIN, CLASSES, PLANES)
    end = (ADAPTER, HEAD, METRICS, LOG, ENVIRONMENT, COMPOSITION, EXACT_MATCH, MULTITASK_ACCURACY, MULTITASK_ACCURACY_0_1)
    return [str(folder / name) for name in (*start, *end)]


def check_finished(folder: Path) -> None:
    """Raise InputError unless the folder holds a finished run: one with metrics.json, which training writes last."""
    if not is_dir(folder):
        state = "is a file" if is_file(folder) else "does not exist"
        raise InputError(f"run folder '{folder}' {state}")
    if not (folder / METRICS).is_file():
        unfinished = (folder / RECIPE).is_file()
        inside = sorted(path.parent.name for path in folder.glob(f"*/{METRICS}"))
        if unfinished:
            state = "its training has not finished; go on with --resume"
        elif inside:
            state = f"it holds the runs {', '.join(inside[:8])}; give one of them"
        else:
            state = f"{METRICS} is missing; a run is a folder that `train` has written, a lone adapter is none"
        raise InputError(f"'{folder}' is not a finished run: {state}")


def check_run_format(folder: Path) -> None:
    """Raise InputError for a run folder of a newer format; one of 0.1.0 says none."""
    if (folder / ENVIRONMENT).is_file():
        environment = read_json_object(folder / ENVIRONMENT)
        try:
            check_format(environment.get("format", RUN_FORMAT), RUN_FORMAT, release_of(environment))
        except InputError as error:
            raise InputError(f"'{folder}': {error}") from None
