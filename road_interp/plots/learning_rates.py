"""Scores of methods by their learning rate."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes

from road_interp.errors import InputError
from road_interp.plots.style import COLORS, color_and_marker, prepared, styled


@styled
def learning_rates(
    scores: dict[str, dict[float, float]], ax: Axes | None = None, *, best: Mapping[str, float], label: str
) -> Axes:
    """A line per method; a filled marker is the rate that was chosen.

    Args:
        scores: by method and learning rate.
        best: the chosen rates, by method.
        label: what the scores are.

    Raises InputError where there is no score, or none at a chosen rate.
    """
    if not all(isinstance(of_method, Mapping) for of_method in scores.values()):
        raise InputError("plots.learning_rates draws scores by rate: give {method: {rate: score}}")
    rates = sorted({rate for of_method in scores.values() for rate in of_method})
    if not rates:
        raise InputError("plots.learning_rates draws scores by rate: give {method: {rate: score}}, with one score at least")
    for method, rate in best.items():
        if rate not in scores.get(method, ()):
            raise InputError(f"plots.learning_rates: '{method}' has no score at its best rate {rate:g}")
    ax = prepared(ax)
    for number, (method, of_method) in enumerate(scores.items()):
        shift = 1.02 ** (number - (len(scores) - 1) / 2)  # so that lines with equal scores stay visible
        line = sorted(of_method.items())
        style = {**color_and_marker(number), "markersize": 4}
        dashed = "-" if number < len(COLORS) else "--"
        ax.plot(
            [rate * shift for rate, _ in line],
            [score for _, score in line],
            dashed,
            linewidth=1,
            markerfacecolor="w",
            label=method,
            **style,
        )
        if method in best:
            ax.plot([best[method] * shift], [of_method[best[method]]], **style)
    ax.set_xscale("log")
    ax.set_xlim(0.5 * rates[0], 2 * rates[-1])
    ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
    ax.minorticks_off()
    ax.set(xlabel="learning rate", ylabel=label)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax
