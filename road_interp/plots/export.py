"""Figures as files: PDF and PNG, with their numbers as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from matplotlib.axes import Axes
from matplotlib.pyplot import close, subplots
from matplotlib.style import context

from road_interp import plots
from road_interp.files import write_atomically
from road_interp.plots.style import counted
from road_interp.provenance import figure_metadata
from road_interp.sources import readable_name

if TYPE_CHECKING:
    from road_interp.causal.variables_comparison import VariablesComparison
    from road_interp.measure import AblationReport, AngleReport, DriftReport
    from road_interp.measure.engine_cost import EngineCostReport
    from road_interp.measure.throughput import ThroughputReport
    from road_interp.results import Result


Value = TypeVar("Value")
_MARK: ContextVar[str] = ContextVar("mark", default="")
_FORMATS: ContextVar[tuple[str, ...]] = ContextVar("formats", default=("pdf", "png"))


def marked(text: str) -> AbstractContextManager[None]:
    """Write a text across the foot of every figure that `save_figure` writes in this context; an empty text is no mark."""
    return _having(_MARK, text)


def for_the_web() -> AbstractContextManager[None]:
    """Leave out the PDF, which takes longest, of every figure that `save_figure` writes in this context."""
    return _having(_FORMATS, ("png",))


@contextmanager
def _having(variable: ContextVar[Value], value: Value) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def save_figure(ax: Axes, result: Result, folder: Path, name: str) -> Path:
    """Write `name`.json, `name`.pdf and `name`.png into `folder` and return the PNG's path. The figure is closed.

    Every file is written atomically. The PNG's text chunks "Command" and "Versions" name the command that drew it and the
    installed versions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figure = ax.get_figure(root=True)
    assert figure is not None
    if mark := _MARK.get():
        figure.text(0.5, 0, mark, ha="center", va="top", color="#D55E00", weight="bold")
    write_atomically(folder / f"{name}.json", result.to_json())
    for format in _FORMATS.get():
        metadata = figure_metadata() if format == "png" else {"CreationDate": None}
        with context(plots.STYLE):
            figure.savefig(drawn := BytesIO(), format=format, metadata=metadata)
        write_atomically(folder / f"{name}.{format}", drawn.getvalue())
    close(figure)
    return folder / f"{name}.png"


def draw_adapter(report: AngleReport, folder: Path) -> list[Path]:
    """The three figures of an adapter: angles and magnitudes by layer and module, and the most rotated planes."""
    drawings: dict[str, Callable[[AngleReport], Axes]] = {
        "angles": plots.angles,
        "magnitudes": plots.magnitudes,
        "planes": plots.planes,
    }
    return [save_figure(draw(report), report, folder, name) for name, draw in drawings.items()]


def draw_ablation(report: AblationReport, folder: Path) -> Path:
    """Ablation by component, by number of planes, and by layer and module kind where there are several."""
    sites: tuple[Literal["layer", "kind"], ...] = ("layer", "kind")
    groups = [group for group in sites if any(row.group == group for row in report.rows)]
    has_curve = any(row.group == "most rotated" for row in report.rows)
    with context(plots.STYLE):
        rows, columns = 2 if groups else 1, 2 if groups or has_curve else 1
        size = 7 if columns > 1 else 5, 2.5 * rows
        figure, axes = subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        seeds = counted(len(report.seeds), "seed")
        figure.suptitle(f"{readable_name(report.model)}, {report.variant}, {seeds}: components of the adapter, 95% intervals")
    plots.ablation(report, axes[0, 0])
    if has_curve:
        plots.ablation_curve(report, axes[0, 1])
    elif columns > 1:
        axes[0, 1].set_axis_off()
    for group, ax in zip(groups, axes[-1], strict=False):
        plots.ablation_by(report, ax, group=group)
    if len(groups) == 1:
        axes[1, 1].set_axis_off()
    elif groups:
        axes[1, 0].get_legend().remove()  # the right panel has the same legend
    return save_figure(axes[0, 0], report, folder, "ablation")


def draw_drift(report: DriftReport, folder: Path) -> list[Path]:
    """The grid of all blocks, and the mean change of angle and of magnitude by block."""
    return [
        save_figure(plots.drift_grid([report]), report, folder, "states"),
        save_figure(plots.drift_blocks([report], quantity="angle"), report, folder, "states-angle"),
        save_figure(plots.drift_blocks([report], quantity="dM"), report, folder, "states-dM"),
    ]


def draw_throughput(report: ThroughputReport, folder: Path) -> Path:
    """Figure 4 of the paper: one panel per task of it that the benchmark timed; the numbers alone if it timed none."""
    tasks = [task for task in ("rank", "length", "requests") if any(timing.task == task for timing in report.timings)]
    if not tasks:
        folder.mkdir(parents=True, exist_ok=True)
        report.save(folder / "throughput.json")
        return folder / "throughput.json"
    with context(plots.STYLE):
        figure, axes = subplots(1, len(tasks), figsize=(min(7, 3.4 * len(tasks)), 3.2), layout="constrained", squeeze=False)
        where = f"{report.device}, {counted(report.threads, 'thread')}"
        figure.suptitle(f"{readable_name(report.model)}, {report.sites} sites, {report.dtype}, {where}; bars are quartiles")
        shown: dict[str, Any] = {}
        for task, ax in zip(tasks, axes[0], strict=True):
            handles, names = plots.throughput(report, ax, task=task).get_legend_handles_labels()
            shown |= dict(zip(names, handles, strict=True))
            ax.get_legend().remove()
        figure.legend(shown.values(), shown, loc="outside lower center", ncols=len(shown))
    return save_figure(axes[0][0], report, folder, "throughput")


def draw_engine_cost(report: EngineCostReport, folder: Path) -> Path:
    """The costs of all models, in one panel."""
    with context(plots.STYLE):
        rows = len({(cost.what, cost.over) for cost in report.costs})
        _, ax = subplots(figsize=(7, 1 + 0.22 * rows), layout="constrained")
    return save_figure(plots.engine_cost(report, ax), report, folder, "engine")


def draw_variables(comparisons: Sequence[VariablesComparison], result: Result, folder: Path, name: str) -> Path:
    """Cause, isolation and disentangle of one model and one type of entity, and the best of disentangle enlarged."""
    first, names = comparisons[0], " and ".join(comparisons[0].variables)
    counts = Counter(found.coordinates for found in comparisons).values()
    seeds = f"{min(counts)} to {max(counts)} seeds" if min(counts) < max(counts) else counted(max(counts), "seed")
    entities = first.task.replace("_", " ") + f": {names}" * (names != first.task)
    title = f"{readable_name(first.model)}, block {first.layer}, {entities}"
    with context(plots.STYLE):
        figure, grid = subplots(2, 2, figsize=(7, 5.5), layout="constrained")
        figure.suptitle(f"{title}, {seeds}; bars from lowest to highest seed")
        axes = grid.ravel()
        for quantity, ax in zip(("cause", "isolation", "disentangle", "disentangle"), axes, strict=True):
            plots.variables(comparisons, ax, quantity=quantity)
            ax.set(title=quantity, ylabel="fraction of pairs")
            ax.get_legend().remove()
        best = max(report.disentangle for found in comparisons for report in found.reports)
        lowest = 0.48 if best < 0.7 else best - 0.1  # no swap has .5
        axes[-1].set(title="disentangle, enlarged", ylim=(lowest, best + 0.01))
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return save_figure(axes[0], result, folder, name)
