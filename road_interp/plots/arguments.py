"""What the figures are drawn from: checks of the type, with the function that makes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from matplotlib.axes import Axes

from road_interp.errors import InputError

Report = TypeVar("Report")

MADE_BY = {
    "AblationReport": "measure.ablation(adapter, scorer, ...)",
    "AngleReport": "measure.angles(adapter)",
    "CapacityReport": "measure.CapacityReport.load(path)",
    "CompositionReport": "run.composition of a run with behaviours, or measure.composition(...)",
    "DepthReport": "causal.depth_by_rows(...)",
    "DisentangleReport": "measure.disentangle(...)",
    "DriftReport": "measure.drift(base, tuned, batches)",
    "EngineCostReport": "measure.EngineCostReport.load(path)",
    "InterferenceReport": "measure.interference(adapters, scores, ...)",
    "JointTrainingReport": "measure.joint_training(base)",
    "MultiTaskAccuracyStudy": "measure.MultiTaskAccuracyStudy(together, alone)",
    "ParameterShareReport": "measure.ParameterShareReport(trainings)",
    "QueryKey": "measure.query_key(report)",
    "ReadPointDrift": "report.place(layer)",
    "ScanReport": "causal.scan(...)",
    "SeedStructure": "measure.seed_structure(reports)",
    "StrengthReport": "measure.strength(...)",
    "ThroughputReport": "measure.throughput(base, recipe)",
    "dict": "names and numbers, as its docstring says",
    "VariablesComparison": "causal.VariablesComparison.load(path)",
}


def check_drawn(function: str, annotation: str, value: object) -> None:
    """Raise InputError unless an argument of a plotting function, mostly the first, has the class in its annotation.

    Args:
        function: name of the function.
        annotation: text such as "AngleReport" or "Sequence[DriftReport] | DriftReport".
        value: the argument.
    """
    expected = next((name for name in re.findall(r"\w+", annotation) if name in MADE_BY), None)
    if expected is None:
        raise TypeError(f"plots.{function}: MADE_BY does not say how to get its argument, {annotation}")
    values = listed(value) if "Sequence" in annotation else [value]
    wrong = [each for each in values if expected not in {kind.__name__ for kind in type(each).__mro__}]
    if not wrong and any(getattr(each, "sites", None) == () for each in values):
        raise InputError(f"plots.{function}: the {expected} has no sites")
    if wrong or not values:
        given = f"{_article(type(wrong[0]).__name__)} {type(wrong[0]).__name__}" if wrong else "an empty list"
        raise InputError(f"plots.{function} draws {_article(expected)} {expected}, not {given}: give {MADE_BY[expected]}")


def check_choice(function: str, name: str, value: object, known: Iterable[str]) -> None:
    """Raise InputError unless `value`, the argument `name` of a plotting function, is one of the known names."""
    if value not in (names := list(known)):
        raise InputError(f"plots.{function}: {name} must be one of {', '.join(names)}, not {value!r}")


def check_axes(function: str, ax: object) -> None:
    """Raise InputError unless `ax`, the axes to draw on, are matplotlib Axes or None."""
    if ax is not None and not isinstance(ax, Axes):
        raise InputError(
            f"plots.{function}: ax must be matplotlib Axes, not {_article(type(ax).__name__)} {type(ax).__name__}: give "
            "figure.add_subplot(), or one of those of plt.subplots, as in axes[0]"
        )


def listed(reports: Sequence[Report] | Report) -> Sequence[Report]:
    """Several reports, or a list of the only one."""
    return reports if isinstance(reports, Sequence) else [reports]


def _article(name: str) -> str:
    return "an" if name[0] in "AEIOUaeiou" else "a"
