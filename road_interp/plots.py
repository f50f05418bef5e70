"""Drawing: a result in, matplotlib Axes out. Nothing here measures, shows or saves."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import resources
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle

from road_interp.bank import BASE
from road_interp.errors import InputError

if TYPE_CHECKING:
    from road_interp.bench import BenchReport
    from road_interp.causal import ScanReport
    from road_interp.measure import AngleReport, CompositionReport, SiteAngles, StrengthReport
    from road_interp.measure.heads import HeadsStudy

# One colour and marker per peer in every panel.
PEERS = {
    "bare": ("0.45", "o"),
    "merged": ("C2", "s"),
    "RoadModel": ("C0", "D"),
    "stacked LoRA": ("C4", "^"),
    "PEFT LoRA": ("C1", "v"),
    "PEFT RoAd": ("C3", "P"),
}
STYLE = str(resources.files("road_interp") / "road.mplstyle")


def _styled(draw: Callable[..., Axes]) -> Callable[..., Axes]:
    """Draw in the house style, on new axes where none are given."""

    @wraps(draw)
    def drawn(result: Any, ax: Axes | None = None, **options: Any) -> Axes:
        with plt.style.context(STYLE):
            if ax is None:
                ax = plt.figure(layout="constrained").add_subplot()
            return draw(result, ax, **options)

    return drawn


@_styled
def angles(report: AngleReport, ax: Axes) -> Axes:
    """Mean |angle| of the planes, in degrees, by layer and module."""
    return _heat_map(
        report, ax, lambda site: np.degrees(np.abs(site.angle).mean()), "mean |angle| of a plane (degrees)", "How far planes turn"
    )


@_styled
def magnitudes(report: AngleReport, ax: Axes) -> Axes:
    """Mean |magnitude - 1| of the planes, in percent, by layer and module."""
    return _heat_map(
        report,
        ax,
        lambda site: 100 * np.abs(site.magnitude - 1).mean(),
        "mean |magnitude - 1| of a plane (%)",
        "How much planes grow or shrink",
    )


@_styled
def planes(report: AngleReport, ax: Axes, count: int = 8) -> Axes:
    """The most turned planes, one circle each: the unit vector before (grey) and what the adapter makes of it (colour).

    For road_1 every vector of the plane turns and grows alike; for other variants the angle and the mean stretch are drawn.
    """
    columns, (wide, high) = 4, (3.6, 3.9)
    turned = report.most_turned(count)
    arrow = {"length_includes_head": True, "head_width": 0.16, "width": 0.035}
    for number, (site, plane, angle, magnitude) in enumerate(turned):
        x, y = wide * (number % columns), -high * (number // columns)
        ax.add_patch(Circle((x, y), 1, fill=False, color="0.8", linewidth=0.8))
        ax.arrow(x, y, 1, 0, color="0.6", **arrow)
        ax.arrow(x, y, magnitude * np.cos(angle), magnitude * np.sin(angle), color="C0" if angle > 0 else "C1", **arrow)
        place = site.kind if site.layer is None else f"{site.layer} {site.kind}"
        text = f"{place}\nplane {plane}: {np.degrees(angle):+.0f}°, \u00d7 {magnitude:.2f}"
        ax.text(x, y - 1.25, text, ha="center", va="top", fontsize=5.5)
    rows = -(-len(turned) // columns)
    ax.set(xlim=(-1.8, wide * (columns - 1) + 1.8), ylim=(-high * (rows - 1) - 2.4, 1.4), aspect="equal")
    ax.set_axis_off()
    ax.set_title(f"The {len(turned)} planes that turn most: before (grey) and after")
    return ax


@_styled
def throughput(report: BenchReport, ax: Axes, task: str = "requests") -> Axes:
    """Tokens per second of generation (paper, figure 4).

    Bars reach from the first to the third quartile of the rounds.

    Args:
        task: "requests" (figure 4 right: the number of requests, each with its own adapter), "length" (middle: generated tokens,
            eight requests) or "rank" (left: one LoRA for eight rows, merged or not).
    """
    quantity, label, title = {
        "requests": ("rows", "requests, each with its own adapter", "Different adapters"),
        "length": ("new_tokens", "generated tokens per request", "Eight requests"),
        "rank": ("rank", "rank of one LoRA for eight rows", "One LoRA, merged or not"),
    }[task]
    timings = [timing for timing in report.timings if timing.task == task]
    if not timings:
        raise InputError(f"this benchmark has no timings of generation by {task}")
    for peer in dict.fromkeys(timing.peer for timing in timings):
        line = sorted((timing for timing in timings if timing.peer == peer), key=lambda timing: getattr(timing, quantity))
        rates = np.array([[timing.tokens / second for second in timing.seconds] for timing in line])
        middle = np.median(rates, axis=1)
        low, high = np.quantile(rates, (0.25, 0.75), axis=1)
        x = [getattr(timing, quantity) for timing in line]
        color, marker = PEERS[peer]
        bars = (middle - low, high - middle)
        ax.errorbar(x, middle, yerr=bars, marker=marker, color=color, markersize=4, capsize=2, label=peer)
    ax.set_xscale("log", base=2)
    ax.set_xticks(x, [str(number) for number in x])
    ax.set(xlabel=label, ylabel="generated tokens per second", ylim=(0, None), title=title)
    ax.legend()
    return ax


@_styled
def composition(report: CompositionReport, ax: Axes) -> Axes:
    """How often each task shows in the answers, and all in one, by set of active tasks, with 95% intervals (paper, figure 5)."""
    sets = [score.active for score in report.scores]
    groups = [(task, [task]) for task in report.tasks] + [("all in one answer", list(report.tasks))]
    width = 0.8 / len(groups)
    for number, (label, tasks) in enumerate(groups):
        x = np.arange(len(sets)) + (number - (len(groups) - 1) / 2) * width
        rates = np.array([report.rate(active, tasks) for active in sets])
        low, high = np.array([report.interval(active, tasks) for active in sets]).T
        hatch = "//" if number == len(groups) - 1 else None
        ax.bar(x, rates, width, label=label, hatch=hatch, edgecolor="w", linewidth=0.5)
        ax.errorbar(x, rates, yerr=(rates - low, high - rates), fmt="none", ecolor="k", elinewidth=0.8, capsize=2)
    ax.set_xticks(range(len(sets)), ["none" if active == BASE else active.replace("+", " + ") for active in sets])
    ax.set(xlabel="active tasks", ylabel="fraction of answers", ylim=(0, 1.05), title=f"{report.model}: {report.method}")
    ax.legend(loc="upper left")
    return ax


@_styled
def heads(study: HeadsStudy, ax: Axes) -> Axes:
    """Accuracy of every head by how it was trained and what is active, with 95% intervals."""
    tasks = study.together[0].tasks
    bars = [("trained alone", lambda task: (study.alone[task], task))]
    for report in study.together:
        bars.append((f"{report.method}: its planes", lambda task, report=report: (report, task)))
        bars.append((f"{report.method}: all planes", lambda task, report=report: (report, report.together)))
    width = 0.8 / len(bars)
    lowest = 1.0
    for number, (label, find) in enumerate(bars):
        x = np.arange(len(tasks)) + (number - (len(bars) - 1) / 2) * width
        found = [(task, *find(task)) for task in tasks]
        rates = np.array([report.accuracy(task, active) for task, report, active in found])
        low, high = np.array([report.interval(task, active) for task, report, active in found]).T
        lowest = min(lowest, low.min())
        bar = (rates - low, high - rates)
        ax.errorbar(x, rates, yerr=bar, fmt="o" if number % 2 else "s", markersize=4, capsize=2, label=label)
    ax.set_xticks(range(len(tasks)), tasks)
    ax.set(ylabel="accuracy", xlim=(-0.6, len(tasks) - 0.4), ylim=(np.floor(20 * lowest) / 20, 1))
    ax.set_title(f"{study.together[0].model}: heads on one state, {len(study.together[0].seeds)} seeds")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


@_styled
def strength(report: StrengthReport, ax: Axes) -> Axes:
    """How often a behaviour shows by the strength of its rotation, with 95% intervals; 1 is what was learned."""
    rates, low, high = np.array(report.rates()).T
    ax.errorbar(report.strengths, rates, yerr=(rates - low, high - rates), marker="o", markersize=4, capsize=2)
    ax.axvline(1, color="0.7", linewidth=0.8, linestyle=":")
    title = f"{report.model}: {report.task}, {len(report.shown[0])} prompts"
    ax.set(xlabel="strength t of the rotation $A^t$", ylabel="fraction of answers", ylim=(-0.02, 1.05), title=title)
    return ax


@_styled
def interchange_scan(report: ScanReport, ax: Axes) -> Axes:
    """Interchange accuracy by layer and span: where exchanging the state exchanges the answer."""
    cells = np.array(report.accuracy).T
    image = ax.imshow(cells, aspect="auto", vmin=0, vmax=1)
    step = 1 if len(report.layers) <= 16 else 4
    ax.set_xticks(range(0, len(report.layers), step), [str(layer) for layer in report.layers[::step]])
    ax.set_yticks(range(len(report.spans)), report.spans)
    ax.set(xlabel="output of block", title=f"{report.task}: {report.method}")
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, ax=ax, label="interchange accuracy")
    return ax


def _heat_map(report: AngleReport, ax: Axes, value: Callable[[SiteAngles], float], unit: str, title: str) -> Axes:
    """One cell per layer and module kind; cells without a site stay white."""
    layers: list[int | None] = [*report.layers]
    if any(site.layer is None for site in report.sites):
        layers.append(None)
    kinds = report.kinds
    cells = np.full((len(kinds), len(layers)), np.nan)
    for site in report.sites:
        cells[kinds.index(site.kind), layers.index(site.layer)] = value(site)
    image = ax.imshow(cells, aspect="auto", vmin=0, vmax=np.nanmax(cells) or 1)
    ax.set_xticks(range(len(layers)), ["-" if layer is None else str(layer) for layer in layers])
    if len(layers) > 16:
        ax.set_xticks(range(0, len(layers), 4), [str(layer) for layer in layers[::4]])
    ax.set_yticks(range(len(kinds)), kinds)
    ax.set(xlabel="layer", title=title)
    ax.spines[:].set_visible(False)
    if cells.size <= 64:
        middle = np.nanmax(cells) / 2
        for (row, column), cell in np.ndenumerate(cells):
            if np.isfinite(cell):
                ax.text(column, row, f"{cell:.1f}", ha="center", va="center", color="w" if cell < middle else "k", fontsize=7)
    ax.figure.colorbar(image, ax=ax, label=unit)
    return ax
