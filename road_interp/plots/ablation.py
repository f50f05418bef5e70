"""What is left of a task when parts of its adapter are set back to the identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from road_interp.plots.style import COLORS, styled

if TYPE_CHECKING:
    from road_interp.measure import AblationReport

LOOKS = {"angles only": (COLORS[0], "o"), "magnitudes only": (COLORS[1], "s"), "neither": ("0.35", "D")}
KEPT = {
    "components": ("trained head", COLORS[0], "o"),
    "components, head refitted": ("head refitted", COLORS[2], "^"),
    "trained alone": ("trained alone", COLORS[1], "s"),
}


@styled
def ablation(report: AblationReport, ax: Axes) -> Axes:
    """Accuracy with both parts of the planes, angles only, magnitudes only and neither, with 95% intervals.

    Beside them, where it was measured, adapters that learned that part alone.
    """
    parts = [row.component for row in report.rows if row.group == "components"]
    groups = [group for group in KEPT if any(row.group == group for row in report.rows)]
    for number, group in enumerate(groups):
        label, color, marker = KEPT[group]
        rows = [row for row in report.rows if row.group == group]
        x = np.array([parts.index(row.component) for row in rows]) + 0.16 * (number - (len(groups) - 1) / 2)
        _points(ax, x, [report.accuracy(row) for row in rows], color=color, marker=marker, linestyle="none", label=label)
    ax.set_xticks(range(len(parts)), [part.replace(" ", "\n") for part in parts])
    ax.set(ylabel=report.metric, title="What the planes keep")
    if len(groups) > 1:
        ax.legend()
    return ax


@styled
def ablation_by(report: AblationReport, ax: Axes, group: Literal["layer", "kind"] = "layer") -> Axes:
    """What it costs to leave one layer or module kind a part of its planes or none, with 95% intervals."""
    chosen = [row for row in report.rows if row.group == group]
    whats = list(dict.fromkeys(row.what for row in chosen))
    for number, (part, (color, marker)) in enumerate(LOOKS.items()):
        rows = [row for row in chosen if row.component == part]
        x = np.arange(len(rows)) + 0.2 * (number - 1)
        _points(ax, x, [report.loss(row) for row in rows], color=color, marker=marker, linestyle="none", label=part)
    ax.axhline(0, color="0.7", linewidth=0.8, linestyle=":")
    ax.set_xticks(range(len(whats)), whats)
    if group == "kind":
        plt.setp(ax.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    ax.set(xlabel={"layer": "layer", "kind": ""}[group], ylabel=f"{report.metric} lost", title=f"One {group} keeps")
    ax.legend(loc="upper left")
    return ax


@styled
def ablation_curve(report: AblationReport, ax: Axes) -> Axes:
    """Accuracy when only the most turned planes are kept, or as many random ones; the line is the whole adapter."""
    for group, color, marker in (("most turned", COLORS[0], "o"), ("random planes", COLORS[1], "s")):
        rows = sorted((row for row in report.rows if row.group == group), key=lambda row: float(row.what))
        x = [100 * float(row.what) for row in rows]
        _points(ax, x, [report.accuracy(row) for row in rows], color=color, marker=marker, label=group)
    parts = {row.component: report.accuracy(row)[0] for row in report.rows if row.group == "components"}
    for part, style in (("both", "--"), ("neither", ":")):
        ax.axhline(parts[part], color="0.5", linewidth=0.8, linestyle=style, label={"both": "all", "neither": "none"}[part])
    ax.set_xscale("log")
    ax.set_xticks(x, [f"{each:g}" for each in x], minor=False)
    ax.set_xticks([], minor=True)
    ax.set(xlabel="planes kept (%)", ylabel=report.metric, title="Only some planes are kept")
    ax.legend(loc="upper left", bbox_to_anchor=(0, 0.9))
    return ax


def _points(ax: Axes, x: Sequence[float] | np.ndarray, values: Sequence[tuple[float, float, float]], **style: object) -> None:
    middle, low, high = np.array(values).T
    bars = (np.maximum(middle - low, 0), np.maximum(high - middle, 0))
    ax.errorbar(x, middle, yerr=bars, markersize=4, capsize=2, linewidth=1, **style)  # type: ignore[arg-type]
