"""Studies: one question, measured under several conditions and seeds, drawn and described.

Each piece (one condition and seed) is stored as `RESULTS/STUDY/CONDITION/seed-N.json`, and is measured only if that file is
missing. The scripts in `analyses/` define the studies; `run_study` is their common loop.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from road_interp.errors import InputError, did_you_mean
from road_interp.files import check_folder, locked
from road_interp.from_mapping import from_mapping
from road_interp.models.loading import find_device, load_model, load_tokenizer
from road_interp.progress import Progress, silent
from road_interp.provenance import current_provenance
from road_interp.recipes.loader import apply_override, load_recipe, load_stored_recipe, read_recipe
from road_interp.recipes.schema import TrainableRecipe
from road_interp.results import Result
from road_interp.runs.run import Run
from road_interp.runs.run_files import METRICS, RECIPE
from road_interp.training.api import train
from road_interp.training.arguments import forward_precision
from road_interp.training.manifest import record
from road_interp.training.study_inputs import Inputs, check_digests, digests

Described = tuple[str, list[tuple[str, str]]]  # a sentence about a report, and its (name, value) pairs
QUICK_CLASSIFICATION = ("training.max_steps=2", "data.per_class=200", "data.validation_size=0.2", "data.test_size=0.2")
Pieces = Mapping[str, Sequence[Any]]  # results by condition, in the order of the seeds; conditions without results are missing


class Piece(NamedTuple):
    """One condition and seed of a study: the input of its measurement.

    Attributes:
        recipe: the study's recipe with the overrides of the condition and the seed.
        condition: slug of the condition.
        seed: seed of the training or of the random draw.
        runs: parent of the run folders; studies with equal recipes share their runs.
        progress: called before each step.
    """

    recipe: Any
    condition: str
    seed: int
    runs: Path
    progress: Progress


@dataclass(frozen=True)
class Condition:
    """One condition of a study.

    Attributes:
        name: name in figures and tables.
        overrides: overrides of the recipe, such as "adapter.trainable=angles".
        measure: replaces the study's `measure`.
        seeds: number of seeds, the first ones; all by default.
        requires: settings that overrides have to give, such as a file that is not part of the project. Without them, a condition
            is left out unless it is chosen by name.
    """

    name: str
    overrides: tuple[str, ...] = ()
    measure: Callable[[Piece], Result] | None = None
    seeds: int | None = None
    requires: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """One question, and the functions that measure, report, draw and describe it.

    Attributes:
        name: name of the results folder, and stem of the figures.
        title: heading on the page of figures.
        question: what the study asks, in one sentence.
        caveat: what it cannot show, in one or two sentences.
        recipe: name of a built-in recipe, or a frozen dataclass of settings if nothing is trained; each piece sets `seed`.
        conditions: conditions by slug (letters, digits, `-`, `_` and `.`), the most important first.
        measure: the result of one piece.
        report: joins the results of the pieces into one. Conditions that were not measured are missing.
        result: class of a piece's result.
        draw: draws a report into a folder and returns the paths of the PNG files.
        describe: a sentence about a report, and its numbers.
        minutes: approximate duration with its seeds on two cores, in minutes.
        seeds: of every condition, unless the options say others.
        quick: further overrides with `--quick`.
        quick_seeds, quick_conditions: numbers of seeds and conditions with `--quick`; None for all.
        inputs: settings that are paths on this machine, and the files of theirs that a piece reads, from its recipe. A result
            keeps hashes of the files, not the paths.
        applies: whether a condition can be measured with the inputs, from its recipe; others are left out unless they are chosen
            by name.
    """

    name: str
    title: str
    question: str
    caveat: str
    recipe: str | type[Any]
    conditions: Mapping[str, Condition]
    measure: Callable[[Piece], Result]
    report: Callable[[Pieces], Result]
    result: type[Result]
    draw: Callable[[Any, Path], Sequence[Path]]
    describe: Callable[[Any], Described]
    minutes: int
    seeds: tuple[int, ...] = (0, 1, 2)
    quick: tuple[str, ...] = ()
    quick_seeds: int = 1
    quick_conditions: int | None = None
    inputs: Inputs = field(default_factory=dict)
    applies: Callable[[Any], bool] = lambda recipe: True


@dataclass(frozen=True)
class StudyOptions:
    """Which pieces of a study are measured, and the folders.

    Attributes:
        overrides: overrides of the recipe, for all conditions.
        seeds: seeds of every condition; by default those of the study.
        only: slugs of the conditions to measure; all by default. The report covers all conditions that have the seeds.
        quick: measure a few steps and examples only, to check the figures; the numbers are meaningless.
        results: folder of the results.
        runs: parent of the run folders.
    """

    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    only: tuple[str, ...] = ()
    quick: bool = False
    results: Path = Path("results")
    runs: Path = field(default=Path("runs") / "studies")

    def __post_init__(self) -> None:
        if any(override.partition("=")[0] == "seed" for override in self.overrides):
            raise InputError("a study has several seeds: give them with --seeds, not as seed=")


def run_study(study: Study, options: StudyOptions, progress: Progress = silent) -> Result:
    """Measure the missing pieces, and return the report of all pieces.

    Raises:
        InputError: an unknown condition, a file that is not a result of this study, or no pieces at all.
    """
    if unknown := [slug for slug in options.only if slug not in study.conditions]:
        hint = did_you_mean(unknown[0], study.conditions, "the conditions are")
        raise InputError(f"study '{study.name}' has no condition '{unknown[0]}'; {hint}")
    for slug in options.only or _measurable(study, options, progress):
        for seed in _seeds(study, study.conditions[slug], options):
            path = _path(study, slug, seed, options)
            if not path.is_file():
                progress(f"{study.conditions[slug].name}, seed {seed}")
                started = time.monotonic()
                result = _measure(study, slug, seed, options, progress)
                path.parent.mkdir(parents=True, exist_ok=True)
                result.save(path)
                results = options.results / "quick" if options.quick else options.results
                training = getattr(_recipe(study, slug, seed, options), "training", None)
                precision = None if training is None else forward_precision(training, find_device(None))
                record(results, path, result, time.monotonic() - started, precision)
    return read_study(study, options)


def read_study(study: Study, options: StudyOptions) -> Result:
    """The report of the pieces in `options.results`. Raises InputError if there are none, or none that the report needs."""
    return study.report(read_pieces(study, options))


def read_pieces(study: Study, options: StudyOptions) -> Pieces:
    """The stored pieces, by condition. Raises InputError if there are none, and for damaged ones and those of other settings."""
    pieces = {}
    for slug, condition in study.conditions.items():
        paths = [_path(study, slug, seed, options) for seed in _seeds(study, condition, options)]
        if measured := [path for path in paths if path.is_file()]:
            given = digests(_recipe(study, slug, 0, options), study.inputs)
            pieces[slug] = [_load(study, condition, path, options, given) for path in measured]
    if not pieces:
        raise InputError(f"'{options.results / study.name}' holds no results of this study")
    return pieces


def studies() -> dict[str, Study]:
    """The studies in `analyses/` (in the wheel or the repository), by name."""
    installed = Path(str(resources.files("road_interp") / "analyses"))
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "analyses"
    found = [study for path in sorted(folder.glob("*.py")) for study in _studies_in(path)]
    return {study.name: study for study in found}


def find_study(name: str) -> Study:
    """The study with this name. Raises InputError, with similar names, for an unknown one."""
    known = studies()
    if name not in known:
        raise InputError(f"no study '{name}'; {did_you_mean(name, known)}")
    return known[name]


def run_of(piece: Piece) -> Run:
    """The run of a piece's recipe, trained or resumed if it is not finished.

    The folder name holds the model and the hash of the recipe, so that studies with equal recipes share a run.

    Raises:
        InputError: the folder holds a run of another recipe.
    """
    folder = piece.runs / f"{piece.recipe.model.name}-{settings_hash(piece.recipe)}"
    return train_once(piece.recipe, folder)


def train_once(recipe: TrainableRecipe, folder: Path) -> Run:
    """The run of a recipe in a folder, trained or resumed if it is not finished; a second process waits for the first.

    Raises:
        InputError: the folder holds a run of another recipe.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not (folder / METRICS).is_file():
            return train(recipe, folder, resume=(folder / RECIPE).is_file(), progress=False)
    if load_stored_recipe(folder / RECIPE) != recipe:
        raise InputError(f"'{folder}' was trained with another recipe; choose another --runs")
    return Run.load(folder)


