"""Change of hidden states: in direction and in magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from road_interp.errors import InputError
from road_interp.plots.arguments import check_choice, check_drawn, listed
from road_interp.plots.style import COLORS, callers_width, color_and_marker, error_bars, in_place_of, prepared, styled, width_of

if TYPE_CHECKING:
    from road_interp.measure.drift import DriftReport, ReadPointDrift

DIRECTION, MAGNITUDE = r"$\Delta D$ = cos(x, x$_0$), a cosine", r"$\Delta M$ = | $\|$x$\|$ - $\|$x$_0\|$ | / $\|$x$_0\|$"
QUANTITIES = {"angle": "mean angle between x and x$_0$ (degrees)", "dM": f"mean {MAGNITUDE}"}
PANELS = 6  # in one row of the grid
NULL = "isotropic change of the same angle"
BEFORE, AFTER = "before the block's LayerNorm", "after it: norm set by LayerNorm"


@styled
def drift_scatter(report: DriftReport, ax: Axes | None = None, *, place: ReadPointDrift) -> Axes:
    """Change of magnitude by change of direction at one read point, a point per text (paper, figure 2 left and middle).

    The line is the change of magnitude by an isotropic change of the same angle (`ReadPointDrift.null`).
    """
    check_drawn("drift_scatter", "ReadPointDrift", place)
    ax = prepared(ax)
    _points(ax, place, COLORS[0])
    ax.set(xlabel=DIRECTION, ylabel=MAGNITUDE, title=f"{report.tuned}\n{place.name}")
    if ax.get_lines():
        ax.legend(loc="upper right")
    return ax


@styled
def drift_grid(reports: Sequence[DriftReport] | DriftReport, ax: Axes | None = None) -> Axes:
    """The same for every block, on shared axes (paper, figure B.1). Returns the first of them.

    Every report has one row, or two where blocks end in a LayerNorm: states before it and after it. A row has at most six blocks,
    or as many as fit the width of `ax` or of the caller's figure.figsize; the next ones are in the next row. The dotted lines are
    isotropic changes.

    Args:
        ax: a subplot, whose place the grid takes; it is removed from its figure.

    Raises InputError for reports of models of different depth.
    """
    reports = listed(reports)
    kinds = [
        (report, kind) for report in reports for kind in sorted({place.before_norm for place in report.places}, reverse=True)
    ]
    layers = reports[0].layers
    if other := next((report for report in reports if report.layers != layers), None):
        depths = f"'{reports[0].tuned}' has {len(layers)} blocks, '{other.tuned}' {len(other.layers)}"
        raise InputError(f"plots.drift_grid: {depths}, and each has a column: draw a grid for either")
    width = callers_width() if ax is None else width_of(prepared(ax))
    panels = PANELS if width is None else min(PANELS, max(1, int((width - 0.6) / 0.8)))
    chunks = [layers[start : start + panels] for start in range(0, len(layers), panels)]
    rows = [(report, kind, chunk) for report, kind in kinds for chunk in chunks]
    columns = len(chunks[0])
    size = (width or columns + 0.9, 1.15 * len(rows) + 0.6)
    figure = plt.figure(figsize=size, layout="constrained") if ax is None else in_place_of(ax)
    axes = figure.subplots(len(rows), columns, sharex=True, sharey=True, squeeze=False)
    names = list(dict.fromkeys(report.tuned for report in reports))
    highest = max(magnitude for report in reports for place in report.places for _, magnitude in place.points)
    for index, (row, (report, before_norm, chunk)) in enumerate(zip(axes, rows, strict=True)):
        for panel, layer in zip(row, chunk, strict=False):
            place = report.place(layer, before_norm)
            _points(panel, place, COLORS[names.index(report.tuned) % len(COLORS)])
            panel.locator_params("x", nbins=2)
            if len(chunks) > 1 or index == 0:
                panel.set_title(f"block {layer}")
        for panel in row[len(chunk) :]:
            panel.set_axis_off()
        where = {(True, False): "before LayerNorm", (False, True): "after LayerNorm"}
        label = where.get((before_norm, place.norm_is_pinned), "block's output")
        if len(kinds) == 1:
            figure.suptitle(f"{report.tuned}: {label}")
        elif chunk is chunks[0]:
            row[0].set_ylabel(f"{fill(report.tuned, 16)}\n{label}")
    axes[0, 0].set_ylim(-0.05 * highest, 1.1 * highest or None)  # whatever the lines of isotropic changes need
    figure.supxlabel(DIRECTION)
    figure.supylabel(MAGNITUDE)
    return axes[0, 0]


@styled
def drift(report: DriftReport, ax: Axes | None = None, quantity: Literal["angle", "dM"] = "angle") -> Axes:
    """Mean angle or mean change of magnitude of one report by block, as in `drift_blocks`."""
    return drift_blocks(report, ax, quantity)


@styled
def drift_blocks(
    reports: Sequence[DriftReport] | DriftReport, ax: Axes | None = None, quantity: Literal["angle", "dM"] = "angle"
) -> Axes:
    """Mean angle or mean change of magnitude by block, with 95% intervals over texts; a line per report.

    Reports with the same name (several seeds) share a colour. Markers are hollow after a LayerNorm. Dotted lines are the mean
    changes of magnitude by isotropic changes of the same angles (`ReadPointDrift.null`), except after a LayerNorm.
    """
    check_choice("drift_blocks", "quantity", quantity, QUANTITIES)
    ax = prepared(ax)
    reports = listed(reports)
    names = list(dict.fromkeys(report.tuned for report in reports))
    for report in reports:
        number = names.index(report.tuned)
        for before_norm in {place.before_norm for place in report.places}:
            places = [place for place in report.places if place.before_norm == before_norm]
            mean, low, high = np.array([getattr(place, quantity) for place in places]).T
            style = {**_line_style(places[0].norm_is_pinned), **color_and_marker(number)}
            layers, bars = [place.layer for place in places], error_bars(mean, low, high)
            ax.errorbar(layers, mean, yerr=bars, markersize=4, linewidth=1, capsize=2, **style)
            if quantity == "dM" and not places[0].norm_is_pinned:
                null = [np.nan if place.null is None else place.null for place in places]
                ax.plot(layers, null, linestyle=":", linewidth=1, color=style["color"])
    handles = [Line2D([], [], label=name, **color_and_marker(number)) for number, name in enumerate(names)]
    if any(place.norm_is_pinned for report in reports for place in report.places):
        styles = ((BEFORE, False), (AFTER, True))
        handles += [Line2D([], [], color="0.4", marker="o", label=label, **_line_style(pinned)) for label, pinned in styles]
    if quantity == "dM":
        handles.append(Line2D([], [], color="0.4", linestyle=":", label=NULL))
    blocks = max((report.layers for report in reports), key=len)
    ax.set(xlabel="block", ylabel=QUANTITIES[quantity], xticks=blocks[:: 1 if len(blocks) <= 16 else 4])
    if all(getattr(place, quantity)[0] > 0 for report in reports for place in report.places):
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, None)
    ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def _points(ax: Axes, place: ReadPointDrift, color: str) -> None:
    """A point per text, hollow after a LayerNorm; elsewhere also the line of isotropic changes."""
    direction, magnitude = np.array(place.points).T
    faces = "none" if place.norm_is_pinned else color
    ax.scatter(direction, magnitude, s=5, facecolors=faces, edgecolors=color, linewidths=0.4, alpha=0.5, rasterized=True)
    if not place.norm_is_pinned and direction.min() > 0:
        cosines = np.linspace(direction.min(), 1, 100)
        ax.plot(cosines, place.null_at(cosines), color="0.4", linestyle=":", linewidth=1, label=NULL)
    ax.locator_params(nbins=4)
    ax.ticklabel_format(useOffset=False)


def _line_style(pinned: bool) -> dict[str, Any]:
    return {"linestyle": "--", "markerfacecolor": "w"} if pinned else {"linestyle": "-"}
