"""Composition: whether one answer shows several behaviours when the planes of their tasks are active (section 4.3, figure 5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from road_interp.adapters.joined_names import BASE, join_names, split_names
from road_interp.arguments import check_argument, check_callable, checked_reports
from road_interp.data.behaviours import Behaviour, Review
from road_interp.errors import InputError
from road_interp.from_mapping import FieldError
from road_interp.measure.intervals import joined_seeds, mean_over_cells, mean_over_divisions
from road_interp.measure.labels import MethodLabel
from road_interp.models.generation import Answer, GenerateFn
from road_interp.progress import Progress, silent
from road_interp.results import Result, entry


@dataclass(frozen=True)
class SetScore:
    """Outcomes of all prompts with one set of active tasks.

    Attributes:
        active: the active tasks: "label", "label+closing", or "__base__" for none.
        shown: by task, whether each answer has ended and shows the task's behaviour (`Behaviour.is_right`).
        answers: generated texts, in the order of the prompts; in a compact report the first few only.
        perplexity: of the first 32 answers under the base model, per token.
        tried: by task, whether each answer has a trace of the behaviour, right or wrong; empty in files of 0.1.0.
        finished: whether each answer has ended; empty in files of 0.1.0.
    """

    active: str
    shown: Mapping[str, tuple[bool, ...]]
    answers: tuple[str, ...]
    perplexity: float
    tried: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    finished: tuple[bool, ...] = ()

    @property
    def by_task(self) -> tuple[Mapping[str, tuple[bool, ...]], ...]:
        """The outcomes that are stored by task: `shown`, and `tried` where the file has them."""
        return (self.shown, self.tried) if self.finished else (self.shown,)

    def joint(self, tasks: Sequence[str]) -> Bool[np.ndarray, " prompts"]:
        """Whether each answer shows the behaviours of all of the tasks. Raises InputError for no list of its tasks."""
        if isinstance(tasks, str) or not tasks:
            raise InputError(f"tasks must be a list of one name at least, such as {[*self.shown][:1]}, not {tasks!r}")
        return np.all([entry(self.shown, task, "outcomes of") for task in tasks], axis=0)

    def attempted(self) -> Bool[np.ndarray, " prompts"]:
        """Whether each answer has ended and has traces, right or wrong, of all active tasks."""
        tried = [np.asarray(self.tried[task]) for task in split_names(self.active)]
        return np.all([*tried, np.asarray(self.finished)], axis=0)

    def shows_inactive(self) -> Bool[np.ndarray, " prompts"]:
        """Whether each answer has a trace of a task that is not active."""
        active = split_names(self.active)
        traces = [np.asarray(tried, bool) for task, tried in self.tried.items() if task not in active]
        return np.any([np.zeros(len(self.finished), bool), *traces], axis=0)

    def controlled(self) -> Bool[np.ndarray, " prompts"]:
        """Whether each answer shows the behaviours of the active tasks and has no trace of those of the others.

        It must have ended, too, unless no task is active: the end of an answer is learned with the tasks.
        """
        active = split_names(self.active)
        shown = [np.asarray(shown, bool) for task, shown in self.shown.items() if task in active]
        return np.all([~self.shows_inactive(), *shown], axis=0)


@dataclass(frozen=True)
class CompositionReport(Result):
    """Scores of every set of active tasks on the same prompts, for one or several seeds.

    Attributes:
        model: name of the base model.
        method: what was trained, or how the model was prompted.
        tasks: in the order of their planes.
        seeds: of the trainings; outcomes are concatenated over seeds.
        scores: one per set of active tasks.
        majority: fraction of the reviews that have the more frequent label: what a constant label would reach.
    """

    model: str
    method: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: tuple[SetScore, ...]
    majority: float | None = None

    def __post_init__(self) -> None:
        for key in ("tasks", "seeds", "scores"):
            if not getattr(self, key):
                raise FieldError(key, "must hold at least one value")
        outcomes = [[each.get(task, ()) for each in score.by_task for task in self.tasks] for score in self.scores]
        counts = {len(each) for of_set in outcomes for each in of_set} | {
            len(each.finished) for each in self.scores if each.finished
        }
        if len(counts) > 1 or 0 in counts or max(counts) % len(self.seeds):
            raise FieldError(
                "scores", f"must hold as many outcomes for each of the tasks {', '.join(self.tasks)}, and for each seed"
            )

    def of(self, active: str) -> SetScore:
        """The score of one set of active tasks. Raises InputError if there is none."""
        return entry({score.active: score for score in self.scores}, active, "set of active tasks")

    def rate(self, active: str, tasks: Sequence[str]) -> tuple[float, float, float]:
        """Fraction of answers that show the behaviours of all of `tasks`, with its 95% interval over seeds and prompts."""
        return mean_over_divisions(self.of(active).joint(tasks), len(self.seeds))

    def cost(self, task: str) -> tuple[float, float, float]:
        """Rate of a task with its own planes active minus that with all planes active, with the 95% interval of the difference.

        Both rates are of the same prompts.
        """
        alone, together = (self.of(active).joint([task]).astype(float) for active in (task, join_names(self.tasks)))
        return mean_over_divisions(alone - together, len(self.seeds), paired=True)

    def control(self, active: str) -> tuple[float, float, float]:
        """Fraction of answers that show exactly the active tasks, with its 95% interval over seeds and prompts.

        An answer counts if it shows the behaviour of every active task, has no trace of the behaviours of the others and, where
        a task is active, has ended. Raises InputError for a report of 0.1.0, which does not hold the traces.
        """
        return mean_over_divisions(self._controlled([active])[0], len(self.seeds))

    def mean_control(self) -> tuple[float, float, float]:
        """Mean of `control` over all sets of active tasks, with its 95% interval over seeds and prompts."""
        return mean_over_cells(self._controlled([score.active for score in self.scores]), len(self.seeds))

    def shows_inactive(self) -> tuple[float, float, float]:
        """Fraction of prompts for which, with any set that is not empty, an answer has a trace of a task that is not active.

        With its 95% interval over seeds and prompts. What is shown with no task active is the base model's. Raises InputError as
        `control` does.
        """
        scores = self._with_traces([score.active for score in self.scores if score.active != BASE])
        return mean_over_divisions(np.any([score.shows_inactive() for score in scores], axis=0), len(self.seeds))

    def difference(self, other: CompositionReport, active: str | None = None) -> tuple[float, float, float]:
        """`control` minus that of another report on the seeds that both have, with the 95% interval over seeds and prompts.

        Args:
            active: a set of active tasks; by default the mean over all sets is compared.

        Raises InputError as `paired` does.
        """
        differences = self.paired(other, active)
        return mean_over_divisions(differences.ravel(), len(differences), paired=True)

    def paired(self, other: CompositionReport, active: str | None = None) -> Float[np.ndarray, "seeds prompts"]:
        """The differences that `difference` takes the mean of, by seed and prompt.

        Reports must be of the same reviews. Raises InputError without a seed in common, and for other numbers of prompts.
        """
        seeds = [seed for seed in self.seeds if seed in other.seeds]
        if not seeds:
            raise InputError(f"seeds {self.seeds} and {other.seeds} have none in common: they cannot be paired")
        sets = [score.active for score in self.scores] if active is None else [active]
        mine, others = (each.on_seeds(seeds)._controlled(sets).mean(0).reshape(len(seeds), -1) for each in (self, other))
        if mine.shape != others.shape:
            counts = f"{mine.shape[1]} and {others.shape[1]}"
            raise InputError(f"the reports have {counts} prompts for each seed: they cannot be paired")
        return mine - others

    def on_seeds(self, seeds: Sequence[int]) -> CompositionReport:
        """The report of some of its seeds, without what is of all: answers, perplexity (NaN) and the more frequent label.

        Raises InputError for a seed that it does not have.
        """
        if missing := {*seeds} - {*self.seeds}:
            raise InputError(f"no outcomes of seed {min(missing)}; there are those of {', '.join(map(str, self.seeds))}")
        places = [self.seeds.index(seed) for seed in seeds]
        scores = tuple(_on_seeds(score, len(self.seeds), places) for score in self.scores)
        return replace(self, seeds=tuple(seeds), scores=scores, majority=None)

    def least_control(self) -> tuple[str, tuple[float, float, float]]:
        """The set of active tasks with the lowest `control`, and its value."""
        cells = {score.active: self.control(score.active) for score in self.scores}
        return min(cells.items(), key=lambda cell: cell[1][0])

    def _controlled(self, sets: Sequence[str]) -> Bool[np.ndarray, "sets prompts"]:
        return np.stack([score.controlled() for score in self._with_traces(sets)])

    def _with_traces(self, sets: Sequence[str]) -> list[SetScore]:
        scores = [self.of(active) for active in sets]
        if any(not score.finished for score in scores):
            raise InputError("the report does not hold the traces of the tasks that are not active: score the run again")
        return scores

    def summary(self) -> dict[str, Any]:
        """Rates and control of every set of active tasks with intervals."""
        rates: dict[str, Any] = {}
        for score in self.scores:
            cells = {task: [*self.rate(score.active, [task])] for task in self.tasks}
            cells["all in one answer"] = [*self.rate(score.active, self.tasks)]
            rates[score.active] = {**cells, "perplexity": score.perplexity}
        summary: dict[str, Any] = {"prompts": len(self.scores[0].shown[self.tasks[0]]), "rates": rates}
        if all(score.finished for score in self.scores):
            least, value = self.least_control()
            summary["control"] = {
                "mean": [*self.mean_control()],
                "least": {least: [*value]},
                "sets": {score.active: [*self.control(score.active)] for score in self.scores},
                "most frequent label": self.majority,
            }
        return summary

    def records(self) -> list[dict[str, Any]]:
        """A row per set of active tasks: the rates of the behaviours, and control where the report holds it."""
        summary = self.summary()
        control = summary.get("control", {}).get("sets", {})
        rows = {active: {"active": active, **cells} for active, cells in summary["rates"].items()}
        return [row | ({"control": control[active]} if active in control else {}) for active, row in rows.items()]

    def compact(self) -> CompositionReport:
        """The report with the first 8 answers of each score only; all outcomes are kept."""
        scores = tuple(replace(score, answers=score.answers[:8]) for score in self.scores)
        return replace(self, scores=scores)

    @classmethod
    def over_seeds(cls, reports: Sequence[CompositionReport]) -> CompositionReport:
        """Combine reports of several seeds.

        Raises InputError if model, method, tasks or sets of active tasks differ, and for files of 0.1.0 beside newer ones.
        """
        reports = checked_reports(cls, reports)
        first = reports[0]
        if any((each.model, each.method, each.tasks) != (first.model, first.method, first.tasks) for each in reports):
            raise InputError("only reports of one model and method and the same tasks can be combined")
        if any({score.active for score in each.scores} != {score.active for score in first.scores} for each in reports):
            raise InputError("only reports of the same sets of active tasks can be combined")
        if len({len(score.tried) for each in reports for score in each.scores}) > 1:
            raise InputError("reports of 0.1.0, which have no traces of behaviours, cannot be combined with newer ones")
        seeds = joined_seeds([each.seeds for each in reports], [len(each.scores[0].shown[each.tasks[0]]) for each in reports])
        weights = [len(each.seeds) for each in reports]
        scores = tuple(_over_seeds([each.of(score.active) for each in reports], weights) for score in first.scores)
        majorities = [(each.majority, len(each.seeds)) for each in reports if each.majority is not None]
        total = sum(count for _, count in majorities)
        majority = sum(share * count for share, count in majorities) / total if majorities else None
        return cls(first.model, first.method, first.tasks, seeds, scores, majority)


def _on_seeds(score: SetScore, seeds: int, places: Sequence[int]) -> SetScore:
    """The outcomes of the seeds at these places among all `seeds`."""

    def chosen(outcomes: tuple[bool, ...]) -> tuple[bool, ...]:
        return tuple(np.asarray(outcomes, bool).reshape(seeds, -1)[[*places]].ravel().tolist())

    shown, tried = ({task: chosen(each) for task, each in kind.items()} for kind in (score.shown, score.tried))
    return SetScore(score.active, shown, (), float("nan"), tried, chosen(score.finished))


def _over_seeds(scores: Sequence[SetScore], weights: Sequence[int]) -> SetScore:
    """The scores of one set of active tasks, one after the other; `weights` are the numbers of their seeds."""

    def joined(kind: Literal["shown", "tried"]) -> dict[str, tuple[bool, ...]]:
        return {task: tuple(x for each in scores for x in getattr(each, kind)[task]) for task in getattr(scores[0], kind)}

    answers = tuple(text for each in scores for text in each.answers)
    perplexity = float(np.exp(np.average([np.log(each.perplexity) for each in scores], weights=weights)))
    finished = tuple(x for each in scores for x in each.finished)
    return SetScore(scores[0].active, joined("shown"), answers, perplexity, joined("tried"), finished)


def composition(
    generate: GenerateFn,
    perplexity: Callable[[Sequence[str], Sequence[str]], float],
    tasks: Mapping[str, Behaviour],
    reviews: Sequence[Review],
    prompts: Sequence[str],
    label: MethodLabel,
    progress: Progress = silent,
) -> CompositionReport:
    """Generate answers with every set of active tasks (`all_sets`), and score each answer for each task.

    Args:
        generate: generates answers to prompts with a set of active tasks.
        perplexity: of answers to prompts under the base model, per token.
        tasks: the behaviour of each task.
        reviews, prompts: film reviews and the prompts made from them, in the same order.
        label: names for the report.

    Raises:
        InputError: no reviews, or another number of answers than of reviews.
    """
    check_callable("measure.composition", "generate", generate, "a function of prompts and active tasks that returns answers")
    check_argument("measure.composition", label, MethodLabel, "measure.MethodLabel(model, method, seed)")
    if not reviews:
        raise InputError("measure.composition: there are no reviews")
    scores = []
    sets = all_sets(list(tasks))
    for number, active in enumerate(sets):
        progress(f"prompts with {active}", number, len(sets))
        answers = generate(prompts, active)
        texts = tuple(answer.text for answer in answers)
        shown = {
            name: tuple(shows(task, answer, review) for answer, review in answered(answers, reviews))
            for name, task in tasks.items()
        }
        tried = {name: tuple(map(task.is_tried, texts)) for name, task in tasks.items()}
        finished = tuple(answer.finished for answer in answers)
        scores.append(SetScore(active, shown, texts, perplexity(prompts, texts), tried, finished))
    majority = max(Counter(review.label for review in reviews).values()) / len(reviews)
    return CompositionReport(label.model, label.method, tuple(tasks), (label.seed,), tuple(scores), majority)


def answered(answers: Sequence[Answer], reviews: Sequence[Review]) -> list[tuple[Answer, Review]]:
    """Every answer with its review. Raises InputError where their numbers differ."""
    if len(answers) != len(reviews):
        raise InputError(f"{len(answers)} answers to prompts of {len(reviews)} reviews: one answer is needed for each")
    return list(zip(answers, reviews, strict=True))


def shows(task: Behaviour, answer: Answer, review: Review) -> bool:
    """Whether an answer has ended and shows the behaviour of a task."""
    return answer.finished and task.is_right(answer.text, review)


def all_sets(tasks: Sequence[str]) -> list[str]:
    """All sets of tasks, the smallest first: "__base__" for none, then "a", "b", "a+b" ..."""
    return [join_names(chosen) for size in range(len(tasks) + 1) for chosen in combinations(tasks, size)]
