"""Accuracy of methods of fine-tuning by their share of trained weights."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from road_interp.plots.arguments import check_choice
from road_interp.plots.style import COLORS, MARKERS, error_bars, prepared, styled
from road_interp.sources import readable_name

if TYPE_CHECKING:
    from road_interp.measure.parameter_share import ParameterShareReport

READABLE = {"lora-1": "LoRA, rank 1", "lora-8": "LoRA, rank 8", "full": "full fine-tuning"}
BESIDE = 1.15  # times as far to the right is a point beside another one of the same percentage


@styled
def parameter_share(report: ParameterShareReport, ax: Axes | None = None, *, task: str) -> Axes:
    """Accuracy with 95% intervals by the percentage of trained weights: a colour per model, a marker per method.

    Methods that train no weights have no place on the logarithmic axis: they are dotted lines, without intervals. Points of one
    percentage stand side by side around it.

    Args:
        task: name of the data.
    """
    check_choice("parameter_share", "task", task, dict.fromkeys(each[0].task for each in report.trainings.values()))
    ax = prepared(ax)
    shown = {slug: each[0] for slug, each in report.trainings.items() if each[0].task == task}
    models = list(dict.fromkeys(each.model for each in shown.values()))
    methods = list(dict.fromkeys(each.method for each in shown.values()))
    percents = [each.percent for each in shown.values()]
    drawn: Counter[float] = Counter()
    for slug, each in shown.items():
        value, *interval = report.accuracy(slug)
        color, marker = COLORS[models.index(each.model) % len(COLORS)], MARKERS[methods.index(each.method) % len(MARKERS)]
        if each.percent == 0:
            ax.axhline(value, color=color, linewidth=1, linestyle=":")
            continue
        place = each.percent * BESIDE ** (drawn[each.percent] - (percents.count(each.percent) - 1) / 2)
        drawn[each.percent] += 1
        bars = error_bars([value], *interval)
        ax.errorbar([place], [value], yerr=bars, fmt=marker, color=color, markersize=4, capsize=2)
    for model in models:
        ax.plot([], [], color=COLORS[models.index(model) % len(COLORS)], label=readable_name(model))
    untrained = {each.method for each in shown.values() if each.percent == 0}
    for method in methods:
        look = ":" if method in untrained else MARKERS[methods.index(method) % len(MARKERS)]
        ax.plot([], [], look, color="0.4", label=READABLE.get(method, method))
    ax.set_xscale("log")
    ax.set(xlabel="trained weights, % of the backbone\n(equal ones side by side)", ylabel="accuracy", title=task)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax
