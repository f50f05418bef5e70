"""CausalGym's tasks in a file of its format: log odds ratio and selectivity of every method at its best layer.

road-interp study causalgym templates=causalgym.json                       # those of CausalGym's 29 tasks that the file holds
road-interp study causalgym templates=causalgym.json --only agr_gender

A task of another name is scored by `road_interp.causal.score_methods`. A task takes 10 to 20 minutes on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from road_interp import plots
from road_interp.causal.method_scores import TaskScores, score_methods
from road_interp.causal.methods import DAS, STACKED
from road_interp.causal.template_pairs import load_pairs
from road_interp.cli.app import main_of
from road_interp.files import read_json_object
from road_interp.measure.intervals import mean_of_seeds, value_interval
from road_interp.plots import export
from road_interp.results import Result
from road_interp.sources import SMOLLM2
from road_interp.training.study import Condition, Described, Piece, Pieces, Study, with_interval
from road_interp.training.study_runs import language_model

TASKS = (
    *("agr_gender", "agr_sv_num_subj-relc", "agr_sv_num_obj-relc", "agr_sv_num_pp"),
    *("agr_refl_num_subj-relc", "agr_refl_num_obj-relc", "agr_refl_num_pp"),
    *("npi_any_subj-relc", "npi_any_obj-relc", "npi_ever_subj-relc", "npi_ever_obj-relc"),
    *("gss_subord_subj-relc", "gss_subord_obj-relc", "gss_subord_pp", "gss_subord"),
    *("cleft", "cleft_mod"),
    *("filler_gap_embed_3", "filler_gap_embed_4", "filler_gap_hierarchy", "filler_gap_obj", "filler_gap_pp", "filler_gap_subj"),
    *("garden_mvrr", "garden_mvrr_mod", "garden_npz_obj", "garden_npz_obj_mod", "garden_npz_v-trans", "garden_npz_v-trans_mod"),
)


@dataclass(frozen=True)
class Settings:
    """Settings of the study.

    Attributes:
        model: id.
        prefix: text before every text.
        templates: file of tasks.
        task: one of them.
        layers: numbers of the blocks to try.
        steps: of every training.
        pairs: for training, validation and test.
    """

    model: str = SMOLLM2
    prefix: str = "<|endoftext|>"
    templates: str | None = None
    task: str = TASKS[0]
    layers: tuple[int, ...] = (3, 9, 15, 21, 27)
    steps: int = 100
    pairs: tuple[int, int, int] = (256, 96, 192)
    seed: int = 0


def measure(piece: Piece) -> TaskScores:
    settings: Settings = piece.recipe
    model, tokenizer = language_model(settings.model)
    splits = load_pairs(settings.task, tokenizer, settings.pairs, settings.seed, settings.templates, settings.prefix)
    span = splits.train.deciding_span
    steps, seed = settings.steps, settings.seed
    return score_methods(model, splits, settings.layers, span, steps=steps, seed=seed, progress=piece.progress)


@dataclass(frozen=True)
class CausalGymTable(Result):
    """The scores of all seeds, by task."""

    tasks: Mapping[str, tuple[TaskScores, ...]]

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of those that every task has, in the order of the first task."""
        named = [[score.test.method for score in one.scores] for seeds in self.tasks.values() for one in seeds]
        return tuple(method for method in named[0] if all(method in each for each in named))

    def means(self, method: str) -> dict[str, list[float]]:
        """Its log odds ratio and its selectivity of every task (nats), means over seeds."""
        by_task = [[one.of(method) for one in seeds] for seeds in self.tasks.values()]
        return {
            "log odds ratio": [float(np.mean([each.test.log_odds for each in seeds])) for seeds in by_task],
            "selectivity": [float(np.mean([each.selectivity for each in seeds])) for seeds in by_task],
        }


def over_tasks(pieces: Pieces) -> CausalGymTable:
    return CausalGymTable({task: tuple(found) for task, found in pieces.items()})


def draw(found: CausalGymTable, folder: Path) -> list[Path]:
    """Means over tasks; the intervals are over tasks (Student's t)."""
    series: dict[str, dict[str, tuple[float, float, float]]] = {"log odds ratio": {}, "selectivity": {}}
    for method in found.methods:
        for name, values in found.means(method).items():
            series[name][method] = _over_tasks(values)
    ax = plots.means(series, label="mean over tasks (nats)")
    return [export.save_figure(ax, found, folder, "causalgym")]


