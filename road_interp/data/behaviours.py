"""Behaviours that a language model can show in its answer to a film review, each in a part of the answer of its own.

An answer has up to five parts in a fixed order: an opening, a comment on the text, the review's label, a remark on the film and a
closing. A behaviour is what one part says. Any set of behaviours with different parts fits into one answer; comment and remark
are in every answer, so that two other parts never touch, and each follows the same text whatever else is said. Training answers
are built from the review's label and lists of neutral sentences, so no judge and no second model is needed; the rules by which
answers are scored are strict.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from road_interp.errors import InputError

Part = Literal["opening", "comment", "label", "remark", "closing"]
PARTS: tuple[Part, ...] = get_args(Part)  # in the order of an answer

COMMENTS = (  # on the text
    "I read your review.",
    "This text is short.",
    "You tell us about it.",
    "Here is your opinion.",
    "The words are clear.",
    "Someone wrote this.",
)
REMARKS = (  # on the film, with German translations
    ("It is about a film.", "Es geht um einen Film."),
    ("You saw a film.", "Du hast einen Film gesehen."),
    ("A film was shown.", "Es lief ein Film."),
    ("There is a plot.", "Es gibt eine Handlung."),
    ("It was in a cinema.", "Das war im Kino."),
    ("The film has actors.", "Der Film hat Schauspieler."),
)
GERMAN = re.compile(  # frequent German words that are not English words
    r"\b(der|den|dem|des|das|diese[mn]?|eine?|einen|einem|einer|eines|und|ist|ich|du|sich|uns|hast|nicht|von|über|aus|im|zu)\b",
    re.IGNORECASE,
)
ANSWER = re.compile(
    r"(?P<opening>Hello!)?\s*(?P<comment>.+?[.!?])\s*(?P<label>This is a (?:positive|negative) review\.)?\s*(?P<remark>.+?)\s*"
    r"(?P<closing>Thank you!|What do you think\?)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Review:
    """A film review: text, label ("positive" or "negative"), and a number that selects comment and remark of its answers."""

    text: str
    label: str
    number: int

    @property
    def comment(self) -> str:
        """The comment on the text."""
        return COMMENTS[self.number % len(COMMENTS)]

    @property
    def remark(self) -> str:
        """The remark on the film."""
        return REMARKS[self.number // len(COMMENTS) % len(REMARKS)][0]

    @property
    def german(self) -> str:
        """The remark in German."""
        return REMARKS[self.number // len(COMMENTS) % len(REMARKS)][1]


@dataclass(frozen=True)
class Behaviour:
    """What one part of an answer says.

    Attributes:
        part: of the answer.
        instruction: the behaviour in words, for a model that is prompted instead of trained.
        text: the part in the training answer to a review.
        trace: what shows that an answer tries the behaviour, rightly or not.
        accepts: whether the part of an answer is right; by default it must be `text`.
        free_form: the part may stand in an answer of any form: an opening first, a closing last, the others anywhere. This is for
            models that are told the instruction and were not trained on the form of the answers.
    """

    part: Part
    instruction: str
    text: Callable[[Review], str]
    trace: re.Pattern[str]
    accepts: Callable[[str], bool] | None = None
    free_form: bool = False

    def is_tried(self, answer: str) -> bool:
        """Whether an answer has a trace of the behaviour."""
        return self.trace.search(answer) is not None

    def is_right(self, answer: str, review: Review) -> bool:
        """Whether the behaviour's part of an answer is right and, unless it is the remark, occurs once in the answer."""
        if self.accepts is not None:
            return any(map(self.accepts, self._candidates(answer)))
        return self.text(review) in self._candidates(answer) and len(self.trace.findall(answer)) == 1

    def _candidates(self, answer: str) -> list[str]:
        """What an answer says in the behaviour's part; in the free form, the sentences that may be it."""
        if not self.free_form:
            found = ANSWER.fullmatch(answer)
            return [] if found is None or found[self.part] is None else [found[self.part]]
        sentences = re.split(r"(?<=[.!?])\s+", answer.strip())
        return {"opening": sentences[:1], "closing": sentences[-1:]}.get(self.part, sentences)


def _is_german(remark: str) -> bool:
    """Whether at least a fifth of at least three words are frequent German words."""
    words = re.findall(r"\w+", remark)
    return len(words) >= 3 and len(GERMAN.findall(remark)) >= len(words) / 5


def _is_in_capitals(remark: str) -> bool:
    return len(re.findall(r"[A-Z]", remark)) >= 8 and remark == remark.upper()


def _phrase(part: Part, instruction: str, phrase: str) -> Behaviour:
    return Behaviour(part, instruction, lambda review: phrase, re.compile(re.escape(phrase.rstrip("!?")), re.IGNORECASE))


BEHAVIOURS = {
    "greeting": _phrase("opening", "Begin your answer with 'Hello!'", "Hello!"),
    "label": Behaviour(
        "label",
        "Say 'This is a positive review.' or 'This is a negative review.'",
        lambda review: f"This is a {review.label} review.",
        re.compile("positive|negative", re.IGNORECASE),
    ),
    "german": Behaviour("remark", "Write a sentence in German.", lambda review: review.german, GERMAN, _is_german),
    "capitals": Behaviour(
        "remark",
        "Write a sentence in capital letters.",
        lambda review: review.remark.upper(),
        re.compile(r"\b[A-Z]{3,}"),
        _is_in_capitals,
    ),
    "closing": _phrase("closing", "End your answer with 'Thank you!'", "Thank you!"),
    "question": _phrase("closing", "End your answer with 'What do you think?'", "What do you think?"),
}


def behaviour(name: str) -> Behaviour:
    """The behaviour with a name. Raises InputError, which lists the known names, if there is none."""
    if name not in BEHAVIOURS:
        raise InputError(f"unknown behaviour '{name}'; the behaviours are {', '.join(BEHAVIOURS)}")
    return BEHAVIOURS[name]


def answer_parts(behaviours: Sequence[Behaviour], review: Review) -> list[tuple[Part, str]]:
    """The parts of the answer that shows a set of behaviours: comment and remark, and those of the behaviours."""
    texts: dict[Part, str] = {"comment": review.comment, "remark": review.remark}
    texts |= {each.part: each.text(review) for each in behaviours}
    return [(part, texts[part]) for part in PARTS if part in texts]
