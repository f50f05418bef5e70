"""Exact match of generated answers with reference answers: the metric of the paper's reasoning tasks (section 4.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from road_interp.adapters.joined_names import join_names
from road_interp.arguments import check_argument, check_callable, checked_list
from road_interp.data.answer_extraction import Question, extract_answer, normalized_answer
from road_interp.errors import InputError
from road_interp.measure.intervals import wilson
from road_interp.measure.labels import MethodLabel
from road_interp.measure.multitask_accuracy import active_sets
from road_interp.models.generation import GenerateFn
from road_interp.progress import Progress, silent
from road_interp.results import Result, entry


@dataclass(frozen=True)
class ExactMatchReport(Result):
    """Answers to the questions of every task, with several sets of active tasks.

    Attributes:
        model: name of the base model.
        method: how the tasks were trained.
        seed: of the training.
        questions: by task.
        answers: generated texts by task and set of active tasks ("__base__", the task with a shared one, all tasks).
        correct: likewise, whether each extracted answer equals that of the reference.
    """

    model: str
    method: str
    seed: int
    questions: Mapping[str, tuple[Question, ...]]
    answers: Mapping[str, Mapping[str, tuple[str, ...]]]
    correct: Mapping[str, Mapping[str, tuple[bool, ...]]]

    def rate(self, task: str, active: str) -> tuple[float, float, float]:
        """Fraction of correct answers, and its 95% Wilson interval over questions. Raises InputError for another name."""
        outcomes = entry(entry(self.correct, task, "task"), active, "set of active tasks")
        return sum(outcomes) / len(outcomes), *wilson(sum(outcomes), len(outcomes))

    def summary(self) -> dict[str, Any]:
        """The rates by task and set of active tasks, and the number of questions of each task."""
        rates = {task: {active: list(self.rate(task, active)) for active in sets} for task, sets in self.correct.items()}
        return {"exact match": rates, "questions": {task: len(questions) for task, questions in self.questions.items()}}

    def records(self) -> list[dict[str, Any]]:
        """A row per task and set of active tasks."""
        return [
            {"task": task, "active": active, "questions": len(self.questions[task]), "exact_match": self.rate(task, active)}
            for task, sets in self.correct.items()
            for active in sets
        ]


def exact_match(
    generate: GenerateFn,
    questions: Mapping[str, Sequence[Question]],
    patterns: Mapping[str, str],
    tasks: Sequence[str],
    label: MethodLabel,
    progress: Progress = silent,
    *,
    shared: str | None = None,
) -> ExactMatchReport:
    """Answer the questions of every task with no planes, its own planes and all planes active, and score the answers.

    An answer that was cut off counts by what stands there: give enough tokens. Case and the way a number is written do not count.

    Args:
        generate: generates answers to prompts with a set of active tasks.
        questions: by task, for the tasks that have some.
        patterns: by task, the regular expression of `extract_answer`.
        tasks: all tasks, in the order of their planes.
        label: names for the report.
        shared: a task whose planes are active together with those of every other task.

    Raises:
        InputError: a task without a pattern or without questions, a pattern that is no regular expression, or another number of
            answers than of questions.
    """
    check_callable("measure.exact_match", "generate", generate, "a function of prompts and active tasks that returns answers")
    check_argument("measure.exact_match", label, MethodLabel, "measure.MethodLabel(model, method, seed)")
    check_argument("measure.exact_match", patterns, Mapping, "a regular expression by task")
    for task, own in questions.items():
        if not checked_list("measure.exact_match", own, Question, f"the questions of '{task}'"):
            raise InputError(f"there are no questions of '{task}'")
        _check_pattern(task, entry(patterns, task, "pattern of"))
    answers: dict[str, dict[str, tuple[str, ...]]] = {}
    correct: dict[str, dict[str, tuple[bool, ...]]] = {}
    for task, own in questions.items():
        answers[task], correct[task] = {}, {}
        with_shared = join_names([name for name in tasks if name in (task, shared)])
        for active in active_sets(with_shared, tasks):
            progress(f"questions of {task} with {active}")
            texts = tuple(answer.text for answer in generate([question.prompt for question in own], active))
            if len(texts) != len(own):
                raise InputError(f"{len(texts)} answers to {len(own)} questions of '{task}': one answer is needed for each")
            matches = [
                extract_answer(patterns[task], text) == normalized_answer(question.answer)
                for text, question in zip(texts, own, strict=True)
            ]
            answers[task][active], correct[task][active] = texts, tuple(matches)
    by_task = {task: tuple(own) for task, own in questions.items()}
    return ExactMatchReport(label.model, label.method, label.seed, by_task, answers, correct)


def _check_pattern(task: str, pattern: str) -> None:
    """Raise InputError for a pattern that is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise InputError(f"the pattern of '{task}', {pattern!r}, is no regular expression: {error}") from None
