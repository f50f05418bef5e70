"""Scores of methods by their learning rate."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from road_interp.plots.style import COLORS, prepared, styled

MARKERS = "osD^vPXd*<>"


@styled
def learning_rates(scores: dict[str, dict[float, float]], ax: Axes | None = None, *, label: str) -> Axes:
    """A line per method; a filled marker is its best rate, of equal ones the smallest.

    Args:
        scores: by method and learning rate.
        label: what the scores are.
    """
    ax = prepared(ax)
    rates = sorted({rate for of_method in scores.values() for rate in of_method})
    for number, (method, of_method) in enumerate(scores.items()):
        shift = 1.02 ** (number - (len(scores) - 1) / 2)  # so that lines with equal scores stay visible
        line = sorted(of_method.items())
        best = max(line, key=lambda point: (point[1], -point[0]))
        style: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "color": COLORS[number % len(COLORS)], "markersize": 4}
        dashed = "-" if number < len(COLORS) else "--"
        x, y = zip(*((rate * shift, score) for rate, score in line), strict=True)
        ax.plot(x, y, dashed, linewidth=1, markerfacecolor="w", label=method, **style)
        ax.plot([best[0] * shift], [best[1]], **style)
    ax.set_xscale("log")
    ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
    ax.minorticks_off()
    ax.set(xlabel="learning rate", ylabel=label)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax
