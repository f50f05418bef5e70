"""Studies without models: a small study, and the pieces that a given study would measure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from road_interp.results import Result
from road_interp.training.study import Condition, Study, StudyOptions
from road_interp.training.study_pieces import run_study


@dataclass(frozen=True)
class Settings:
    """The recipe of a study without training."""

    steps: int = 10
    file: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Measured(Result):
    """The result of one piece: the settings that it was measured with."""

    condition: str
    seed: int
    steps: int


@dataclass(frozen=True)
class Table(Result):
    """The report of a study: the seeds of every condition."""

    pieces: dict[str, list[int]]


def by_condition(pieces):
    return Table({slug: [result.seed for result in results] for slug, results in pieces.items()})


def small_study(measured, **changes):
    """A study of three conditions that appends every measured piece to the list `measured`.

    The first condition uses two of the seeds, the second changes the settings, the third has its own measuring function.
    """

    def measure(piece):
        measured.append(piece)
        return Measured(piece.condition, piece.seed, piece.recipe.steps)

    def measure_apart(piece):
        measured.append(piece)
        return Measured(piece.condition, piece.seed, -1)

    study = Study(
        name="small",
        title="A small study",
        question="What is there?",
        caveat="It measures nothing.",
        recipe=Settings,
        conditions={
            "plain": Condition("plain", seeds=2),
            "longer": Condition("more steps", ("steps=20",)),
            "apart": Condition("measured apart", (), measure_apart),
        },
        measure=measure,
        report=by_condition,
        result=Measured,
        draw=lambda report, folder: [],
        describe=lambda report: (
            "What there is.",
            [(slug, ", ".join(map(str, seeds))) for slug, seeds in report.pieces.items()],
        ),
        minutes=1,
        quick=("steps=1",),
        quick_conditions=2,
        inputs={"file": lambda settings: [Path(settings.file)]},
    )
    return replace(study, **changes)


def pieces_of(study, options):
    """The pieces that `run_study` would measure, in order, without measuring them."""
    found = []

    def measure(piece):
        found.append(piece)
        return Measured(piece.condition, piece.seed, 0)

    conditions = {slug: replace(condition, measure=None) for slug, condition in study.conditions.items()}
    run_study(replace(study, conditions=conditions, measure=measure, report=by_condition, result=Measured), options)
    return found


def script_of(study):
    """The names of the script of `analyses/` that a study was read from: what tests put there is what its functions call."""
    return study.describe.__globals__


def quickly(folder, **changes):
    """Options of tiny measurements below a folder."""
    return StudyOptions(quick=True, results=folder / "results", runs=folder / "runs", **changes)
