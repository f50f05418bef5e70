"""Accuracy by the number of trained weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from road_interp.plots.style import color_and_marker, counted, error_bars, prepared, styled
from road_interp.sources import readable_name

if TYPE_CHECKING:
    from road_interp.measure import CapacityReport


@styled
def capacity(report: CapacityReport, ax: Axes | None = None) -> Axes:
    """Accuracy of every method with its 95% interval, ordered by trained weights; a colour and marker per family.

    When only some methods have several seeds, those with one seed have hollow markers.
    """
    ax = prepared(ax, rows=len(report.points))
    shown = sorted(report.points, key=lambda point: (point.percent, point.name))
    seeds = sorted({len(point.scores) for point in shown})
    for number, family in enumerate(report.families):
        rows = [row for row, point in enumerate(shown) if point.family == family]
        mean = np.array([shown[row].mean for row in rows])
        low, high = np.array([shown[row].interval for row in rows]).T
        look = {**color_and_marker(number), "markersize": 4}
        bars = error_bars(mean, low, high)
        ax.errorbar(mean, rows, xerr=bars, linestyle="none", capsize=2, linewidth=1, label=family, **look)
        if seeds[0] == 1 < seeds[-1]:
            hollow = [row for row in rows if len(shown[row].scores) == 1]
            ax.plot([shown[row].mean for row in hollow], hollow, linestyle="none", markerfacecolor="white", zorder=3, **look)
    ax.set_yticks(range(len(shown)), [f"{point.name}  {point.percent:.3g}%" for point in shown])
    ax.yaxis.set_inverted(True)
    several = f"{'' if len(seeds) == 1 else f'{seeds[0]} to '}{counted(seeds[-1], 'seed')}"
    ax.set(
        xlabel="test accuracy",
        ylabel="trained weights, % of the backbone",
        title=f"{readable_name(report.model)}, {report.task}: {several}",
    )
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax
