"""A study: one question put to the program under several conditions and seeds, measured piece by piece, drawn and described.

Every piece is a result of its own, `OUT/STUDY/CONDITION/seed-N.json`, and one that is there is not measured again. The scripts in
`analyses/` hold the studies; `run_study` is the loop that all of them share.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from road_interp.errors import InputError
from road_interp.from_mapping import from_mapping
from road_interp.progress import Progress, silent
from road_interp.provenance import current_provenance
from road_interp.recipes.loader import apply_override, load_recipe, load_stored_recipe, read_recipe
from road_interp.recipes.schema import TrainableRecipe
from road_interp.results import Result
from road_interp.runs.run import Run
from road_interp.runs.run_files import METRICS, RECIPE
from road_interp.training.api import train
from road_interp.training.manifest import record

Described = tuple[str, list[tuple[str, str]]]  # a sentence that a report supports, and its numbers by name
Pieces = Mapping[str, Sequence[Any]]  # the results of every condition that has some, in the order of the seeds


class Piece(NamedTuple):
    """One condition and seed of a study, ready to be measured.

    Attributes:
        recipe: with the overrides of the condition, and the seed.
        condition: its slug.
        seed: of the training or the draw.
        runs: folder for run folders, which studies of one recipe share.
        progress: told what is done.
    """

    recipe: Any
    condition: str
    seed: int
    runs: Path
    progress: Progress


@dataclass(frozen=True)
class Condition:
    """What is varied in a study.

    Attributes:
        name: for people.
        overrides: of the recipe.
        measure: instead of the study's own.
        seeds: how many of the seeds it takes; all by default.
    """

    name: str
    overrides: tuple[str, ...] = ()
    measure: Callable[[Piece], Result] | None = None
    seeds: int | None = None


@dataclass(frozen=True)
class Study:
    """One question, and how it is answered.

    Attributes:
        name: folder of its results, and stem of its figures.
        title: of its section on the page of figures.
        recipe: a built-in recipe, or a frozen dataclass of settings where nothing is trained; every piece sets its seed.
        conditions: by slug (letters, digits, `-`, `_` and `.`), the most wanted first.
        measure: one piece.
        report: the pieces as one result. Conditions that were not measured are missing.
        result: class of the pieces.
        draw: the figures of a report in a folder: the paths of their PNGs.
        describe: what the report says.
        minutes: what all of it takes on two cores, about.
        quick: further overrides of `--quick`.
        quick_seeds, quick_conditions: how many of them `--quick` leaves; None for all.
        inputs: keys of the settings that name files on this machine, and so do not tell results apart.
    """

    name: str
    title: str
    recipe: str | type[Any]
    conditions: Mapping[str, Condition]
    measure: Callable[[Piece], Result]
    report: Callable[[Pieces], Result]
    result: type[Result]
    draw: Callable[[Any, Path], Sequence[Path]]
    describe: Callable[[Any], Described]
    minutes: int
    quick: tuple[str, ...] = ()
    quick_seeds: int = 1
    quick_conditions: int | None = None
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyOptions:
    """What of a study is measured, and where it goes.

    Attributes:
        overrides: of the recipe, for all conditions.
        seeds: of every condition.
        only: slugs of the conditions to measure; all by default. The report holds whatever is there.
        quick: few steps and examples, for a look at the figures: the numbers mean nothing.
        results: folder of the pieces.
        runs: folder of the run folders.
    """

    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    only: tuple[str, ...] = ()
    quick: bool = False
    results: Path = Path("results")
    runs: Path = field(default=Path("runs") / "studies")


def run_study(study: Study, options: StudyOptions, progress: Progress = silent) -> Result:
    """Measure the pieces that are missing; the report of all that are there.

    Raises:
        InputError: an unknown condition, a file that holds something else, or nothing measured.
    """
    if unknown := [slug for slug in options.only if slug not in study.conditions]:
        near = difflib.get_close_matches(unknown[0], study.conditions, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the conditions are {', '.join(study.conditions)}"
        raise InputError(f"study '{study.name}' has no condition '{unknown[0]}'; {hint}")
    limit = study.quick_conditions if options.quick else None
    for slug in options.only or list(study.conditions)[:limit]:
        for seed in _seeds(study, study.conditions[slug], options):
            path = _path(study, slug, seed, options)
            if not path.is_file():
                progress(f"{study.conditions[slug].name}, seed {seed}")
                started = time.monotonic()
                result = _measure(study, slug, seed, options, progress)
                path.parent.mkdir(parents=True, exist_ok=True)
                result.save(path)
                record(options.results, path, result, time.monotonic() - started)
    return read_study(study, options)


def read_study(study: Study, options: StudyOptions) -> Result:
    """The report of the pieces that an earlier run has left in `options.results`. Raises InputError where there are none."""
    pieces = {}
    for slug, condition in study.conditions.items():
        paths = [_path(study, slug, seed, options) for seed in _seeds(study, condition, options)]
        if found := [_load(study, condition, path, options) for path in paths if path.is_file()]:
            pieces[slug] = found
    if not pieces:
        raise InputError(f"'{options.results / study.name}' holds no results of this study")
    return study.report(pieces)


def studies() -> dict[str, Study]:
    """The studies of `analyses/`, by name."""
    installed = Path(str(resources.files("road_interp") / "analyses"))
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "analyses"
    found = [study for path in sorted(folder.glob("*.py")) for study in _studies_in(path)]
    return {study.name: study for study in found}


def find_study(name: str) -> Study:
    """The study of that name. Raises InputError naming near ones."""
    known = studies()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise InputError(f"no study '{name}'; " + (f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"))
    return known[name]


def run_of(piece: Piece) -> Run:
    """The run of a piece's recipe; trained, or gone on with, where its folder holds no finished one.

    Folders are named by recipe and settings, so that studies which need the same run share it.

    Raises:
        InputError: the folder holds a run of another recipe.
    """
    folder = piece.runs / f"{piece.recipe.model.name}-{settings_hash(piece.recipe)}"
    return train_once(piece.recipe, folder)


def train_once(recipe: TrainableRecipe, folder: Path) -> Run:
    """The run of a recipe in a folder; where the folder holds no finished one, it is trained, or goes on.

    Raises:
        InputError: the folder holds a run of another recipe.
    """
    if not (folder / METRICS).is_file():
        return train(recipe, folder, resume=(folder / RECIPE).is_file(), progress=False)
    if load_stored_recipe(folder / RECIPE) != recipe:
        raise InputError(f"'{folder}' was trained with another recipe; choose another --runs")
    return Run.load(folder)


def settings_hash(*settings: object) -> str:
    """Short hash of the settings, used as a cache key."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def with_interval(values: Sequence[float], digits: int = 3) -> str:
    """A value and its 95% interval, as text."""
    value, low, high = values
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _measure(study: Study, slug: str, seed: int, options: StudyOptions, progress: Progress) -> Result:
    condition = study.conditions[slug]
    overrides = [*_overrides(study, condition, options), f"seed={seed}"]
    recipe: Any = load_recipe(study.recipe, overrides) if isinstance(study.recipe, str) else _settings(study.recipe, overrides)
    piece = Piece(recipe, slug, seed, options.runs, progress)
    result = (condition.measure or study.measure)(piece)
    return replace(result, provenance=current_provenance((seed,), settings_of(study, condition, options)))


