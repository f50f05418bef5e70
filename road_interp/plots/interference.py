"""Interference between the adapters of different tasks."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from road_interp.errors import InputError
from road_interp.plots.style import prepared, styled, two_digits
from road_interp.sources import readable_name

if TYPE_CHECKING:
    from road_interp.measure import InterferenceReport


@styled
def interference(report: InterferenceReport, ax: Axes | None = None) -> Axes:
    """Accuracy lost by each task when each adapter is composed with the task's own, in points, with 95% intervals."""
    tasks = list(report.correct)
    if not tasks:
        raise InputError("plots.interference: no task was scored, so that there are no costs to draw")
    ax = prepared(ax)
    costs = {(task, other): report.cost(task, other) for task in tasks for other in report.others(task)}
    cells = np.full((len(tasks), len(report.names)), np.nan)
    for (task, other), (cost, _, _) in costs.items():
        cells[tasks.index(task), report.names.index(other)] = 100 * cost
    largest = max(1.0, float(np.nanmax(np.abs(cells))))
    image = ax.imshow(cells, aspect="auto", cmap="PuOr", vmin=-largest, vmax=largest)
    for (task, other), values in costs.items():
        cost, low, high = (100 * value for value in values)
        cell = report.names.index(other), tasks.index(task)
        color = "w" if abs(cost) > 0.6 * largest else "k"
        ax.text(
            *cell,
            f"{two_digits(cost)}\n[{two_digits(low)}, {two_digits(high)}]",
            ha="center",
            va="center",
            color=color,
        )
    ax.set_xticks(range(len(report.names)), [fill(name, 10) for name in report.names])
    ax.set_yticks(range(len(tasks)), tasks)
    ax.set(xlabel="adapter composed with the task's own", ylabel="task", title=f"{readable_name(report.model)}: interference")
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, ax=ax, label="accuracy lost (points)")
    return ax
