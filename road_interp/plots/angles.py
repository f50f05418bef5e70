"""Angles and magnitudes of an adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle
from matplotlib.projections.polar import PolarAxes
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator

from road_interp.arguments import check_count
from road_interp.errors import InputError
from road_interp.plots.fit import SMALLEST, fit_width
from road_interp.plots.style import COLORS, prepared, styled, two_digits, width_of

if TYPE_CHECKING:
    from road_interp.measure import AngleReport, SiteAngles

STEP, BINS = 15, 61  # degrees: the range of the histogram is a multiple of STEP; number of bins, of which one is around 0
PLANE, TITLE = 1.2, 0.3  # inches: least width of a plane with its caption, and height of the title
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in the brightness of a colour
LONGEST = 1.2  # length of a vector that stays clear of the next planes, where the circles have radius 1


@styled
def angles(report: AngleReport, ax: Axes | None = None) -> Axes:
    """Mean |angle| of the planes, in degrees, by layer and module."""
    ax = prepared(ax)
    return _heat_map(
        report,
        ax,
        lambda site: np.degrees(np.abs(site.angle).mean()),
        "mean |angle| of a plane (degrees)",
        f"Rotation of the planes{_reflections(report)}",
    )


@styled
def magnitudes(report: AngleReport, ax: Axes | None = None) -> Axes:
    """Mean |magnitude - 1| of the planes, in percent, by layer and module."""
    ax = prepared(ax)
    return _heat_map(
        report,
        ax,
        lambda site: 100 * np.abs(site.magnitude - 1).mean(),
        "mean |magnitude - 1| of a plane (%)",
        "Plane scaling",
    )


@styled
def planes(report: AngleReport, ax: Axes | None = None, count: int = 8) -> Axes:
    """The planes with the largest angles: in each circle a unit vector before (grey) and after the rotation (colour).

    road_1 rotates and scales every vector of a plane by the same angle and factor; other variants are drawn by their mean. The
    circles are smaller where a vector would leave its place; all have one scale.

    Raises InputError unless `count` is a whole number of at least 1.
    """
    check_count("plots.planes", "count", count)
    largest, (wide, high) = report.most_rotated(count), (3.6, 3.9)
    width = rcParams["figure.figsize"][0] if ax is None else width_of(ax)
    captions = [_caption(*each) for each in largest]
    widest = max(_inches(line) for each in captions for line in each.split("\n"))
    columns = min(4, len(largest), max(1, int(width / max(PLANE, 1.15 * widest))))  # also at other resolutions
    rows = -(-len(largest) // columns)
    ax = prepared(ax, height=TITLE + rows * high / wide * width / columns)
    box = ax.get_window_extent()
    wide = max(wide, high * rows * box.width / box.height / columns)  # as wide as the axes, which keep circles round
    arrow = {"length_includes_head": True, "head_width": 0.16, "width": 0.035}
    unit = LONGEST / max(LONGEST, *(magnitude for *_, magnitude in largest))
    for number, (*_, angle, magnitude) in enumerate(largest):
        x, y = wide * (number % columns), -high * (number // columns)
        ax.add_patch(Circle((x, y), unit, fill=False, color="0.8", linewidth=0.8))
        ax.arrow(x, y, unit, 0, color="0.6", **arrow)
        length, color = unit * magnitude, COLORS[0] if angle > 0 else COLORS[1]
        ax.arrow(x, y, length * np.cos(angle), length * np.sin(angle), color=color, **arrow)
        ax.text(x, y - 1.25, captions[number], ha="center", va="top")
    ax.set(xlim=(-wide / 2, wide * (columns - 0.5)), ylim=(-high * (rows - 1) - 2.4, 1.4), aspect="equal")
    ax.set_axis_off()
    fit_width(ax.texts, 0.94 * width / columns * ax.figure.dpi)
    ax.set_title(f"The {len(largest)} most rotated planes: before (grey) and after")
    return ax


def _inches(text: str) -> float:
    """Width of a line in the smallest type."""
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=SMALLEST), ismath=False)[0] / 72


def _caption(site: SiteAngles, plane: int, angle: float, magnitude: float) -> str:
    place = site.kind if site.layer is None else f"{site.layer} {site.kind}"
    turn = "reflection" if site.reflection[plane] else f"{np.degrees(angle):+.0f}°"
    return f"{place}\nplane {plane}: {turn}, \u00d7 {magnitude:.2f}"


@styled
def angle_histogram(report: AngleReport, ax: Axes | None = None) -> Axes:
    """Histogram of the planes' angles on polar axes, stacked by module kind, or in one colour when kinds outnumber colours.

    The range of the axes is the largest angle, rounded up to a multiple of 15 degrees; the identity is at 0.

    Raises:
        InputError: axes that are not polar.
    """
    ax = prepared(ax, "polar")
    if not isinstance(ax, PolarAxes):
        raise InputError("an angle histogram needs polar axes, such as those of figure.add_subplot(projection='polar')")
    by_kind = {kind: [site.angle for site in report.sites if site.kind == kind] for kind in report.kinds}
    if len(by_kind) > len(plt.rcParams["axes.prop_cycle"]):
        by_kind = {"all modules": [site.angle for site in report.sites]}
    planes = {kind: np.clip(np.degrees(np.concatenate(angles)), -180, 180) for kind, angles in by_kind.items()}
    limit = STEP * max(1, np.ceil(max(np.abs(angles).max() for angles in planes.values()) / STEP))
    edges = np.linspace(-limit, limit, BINS + 1)
    places = np.radians(edges)
    below = np.zeros(BINS)
    for kind, angles in planes.items():
        counts, _ = np.histogram(angles, edges)
        ax.stairs(below + counts, places, baseline=below, fill=True, label=kind)
        below = below + counts
    _shape_wedge(ax, limit, below.max())
    number = sum(map(len, planes.values()))
    ax.set_title(f"Number of planes by angle ({report.variant}, {number} planes){_reflections(report)}")
    ax.legend(loc="upper left", bbox_to_anchor=(1.15, 1))
    return ax


def _shape_wedge(ax: PolarAxes, limit: float, highest: float) -> None:
    """The identity on top. The hole in the middle keeps the narrow bars of a small range apart."""
    marks = np.linspace(-limit, limit, 7 if limit > STEP else 3)[int(limit == 180) :]  # a full circle ends where it begins
    ax.set_theta_zero_location("N")
    ax.set(thetamin=-limit, thetamax=limit, rorigin=-highest, axisbelow=True)
    ax.set_thetagrids(marks, [f"{mark:+g}\u00b0" if mark else "0\u00b0" for mark in marks])
    ax.yaxis.set_major_locator(MaxNLocator(4 if ax.get_window_extent().height / ax.figure.dpi > 2 else 1, integer=True))
    ax.set_rlabel_position(-limit if limit < 180 else 150)


@styled
def shares(report: AngleReport, ax: Axes | None = None) -> Axes:
    """Shares of rotation, uniform scale and anisotropic stretch in the plane maps, by module kind: means over its sites."""
    ax = prepared(ax)
    kinds = report.kinds
    mean = [
        {name: np.mean([site.shares[name] for site in report.sites if site.kind == kind]) for name in report.sites[0].shares}
        for kind in kinds
    ]
    left = np.zeros(len(kinds))
    for name in report.sites[0].shares:
        widths = np.array([row[name] for row in mean])
        ax.barh(kinds, widths, left=left, label=name)
        left += widths
    ax.yaxis.set_inverted(True)
    ax.set(xlabel="share of the squared logarithm of the map", xlim=(0, 1), title=f"Shares of the plane maps ({report.variant})")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def _reflections(report: AngleReport) -> str:
    """The end of a title about planes that are no rotations; empty if all are."""
    count = sum(sum(site.reflection) for site in report.sites)
    what = "plane is a reflection: its angle is" if count == 1 else "planes are reflections: their angles are"
    return f"\n{count} {what} twice that of the axis" if count else ""


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
    ticks = [*range(0, len(report.layers), 4 if len(layers) > 16 else 1), *range(len(report.layers), len(layers))]
    ax.set_xticks(ticks, ["-" if layers[tick] is None else str(layers[tick]) for tick in ticks])
    ax.set_yticks(range(len(kinds)), kinds)
    ax.set(xlabel="layer", title=title)
    ax.spines[:].set_visible(False)
    if cells.size <= 64:
        for (row, column), cell in np.ndenumerate(cells):
            if np.isfinite(cell):
                is_dark = np.dot(image.to_rgba(cell)[:3], LUMA) < 0.5  # the caller may have set another colour map
                ax.text(column, row, two_digits(cell), ha="center", va="center", color="w" if is_dark else "k")
    ax.figure.colorbar(image, ax=ax, label=unit)
    return ax
