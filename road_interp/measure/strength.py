"""How a learned behaviour grows with the strength of its rotation: A^t for t from nothing to beyond what was learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from road_interp.data.behaviours import Behaviour, Review
from road_interp.measure.composition import satisfies
from road_interp.measure.intervals import wilson
from road_interp.models.generation import Answer
from road_interp.results import Result


@dataclass(frozen=True)
class StrengthReport(Result):
    """Answers to the same prompts at several strengths of one adapter.

    Attributes:
        model: name of the base model.
        task: the behaviour that the adapter has learned.
        strengths: exponents `t` of the adapter; 0 is the bare model, 1 what was learned.
        shown: for every strength, prompt by prompt, whether the answer shows the task.
        perplexity: of the answers under the base model, per token, by strength.
    """

    model: str
    task: str
    strengths: tuple[float, ...]
    shown: tuple[tuple[bool, ...], ...]
    perplexity: tuple[float, ...]

    def summary(self) -> dict[str, Any]:
        """The rates, in the order of the strengths."""
        return {"rates": self.rates()}

    def rates(self) -> list[tuple[float, float, float]]:
        """For every strength the fraction of answers that show the task, with its 95% interval (Wilson)."""
        found = []
        for outcomes in self.shown:
            found.append((sum(outcomes) / len(outcomes), *wilson(sum(outcomes), len(outcomes))))
        return found


def strength(
    answering: Callable[[float], Sequence[Answer]],
    perplexity: Callable[[Sequence[str]], float],
    strengths: Sequence[float],
    reviews: Sequence[Review],
    *,
    model: str,
    task: str,
    behaviour: Behaviour,
) -> StrengthReport:
    """Answer all prompts at every strength, and score each answer.

    Args:
        answering: the answers to the prompts at a strength.
        perplexity: of answers to the prompts, under the base model.
        reviews: what the prompts are about, in their order.
    """
    shown, fluency = [], []
    for each in strengths:
        answers = answering(each)
        shown.append(tuple(satisfies(behaviour, answer, review) for answer, review in zip(answers, reviews, strict=True)))
        fluency.append(perplexity([answer.text for answer in answers]))
    return StrengthReport(model, task, tuple(strengths), tuple(shown), tuple(fluency))
