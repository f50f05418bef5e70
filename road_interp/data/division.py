"""Which examples of a data set train, validate and test: drawn by class, stratified, or by a hash of the text."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.model_selection import train_test_split

from road_interp.errors import InputError
from road_interp.recipes.schema import SPLIT_WORDS, DataRecipe


def balance_classes(data: Dataset, recipe: DataRecipe, section: str) -> Dataset:
    """`recipe.per_class` examples of every class, drawn at random and kept in the order of `data`."""
    if recipe.per_class is None:
        return data
    generator = np.random.default_rng(recipe.split_seed)
    labels = np.asarray(data["label"][:])
    kept: list[int] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < recipe.per_class:
            raise InputError(
                f"'{recipe.id}': only {len(rows)} examples are of class {label}; {section}.per_class is {recipe.per_class}"
            )
        kept += generator.choice(rows, recipe.per_class, replace=False).tolist()
    return data.select(sorted(kept))


def subsample(examples: Dataset, limit: int) -> Dataset:
    """At most `limit` examples, drawn with a fixed seed, because files are often sorted by label."""
    return examples.shuffle(seed=0).select(range(min(limit, len(examples))))


def divide(
    data: Dataset, size: int | float, recipe: DataRecipe, classes: Sequence[Any] | None, key: str
) -> tuple[Dataset, Dataset]:
    """Split `data` into the rest and `size` examples, stratified by class, with the seed of the recipe; `key` names `size`."""
    labels = data["label"][:]
    try:
        rest, taken = train_test_split(
            np.arange(len(data)), test_size=size, random_state=recipe.split_seed, stratify=None if classes is None else labels
        )
    except ValueError as error:
        reason = "it leaves no example" if size >= len(data) else _single_examples(labels, classes) or str(error)
        raise InputError(
            f"'{recipe.id}' ({len(data)} examples to divide) cannot be divided by {key} {size}: {reason}; sizes are counts, or "
            f"fractions such as {key}=0.1"
        ) from None
    return data.select(np.sort(rest)), data.select(np.sort(taken))


def divide_by_text(data: Dataset, recipe: DataRecipe) -> tuple[Dataset, Dataset, Dataset]:
    """Training, validation and test texts: a hash of its first eight words assigns every text to a split."""
    splits: tuple[list[int], list[int], list[int]] = ([], [], [])
    for row, text in enumerate(data["text"][:]):
        beginning = " ".join(text.split()[:SPLIT_WORDS])
        digest = hashlib.sha256(f"{recipe.split_seed} {beginning}".encode()).digest()
        fraction = int.from_bytes(digest[:8], "big") / 2**64
        splits[2 if fraction < recipe.test_size else 1 if fraction < recipe.test_size + recipe.validation_size else 0].append(row)
    if not all(splits):
        raise InputError(f"'{recipe.id}' ({len(data)} examples) cannot be divided by text: a split would be empty")
    train, validation, test = (data.select(rows) for rows in splits)
    return train, validation, test


def _single_examples(labels: Sequence[Any], classes: Sequence[Any] | None) -> str:
    """Says that classes have one example, which cannot be in both parts; empty if none has."""
    if not (single := [index for index, count in Counter(labels).items() if count == 1]) or classes is None:
        return ""
    numbers = "; for numbers as labels, set problem_type=regression" if isinstance(classes[0], float) else ""
    return f"{len(single)} of {len(classes)} classes have a single example, such as {classes[single[0]]!r}{numbers}"