@cache
def language_model(identity: str) -> tuple[Any, Any]:
    """The causal language model of an id and its tokeniser, loaded once."""
    return load_model(identity, "causal-lm")[0], load_tokenizer(identity)


def settings_hash(*settings: object) -> str:
    """Short hash of the settings, used as a cache key."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def needs(pieces: Pieces, *slugs: str) -> None:
    """Raise InputError unless the conditions have results, of the same seeds."""
    if missing := [slug for slug in slugs if slug not in pieces]:
        raise InputError(f"the report needs the conditions {', '.join(missing)}: measure them with --only")
    seeds = {slug: tuple(seed for piece in pieces[slug] for seed in getattr(piece, "seeds", ())) for slug in slugs}
    if len(set(seeds.values())) > 1:
        raise InputError(f"the conditions have results of different seeds: {seeds}; measure them with the same --seeds")


def with_interval(values: Sequence[float], digits: int = 3) -> str:
    """A value and its 95% interval as text, from `(value, low, high)`."""
    value, low, high = (each + 0.0 for each in values)  # no sign before a zero
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _measurable(study: Study, options: StudyOptions, progress: Progress) -> list[str]:
    """The conditions that are measured by default; those whose required settings are missing are reported."""
    given = {override.partition("=")[0] for override in options.overrides}
    missing = {slug: [key for key in condition.requires if key not in given] for slug, condition in study.conditions.items()}
    for slug, keys in missing.items():
        if keys:
            progress(f"{slug} is left out: it needs {', '.join(f'{key}=...' for key in keys)}")
    limit = study.quick_conditions if options.quick else None
    given_all = [slug for slug, keys in missing.items() if not keys]
    measured = [slug for slug in given_all if study.applies(_recipe(study, slug, (options.seeds or study.seeds)[0], options))]
    if others := [slug for slug in given_all if slug not in measured]:
        progress(f"left out, because the inputs do not hold them: {', '.join(others)}")
    return measured[:limit]


def _measure(study: Study, slug: str, seed: int, options: StudyOptions, progress: Progress) -> Result:
    condition = study.conditions[slug]
    piece = Piece(_recipe(study, slug, seed, options), slug, seed, options.runs, progress)
    inputs = digests(piece.recipe, study.inputs)
    result = (condition.measure or study.measure)(piece)
    return replace(result, provenance=current_provenance((seed,), settings_of(study, condition, options), inputs))


def _recipe(study: Study, slug: str, seed: int, options: StudyOptions) -> Any:
    overrides = [*_overrides(study, study.conditions[slug], options), f"seed={seed}"]
    return load_recipe(study.recipe, overrides) if isinstance(study.recipe, str) else _settings(study.recipe, overrides)


def _load(study: Study, condition: Condition, path: Path, options: StudyOptions, inputs: Mapping[str, str]) -> Result:
    """The result in a file. Raises InputError for a result that was measured with other settings or input files."""
    result = study.result.load(path)
    stored = None if result.provenance is None else result.provenance.settings
    if stored != (settings := settings_of(study, condition, options)):
        raise InputError(f"'{path}' was measured with other settings ({stored}, not {settings}); choose another --results")
    check_digests({} if result.provenance is None else result.provenance.inputs, inputs, path)
    return result


def settings_of(study: Study, condition: Condition, options: StudyOptions) -> str:
    """Hash of a condition's settings without the seed: the content of the recipe with the overrides, defaults left out."""
    overrides = _without_inputs(study, _overrides(study, condition, options))
    content = read_recipe(study.recipe, overrides) if isinstance(study.recipe, str) else overrides
    return settings_hash(json.dumps(content, sort_keys=True, default=str))


