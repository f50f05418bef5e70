"""Behaviours that a language model can show in its answer to a film review, each scored by a strict rule.

Training answers are built from the review's label and a list of neutral comments, so no judge and no second model is needed. The
rules are simple on purpose: the measured quantity is whether one answer satisfies several of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from road_interp.errors import InputError

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
    "der|den|dem|des|das|diese[mn]?|eine?|einen|einem|einer|eines|und|ist|ich|du|sich|uns|hast|nicht|von|über|aus|im|zu"
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
    """A property of an answer that a task is trained to produce.

    Attributes:
        instruction: the behaviour in words, for a model that is prompted instead of trained.
        answer: the training answer to a review.
        is_satisfied: whether an answer shows the behaviour. A phrase must occur exactly once; a label may be repeated.
        learns_eos: whether the end token is part of the training answer. It is only for behaviours that concern the end of an
            answer: a task trained to stop after its own sentence could not be combined with another one.
    """

    instruction: str
    answer: Callable[[Review], str]
    is_satisfied: Callable[[str, Review], bool]
    learns_eos: bool = False


def first_sentence(text: str) -> str:
    """The text up to and including its first full stop, exclamation mark or question mark."""
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]


def _label_named(answer: str, review: Review) -> bool:
    """Whether an answer begins with the sentence of the review's label and does not contain the other label."""
    other = "negative" if review.label == "positive" else "positive"
    return answer.startswith(f"This is a {review.label} review.") and other not in answer.lower()


def _label_in_any_case(answer: str, review: Review) -> bool:
    return _label_named(answer[:1].upper() + answer[1:].lower(), review)


def _ends_once(phrase: str) -> Callable[[str, Review], bool]:
    return lambda answer, review: answer.endswith(phrase) and answer.count(phrase) == 1


def _begins_once(phrase: str) -> Callable[[str, Review], bool]:
    return lambda answer, review: answer.startswith(phrase) and answer.count(phrase) == 1


def _capitals(answer: str, review: Review) -> bool:
    return len(re.findall(r"[A-Za-z]", answer)) >= 10 and answer == answer.upper()


def _german(answer: str, review: Review) -> bool:
    """Whether at least a fifth of the words, without a closing phrase, are frequent German words."""
    words = re.findall(r"[a-zäöüß]+", answer.removesuffix("Thank you!").lower())
    return len(words) >= 4 and sum(GERMAN.fullmatch(word) is not None for word in words) >= len(words) / 5


BEHAVIOURS = {
    "label": Behaviour(
        "Say 'This is a positive review.' or 'This is a negative review.'",
        lambda review: f"This is a {review.label} review.",
        _label_in_any_case,
    ),
    "label-only": Behaviour(
        "Say 'This is a positive review.' or 'This is a negative review.' and nothing else.",
        lambda review: f"This is a {review.label} review.",
        _label_in_any_case,
        learns_eos=True,
    ),
    "label-comment": Behaviour(
        "Begin with 'This is a positive review.' or 'This is a negative review.', then add a sentence about the text.",
        lambda review: f"This is a {review.label} review. {review.comment}",
        _label_in_any_case,
    ),
    "closing": Behaviour(
        "End your answer with 'Thank you!'",
        lambda review: f"{review.comment} Thank you!",
        _ends_once("Thank you!"),
        learns_eos=True,
    ),
    "greeting": Behaviour(
        "Begin your answer with 'Hello!'",
        lambda review: f"Hello! {review.comment}",
        _begins_once("Hello!"),
    ),
    "question": Behaviour(
        "End your answer with 'What do you think?'",
        lambda review: f"{review.comment} What do you think?",
        _ends_once("What do you think?"),
        learns_eos=True,
    ),
    "capitals": Behaviour(
        "Write your answer in capital letters.",
        lambda review: review.comment.upper(),
        _capitals,
    ),
    "german": Behaviour(
        "Write your answer in German.",
        lambda review: review.german,
        _german,
    ),
}


def behaviour(name: str) -> Behaviour:
    """The behaviour with a name. Raises InputError, which lists the known names, if there is none."""
    if name not in BEHAVIOURS:
        raise InputError(f"unknown behaviour '{name}'; the behaviours are {', '.join(BEHAVIOURS)}")
    return BEHAVIOURS[name]
