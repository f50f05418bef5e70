"""Studies: one question, measured under several conditions and seeds, drawn and described. `analyses/` defines them."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from road_interp.errors import InputError, did_you_mean
from road_interp.progress import Progress
from road_interp.results import Result
from road_interp.training.study_inputs import Inputs

Described = tuple[str, list[tuple[str, str]]]  # a sentence about a report, and its (name, value) pairs
QUICK_CLASSIFICATION = ("training.max_steps=2", "data.per_class=200", "data.validation_size=0.2", "data.test_size=0.2")
QUICK_GENERATION = ("training.max_steps=2", "scoring.test=4", "scoring.validation=4", "scoring.max_new_tokens=4")
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
    runs: Path = Path("runs/studies")

    def __post_init__(self) -> None:
        if any(override.partition("=")[0] == "seed" for override in self.overrides):
            raise InputError("a study has several seeds: give them with --seeds, not as seed=")
        if repeated := [seed for seed in self.seeds if self.seeds.count(seed) > 1]:
            raise InputError(f"the seed {repeated[0]} is given twice: its results would count as those of two seeds")

    @property
    def folder(self) -> Path:
        """The folder of the pieces: `results`, or a folder in it for those of quick settings, which are no results."""
        return self.results / "quick" if self.quick else self.results


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


def settings_hash(*settings: object) -> str:
    """Short hash of the settings, used as a cache key."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def only_result(pieces: Pieces) -> Any:
    """The report of a study with one condition and one seed: its result."""
    return next(iter(pieces.values()))[0]


def needs(pieces: Pieces, *slugs: str) -> None:
    """Raise InputError unless the conditions have results, of the same seeds."""
    if missing := [slug for slug in slugs if slug not in pieces]:
        raise InputError(f"the report needs the conditions {', '.join(missing)}: measure them with --only")
    seeds = {slug: tuple(seed for piece in pieces[slug] for seed in _seeds_of(piece)) for slug in slugs}
    if len(set(seeds.values())) > 1:
        raise InputError(f"the conditions have results of different seeds: {seeds}; measure them with the same --seeds")


def _seeds_of(piece: Any) -> tuple[int | None, ...]:
    """The seeds of a result, which is of one at least."""
    return getattr(piece, "seeds", (getattr(piece, "seed", None),))


def best_rate(scores: Mapping[float, float]) -> float:
    """The learning rate with the highest score, of equal ones the smallest. `scores` are by learning rate.

    Means of the same fractions in another order may differ in their last digits; they are equal.
    """
    return max(scores, key=lambda rate: (round(scores[rate], 9), -rate))


def with_interval(values: Sequence[float], digits: int = 3) -> str:
    """A value and its 95% interval as text, from `(value, low, high)`."""
    value, low, high = (each + 0.0 for each in values)  # no sign before a zero
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


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
