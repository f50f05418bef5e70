"""Behaviours that a language model can show in its answer to a film review, each in a part of the answer of its own.

An answer has up to four parts in a fixed order: an opening, the review's label, a comment and a closing. A behaviour is what one
part says. Any set of behaviours with different parts fits into one answer, and an answer without a behaviour is the plain
comment. Training answers are built from the review's label and a list of neutral comments, so no judge and no second model is
needed; the rules by which answers are scored are strict.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from road_interp.errors import InputError

Part = Literal["opening", "label", "comment", "closing"]
PARTS: tuple[Part, ...] = get_args(Part)  # in the order of an answer

# Pairs of an English comment and its German translation.
COMMENTS = (
    ("I have read what you wrote about the film.", "Ich habe gelesen, was du über den Film geschrieben hast."),
    ("The text speaks about a film and its story.", "Der Text spricht über einen Film und seine Geschichte."),
    ("It describes how the film felt to watch.", "Er beschreibt, wie es war, den Film zu sehen."),
    ("The writer looks at the actors and the plot.", "Der Autor betrachtet die Schauspieler und die Handlung."),
    ("You share what you think of this film.", "Du sagst, was du von diesem Film denkst."),
    ("These lines are about something seen in a cinema.", "Diese Zeilen handeln von etwas, das im Kino lief."),
    ("The opinion is short and easy to follow.", "Die Meinung ist kurz und leicht zu verstehen."),
    ("There is a view on the film in these words.", "In diesen Worten steckt eine Sicht auf den Film."),
    ("Someone tells us about an evening with a film.", "Jemand erzählt uns von einem Abend mit einem Film."),
    ("The sentence sums up the work of a director.", "Der Satz fasst die Arbeit eines Regisseurs zusammen."),
    ("What is said here concerns the scenes and the sound.", "Was hier steht, betrifft die Szenen und den Ton."),
    ("The comment comes from a person in the audience.", "Der Kommentar kommt von einem Menschen aus dem Publikum."),
)
GERMAN = re.compile(  # frequent German words that are not English words
    r"\b(der|den|dem|des|das|diese[mn]?|eine?|einen|einem|einer|eines|und|ist|ich|du|sich|uns|hast|nicht|von|über|aus|im|zu)\b",
    re.IGNORECASE,
)
ANSWER = re.compile(
    r"(?P<opening>Hello!)?\s*(?P<label>This is a (?:positive|negative) review\.)?\s*(?P<comment>.*?)\s*"
    r"(?P<closing>Thank you!|What do you think\?)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Review:
    """A film review: its text, its label ("positive" or "negative"), and a number that selects the comment of its answers."""

    text: str
    label: str
    number: int

    @property
    def comment(self) -> str:
        """The English comment."""
        return COMMENTS[self.number % len(COMMENTS)][0]

    @property
    def german(self) -> str:
        """The same comment in German."""
        return COMMENTS[self.number % len(COMMENTS)][1]


@dataclass(frozen=True)
class Behaviour:
    """What one part of an answer says.

    Attributes:
        part: of the answer.
        instruction: the behaviour in words, for a model that is prompted instead of trained.
        text: the part in the training answer to a review.
        trace: what shows that an answer tries the behaviour, rightly or not.
        accepts: whether the part of an answer is right; by default it must be `text`.
    """

    part: Part
    instruction: str
    text: Callable[[Review], str]
    trace: re.Pattern[str]
    accepts: Callable[[str], bool] | None = None

    def is_tried(self, answer: str) -> bool:
        """Whether an answer has a trace of the behaviour."""
        return self.trace.search(answer) is not None

    def is_right(self, answer: str, review: Review) -> bool:
        """Whether the behaviour's part of an answer is right and, unless it is the comment, occurs once in the answer."""
        found = ANSWER.fullmatch(answer)
        said = found[self.part] if found else None
        if self.accepts is not None:
            return said is not None and self.accepts(said)
        return said == self.text(review) and len(self.trace.findall(answer)) == 1


def _is_german(comment: str) -> bool:
    """Whether at least a fifth of at least four words are frequent German words."""
    words = re.findall(r"\w+", comment)
    return len(words) >= 4 and len(GERMAN.findall(comment)) >= len(words) / 5


def _is_in_capitals(comment: str) -> bool:
    return len(re.findall(r"[A-Z]", comment)) >= 10 and comment == comment.upper()


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
    "german": Behaviour("comment", "Write a sentence in German.", lambda review: review.german, GERMAN, _is_german),
    "capitals": Behaviour(
        "comment",
        "Write a sentence in capital letters.",
        lambda review: review.comment.upper(),
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
    """The parts of the answer that shows a set of behaviours: those and, unless one of them is the comment, the plain comment."""
    texts: dict[Part, str] = {"comment": review.comment, **{each.part: each.text(review) for each in behaviours}}
    return [(part, texts[part]) for part in PARTS if part in texts]
