"""Rich tables of results for the terminal, within 80 columns where possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from road_interp.runs.run_files import FROZEN
from road_interp.sources import readable_name

if TYPE_CHECKING:
    from road_interp.measure import AblationReport, AngleReport, Check, DriftReport
    from road_interp.measure.size import SizeReport
    from road_interp.measure.throughput import ThroughputReport, Timing
    from road_interp.runs.run import Run


def run(finished: Run) -> Table:
    """Validation and test scores of a classification run and of its frozen backbone."""
    table = Table(title=f"Results of {finished.folder}", title_justify="left")
    for column in ("", "validation", "test"):
        table.add_column(column)
    variant = finished.recipe.adapter.variant
    for name, scores in ((FROZEN, finished.metrics[FROZEN]), (f"{variant}, trained head", finished.metrics)):
        table.add_row(name, score(scores["validation"]), score(scores["test"]))
    return table


def multitask(summary: dict[str, Any]) -> Group:
    """One table for each kind of score in a multi-task summary."""
    kinds = {"rates": composition, "accuracy": multitask_accuracy, "exact match": exact_match}
    return Group(*(table(summary) for key, table in kinds.items() if key in summary))


def composition(summary: dict[str, Any]) -> Table:
    """One row per set of active tasks: the fractions of answers that show each behaviour, and exactly the active ones."""
    rates, exactly = summary["rates"], summary.get("control", {}).get("sets")
    title = f"{summary['prompts']} prompts: fraction of answers that show a behaviour [95% interval]"
    table = _titled(title)
    *tasks, together, last = next(iter(rates.values()))
    for column in ("active", *tasks, "exactly these" if exactly else together, last):
        table.add_column(column)
    for active, cells in rates.items():
        *shares, whole, perplexity = cells.values()
        shares.append(exactly[active] if exactly else whole)
        table.add_row(active, *map(_interval, shares), f"{perplexity:.1f}")
    return table


def multitask_accuracy(summary: dict[str, Any]) -> Table:
    """One row per head: accuracy with no planes, its own planes and all planes active."""
    title = "accuracy of each head [95% interval] with no planes, its own planes and all planes active; cost: own minus all"
    table = _titled(title)
    for column in ("head", "none", "own", "all", "cost"):
        table.add_column(column)
    for task, sets in summary["accuracy"].items():
        cells = [*map(_interval, sets.values())]
        table.add_row(task, *cells, *[""] * (3 - len(cells)), _interval(summary["cost"][task]))
    return table


def exact_match(summary: dict[str, Any]) -> Table:
    """One row per task: fraction of exact matches with no planes, its own planes and all planes active."""
    title = "exact matches [95% interval] with no planes, the task's own planes (and a shared task's), and all planes active"
    table = _titled(title)
    for column in ("task", "questions", "none", "own", "all"):
        table.add_column(column)
    for task, sets in summary["exact match"].items():
        cells = [*map(_interval, sets.values())]
        table.add_row(task, f"{summary['questions'][task]:,}", *cells, *[""] * (3 - len(cells)))
    return table


def _titled(title: str | Text, **options: Any) -> Table:
    """An empty table with a line under its head, and its title on the left."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, **options)


def _interval(value: Sequence[float]) -> str:
    """A fraction with its interval, from `(value, low, high)`."""
    return "{:.3f} [{:.2f}, {:.2f}]".format(*value)


def angles(report: AngleReport) -> Table:
    """One row per site; the headings are short so that the table fits 80 columns."""
    title = f"{report.variant}, group_size {report.group_size}: angles in degrees, magnitudes as factors"
    columns = {
        "planes": "planes",
        "|angle|": "mean |angle|",
        "max": "max |angle|",
        "magn.": "mean magnitude",
        "min": "min magnitude",
        "max ": "max magnitude",
    }
    summaries = [site.summary() for site in report.sites]
    if any(summary["reflections"] for summary in summaries):
        columns["mir."] = "reflections"
    table = _titled(title, padding=(0, 0, 0, 1))
    table.add_column("layer", justify="right", min_width=5)
    table.add_column("module", overflow="ellipsis", no_wrap=True)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for site, summary in zip(report.sites, summaries, strict=True):
        values = [summary[key] for key in columns.values()]
        layer = "-" if site.layer is None else str(site.layer)
        table.add_row(layer, site.kind, *(str(value) if isinstance(value, int) else f"{value:.2f}" for value in values))
    return table


