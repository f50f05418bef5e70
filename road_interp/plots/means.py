"""Values with their intervals, by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from road_interp.errors import InputError
from road_interp.plots.style import color_and_marker, error_bars, prepared, styled


@styled
def means(series: dict[str, dict[str, tuple[float, float, float]]], ax: Axes | None = None, *, label: str) -> Axes:
    """A row per name, with a marker and the interval of every series that has it; an infinite one crosses the axes.

    Args:
        series: by the name of the series, and that of the row: the value, and the low and the high end of its interval. The name
            of an only series is not shown.
        label: what the values are, with their unit.

    Raises InputError where there is no value, or one without the two ends of its interval.
    """
    if not all(isinstance(values, Mapping) for values in series.values()):
        raise InputError("plots.means draws rows of several series: give {series: {row: (value, low, high)}}")
    series = {title: values for title, values in series.items() if values}
    names = list(dict.fromkeys(name for values in series.values() for name in values))
    if not names or any(np.shape(value) != (3,) for values in series.values() for value in values.values()):
        raise InputError("plots.means draws intervals: give {series: {row: (value, low, high)}}, with one row at least")
    ax = prepared(ax, rows=len(names))
    for number, (title, values) in enumerate(series.items()):
        middle, low, high = np.array(list(values.values()), dtype=float).T
        rows = np.array([names.index(name) for name in values]) + 0.7 * ((number + 0.5) / len(series) - 0.5)
        bars = error_bars(middle, low, high)
        style = {**color_and_marker(number), "markersize": 3, "capsize": 2, "elinewidth": 1}
        ax.errorbar(middle, rows, xerr=bars, linestyle="none", label=title, **style)
        for row in rows[np.isinf(low) | np.isinf(high)]:
            ax.axhline(row, color=style["color"], linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.yaxis.set_inverted(True)
    ax.set_xlabel(label)
    if len(series) > 1:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax
