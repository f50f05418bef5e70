"""What a classifier answers to texts, with its rotations and without, and the states that it rotates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Complex, Int


@dataclass(frozen=True)
class Answers:
    """Answers to the test texts, and the states of some of them.

    Attributes:
        texts: the test texts, or pairs of texts.
        classes: the labels, in the order of their indices.
        labels, rotated, without: index of the class in the data, of the run's answer, and of its head's answer with the rotations
            switched off.
        states: by site name, the states that the run rotates, one complex number per text and plane `(texts, planes)`: of the
            first texts, at their first token where the tokeniser has a [CLS] token, else at their last.
    """

    texts: tuple[str | tuple[str, str], ...]
    classes: tuple[Any, ...]
    labels: Int[np.ndarray, " texts"]
    rotated: Int[np.ndarray, " texts"]
    without: Int[np.ndarray, " texts"]
    states: Mapping[str, Complex[np.ndarray, "read planes"]]

    @property
    def confusion(self) -> Int[np.ndarray, "classes classes"]:
        """Number of texts by label (rows) and answer (columns)."""
        counts = np.zeros((len(self.classes), len(self.classes)), int)
        np.add.at(counts, (self.labels, self.rotated), 1)
        return counts

    @property
    def changed(self) -> list[int]:
        """The texts that have another answer with the rotations than without, those that became right first."""
        rows = np.flatnonzero(self.rotated != self.without).tolist()
        return sorted(rows, key=lambda row: self.rotated[row] != self.labels[row])