def _overrides(study: Study, condition: Condition, options: StudyOptions) -> list[str]:
    return [*condition.overrides, *(study.quick if options.quick else ()), *options.overrides]


def _without_inputs(study: Study, overrides: Sequence[str]) -> list[str]:
    return [override for override in overrides if override.partition("=")[0] not in study.inputs]


def _settings(kind: type[Any], overrides: Sequence[str]) -> Any:
    """A dataclass of settings from overrides such as "steps=200"."""
    content: dict[str, Any] = {}
    for override in overrides:
        apply_override(content, override)
    return from_mapping(kind, content)


def _seeds(study: Study, condition: Condition, options: StudyOptions) -> tuple[int, ...]:
    limit = study.quick_seeds if options.quick else None
    return (options.seeds or study.seeds)[:limit][: condition.seeds]


def _path(study: Study, slug: str, seed: int, options: StudyOptions) -> Path:
    overrides = _without_inputs(study, options.overrides)
    name = f"{study.name}-{settings_hash(overrides)}" if overrides else study.name
    return options.results / ("quick" if options.quick else "") / name / slug / f"seed-{seed}.json"


def _studies_in(path: Path) -> list[Study]:
    """The studies that a script defines at its top level."""
    name = f"road_interp_analyses_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module here
    spec.loader.exec_module(module)
    return [value for value in vars(module).values() if isinstance(value, Study)]
