"""Interchange accuracy by layer and span, and by depth and rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from road_interp.plots.style import MARKERS, counted, error_bars, prepared, styled

if TYPE_CHECKING:
    from road_interp.causal.depth_sweep import DepthReport
    from road_interp.causal.layer_scan import ScanReport


@styled
def interchange_scan(report: ScanReport, ax: Axes | None = None) -> Axes:
    """Interchange accuracy by layer and span of positions."""
    ax = prepared(ax)
    cells = np.array(report.accuracy).T
    image = ax.imshow(cells, aspect="auto", vmin=0, vmax=1)
    step = 1 if len(report.layers) <= 16 else 4
    ax.set_xticks(range(0, len(report.layers), step), [str(layer) for layer in report.layers[::step]])
    ax.set_yticks(range(len(report.spans)), report.spans)
    ax.set(xlabel="output of block", title=f"{report.task}: {report.method}")
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, ax=ax, label="interchange accuracy")
    return ax


@styled
def interchange_depth(report: DepthReport, ax: Axes | None = None) -> Axes:
    """Share of pairs whose answer flips by the number of swapped rows, a line per depth; bars from lowest to highest seed."""
    ax = prepared(ax)
    flipped = np.array([[[cell.flipped for cell in row] for row in table] for table in report.cells])
    mean, low, high = flipped.mean(0), flipped.min(0), flipped.max(0)
    for number, depth in enumerate(report.depths):
        bars = error_bars(mean[number], low[number], high[number])
        shift = 1.05 ** (number - (len(report.depths) - 1) / 2)  # so that lines with equal values stay visible
        places = np.array(report.rows) * shift
        style: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "markersize": 4, "linewidth": 1, "capsize": 2}
        ax.errorbar(places, mean[number], yerr=bars, label=f"depth {depth}", **style)
    ax.set_xscale("log", base=2)
    ax.set_xticks(report.rows, [str(count) for count in report.rows])
    ax.minorticks_off()
    seeds = counted(len(report.seeds), "seed")
    ax.set(
        xlabel="swapped rows",
        ylabel="flipped answers (fraction)",
        ylim=(-0.02, 1.02),
        title=f"{report.task}, {seeds}, from lowest to highest",
    )
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax
