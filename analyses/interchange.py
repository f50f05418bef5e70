"""Interchange with stacked rotations on SmolLM2: methods and controls, layers by spans, depth by rows, and cost.

road-interp study controls                                   # agreement and gender; a seed divides the words, too
road-interp study controls templates=causalgym.json --only agr_gender       # a task in CausalGym's format
road-interp study scan
road-interp study depth
road-interp study cost
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from road_interp import plots
from road_interp.causal.controls import ControlReport, controls
from road_interp.causal.cost import FEW, SLOW, CostReport, cost
from road_interp.causal.counterfactuals import Splits
from road_interp.causal.depth_sweep import DepthReport, depth_by_rows
from road_interp.causal.interchange_runs import full_swap
from road_interp.causal.layer_scan import ScanReport, scan
from road_interp.causal.methods import DAS, STACKED
from road_interp.causal.template_pairs import load_pairs
from road_interp.cli.app import main_of
from road_interp.errors import InputError
from road_interp.measure.intervals import mean_interval, mean_of_seeds, value_interval
from road_interp.plots import export
from road_interp.results import Result
from road_interp.sources import SMOLLM2
from road_interp.training.study import Condition, Described, Piece, Pieces, Study, only_result, with_interval
from road_interp.training.study_runs import language_model

SPANS = {"agreement": "subject", "gender": "name", "agr_gender": "name", "agr_sv_num_pp": "subject"}
BUILT_IN = ("agreement", "gender")
QUICK = ("steps=3", "pairs=[32, 8, 16]")


@dataclass(frozen=True)
class Settings:
    """Settings of the interchange studies: model, site of the intervention, training steps, and pairs per split.

    Attributes:
        prefix: text before every text; by default the separator of SmolLM2's training texts, which another model lacks.
    """

    model: str = SMOLLM2
    prefix: str = "<|endoftext|>"
    templates: str | None = None
    task: str = "agreement"
    layer: int = 15
    steps: int = 150
    pairs: tuple[int, int, int] = (512, 128, 400)
    seed: int = 0


def model_and_pairs(settings: Settings) -> tuple[Any, Splits]:
    """The model, and the pairs of the task. The seed divides the words among the splits, too."""
    model, tokenizer = language_model(settings.model)
    templates = None if settings.task in BUILT_IN else settings.templates
    return model, load_pairs(settings.task, tokenizer, settings.pairs, settings.seed, templates, settings.prefix)


def place_of(settings: Settings) -> tuple[int, str]:
    """The layer and the span that the interchange acts on. Raises InputError for a task without a span of its own."""
    if settings.task not in SPANS:
        raise InputError(f"task '{settings.task}': the tasks of this study are {', '.join(SPANS)}; the study causalgym has all")
    return settings.layer, SPANS[settings.task]


def measure_controls(piece: Piece) -> ControlReport:
    chosen = piece.recipe
    model, splits = model_and_pairs(chosen)
    tokenizer = language_model(chosen.model)[1]
    place = place_of(chosen)
    return controls(model, tokenizer, splits, *place, seed=chosen.seed, steps=chosen.steps, progress=piece.progress)


def measure_scan(piece: Piece) -> ScanReport:
    """Full swaps at every other block output and every span, on the validation pairs."""
    model, splits = model_and_pairs(piece.recipe)
    layers, spans = range(0, model.config.num_hidden_layers, 2), list(splits.validation.positions)
    splits = splits._replace(test=splits.validation)
    return scan(model, splits, layers, spans, lambda width: full_swap, "full swap", piece.progress)


def measure_depth(piece: Piece) -> DepthReport:
    chosen = piece.recipe
    model, splits = model_and_pairs(chosen)
    place = place_of(chosen)
    return depth_by_rows(model, splits, *place, seed=chosen.seed, steps=chosen.steps, progress=piece.progress)


@dataclass(frozen=True)
class ControlStudy(Result):
    """The control reports of all tasks and divisions of words, by task."""

    tasks: Mapping[str, tuple[ControlReport, ...]]

    def accuracy(self, task: str, method: str, over: str | None = None) -> tuple[float, float, float]:
        """Interchange accuracy of a method, or its paired difference from `over`: the mean over divisions, and its 95% interval.

        The interval is over words: a word is the same one in every division.
        """
        outcomes = self._by_pair(task, method, "outcomes")
        if over is not None:
            outcomes = outcomes.astype(float) - self._by_pair(task, over, "outcomes")
        words, divisions = self._words(task)
        mean = np.mean([outcomes[np.array(divisions) == each].mean() for each in dict.fromkeys(divisions)])
        return float(mean), *mean_interval(outcomes, words, divisions, paired=over is not None)

    def log_odds(self, task: str, method: str, over: str | None = None) -> tuple[float, float, float]:
        """Log odds ratio of a method, or its paired difference from `over` (nats), as `accuracy`.

        The bounds are infinite where the log odds ratios of the pairs are not known, as in older results, or are equal.
        """
        reports = self.tasks[task]
        value = np.mean([each.of(method).log_odds - (0 if over is None else each.of(over).log_odds) for each in reports])
        by_pair = self._by_pair(task, method, "log_odds_by_pair")
        words, divisions = self._words(task)
        if len(by_pair) < len(words):
            return float(value), -np.inf, np.inf
        if over is not None:
            by_pair = by_pair - self._by_pair(task, over, "log_odds_by_pair")
        return float(value), *value_interval(by_pair, words, divisions)

    def _by_pair(self, task: str, method: str, name: str) -> Shaped[np.ndarray, " pairs"]:
        return np.concatenate([np.array(getattr(report.of(method), name)) for report in self.tasks[task]])

    def _words(self, task: str) -> tuple[list[tuple[str, str]], list[str]]:
        """The words and the division of every pair."""
        reports = self.tasks[task]
        return [both for each in reports for both in each.words], [str(each.seed) for each in reports for _ in each.words]

    def mean(self, task: str, value: Callable[[ControlReport], float], digits: int) -> str:
        """The mean over divisions of a number of every report, with its interval over several (Student's t)."""
        values = [value(report) for report in self.tasks[task]]
        return with_interval(mean_of_seeds(values), digits) if len(values) > 1 else f"{values[0]:.{digits}f}"


def over_tasks(pieces: Pieces) -> ControlStudy:
    return ControlStudy({task: tuple(reports) for task, reports in pieces.items()})


def over_seeds(pieces: Pieces) -> DepthReport:
    return DepthReport.over_seeds(next(iter(pieces.values())))


def draw_controls(found: ControlStudy, folder: Path) -> list[Path]:
    accuracy = {
        task: {row.method: found.accuracy(task, row.method) for row in reports[0].rows} for task, reports in found.tasks.items()
    }
    ax = plots.means(accuracy, label="interchange accuracy (fraction of pairs)")
    return [export.save_figure(ax, found, folder, "controls")]


def draw_cost(found: CostReport, folder: Path) -> list[Path]:
    milliseconds = {each.method: tuple(np.percentile(each.seconds, (50, 25, 75)) * 1e3) for each in found.methods}
    ax = plots.means({"": milliseconds}, label="forward and backward pass (ms, median and quartiles)")
    ax.set_xscale("log")
    return [export.save_figure(ax, found, folder, "cost")]


def describe_controls(found: ControlStudy) -> Described:
    rows = []
    for task, reports in found.tasks.items():
        for row in reports[0].rows:
            method = row.method
            odds = with_finite_interval(found.log_odds(task, method))
            rows.append((f"{task}, {method}", f"{with_interval(found.accuracy(task, method))}, log odds ratio {odds}"))
            if method in reports[0].divergences:
                elsewhere = found.mean(task, lambda report, method=method: report.divergences[method], 4)
                rows.append((f"{task}, {method}, divergence elsewhere", elsewhere))
        for method, over in ((STACKED, DAS), (STACKED, "full swap"), (DAS, "full swap")):
            rows.append((f"{task}, {method} minus {over}", with_interval(found.accuracy(task, method, over), 4)))
            if len(reports) > 1:
                each = [report.of(method).accuracy - report.of(over).accuracy for report in reports]
                if max(each) - min(each) > 1e-9:  # equal values say nothing about other divisions
                    rows.append((f"{task}, {method} minus {over}, over divisions", with_interval(mean_of_seeds(each), 4)))
        for method in (STACKED, DAS):
            row = reports[0].of(method)
            if row.effective is not None:  # as in results of 0.1.0
                rows.append((f"{task}, {method}, trained values with effect", f"{row.effective:,} of {row.parameters:,}"))
            selectivity = found.log_odds(task, method, f"{method}, arbitrary answers")
            rows.append((f"{task}, {method}, selectivity", with_finite_interval(selectivity)))
        for method in reports[0].directions:
            cosine = found.mean(task, lambda report, method=method: report.directions[method], 3)
            rows.append((f"{task}, cosine of {STACKED} and {method}", cosine))
    divisions = " and ".join(f"{len(reports)} on {task}" for task, reports in found.tasks.items())
    first = next(iter(found.tasks.values()))[0]
    sentence = (
        "Interchange accuracy (fraction of test pairs, 95% interval over words), log odds ratio (nats) and divergence of the "
        f"next token after unrelated continuations (nats): means over divisions of the words ({divisions})"
        f"{trained_with(first.steps, first.learning_rates)}. More accuracy and "
        "less divergence than the full swap would follow from a full swap that also replaces what else the word carries. They do "
        "not show that swapped states are ones that the model computes itself: four continuations may not depend on that."
    )
    return sentence, rows


def trained_with(steps: int | None, rates: Mapping[str, float]) -> str:
    """The settings of the trainings, where the results have them."""
    named = "; ".join(f"{method}: {rate:g}" for method, rate in rates.items())
    return f", {steps} steps, learning rates {named}" if rates else ""


def with_finite_interval(values: tuple[float, float, float]) -> str:
    """A log odds ratio with its interval, where that says something."""
    return with_interval(values, 2) if np.isfinite(values).all() else f"{values[0]:.2f}"


def describe_scan(found: ScanReport) -> Described:
    cells = np.array(found.accuracy)
    best = [f"block {found.layers[layer]} ({found.spans[span]})" for layer, span in np.argwhere(cells == cells.max())]
    sentence = (
        f"Interchange accuracy of the swap of the whole state on {found.task}, on validation pairs of one seed, is highest at "
        f"{', '.join(best)}."
    )
    return sentence, [("highest interchange accuracy", f"{cells.max():.3f}")]


def describe_depth(found: DepthReport) -> Described:
    def spread(j: int, k: int) -> str:
        flipped = [table[j][k].flipped for table in found.cells]
        return with_interval((float(np.mean(flipped)), min(flipped), max(flipped)))

    cells = {(depth, count): spread(j, k) for j, depth in enumerate(found.depths) for k, count in enumerate(found.rows)}
    sentence = (
        f"Flipped answers on {found.task} by depth of the stack and swapped rows, as a fraction of all test pairs, also of those "
        "that the model answers wrongly without a swap, which cannot flip (mean over seeds, lowest to highest). A row of a stack "
        "of depth k reaches 2^k dimensions, so a shallow stack is limited by construction."
    )
    return sentence, [(f"depth {depth}, {count} rows", value) for (depth, count), value in cells.items()]


def describe_cost(found: CostReport) -> Described:
    rows = []
    for each in found.methods:
        low, middle, high = np.percentile(each.seconds, (25, 50, 75)) * 1e3
        rows.append((each.method, f"{middle:.3g} ms [{low:.3g}, {high:.3g}]"))
        known = "an unknown number" if each.effective is None else f"{each.effective:,}"  # in results of 0.1.0
        rows.append((f"{each.method}, trained values with effect", f"{known} of {each.parameters:,}"))
    sentence = (
        f"Time of a forward and backward pass of interchanges, without a model: width {found.width}, batch {found.batch}, "
        f"{found.threads} thread{'s' * (found.threads > 1)} (median and quartiles of {len(found.methods[0].seconds)} rounds, of "
        f"{FEW} where a step takes more than {SLOW:.0f} s)."
    )
    return sentence, rows


AGREEMENT = {"agreement": Condition("agreement", ("task=agreement",))}
CONTROLS = Study(
    name="controls",
    title="Interchange accuracy and its controls",
    question=(
        "Does one trained direction of the subject's state change the answer, and does a stacked rotation find another one than "
        "DAS of rank 1?"
    ),
    caveat=(
        "One model and one block, with learning rates that were not tuned again. A swap that changes the answer need not be "
        "along the direction that the model itself uses."
    ),
    recipe=Settings,
    conditions={task: Condition(task, (f"task={task}",), requires=() if task in BUILT_IN else ("templates",)) for task in SPANS},
    measure=measure_controls,
    report=over_tasks,
    result=ControlReport,
    draw=draw_controls,
    describe=describe_controls,
    minutes=200,
    seeds=(0, 1, 2, 3, 4),
    quick=QUICK,
    quick_conditions=1,
    inputs={"templates": lambda settings: [] if settings.task in BUILT_IN else [Path(settings.templates)]},
)
SCAN = Study(
    name="scan",
    title="Interchange accuracy by layer and span",
    question="At which block and span does a swap of the whole state change the answer?",
    caveat=(
        "One model, one task and one seed, on validation pairs. The full swap replaces everything that a state holds, so that it "
        "does not say which part of the state matters."
    ),
    recipe=Settings,
    conditions={task: replace(condition, seeds=1) for task, condition in AGREEMENT.items()},
    measure=measure_scan,
    report=only_result,
    result=ScanReport,
    draw=lambda found, folder: [export.save_figure(plots.interchange_scan(found), found, folder, f"scan-{found.task}")],
    describe=describe_scan,
    minutes=10,
    quick=QUICK,
)
DEPTH = Study(
    name="depth",
    title="Interchange by depth of the stack and swapped rows",
    question="How many levels and how many swapped rows does a stacked rotation need to move a variable?",
    caveat=(
        "One model, one block and one task; every cell has one training per seed, with one learning rate for all depths, so that "
        "neighbouring cells are not told apart."
    ),
    recipe=Settings,
    conditions=AGREEMENT,
    measure=measure_depth,
    report=over_seeds,
    result=DepthReport,
    draw=lambda found, folder: [export.save_figure(plots.interchange_depth(found), found, folder, f"depth-{found.task}")],
    describe=describe_depth,
    minutes=50,
    quick=QUICK,
)


@dataclass(frozen=True)
class CostSettings:
    """Settings of the cost study."""

    width: int = 2048
    rounds: int = 9
    seed: int = 0


COST = Study(
    name="cost",
    title="Cost of an interchange",
    question="What does a forward and backward pass of an interchange cost, without a model?",
    caveat="Random states of one width and batch size, on one thread of one machine. In a model, its own pass comes on top.",
    recipe=CostSettings,
    conditions={"width-2048": Condition("width 2,048", seeds=1)},
    measure=lambda piece: cost(piece.recipe.width, rounds=piece.recipe.rounds, progress=piece.progress),
    report=only_result,
    result=CostReport,
    draw=draw_cost,
    describe=describe_cost,
    minutes=5,
    quick=("width=64", "rounds=2"),
)

if __name__ == "__main__":
    main_of(CONTROLS)
