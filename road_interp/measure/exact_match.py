"""Whether generated answers say the same as reference answers: the metric of the paper's reasoning tasks (section 4.1)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

from road_interp.data.questions import Question, said
from road_interp.errors import InputError
from road_interp.measure.multitask_accuracy import active_sets
from road_interp.models.generation import Answering


@dataclass(frozen=True)
class MatchReport:
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
        found = stats.binomtest(sum(outcomes), len(outcomes))
        interval = found.proportion_ci(method="wilson")
        return sum(outcomes) / len(outcomes), float(interval.low), float(interval.high)

    def summary(self) -> dict[str, Any]:
        """The rates by task and active set, and the number of questions of each task."""
        rates = {task: {active: list(self.rate(task, active)) for active in sets} for task, sets in self.correct.items()}
        return {"matches": rates, "questions": {task: len(asked) for task, asked in self.questions.items()}}

    def to_json(self) -> str:
        """All answers and outcomes as JSON text, with the summary beside them."""
        return json.dumps({**asdict(self), "summary": self.summary()}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> MatchReport:
        """The report that `to_json` wrote."""
        try:
            content = json.loads(text)
            answers, correct = (
                {task: {active: tuple(each) for active, each in sets.items()} for task, sets in content[key].items()}
                for key in ("answers", "correct")
            )
            questions = {task: tuple(Question(**each) for each in asked) for task, asked in content["questions"].items()}
            return cls(content["model"], content["method"], content["seed"], questions, answers, correct)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"this is not the JSON of matches ({error})") from None


def matches(
    answering: Answering,
    questions: Mapping[str, Sequence[Question]],
    patterns: Mapping[str, str],
    tasks: Sequence[str],
    *,
    model: str,
    method: str,
    seed: int,
    progress: Callable[[str], None] = lambda what: None,
) -> MatchReport:
    """Ask every task's questions with no planes, its own and all planes active.

    Args:
        answering: prompts and the active tasks to answers.
        questions: of every task that has some.
        patterns: by task, what to look for in an answer.
        tasks: all of them, in the order of their planes.
        progress: told the task and active set that is asked next.
    """
    answers: dict[str, dict[str, tuple[str, ...]]] = {}
    correct: dict[str, dict[str, tuple[bool, ...]]] = {}
    for task, asked in questions.items():
        answers[task], correct[task] = {}, {}
        for active in active_sets(task, tasks):
            progress(f"questions of {task} with {active}")
            given = tuple(answer.text for answer in answering([question.prompt for question in asked], active))
            right = [said(patterns[task], text) == question.answer for text, question in zip(given, asked, strict=True)]
            answers[task][active], correct[task][active] = given, tuple(right)
    kept = {task: tuple(asked) for task, asked in questions.items()}
    return MatchReport(model, method, seed, kept, answers, correct)
