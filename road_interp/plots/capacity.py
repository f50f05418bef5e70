"""Score by how much is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from road_interp.plots.style import COLORS, styled

if TYPE_CHECKING:
    from road_interp.measure import CapacityReport


@styled
def capacity(report: CapacityReport, ax: Axes) -> Axes:
    """Accuracy by percentage of trained weights, a colour and marker per family, with 95% intervals.

    Where some ways have one seed and others several, those of one seed are hollow.
    """
    seeds = sorted({len(point.scores) for point in report.points})
    for number, family in enumerate(report.families):
        points = sorted((point for point in report.points if point.family == family), key=lambda point: point.percent)
        x, mean = [point.percent for point in points], np.array([point.mean for point in points])
        low, high = np.array([point.interval for point in points]).T
        style: dict[str, Any] = {
            "marker": "osD^vP"[number % 6],
            "color": COLORS[number % len(COLORS)],
            "linestyle": "-" if family.endswith("rank") else "none",
        }
        ax.errorbar(x, mean, yerr=(mean - low, high - mean), markersize=4, capsize=2, linewidth=1, label=family, **style)
        if seeds[0] == 1 < seeds[-1]:
            hollow = [(at, score) for at, score, point in zip(x, mean, points, strict=True) if len(point.scores) == 1]
            marks = {**style, "linestyle": "none", "markerfacecolor": "white"}
            ax.plot(*np.array(hollow).reshape(-1, 2).T, markersize=4, zorder=3, **marks)
    ax.set_xscale("log")
    ax.margins(x=0.12)
    for number, point in enumerate(sorted(report.points, key=lambda point: (point.percent, point.mean))):
        side: dict[str, Any] = (
            {"xytext": (2, -4), "va": "top", "rotation": -60} if number % 2 else {"xytext": (2, 4), "rotation": 60}
        )
        color = COLORS[report.families.index(point.family) % len(COLORS)]
        spot = (point.percent, point.mean)
        ax.annotate(point.name, spot, **side, textcoords="offset points", fontsize=5.5, color=color)
    several = f"{'' if len(seeds) == 1 else f'{seeds[0]} to '}{seeds[-1]} seed{'s' * (seeds[-1] > 1)}"
    title = f"{report.model}, {report.task}: {several}"
    ax.set(xlabel="trained weights, % of the backbone", ylabel="test accuracy", title=title)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax
