"""Scores of several tasks in one hidden state, and of one task at several strengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes

from road_interp.adapters.joined_names import BASE, join_names
from road_interp.plots.arguments import listed
from road_interp.plots.style import COLORS, counted, error_bars, prepared, styled
from road_interp.results import entry
from road_interp.sources import readable_name

if TYPE_CHECKING:
    from road_interp.measure import CompositionReport, StrengthReport
    from road_interp.measure.multitask_accuracy import MultiTaskAccuracyStudy

HATCHES = ("", "..", "//", "xx", "++")


@styled
def composition(report: CompositionReport, ax: Axes | None = None) -> Axes:
    """Fraction of answers that show each behaviour, and exactly the active ones, by active tasks (paper, figure 5).

    Bars have 95% intervals over seeds and prompts. The dashed line is the more frequent label: what a constant label would reach.
    """
    ax = prepared(ax)
    sets = [score.active for score in report.scores]
    each = counted(len(report.scores[0].joint(report.tasks)) // len(report.seeds), "prompt") + " per seed"
    groups: list[tuple[str, Any]] = [(task, lambda active, task=task: report.rate(active, [task])) for task in report.tasks]
    groups.append(("exactly the active tasks", report.control))
    width, ink = 0.8 / len(groups), rcParams["text.color"]  # white in a dark style
    for number, (label, value) in enumerate(groups):
        x = np.arange(len(sets)) + (number - (len(groups) - 1) / 2) * width
        rates, low, high = np.array([value(active) for active in sets]).T
        ax.bar(x, rates, width, label=label, hatch=HATCHES[number % len(HATCHES)], edgecolor="w", linewidth=0.5)
        ax.errorbar(x, rates, yerr=error_bars(rates, low, high), fmt="none", ecolor=ink, elinewidth=0.8, capsize=2)
    if report.majority is not None and "label" in report.tasks:
        ax.axhline(report.majority, color="0.5", linewidth=0.8, linestyle="--", label="more frequent label")
    ax.set_xticks(range(len(sets)), ["none" if active == BASE else active.replace("+", "\n+ ") for active in sets])
    ax.set(
        xlabel="active tasks",
        ylabel="fraction of answers",
        ylim=(0, 1.05),
        title=f"{readable_name(report.model)}: {report.method}\n{each}, {counted(len(report.seeds), 'seed')}, 95% intervals",
    )
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


@styled
def composition_control(reports: Sequence[CompositionReport] | CompositionReport, ax: Axes | None = None) -> Axes:
    """Fraction of answers that show exactly the active tasks, by report: all tasks active, and the mean and the least set.

    Intervals are 95%, over seeds and prompts. The dashed line is the more frequent label.
    """
    reports = listed(reports)
    ax = prepared(ax, rows=len(reports))
    for number, (label, value) in enumerate(
        (
            ("all tasks active", lambda report: report.control(join_names(report.tasks))),
            ("mean over the sets of tasks", lambda report: report.mean_control()),
            ("least of the sets", lambda report: report.least_control()[1]),
        )
    ):
        rates, low, high = np.array([value(report) for report in reports]).T
        rows = np.arange(len(reports)) + 0.2 * (number - 1)
        bars = error_bars(rates, low, high)
        ax.errorbar(rates, rows, xerr=bars, fmt="Dos"[number], color=COLORS[number], markersize=4, capsize=2, label=label)
    majorities = [(row, each.majority) for row, each in enumerate(reports) if each.majority is not None and "label" in each.tasks]
    if majorities:
        rows, shares = np.array(majorities).T
        ax.vlines(shares, rows - 0.5, rows + 0.5, color="0.5", linewidth=0.8, linestyle="--", label="more frequent label")
    ax.set_yticks(range(len(reports)), [f"{each.method} ({counted(len(each.seeds), 'seed')})" for each in reports])
    ax.yaxis.set_inverted(True)
    ax.set(xlabel="exactly the active tasks (fraction of answers)", xlim=(-0.02, 1.02))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


@styled
def multitask_accuracy(study: MultiTaskAccuracyStudy, ax: Axes | None = None) -> Axes:
    """Accuracy of every task head by training and active tasks, with 95% intervals."""
    ax = prepared(ax)
    tasks = study.together[0].tasks
    bars = [("trained alone", {task: (entry(study.alone, task, "training alone of"), task) for task in tasks})]
    if study.own_planes:
        bars.append(("trained alone on its planes", {task: (each, task) for task, each in study.own_planes.items()}))
    for report in study.together:
        bars.append((f"{report.method}: its planes", {task: (report, task) for task in tasks}))
        bars.append((f"{report.method}: all planes", dict.fromkeys(tasks, (report, report.together))))
    width = 0.8 / len(bars)
    lowest = 1.0
    for number, (label, of_task) in enumerate(bars):
        x = np.array([tasks.index(task) for task in of_task]) + (number - (len(bars) - 1) / 2) * width
        rates, low, high = np.array([report.accuracy(task, active) for task, (report, active) in of_task.items()]).T
        lowest = min(lowest, low.min())
        ax.errorbar(
            x, rates, yerr=error_bars(rates, low, high), fmt="o" if number % 2 else "s", markersize=4, capsize=2, label=label
        )
    ax.set_xticks(range(len(tasks)), tasks)
    ax.set(ylabel="accuracy", xlim=(-0.6, len(tasks) - 0.4), ylim=(np.floor(20 * lowest) / 20, 1.01))
    ax.set_title(
        f"{readable_name(study.together[0].model)}: task heads on one state, {counted(len(study.together[0].seeds), 'seed')}"
    )
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


@styled
def strength(report: StrengthReport, ax: Axes | None = None) -> Axes:
    """Fraction of answers that show a behaviour by the strength of its rotation, with 95% intervals; 1 is the trained adapter."""
    ax = prepared(ax)
    strengths, shown = zip(*sorted(zip(report.strengths, report.rates(), strict=True)), strict=True)
    rates, low, high = np.array(shown).T
    ax.errorbar(strengths, rates, yerr=error_bars(rates, low, high), marker="o", markersize=4, capsize=2)
    ax.axvline(1, color="0.7", linewidth=0.8, linestyle=":")
    title = f"{readable_name(report.model)}, {counted(len(report.shown[0]), 'prompt')}, 95% intervals"
    ax.set(
        xlabel="strength t of the rotation $A^t$",
        ylabel=f"fraction of answers that show {report.task}",
        ylim=(-0.02, 1.05),
        title=title,
    )
    return ax
