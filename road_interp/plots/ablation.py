"""Accuracy with components of an adapter set to the identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from road_interp.errors import InputError
from road_interp.plots.arguments import check_choice
from road_interp.plots.style import COLORS, error_bars, prepared, styled

if TYPE_CHECKING:
    from road_interp.measure import AblationReport
    from road_interp.measure.ablation import Ablation

STYLES = {"angles only": (COLORS[0], "o"), "magnitudes only": (COLORS[1], "s"), "neither": ("0.35", "D")}
GROUPS = {
    "components": ("trained head", COLORS[0], "o"),
    "components, head refitted": ("head refitted", COLORS[2], "^"),
    "trained alone": ("trained alone", COLORS[1], "s"),
}


@styled
def ablation(report: AblationReport, ax: Axes | None = None) -> Axes:
    """Accuracy with both components of the planes, angles only, magnitudes only and neither, with 95% intervals.

    Where the report has them, adapters trained with one component only are drawn in a second colour.
    """
    components = [row.component for row in _rows(report, "ablation", "components")]
    ax = prepared(ax)
    groups = [group for group in GROUPS if any(row.group == group for row in report.rows)]
    for number, group in enumerate(groups):
        label, color, marker = GROUPS[group]
        rows = [row for row in report.rows if row.group == group]
        x = np.array([components.index(row.component) for row in rows]) + 0.16 * (number - (len(groups) - 1) / 2)
        _points(ax, x, [report.accuracy(row) for row in rows], color=color, marker=marker, linestyle="none", label=label)
    ax.set_xticks(range(len(components)), [component.replace(" ", "\n") for component in components])
    ax.set(ylabel=report.metric, title="Components kept")
    if len(groups) > 1:
        ax.legend()
    return ax


@styled
def ablation_by(report: AblationReport, ax: Axes | None = None, group: Literal["layer", "kind"] = "layer") -> Axes:
    """Metric lost when one layer or module kind keeps only one component of its planes, or neither, with 95% intervals."""
    check_choice("ablation_by", "group", group, ("layer", "kind"))
    chosen = _rows(report, "ablation_by", group)
    ax = prepared(ax)
    whats = list(dict.fromkeys(row.what for row in chosen))
    for number, (component, (color, marker)) in enumerate(STYLES.items()):
        rows = [row for row in chosen if row.component == component]
        x = np.arange(len(rows)) + 0.2 * (number - 1)
        _points(ax, x, [report.loss(row) for row in rows], color=color, marker=marker, linestyle="none", label=component)
    ax.axhline(0, color="0.7", linewidth=0.8, linestyle=":")
    ax.set_xticks(range(len(whats)), whats)
    if group == "kind":
        plt.setp(ax.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    ax.set(xlabel={"layer": "layer", "kind": ""}[group], ylabel=f"{report.metric} lost", title=f"Components kept in one {group}")
    ax.legend()
    return ax


@styled
def ablation_curve(report: AblationReport, ax: Axes | None = None) -> Axes:
    """Accuracy by the percentage of planes kept, most rotated or random. Dashed: all planes. Dotted: no plane."""
    lines = [_rows(report, "ablation_curve", group) for group in ("most rotated", "random planes")]
    ax = prepared(ax)
    for rows, color, marker in zip(lines, COLORS[:2], ("o", "s"), strict=True):
        rows.sort(key=lambda row: float(row.what))
        x = [100 * float(row.what) for row in rows]
        _points(ax, x, [report.accuracy(row) for row in rows], color=color, marker=marker, label=rows[0].group)
    accuracy = {row.component: report.accuracy(row)[0] for row in report.rows if row.group == "components"}
    for component, label, style in (("both", "all", "--"), ("neither", "none", ":")):
        ax.axhline(accuracy[component], color="0.5", linewidth=0.8, linestyle=style, label=label)
    ax.set_xscale("log")
    ax.set_xticks(x, [f"{each:g}" for each in x], minor=False)
    ax.set_xticks([], minor=True)
    ax.set(xlabel="planes kept (%)", ylabel=report.metric, title="Planes kept")
    ax.legend(loc="upper left", bbox_to_anchor=(0, 0.9))
    return ax


def _rows(report: AblationReport, function: str, group: str) -> list[Ablation]:
    """The rows of a group. Raises InputError that names the argument of measure.ablation which gives them."""
    if rows := [row for row in report.rows if row.group == group]:
        return rows
    by = group if group in ("layer", "kind") else "planes"
    made = "measure.ablation" if group == "components" else f'measure.ablation(..., by=["{by}"])'
    raise InputError(f"plots.{function} draws the rows of '{group}', of which this report has none: give a report of {made}")


def _points(ax: Axes, x: Sequence[float] | np.ndarray, values: Sequence[tuple[float, float, float]], **style: object) -> None:
    middle, low, high = np.array(values).T
    bars = error_bars(middle, low, high)
    ax.errorbar(x, middle, yerr=bars, markersize=4, capsize=2, linewidth=1, **style)  # type: ignore[arg-type]
