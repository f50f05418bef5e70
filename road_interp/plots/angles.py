"""Angles and magnitudes of an adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle

from road_interp.plots.style import styled

if TYPE_CHECKING:
    from road_interp.measure import AngleReport, SiteAngles


@styled
def angles(report: AngleReport, ax: Axes) -> Axes:
    """Mean |angle| of the planes, in degrees, by layer and module."""
    return _heat_map(
        report, ax, lambda site: np.degrees(np.abs(site.angle).mean()), "mean |angle| of a plane (degrees)", "How far planes turn"
    )


@styled
def magnitudes(report: AngleReport, ax: Axes) -> Axes:
    """Mean |magnitude - 1| of the planes, in percent, by layer and module."""
    return _heat_map(
        report,
        ax,
        lambda site: 100 * np.abs(site.magnitude - 1).mean(),
        "mean |magnitude - 1| of a plane (%)",
        "How much planes grow or shrink",
    )


@styled
def planes(report: AngleReport, ax: Axes, count: int = 8) -> Axes:
    """The most turned planes, one circle each: the unit vector before (grey) and what the adapter makes of it (colour).

    For road_1 every vector of the plane turns and grows alike; for other variants the angle and the mean stretch are drawn.
    """
    columns, (wide, high) = 4, (3.6, 3.9)
    turned = report.most_turned(count)
    arrow = {"length_includes_head": True, "head_width": 0.16, "width": 0.035}
    for number, (site, plane, angle, magnitude) in enumerate(turned):
        x, y = wide * (number % columns), -high * (number // columns)
        ax.add_patch(Circle((x, y), 1, fill=False, color="0.8", linewidth=0.8))
        ax.arrow(x, y, 1, 0, color="0.6", **arrow)
        ax.arrow(x, y, magnitude * np.cos(angle), magnitude * np.sin(angle), color="C0" if angle > 0 else "C1", **arrow)
        place = site.kind if site.layer is None else f"{site.layer} {site.kind}"
        text = f"{place}\nplane {plane}: {np.degrees(angle):+.0f}°, \u00d7 {magnitude:.2f}"
        ax.text(x, y - 1.25, text, ha="center", va="top", fontsize=5.5)
    rows = -(-len(turned) // columns)
    ax.set(xlim=(-1.8, wide * (columns - 1) + 1.8), ylim=(-high * (rows - 1) - 2.4, 1.4), aspect="equal")
    ax.set_axis_off()
    ax.set_title(f"The {len(turned)} planes that turn most: before (grey) and after")
    return ax


def _heat_map(report: AngleReport, ax: Axes, value: Callable[[SiteAngles], float], unit: str, title: str) -> Axes:
    """One cell per layer and module kind; cells without a site stay white."""
    layers: list[int | None] = [*report.layers]
    if any(site.layer is None for site in report.sites):
        layers.append(None)
    kinds = report.kinds
    cells = np.full((len(kinds), len(layers)), np.nan)
    for site in report.sites:
        cells[kinds.index(site.kind), layers.index(site.layer)] = value(site)
    image = ax.imshow(cells, aspect="auto", vmin=0, vmax=np.nanmax(cells) or 1)
    ax.set_xticks(range(len(layers)), ["-" if layer is None else str(layer) for layer in layers])
    if len(layers) > 16:
        ax.set_xticks(range(0, len(layers), 4), [str(layer) for layer in layers[::4]])
    ax.set_yticks(range(len(kinds)), kinds)
    ax.set(xlabel="layer", title=title)
    ax.spines[:].set_visible(False)
    if cells.size <= 64:
        middle = np.nanmax(cells) / 2
        for (row, column), cell in np.ndenumerate(cells):
            if np.isfinite(cell):
                ax.text(column, row, f"{cell:.1f}", ha="center", va="center", color="w" if cell < middle else "k", fontsize=7)
    ax.figure.colorbar(image, ax=ax, label=unit)
    return ax