def _over_tasks(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95% interval by Student's t; of one value, no interval."""
    return mean_of_seeds(values) if len(values) > 1 else (values[0],) * 3


def describe(found: CausalGymTable) -> Described:
    tasks = len(found.tasks)
    first = next(iter(found.tasks.values()))[0]
    rows = []
    for method in found.methods:
        rows += [(f"mean of {tasks} tasks, {method}, {name}", _shown(values)) for name, values in found.means(method).items()]
    compared = [(DAS, method, "log odds ratio") for method in found.methods if method != DAS]
    compared += [(one, trained, "selectivity") for one in ("full swap", "difference of means") for trained in (DAS, STACKED)]
    for one, other, name in compared:
        if {one, other} <= {*found.methods}:
            differences = np.subtract(found.means(one)[name], found.means(other)[name])
            rows.append((f"{one} minus {other}, {name}", _shown(differences.tolist())))
    for task, seeds in found.tasks.items():
        for score in seeds[0].scores:
            over_words = with_interval((score.test.log_odds, *score.test.log_odds_interval), 2)
            selectivity = _with_words(seeds[0], score.selectivity, score.test.log_odds_by_pair, score.arbitrary_by_pair)
            place = f"block {score.layer}, {score.test.examples} pairs"
            rows.append((f"{task}, {score.test.method}", f"log odds ratio {over_words}, selectivity {selectivity}, {place}"))
        das, stacked = (seeds[0].of(method).test for method in (DAS, STACKED))
        apart = _with_words(seeds[0], das.log_odds - stacked.log_odds, das.log_odds_by_pair, stacked.log_odds_by_pair)
        rows.append((f"{task}, {DAS} minus {STACKED}, log odds ratio", apart))
        rows.append((f"{task}, different words in the test pairs", str(len({word for both in seeds[0].words for word in both}))))
    sentence = (
        f"Log odds ratio (nats) and its selectivity, at the block of {', '.join(map(str, first.layers))} with the highest log "
        f"odds ratio on validation pairs, with {first.steps} steps of every training"
        f"{''.join(f', {method} at {rate:g}' for method, rate in first.learning_rates.items())}. Intervals of a task "
        "are over words; those of means over tasks, and the bars of the figure, are over tasks (Student's t)."
    )
    return sentence, rows


def _with_words(scores: TaskScores, value: float, by_pair: Sequence[float], other: Sequence[float]) -> str:
    """A mean of paired differences with its interval over words; without it in older results, which lack values by pair."""
    if not by_pair:
        return f"{value:.2f}"
    return with_interval((value, *value_interval(np.array(by_pair) - np.array(other), scores.words)), 2)


def _shown(values: Sequence[float]) -> str:
    """The mean over tasks with its interval; without one for a single task."""
    return with_interval(_over_tasks(values), 2) if len(values) > 1 else f"{values[0]:.2f}"


STUDY = Study(
    name="causalgym",
    title="CausalGym's tasks",
    question="How do the methods that find one variable rank over CausalGym's tasks?",
    caveat=(
        "One model, one seed, a rate per method that was not tuned, and other numbers than those of CausalGym's table, which "
        "averages the best token over layers, on pairs that the model answers rightly. A mean over few tasks does not order "
        "methods whose difference is near its standard error over tasks. Test pairs have few different words in most tasks, so "
        "that the intervals of one task may be too narrow."
    ),
    recipe=Settings,
    conditions={task: Condition(task, (f"task={task}",), requires=("templates",), seeds=1) for task in TASKS},
    measure=measure,
    report=over_tasks,
    result=TaskScores,
    draw=draw,
    describe=describe,
    minutes=900,
    quick=("steps=3", "pairs=[32, 8, 16]", "layers=[1, 2]"),
    quick_conditions=1,
    inputs={"templates": lambda settings: [Path(settings.templates)]},
    applies=lambda settings: settings.task in read_json_object(Path(settings.templates)),
)

if __name__ == "__main__":
    main_of(STUDY)
