"""Studies without models: what a study would measure, and one that measures nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from road_interp.results import Result
from road_interp.training.study import Condition, Study, run_study


@dataclass(frozen=True)
class Settings:
    """Of a study in which nothing is trained."""

    steps: int = 10
    file: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Measured(Result):
    """A piece: what it was measured with."""

    condition: str
    seed: int
    steps: int


@dataclass(frozen=True)
class Table(Result):
    """The pieces of a study, by condition."""

    pieces: dict[str, list[int]]


def by_condition(pieces):
    return Table({slug: [each.seed for each in found] for slug, found in pieces.items()})


def small_study(measured, **changes):
    """A study of three conditions; every piece that it measures is appended to a list.

    The first condition takes two of the seeds, the second changes the settings, the third has a measure of its own.
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
        inputs=("file",),
    )
    return replace(study, **changes)


def pieces_of(study, options):
    """What the loop would measure of a study, in its order: nothing is measured."""
    found = []

    def measure(piece):
        found.append(piece)
        return Measured(piece.condition, piece.seed, 0)

    conditions = {slug: replace(condition, measure=None) for slug, condition in study.conditions.items()}
    run_study(replace(study, conditions=conditions, measure=measure, report=by_condition, result=Measured), options)
    return found


def script_of(study):
    """The script of `analyses/` that a study was read from, as it was run."""
    return sys.modules[study.report.__module__]
