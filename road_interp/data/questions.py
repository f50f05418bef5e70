"""Questions with reference answers, and what an answer says."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A prompt in the model's template, and what its reference answer says."""

    prompt: str
    answer: str


def extract_answer(pattern: str, text: str) -> str | None:
    """What the last match of a regular expression in a text says: its first group that took part, or all of it.

    None where nothing matches. Case does not count, nor do the commas of numbers; numbers are compared as such, to twelve digits.

    >>> extract_answer(r"[\\d,.]*\\d", "Of 5,000 there remain 1,000."), extract_answer(r"[\\d,.]*\\d", "1000.0")
    ('1000', '1000')
    """
    found = [match for match in re.finditer(pattern, text, re.IGNORECASE) if match.group()]
    if not found:
        return None
    groups = [group for group in found[-1].groups() if group]
    words = (groups[0] if groups else found[-1].group()).strip().casefold()
    try:
        return f"{float(words.replace(',', '')):.12g}"
    except ValueError:
        return words or None