def _load(study: Study, condition: Condition, path: Path, options: StudyOptions) -> Result:
    """A piece that is there. Raises InputError for one that was measured with other settings."""
    result = study.result.load(path)
    made = None if result.provenance is None else result.provenance.settings
    if made != (settings := settings_of(study, condition, options)):
        raise InputError(f"'{path}' was measured with other settings ({made}, not {settings}); choose another --results")
    return result


def settings_of(study: Study, condition: Condition, options: StudyOptions) -> str:
    """Hash of what a condition's pieces are measured with, but for the seed: the keys that recipe and overrides name."""
    overrides = [each for each in _overrides(study, condition, options) if each.partition("=")[0] not in study.inputs]
    content = read_recipe(study.recipe, overrides) if isinstance(study.recipe, str) else overrides
    return settings_hash(json.dumps(content, sort_keys=True, default=str))


def _overrides(study: Study, condition: Condition, options: StudyOptions) -> list[str]:
    return [*condition.overrides, *(study.quick if options.quick else ()), *options.overrides]


def _settings(kind: type[Any], overrides: Sequence[str]) -> Any:
    """A dataclass of settings from texts such as "steps=200"."""
    content: dict[str, Any] = {}
    for override in overrides:
        apply_override(content, override)
    return from_mapping(kind, content)


def _seeds(study: Study, condition: Condition, options: StudyOptions) -> tuple[int, ...]:
    limit = study.quick_seeds if options.quick else None
    return options.seeds[:limit][: condition.seeds]


def _path(study: Study, slug: str, seed: int, options: StudyOptions) -> Path:
    own = [each for each in options.overrides if each.partition("=")[0] not in study.inputs]
    name = f"{study.name}-{settings_hash(own)}" if own else study.name
    return options.results / ("quick" if options.quick else "") / name / slug / f"seed-{seed}.json"


def _studies_in(path: Path) -> list[Study]:
    """The studies that a script defines at its top level."""
    name = f"road_interp_analyses_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return [value for value in vars(module).values() if isinstance(value, Study)]
