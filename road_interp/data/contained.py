"""Which test texts stand in a training text: their labels may be remembered, not understood."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool

PLACES = {True: "in a training text", False: "in no training text"}


def contained_texts(test: Sequence[str], train: Iterable[str]) -> Bool[np.ndarray, " texts"]:
    """Whether each test text stands, word by word and in its order, in one of the training texts; words are between spaces."""
    training = "\n".join(_words(text) for text in train)
    return np.array([_words(text) in training for text in test], dtype=bool)


def _words(text: str) -> str:
    return f" {' '.join(text.split())} "
