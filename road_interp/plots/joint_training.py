"""Time and memory of training several adapters together and apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from road_interp.errors import InputError
from road_interp.plots.style import COLORS, error_bars, prepared, styled
from road_interp.sources import readable_name

if TYPE_CHECKING:
    from road_interp.measure.joint_training import JointTrainingReport


@styled
def joint_training(report: JointTrainingReport, ax: Axes | None = None) -> Axes:
    """Seconds of one training step of every adapter, in one pass and one after the other, with quartiles, by their number."""
    if not report.steps:
        raise InputError("plots.joint_training: nothing was timed, so that there is nothing to draw")
    ax = prepared(ax)
    x = [each.adapters for each in report.steps]
    for number, (name, label) in enumerate((("apart", "one after the other"), ("together", "in one pass"))):
        seconds = np.array([getattr(each, name) for each in report.steps])
        low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75), axis=1)
        bars = error_bars(middle, low, high)
        ax.errorbar(x, middle, yerr=bars, marker="oD"[number], color=COLORS[number], markersize=4, capsize=2, label=label)
    ax.set_xscale("log", base=2)
    ax.set_xticks(x, [str(count) for count in x])
    ax.set(
        xlabel="adapters",
        ylabel="seconds for one step of each",
        ylim=(0, None),
        title=f"{readable_name(report.model)}, {report.batch} x {report.length} tokens per adapter, {report.device}",
    )
    ax.legend()
    return ax