def drift(report: DriftReport) -> Table:
    """One row per read point, within 80 columns."""
    title = f"{report.texts:,} texts, token: {report.token}; means with 95% intervals, angles in degrees"
    pinned = any(place.norm_is_pinned for place in report.places)
    caption = "after norm: the LayerNorm that ends the block sets the norm" if pinned else None
    table = _titled(title, caption=caption, caption_justify="left", padding=(0, 0, 0, 1))
    for column in ("block", "state", "angle", "dM (%)", "signed", "over\nnull"):
        table.add_column(column, justify="left" if column == "state" else "right", no_wrap=True)
    for place in report.places:
        state = "before norm" if place.before_norm else "after norm" if place.norm_is_pinned else "output"
        angle = "{:.2f} [{:.2f}, {:.2f}]".format(*place.angle)
        magnitude = "{:.2f} [{:.2f}, {:.2f}]".format(*(100 * value for value in place.dM))
        over = "" if place.over_null is None else f"{place.over_null[0]:.2f}"
        table.add_row(str(place.layer), state, angle, magnitude, f"{100 * place.signed[0]:+.2f}", over)
    return table


def ablation(report: AblationReport) -> Table:
    """One row per ablated adapter."""
    title = f"{report.metric} on the test data with an ablated adapter, and {report.metric} lost [95% interval]"
    table = _titled(title, padding=(0, 0, 0, 1))
    table.add_column("changed", no_wrap=True, overflow="ellipsis")
    for column in ("keeps", report.metric, "lost"):
        table.add_column(column, justify="left" if column == "keeps" else "right", no_wrap=True, min_width=15)
    # short names, so that the intervals fit 80 columns
    names = {"components": "all planes", "components, head refitted": "all, head refitted"}
    for row in report.rows:
        cells = [f"{value:.3f} [{short(low)}, {short(high)}]" for value, low, high in (report.accuracy(row), report.loss(row))]
        what = {"layer": f"layer {row.what}", "kind": row.what}.get(row.group, names.get(row.group, row.group))
        table.add_row(what, f"{float(row.what):.0%}" if row.group in ("most rotated", "random planes") else row.component, *cells)
    return table


def short(value: float) -> str:
    """Two decimals without a leading zero, as in ".79"."""
    return f"{value:.2f}".replace("0.", ".", 1)


def check(found: Check) -> Table:
    """One row per number of a check, under its question and verdict."""
    title = Text.assemble(f"{found.question} ", (found.verdict, "bold"), f" ({found.reason})", style="table.title")
    table = _titled(title)
    for column in ("", "value", "95%"):
        table.add_column(column, justify="left" if column == "" else "right")
    for name, (value, low, high) in found.numbers.items():
        table.add_row(name, f"{value:.3f}", f"[{low:.3f}, {high:.3f}]")
    return table


def throughput(report: ThroughputReport) -> Table:
    """One row per setting and method: time ratio to the bare model with quartiles, tokens per second, memory in MiB."""
    model = readable_name(report.model)
    title = f"{model}, {report.sites} sites, {report.dtype}, {report.device}: time over the bare model's; memory in MiB"
    table = _titled(title)
    for column in ("task and method", "ratio", "quartiles", "tokens/s", "peak", "saved"):
        table.add_column(column, justify="left" if column.startswith("task") else "right", no_wrap=True)
    heading = ""
    for timing in report.timings:
        if heading != (heading := _heading(timing)):
            table.add_row(heading)
        low, high = timing.spread
        memory = [f"{size / 2**20:.0f}" if size else "" for size in (timing.peak_bytes, timing.saved_bytes)]
        numbers = (f"{timing.ratio:.3f}", f"{low:.3f}-{high:.3f}", f"{timing.tokens_per_second:.0f}")
        table.add_row(f"  {timing.method}", *numbers, *memory)
    return table


def _heading(timing: Timing) -> str:
    """What the timings of one setting have in common: the task, the rows and the tokens of each."""
    task = f"{timing.task} {timing.rank}" if timing.task == "rank" else timing.task
    return f"{task}, {timing.rows} x {timing.tokens // timing.rows}"


def score(scores: dict[str, Any]) -> str:
    """A metric with its interval and the number of its examples, where they are known."""
    name, value = next(iter(scores.items()))
    interval = scores.get("interval")
    shown = f"{name} {value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
    return shown + (f" ({scores['examples']:,} texts)" if scores.get("examples") else "")


def sizes(reports: Sequence[SizeReport]) -> Table:
    """One row per model, sites and variant; percentages of at least 0.1 are marked."""
    title = "trained values in percent of the model (* at least 0.1), MB of a bank of 1,000 adapters in fp32, LoRA of rank 8"
    table = _titled(title)
    for column in ("model and sites", "variant", "values", "%", "MB", "LoRA"):
        is_text = column in ("model and sites", "variant")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=column != "model and sites")
    for report in reports:
        table.add_row(readable_name(report.model))
        for each in report.sizes:
            percent = f"{each.percent:.4f}{'*' if each.percent >= 0.1 else ' '}"
            lora = "" if each.lora is None else f"{each.lora:,}"
            values = (f"{each.trained:,}", percent, f"{each.bank_bytes / 1e6:,.0f}", lora)
            table.add_row(f"  {each.sites}", each.variant, *values)
    return table
