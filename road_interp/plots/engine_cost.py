"""What rotations cost, as times over those of other methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from road_interp.plots.style import color_and_marker, error_bars, prepared, styled
from road_interp.sources import readable_name

if TYPE_CHECKING:
    from road_interp.measure.engine_cost import EngineCostReport

TICKS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2)
FARTHER = (0.05, 0.1, 0.2, 0.3, 1.5, 2, 3, 5, 10, 20, 50)  # where there are such costs


@styled
def engine_cost(report: EngineCostReport, ax: Axes | None = None) -> Axes:
    """Median and quartiles of every time over that of another method, on a logarithmic axis; a marker per model."""
    rows = list(dict.fromkeys((cost.what, cost.over) for cost in report.costs))
    ax = prepared(ax, rows=len(rows))
    models = list(dict.fromkeys(cost.model for cost in report.costs))
    for number, model in enumerate(models):
        costs = [cost for cost in report.costs if cost.model == model]
        y = np.array([rows.index((cost.what, cost.over)) for cost in costs]) + 0.15 * (number - (len(models) - 1) / 2)
        middle, low, high = np.array([(cost.median, cost.low, cost.high) for cost in costs]).T
        look = {**color_and_marker(number), "markersize": 4}
        bars = error_bars(middle, low, high)
        ax.errorbar(middle, y, xerr=bars, linestyle="none", capsize=2, label=readable_name(model), **look)
    ax.axvline(1, color="0.45", linewidth=0.8)
    ax.set_yticks(range(len(rows)), [f"{what} / {over}" for what, over in rows])
    ax.yaxis.set_inverted(True)
    ax.set_xscale("log")
    ends = [1.0, *(end for cost in report.costs for end in (cost.low, cost.high))]
    ticks = sorted((*TICKS, *(tick for tick in FARTHER if min(ends) <= tick <= max(ends))))
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set(
        xlabel="time, or memory, over that of the method behind the stroke", title=f"{report.device}, {report.threads} thread(s)"
    )
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax
