"""Throughput of generation by method."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from road_interp.errors import InputError
from road_interp.plots.arguments import check_choice
from road_interp.plots.style import COLORS, error_bars, prepared, styled

if TYPE_CHECKING:
    from road_interp.measure.throughput import ThroughputReport

# One colour and marker per method in every panel.
STYLES = {
    "bare": ("0.45", "o"),
    "merged": (COLORS[2], "s"),
    "RoadModel": (COLORS[0], "D"),
    "stacked LoRA": (COLORS[4], "^"),
    "PEFT LoRA": (COLORS[1], "v"),
    "PEFT RoAd": (COLORS[3], "P"),
}


@styled
def throughput(report: ThroughputReport, ax: Axes | None = None, task: str = "requests") -> Axes:
    """Tokens per second of generation (paper, figure 4).

    Error bars reach from the first to the third quartile of the rounds.

    Args:
        task: "requests" (figure 4 right: by number of requests, each with its own adapter), "length" (middle: by generated
            tokens of eight requests) or "rank" (left: by rank of one LoRA for eight rows, merged or not).
    """
    kinds = {
        "requests": ("rows", "requests, each with its own adapter", "One adapter per request"),
        "length": ("new_tokens", "generated tokens per request", "Eight requests"),
        "rank": ("rank", "rank of one LoRA for eight rows", "One LoRA, merged or not"),
    }
    check_choice("throughput", "task", task, kinds)
    ax, (quantity, label, title) = prepared(ax), kinds[task]
    timings = [timing for timing in report.timings if timing.task == task]
    if not timings:
        raise InputError(f"this benchmark has no timings of generation by {task}")
    for method in dict.fromkeys(timing.method for timing in timings):
        line = sorted((timing for timing in timings if timing.method == method), key=lambda timing: getattr(timing, quantity))
        rates = np.array([[timing.tokens / second for second in timing.seconds] for timing in line])
        middle = np.median(rates, axis=1)
        low, high = np.quantile(rates, (0.25, 0.75), axis=1)
        x = [getattr(timing, quantity) for timing in line]
        color, marker = STYLES[method]
        bars = error_bars(middle, low, high)
        ax.errorbar(x, middle, yerr=bars, marker=marker, color=color, markersize=4, capsize=2, label=method)
    ax.set_xscale("log", base=2)
    ax.set_xticks(x, [str(number) for number in x])
    ax.set(xlabel=label, ylabel="generated tokens per second", ylim=(0, None), title=title)
    ax.legend()
    return ax
