"""Angle against magnitude: scores of classifiers on frozen hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from road_interp.plots.style import COLORS, counted, error_bars, prepared, styled
from road_interp.sources import readable_name

if TYPE_CHECKING:
    from road_interp.measure import DisentangleReport


@styled
def disentangle(report: DisentangleReport, ax: Axes | None = None) -> Axes:
    """Score of every arm and probe with its 95% interval (paper, figure 2 right).

    The number in brackets is the number of input values per text. The dashed line is the most frequent class, or the mean
    for regression.
    """
    ax = prepared(ax, rows=len(report.outcomes))
    shown = [*report.arms, *report.probes]
    for label, color, marker, outcomes in (
        ("two layers", COLORS[0], "o", report.arms),
        ("linear probe", COLORS[1], "s", report.probes),
    ):
        rows = [shown.index(outcome) for outcome in outcomes]
        scores, low, high = np.array([report.score(outcome.name) for outcome in outcomes]).T
        bars = error_bars(scores, low, high)
        ax.errorbar(scores, rows, xerr=bars, fmt=marker, color=color, markersize=4, capsize=2, label=label)
    ax.axvline(report.chance, color="0.5", linewidth=0.8, linestyle="--", label="constant prediction")
    ax.set_yticks(range(len(shown)), [f"{outcome.name} ({outcome.numbers})" for outcome in shown])
    ax.yaxis.set_inverted(True)
    seeds = counted(len(report.seeds), "seed")
    ax.set(
        xlabel=report.metric,
        ylabel="classifier (input values per text)",
        title=f"{readable_name(report.model)}, {report.task}: frozen states, {seeds}"
        + (f"\n{report.place}" if report.place else ""),
    )
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax
