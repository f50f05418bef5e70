"""How a learned behaviour grows with the strength of its rotation: A^t for t from nothing to beyond what was learned."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from scipy import stats

from road_interp.data.behaviours import Behaviour, Review
from road_interp.errors import InputError
from road_interp.measure.composition import shows
from road_interp.models.generation import Answer


@dataclass(frozen=True)
class StrengthReport:
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

    def rates(self) -> list[tuple[float, float, float]]:
        """For every strength the fraction of answers that show the task, with its 95% interval (Wilson)."""
        found = []
        for outcomes in self.shown:
            interval = stats.binomtest(sum(outcomes), len(outcomes)).proportion_ci(method="wilson")
            found.append((sum(outcomes) / len(outcomes), float(interval.low), float(interval.high)))
        return found

    def to_json(self) -> str:
        """All outcomes as JSON text, with the rates beside them."""
        return json.dumps({**asdict(self), "rates": self.rates()})

    @classmethod
    def from_json(cls, text: str) -> StrengthReport:
        """The report that `to_json` wrote."""
        try:
            content = json.loads(text)
            shown = tuple(tuple(outcomes) for outcomes in content["shown"])
            lists = tuple(content["strengths"]), shown, tuple(content["perplexity"])
            return cls(content["model"], content["task"], *lists)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"this is not the JSON of a strength curve ({error})") from None


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
        shown.append(tuple(shows(behaviour, answer, review) for answer, review in zip(answers, reviews, strict=True)))
        fluency.append(perplexity([answer.text for answer in answers]))
    return StrengthReport(model, task, tuple(strengths), tuple(shown), tuple(fluency))
