"""Questions with reference answers, and the extraction of an answer from generated text."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A prompt in the template of the model's input, and the answer extracted from its reference."""

    prompt: str
    answer: str


def extract_answer(pattern: str, text: str) -> str | None:
    """The last non-empty match of a regular expression in a text: its first non-empty group, or the whole match.

    The search ignores case, and the result is lower case. A number is normalised: commas are removed and it is rounded to twelve
    significant digits. None if nothing matches.

    >>> extract_answer(r"[\\d,.]*\\d", "Of 5,000 there remain 1,000."), extract_answer(r"[\\d,.]*\\d", "1000.0")
    ('1000', '1000')
    """
    matches = [match for match in re.finditer(pattern, text, re.IGNORECASE) if match.group()]
    if not matches:
        return None
    groups = [group for group in matches[-1].groups() if group]
    return normalized_answer(groups[0] if groups else matches[-1].group()) or None


def normalized_answer(text: str) -> str:
    """An answer in the form in which answers are compared: lower case, or a number without commas, as `extract_answer` has it."""
    answer = text.strip().casefold()
    try:
        return f"{float(answer.replace(',', '')):.12g}"
    except ValueError:
        return answer
