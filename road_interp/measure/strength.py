"""Rate of a learned behaviour by exponent of its adapter: A^t for t from 0 to more than 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from road_interp.arguments import check_callable
from road_interp.data.behaviours import Behaviour, Review
from road_interp.errors import InputError
from road_interp.from_mapping import FieldError
from road_interp.measure.composition import answered, shows
from road_interp.measure.intervals import same_counts, wilson
from road_interp.models.generation import Answer
from road_interp.results import Result


@dataclass(frozen=True)
class StrengthReport(Result):
    """Outcomes of the same prompts with several exponents of one adapter.

    Attributes:
        model: name of the base model.
        task: name of the behaviour on which the adapter was trained.
        strengths: exponents `t` of the adapter; 0 is the base model, 1 the trained adapter.
        shown: by exponent, whether each answer shows the behaviour.
        perplexity: by exponent, of the answers under the base model, per token.
    """

    model: str
    task: str
    strengths: tuple[float, ...]
    shown: tuple[tuple[bool, ...], ...]
    perplexity: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.strengths or not len(self.strengths) == len(self.shown) == len(self.perplexity):
            raise FieldError("strengths", "must hold one exponent at least, each with its outcomes and its perplexity")
        if not same_counts(self.shown, [0]):
            raise FieldError("shown", "must hold as many outcomes for each exponent, one at least")

    def summary(self) -> dict[str, Any]:
        """The rates, in the order of the exponents."""
        return {"rates": self.rates()}

    def rates(self) -> list[tuple[float, float, float]]:
        """By exponent, the fraction of answers that show the behaviour, with its 95% Wilson interval."""
        return [(sum(each) / len(each), *wilson(sum(each), len(each))) for each in self.shown]

    def records(self) -> list[dict[str, Any]]:
        """A row per exponent."""
        rows = zip(self.strengths, self.rates(), self.perplexity, strict=True)
        return [dict(zip(("strength", "rate", "perplexity"), row, strict=True)) for row in rows]


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
    """Generate answers with every exponent of an adapter, and score each answer.

    Args:
        answering: generates the answers to all prompts with an exponent.
        perplexity: of answers to the prompts under the base model, per token.
        strengths: exponents.
        reviews: film reviews from which the prompts were made, in the same order.
        model, task: names for the report.
        behaviour: scores the answers.

    Raises:
        InputError: no reviews, no exponents, or another number of answers than of reviews.
    """
    check_callable("measure.strength", "answering", answering, "a function of an exponent that returns answers")
    check_callable("measure.strength", "perplexity", perplexity, "a function of texts that returns their perplexity")
    if isinstance(strengths, str) or not isinstance(strengths, Iterable):
        raise InputError(f"measure.strength needs a list of exponents, such as [0, 0.5, 1], not {type(strengths).__name__}")
    strengths = tuple(strengths)
    if not reviews:
        raise InputError("measure.strength needs reviews, one at least")
    shown, perplexities = [], []
    for exponent in strengths:
        answers = answering(exponent)
        shown.append(tuple(shows(behaviour, answer, review) for answer, review in answered(answers, reviews)))
        perplexities.append(perplexity([answer.text for answer in answers]))
    return StrengthReport(model, task, strengths, tuple(shown), tuple(perplexities))
