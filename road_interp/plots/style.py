"""The style shared by all figures, except where the caller has set another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from importlib import resources
from inspect import signature
from typing import Any, TypeVar, cast

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import rc_params_from_file, rcParams, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from numpy.typing import ArrayLike

from road_interp.errors import InputError
from road_interp.plots.arguments import check_axes, check_drawn
from road_interp.plots.fit import fit
from road_interp.plots.shared_axes import others_kept

STYLE = str(resources.files("road_interp.plots") / "road.mplstyle")
_SETTINGS = rc_params_from_file(STYLE, use_default_template=False)
# Read from the style: "C0" would be resolved when a notebook shows the figure, outside the style.
COLORS: list[str] = _SETTINGS["axes.prop_cycle"].by_key()["color"]
MARKERS = "osD^vPXd*<>"
RELATIVE = tuple(key for key in _SETTINGS if key.endswith(("titlesize", "labelsize", "legend.fontsize")))  # to font.size

ROW, ABOVE_ROWS = 0.14, 1.2  # inches: height of a named row, and of what is above and below the rows

Drawing = TypeVar("Drawing", bound=Callable[..., Axes])


def styled(draw: Drawing) -> Drawing:
    """Draw in the style of the package. The first argument is checked against its annotation, and `ax` for being Axes."""

    @wraps(draw)
    def drawn(*args: Any, **options: Any) -> Axes:
        given = signature(draw).bind(*args, **options).arguments
        name, value = next(iter(given.items()))
        if (annotation := draw.__annotations__[name]) != "Source":  # RoadAdapter.of checks that
            check_drawn(draw.__name__, annotation, value)
        check_axes(draw.__name__, given.get("ax"))
        with package_style():
            with others_kept(draw.__name__, given.get("ax")):
                ax = draw(*args, **options)
            fit(ax, may_grow=given.get("ax") is None)
        return ax

    return cast(Drawing, drawn)


@contextmanager
def package_style() -> Iterator[None]:
    """The package's style, without settings that the caller has changed; all texts have the caller's font.size, if it is set."""
    sizes = dict.fromkeys(RELATIVE, "medium") if is_set("font.size") else {}
    with plt.rc_context({key: value for key, value in (_SETTINGS | sizes).items() if not is_set(key)}):
        yield


def is_set(key: str) -> bool:
    """Whether the caller has set a parameter of matplotlib to another value than its default."""
    current, default = cast(Mapping[str, Any], rcParams), cast(Mapping[str, Any], rcParamsDefault)
    return current[key] != default[key]


def callers_width() -> float | None:
    """The width of figures in inches where the caller has set figure.figsize, for figures of several panels."""
    size = list(rcParams["figure.figsize"])
    return None if size in (list(rcParamsDefault["figure.figsize"]), list(_SETTINGS["figure.figsize"])) else size[0]


def prepared(ax: Axes | None, projection: str | None = None, rows: int = 0, height: float = 0) -> Axes:
    """The axes to draw on: the given ones, or those of a new figure, with a projection such as "polar".

    A new figure is higher than figure.figsize where many named rows, or a `height` in inches, need it. A figure without a layout
    engine gets one, so that labels and legends are not cut off at its edges.
    """
    if ax is None:
        width, usual = rcParams["figure.figsize"]
        size = (width, max(usual, ABOVE_ROWS + ROW * rows, height))
        return plt.figure(figsize=size, layout="constrained").add_subplot(projection=projection)
    figure = ax.get_figure(root=True)
    if figure is not None and figure.get_layout_engine() is None and ax.get_subplotspec() is not None:
        figure.set_layout_engine("constrained")
    return ax


def width_of(ax: Axes) -> float:
    """The width of axes in inches."""
    figure = ax.get_figure(root=True)
    return rcParams["figure.figsize"][0] if figure is None else ax.get_window_extent().width / figure.dpi


def in_place_of(ax: Axes) -> SubFigure:
    """A figure of several panels in the place of a subplot, which is removed."""
    place, figure = ax.get_subplotspec(), ax.get_figure()
    if place is None or figure is None:
        raise InputError("the panels need the place of a subplot, such as an Axes of plt.subplots(): these axes have none")
    ax.remove()
    return figure.add_subfigure(place)


def color_and_marker(number: int) -> dict[str, Any]:
    """How Axes.plot and Axes.errorbar draw the series with a number, from 0; colours and markers recur after the last ones."""
    return {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}


def error_bars(values: ArrayLike, low: ArrayLike, high: ArrayLike) -> np.ndarray:
    """Distances of the ends of intervals from their values, (2, n), as Axes.errorbar takes them.

    Raises InputError for a value outside its interval by more than rounding.
    """
    bars = np.array((np.subtract(values, low), np.subtract(high, values)))
    if (bars < -1e-9).any():
        raise InputError("a value lies outside its interval: give the value first, then the low and the high end")
    return np.maximum(bars, 0)


def two_digits(value: float) -> str:
    """A number with two significant digits, and no fewer digits than it has before the point."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:#.2g}".rstrip(".")


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural where it is not one: "1 seed", "3 seeds"."""
    return f"{number} {noun}{'s' * (number != 1)}"
