"""Cause, isolation and their mean by the number of coordinates that each variable owns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from road_interp.errors import InputError
from road_interp.measure.intervals import joined_seeds
from road_interp.plots.arguments import check_choice, listed
from road_interp.plots.style import COLORS, color_and_marker, error_bars, prepared, styled

if TYPE_CHECKING:
    from road_interp.causal.variables import VariablesReport
    from road_interp.causal.variables_comparison import VariablesComparison


@styled
def variables(
    comparisons: Sequence[VariablesComparison] | VariablesComparison, ax: Axes | None = None, quantity: str = "disentangle"
) -> Axes:
    """A line per method; bars from the lowest to the highest seed. Grey lines are the swaps of nothing and of the whole state.

    A method that was not tested with some number of coordinates has no point there.

    Args:
        comparisons: of one model and one type of entity.
        quantity: "cause", "isolation" or "disentangle".
    """
    check_choice("variables", "quantity", quantity, ("cause", "isolation", "disentangle"))
    comparisons = listed(comparisons)
    if not all(each.reports for each in comparisons):
        raise InputError("plots.variables draws methods that were tested; this comparison has trainings on validation pairs only")
    if quantity != "disentangle" and not all(report.scores for each in comparisons for report in each.reports):
        raise InputError(f"plots.variables: these comparisons have no {quantity} by variable, as after `without`")
    if len({(each.model, each.task, each.variables, each.layer, each.steps) for each in comparisons}) > 1:
        raise InputError("plots.variables draws comparisons of one model, task, layer and number of steps")
    for count in (counts := sorted({each.coordinates for each in comparisons})):
        joined_seeds([(each.seed,) for each in comparisons if each.coordinates == count])
    ax = prepared(ax)
    tested: dict[str, list[VariablesReport]] = {}
    most_methods_first = sorted(
        comparisons, key=lambda each: -len(each.reports)
    )  # so that figures of several models agree in colours
    for report in (report for found in most_methods_first for report in found.reports):
        tested.setdefault(report.method, []).append(report)
    lines = {method: reports for method, reports in tested.items() if reports[0].coordinates}
    for number, (method, reports) in enumerate(lines.items()):
        tested_counts = sorted({report.coordinates for report in reports})
        values = [[_value(report, quantity) for report in reports if report.coordinates == count] for count in tested_counts]
        mean, low, high = (np.array([each(of_count) for of_count in values]) for each in (np.mean, np.min, np.max))
        shift = 1.03 ** (number - (len(lines) - 1) / 2)  # so that lines with equal values stay visible
        ax.errorbar(
            np.array(tested_counts) * shift,
            mean,
            yerr=error_bars(mean, low, high),
            linestyle="-" if number < len(COLORS) else "--",
            markersize=4,
            linewidth=1,
            capsize=2,
            label=method,
            **color_and_marker(number),
        )
    for number, method in enumerate(method for method in tested if method not in lines):
        level = float(np.mean([_value(report, quantity) for report in tested[method]]))
        ax.axhline(level, color="0.4", linewidth=1, linestyle=(":", "-.")[number % 2], label=method)
    ax.set_xscale("log", base=2)
    ax.set_xticks(counts, [str(count) for count in counts])
    ax.minorticks_off()
    ax.set(xlabel="coordinates per variable", ylabel=quantity, ylim=(-0.02, 1.02))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def _value(report: VariablesReport, quantity: str) -> float:
    if quantity == "disentangle":
        return report.disentangle
    return float(np.mean([getattr(score, quantity) for score in report.scores]))
