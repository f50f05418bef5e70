"""Composition: whether one answer shows several behaviours when the planes of their tasks are active (section 4.3, figure 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from road_interp.adapters.bank import BASE
from road_interp.data.behaviours import Behaviour, Review, first_sentence
from road_interp.errors import InputError
from road_interp.measure.intervals import bootstrap_means, check_seeds, interval
from road_interp.measure.labels import MethodLabel
from road_interp.models.generation import Answer, GenerateFn
from road_interp.progress import Progress, silent
from road_interp.results import Result


@dataclass(frozen=True)
class SetScore:
    """Outcomes of all prompts with one set of active tasks.

    Attributes:
        active: the active tasks: "label", "label+closing", or "__base__" for none.
        shown: by task, whether each answer shows the task's behaviour.
        answers: generated texts, in the order of the prompts; in a compact report the first few only.
        perplexity: of the answers under the base model, per token.
    """

    active: str
    shown: Mapping[str, tuple[bool, ...]]
    answers: tuple[str, ...]
    perplexity: float

    def joint(self, tasks: Sequence[str]) -> Bool[np.ndarray, " prompts"]:
        """Whether each answer shows the behaviours of all of the tasks."""
        return np.all([self.shown[task] for task in tasks], axis=0)


@dataclass(frozen=True)
class CompositionReport(Result):
    """Scores of every set of active tasks on the same prompts, for one or several seeds.

    Attributes:
        model: name of the base model.
        method: what was trained, or how the model was prompted.
        tasks: in the order of their planes.
        seeds: of the trainings; outcomes are concatenated over seeds.
        scores: one per set of active tasks.
    """

    model: str
    method: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: tuple[SetScore, ...]

    def of(self, active: str) -> SetScore:
        """The score of one set of active tasks. Raises InputError if there is none."""
        for score in self.scores:
            if score.active == active:
                return score
        raise InputError(f"no answers with '{active}' active; there are {', '.join(score.active for score in self.scores)}")

    def rate(self, active: str, tasks: Sequence[str]) -> float:
        """Fraction of answers that show the behaviours of all of `tasks`."""
        return float(self.of(active).joint(tasks).mean())

    def interval(self, active: str, tasks: Sequence[str]) -> tuple[float, float]:
        """95% bootstrap interval of `rate`, over seeds and prompts."""
        return interval(bootstrap_means(self.of(active).joint(tasks)[None], len(self.seeds))[0])

    def cost(self, task: str) -> tuple[float, float, float]:
        """Rate of a task with its own planes active minus that with all planes active, with the 95% interval of the difference.

        The bootstrap is paired: both rates are of the same prompts.
        """
        outcomes = np.stack([self.of(active).joint([task]) for active in (task, "+".join(self.tasks))])
        alone, together = bootstrap_means(outcomes, len(self.seeds))
        return (float(outcomes[0].mean() - outcomes[1].mean()), *interval(alone - together))

    def index(self, tasks: Sequence[str]) -> float:
        """Composition index: joint rate with all of `tasks` active over the product of the rates of each with itself active."""
        return float(_ratio(self._index_rows(tasks).mean(1)))

    def index_interval(self, tasks: Sequence[str]) -> tuple[float, float]:
        """95% bootstrap interval of the composition index, over seeds and prompts."""
        return interval(_ratio(bootstrap_means(self._index_rows(tasks), len(self.seeds))))

    def _index_rows(self, tasks: Sequence[str]) -> Bool[np.ndarray, "scores prompts"]:
        alone = [self.of(task).joint([task]) for task in tasks]
        return np.stack([self.of("+".join(tasks)).joint(tasks), *alone])

    def summary(self) -> dict[str, Any]:
        """Rates of every set of active tasks with intervals, and the composition index if all its sets were measured."""
        rates: dict[str, Any] = {}
        for score in self.scores:
            cells = {task: [self.rate(score.active, [task]), *self.interval(score.active, [task])] for task in self.tasks}
            cells["all in one answer"] = [self.rate(score.active, self.tasks), *self.interval(score.active, self.tasks)]
            rates[score.active] = {**cells, "perplexity": score.perplexity}
        summary: dict[str, Any] = {"prompts": len(self.scores[0].shown[self.tasks[0]]), "rates": rates}
        known = {score.active for score in self.scores}
        if {*self.tasks, "+".join(self.tasks)} <= known:
            summary["composition index"] = [self.index(self.tasks), *self.index_interval(self.tasks)]
        return summary

    def compact(self, samples: int = 8) -> CompositionReport:
        """The report with the first `samples` answers of each score only; all outcomes are kept."""
        scores = tuple(replace(score, answers=score.answers[:samples]) for score in self.scores)
        return replace(self, scores=scores)

    @classmethod
    def over_seeds(cls, reports: Sequence[CompositionReport]) -> CompositionReport:
        """Combine reports of several seeds. Raises InputError if method or tasks differ, or a set of active tasks is missing."""
        first = reports[0]
        if any((each.method, each.tasks) != (first.method, first.tasks) for each in reports):
            raise InputError("only reports of one method and the same tasks can be combined")
        check_seeds([each.seeds for each in reports], [len(each.scores[0].shown[each.tasks[0]]) for each in reports])
        scores = []
        for score in first.scores:
            same = [each.of(score.active) for each in reports]
            shown = {task: tuple(x for each in same for x in each.shown[task]) for task in first.tasks}
            answers = tuple(text for each in same for text in each.answers)
            perplexity = float(np.exp(np.mean([np.log(each.perplexity) for each in same])))
            scores.append(SetScore(score.active, shown, answers, perplexity))
        return cls(first.model, first.method, first.tasks, tuple(s for each in reports for s in each.seeds), tuple(scores))


def composition(
    generate: GenerateFn,
    perplexity: Callable[[Sequence[str], Sequence[str]], float],
    tasks: Mapping[str, Behaviour],
    reviews: Sequence[Review],
    prompts: Sequence[str],
    label: MethodLabel,
    progress: Progress = silent,
) -> CompositionReport:
    """Generate answers with every set of active tasks (`default_sets`), and score each answer for each task.

    Args:
        generate: generates answers to prompts with a set of active tasks.
        perplexity: of answers to prompts under the base model, per token.
        tasks: the behaviour of each task.
        reviews, prompts: film reviews and the prompts made from them, in the same order.
        label: names for the report.
    """
    names = tuple(tasks)
    scores = []
    sets = default_sets(names)
    for number, active in enumerate(sets):
        progress(f"prompts with {active}", number, len(sets))
        answers = generate(prompts, active)
        shown = {
            name: tuple(satisfies(task, answer, review) for answer, review in zip(answers, reviews, strict=True))
            for name, task in tasks.items()
        }
        texts = tuple(answer.text for answer in answers)
        scores.append(SetScore(active, shown, texts, perplexity(prompts, texts)))
    return CompositionReport(label.model, label.method, names, (label.seed,), tuple(scores))


def satisfies(task: Behaviour, answer: Answer, review: Review) -> bool:
    """Whether an answer shows the behaviour of a task.

    A truncated answer is scored on its first sentence, because a task without `learns_eos` is trained without an end token. For a
    task with `learns_eos` a truncated answer is wrong.
    """
    if answer.finished:
        return task.is_satisfied(answer.text, review)
    return not task.learns_eos and task.is_satisfied(first_sentence(answer.text), review)


def default_sets(tasks: Sequence[str]) -> list[str]:
    """The sets of active tasks that are measured: none, each task, each pair, and all."""
    pairs = [f"{first}+{second}" for number, first in enumerate(tasks) for second in tasks[number + 1 :]]
    return list(dict.fromkeys([BASE, *tasks, *pairs, "+".join(tasks)]))


def _ratio(rates: Float[np.ndarray, "scores ..."]) -> np.ndarray:
    """The first rate over the product of the others; 0 if the product is 0."""
    product = rates[1:].prod(0)
    return np.divide(rates[0], product, out=np.zeros_like(product), where=product > 0)
