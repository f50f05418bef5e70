"""What a classifier answers to texts, with its rotations and without, and the states that it rotates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        read: the texts whose states were read.
        states: by site name, the states of those texts that the run rotates, one complex number per text and plane
            `(read, planes)`: at the first token where the tokeniser puts [CLS] there, else at the last.
        task: name of the task whose head answers; None for a run of one head.
    """

    texts: tuple[str | tuple[str, str], ...]
    classes: tuple[Any, ...]
    labels: Int[np.ndarray, " texts"]
    rotated: Int[np.ndarray, " texts"]
    without: Int[np.ndarray, " texts"]
    read: tuple[int, ...]
    states: Mapping[str, Complex[np.ndarray, "read planes"]]
    task: str | None = None

    @property
    def confusion(self) -> Int[np.ndarray, "classes classes"]:
        """Number of texts by label (rows) and answer (columns)."""
        counts = np.zeros((len(self.classes), len(self.classes)), int)
        np.add.at(counts, (self.labels, self.rotated), 1)
        return counts

    @property
    def changed(self) -> list[int]:
        """The texts that have another answer with the rotations than without, those that became right first.

        Within both kinds, the classes take turns, because data are often sorted by label.
        """
        is_changed, is_right = self.rotated != self.without, self.rotated == self.labels
        kinds = (is_changed & is_right, is_changed & ~is_right)
        return [row for kind in kinds for row in in_turn(np.flatnonzero(kind).tolist(), self.labels)]


def in_turn(rows: Sequence[int], labels: Int[np.ndarray, " texts"]) -> list[int]:
    """The rows with their classes taking turns: the first of every class, then the second ones, and so on."""
    counts = dict.fromkeys(labels.tolist(), 0)
    places = []
    for row in rows:
        places.append((counts[int(labels[row])], row))
        counts[int(labels[row])] += 1
    return [row for _, row in sorted(places)]
