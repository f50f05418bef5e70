"""Whether generated answers say the same as reference answers: the metric of the paper's reasoning tasks (section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from road_interp.data.questions import Question, extract_answer
from road_interp.measure.intervals import wilson
from road_interp.measure.labels import MethodLabel
from road_interp.measure.multitask_accuracy import active_sets
from road_interp.models.generation import GenerateFn
from road_interp.progress import Progress, silent
from road_interp.results import Result


@dataclass(frozen=True)
class ExactMatchReport(Result):
    """Answers to the questions of every task, with several sets of planes active.

    Attributes:
        model: name of the base model.
        method: how the tasks were trained.
        seed: of the training.
        questions: by task.
        answers: by task and active set ("__base__", the task alone, all tasks), question by question.
        correct: the same, whether the answer says what the reference does.
    """

    model: str
    method: str
    seed: int
    questions: Mapping[str, tuple[Question, ...]]
    answers: Mapping[str, Mapping[str, tuple[str, ...]]]
    correct: Mapping[str, Mapping[str, tuple[bool, ...]]]

    def rate(self, task: str, active: str) -> tuple[float, float, float]:
        """Fraction of right answers, and its 95% interval over questions (Wilson)."""
        outcomes = self.correct[task][active]
        return sum(outcomes) / len(outcomes), *wilson(sum(outcomes), len(outcomes))

    def summary(self) -> dict[str, Any]:
        """The rates by task and active set, and the number of questions of each task."""
        rates = {task: {active: list(self.rate(task, active)) for active in sets} for task, sets in self.correct.items()}
        return {"exact match": rates, "questions": {task: len(asked) for task, asked in self.questions.items()}}


def exact_match(
    generate: GenerateFn,
    questions: Mapping[str, Sequence[Question]],
    patterns: Mapping[str, str],
    tasks: Sequence[str],
    label: MethodLabel,
    progress: Progress = silent,
) -> ExactMatchReport:
    """Ask every task's questions with no planes, its own and all planes active.

    Args:
        generate: prompts and the active tasks to answers.
        questions: of every task that has some.
        patterns: by task, what to look for in an answer.
        tasks: all of them, in the order of their planes.
    """
    answers: dict[str, dict[str, tuple[str, ...]]] = {}
    correct: dict[str, dict[str, tuple[bool, ...]]] = {}
    for task, asked in questions.items():
        answers[task], correct[task] = {}, {}
        for active in active_sets(task, tasks):
            progress(f"questions of {task} with {active}")
            given = tuple(answer.text for answer in generate([question.prompt for question in asked], active))
            right = [extract_answer(patterns[task], text) == question.answer for text, question in zip(given, asked, strict=True)]
            answers[task][active], correct[task][active] = given, tuple(right)
    kept = {task: tuple(asked) for task, asked in questions.items()}
    return ExactMatchReport(label.model, label.method, label.seed, kept, answers, correct)
