"""Labelled text for training and testing, read from GLUE, files and hub data sets, with its splits and metric."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal
from uuid import uuid4

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from road_interp.arguments import check_argument
from road_interp.data.division import balance_classes, divide, divide_by_text
from road_interp.data.metrics import METRICS
from road_interp.data.rows import check_column, check_texts, read_rows
from road_interp.errors import InputError, did_you_mean, shown
from road_interp.files import exists
from road_interp.recipes.schema import DataRecipe, glue_name

GLUE = "nyu-mll/glue"
GLUE_COLUMNS = {
    "cola": ("sentence", None),
    "sst2": ("sentence", None),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "stsb": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
}
LARGE, VALIDATION = 2000, 1000  # of a development set of at least LARGE examples, VALIDATION select the checkpoint


@dataclass(frozen=True)
class LabelledDataset:
    """Three splits with the columns `text`, `text_pair` (optional) and `label`, and the metric that scores them.

    Labels are indices into `classes`, or numbers if `classes` is None (regression).
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    classes: tuple[Any, ...] | None
    metric: str

    @property
    def num_labels(self) -> int:
        """Output width of the head: the number of classes, or 1 for regression."""
        return 1 if self.classes is None else len(self.classes)

    def score(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The metric of a split, by its name, from logits `(examples, num_labels)` and labels `(examples,)`."""
        if self.metric != "accuracy" and len(set(labels.tolist())) == 1:
            warnings.warn(f"all {len(labels)} labels are equal: {self.metric} is not defined, and given as 0", stacklevel=2)
        predictions = logits.reshape(len(labels)) if self.classes is None else logits.argmax(-1)
        return {self.metric: METRICS[self.metric](labels, predictions)}


def load_labelled(recipe: DataRecipe, section: str = "data") -> LabelledDataset:
    """Load the three splits of a recipe.

    Args:
        section: path of `recipe` in the whole recipe, for errors, such as "tasks.tone.labels".

    Raises:
        InputError: a file, column or data set that does not exist; no examples; a missing text; a label outside the classes;
            sizes that the data cannot be divided by.
    """
    check_argument("load_labelled", recipe, DataRecipe, "the data of a recipe, load_recipe('films.yaml').data")
    recipe = with_glue_defaults(recipe)
    train = balance_classes(read_examples(recipe, recipe.id, "train", section), recipe, section)
    validation = test = None
    if recipe.validation is not None:
        validation = read_examples(recipe, recipe.validation, "validation", section)
    if recipe.test is not None:
        test = read_examples(recipe, recipe.test, "test", section)
    classes = None if recipe.problem_type == "regression" else _classes(recipe, train)
    train = _with_labels(train, classes, recipe.id)
    if recipe.split_by_text:
        train, validation, test = divide_by_text(train, recipe)
    elif validation is None:
        train, validation = divide(train, recipe.validation_size, recipe, classes, f"{section}.validation_size")
        train, test = divide(train, recipe.test_size, recipe, classes, f"{section}.test_size")
    else:
        for key in ("validation_size", "test_size"):
            if getattr(recipe, key) != getattr(DataRecipe, key):
                warnings.warn(f"{section}.{key} is not used: '{recipe.validation}' is the validation set", stacklevel=2)
        validation = _with_labels(validation, classes, recipe.validation or recipe.id)
        if test is None:
            size = VALIDATION if len(validation) >= LARGE else len(validation) // 2
            test, validation = divide(validation, size, recipe, classes, f"{section}.validation")
        else:
            test = _with_labels(test, classes, recipe.test or recipe.id)
    if classes is not None and len(set(train["label"])) < 2:
        raise InputError(f"'{recipe.id}': the training texts have one class only; classification needs at least two")
    _warn_of_texts(recipe, train, validation, test)
    return LabelledDataset(train, validation, test, classes, _metric(recipe, classes))


def _warn_of_texts(recipe: DataRecipe, train: Dataset, validation: Dataset, test: Dataset) -> None:
    """Warn of empty texts, and of texts that are in two splits."""
    columns = [name for name in ("text", "text_pair") if name in train.column_names]
    splits = {"training": train, "validation": validation, "test": test}
    texts = {name: list(zip(*(split[column][:] for column in columns), strict=True)) for name, split in splits.items()}
    empty = sum(not any(part.strip() for part in text) for split in texts.values() for text in split)
    if empty:
        warnings.warn(f"'{recipe.id}': {empty} texts are empty and are used as they are; remove these rows", stacklevel=3)
    remedy = "leave out the copies" + (", or set split_by_text=true" if recipe.validation is None else "")
    for known, name in combinations(texts, 2):
        if shared := sum(map(set(texts[known]).__contains__, texts[name])):
            what = f"{shared} of {len(texts[name])} {name} texts are also {known} texts"
            warnings.warn(f"'{recipe.id}': {what}; {remedy}", stacklevel=3)


def load_test_set(recipe: DataRecipe, identifier: str, classes: tuple[Any, ...] | None) -> LabelledDataset:
    """Load a further test set for a trained model, with the columns, filter and configuration of `recipe`.

    The other splits are empty: the data of the recipe are not read. Raises InputError as `load_labelled`.
    """
    recipe = with_glue_defaults(recipe)
    test = _with_labels(read_examples(recipe, identifier, "test", None), classes, identifier)
    return LabelledDataset(test.select([]), test.select([]), test, classes, _metric(recipe, classes))


def label_options(classes: Sequence[Any] | None) -> dict[str, Any]:
    """Settings of a model's configuration: the number of outputs of its head, and the class names in their order."""
    if classes is None:
        return {"num_labels": 1}
    names = [str(label) for label in classes]
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


def by_length(tokens: Dataset) -> np.ndarray:
    """The rows of tokenised examples in the order of their length, so that a batch needs little padding."""
    return np.argsort([len(ids) for ids in tokens["input_ids"]], kind="stable")


def check_max_length(tokenizer: PreTrainedTokenizerBase, max_length: int, pair: bool) -> None:
    """Raise InputError if `max_length` has no room for a token of a text, or of both texts of a pair."""
    special = tokenizer.num_special_tokens_to_add(pair=pair)
    if max_length < (least := special + 1 + pair):
        what = "pair of texts" if pair else "text"
        raise InputError(f"model.max_length is {max_length}; a {what} has {special} special tokens: give {least} at least")


def tokenize(examples: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Tokenise every example to `input_ids`, `attention_mask` and `labels`, truncated to `max_length` tokens and unpadded.

    Raises InputError for a text without tokens, of which a model would read padding, and as `check_max_length`.
    """
    check_max_length(tokenizer, max_length, "text_pair" in examples.column_names)

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        encoded = tokenizer(batch["text"], batch.get("text_pair"), truncation=True, max_length=max_length)
        if [] in encoded["input_ids"]:
            empty = batch["text"][encoded["input_ids"].index([])]
            raise InputError(f"the tokeniser makes no token of the text {empty!r}; leave out the rows with such texts")
        return {**encoded, "labels": batch["label"]}

    unused = uuid4().hex  # a fingerprint; the default is a hash of the tokeniser, which takes as long as the texts
    return examples.map(encode, batched=True, remove_columns=examples.column_names, new_fingerprint=unused)


def with_glue_defaults(recipe: DataRecipe) -> DataRecipe:
    """The recipe with the columns, splits and metric of its GLUE data set for those that it does not give.

    Other recipes are returned unchanged.
    """
    if (name := glue_name(recipe.id)) is None:
        return recipe
    if name not in GLUE_COLUMNS:
        hint = f"for the folder write './{recipe.id}'" if exists(recipe.id) else did_you_mean(name, GLUE_COLUMNS)
        raise InputError(f"unknown GLUE data set '{name}'; {hint}")
    text, pair = GLUE_COLUMNS[name]
    development = "validation_matched" if name == "mnli" else "validation"
    metrics: dict[str, Literal["matthews", "pearson"]] = {"cola": "matthews", "stsb": "pearson"}
    defaults: dict[str, Any] = {
        "config": name,
        "validation": None if recipe.split_by_text else f"{GLUE}:{development}",
        "text": text,
        "text_pair": pair,
        "label": "label",
        "problem_type": "regression" if name == "stsb" else "classification",
        "metric": metrics.get(name, "accuracy"),
    }
    missing = {key: value for key, value in defaults.items() if getattr(recipe, key) == getattr(DataRecipe, key)}
    return replace(recipe, id=GLUE, **missing)


def read_examples(recipe: DataRecipe, identifier: str, split: str, section: str | None = "data") -> Dataset:
    """Read one split with the columns `text`, `text_pair` (optional) and `label`; labels keep their values in the data.

    `section` is as in `read_rows`.
    """
    names = {"text": recipe.text or "text", "label": recipe.label or "label"}
    data = read_rows(identifier, recipe.config, split, recipe.filter, section, names["label"])
    if recipe.text_pair is not None:
        names["text_pair"] = recipe.text_pair
    for role, column in names.items():
        check_column(data, column, identifier, role)
    columns = {role: data[column][:] for role, column in names.items()}
    for row, label in enumerate(columns["label"]):
        is_nan = isinstance(label, float) and math.isnan(label)
        if label is None or is_nan or (label == "" and "" not in (recipe.classes or ())):
            raise InputError(f"'{identifier}', row {row}: the label is empty; give it one, or leave the row out")
        if not isinstance(label, str | int | float):
            raise InputError(f"'{identifier}', row {row}: label {shown(label)} is neither text nor a number")
        if isinstance(label, str) != isinstance(columns["label"][0], str):
            raise InputError(
                f"'{identifier}', row {row}: label {shown(label)} and the first label are not both text or both numbers"
            )
    data = Dataset.from_dict(columns)
    for role in sorted(set(names) - {"label"}):
        check_texts(columns[role], names[role], identifier)
    return data if recipe.words is None else _first_words(data, recipe.words, identifier, section)


def read_texts(recipe: DataRecipe, identifier: str) -> list[Any]:
    """The texts of a file or data set, in its order, from the text columns of `recipe`; pairs are tuples. Labels are not read.

    Raises:
        InputError: a file that cannot be read or is empty, a missing column, or a value that is not text.
    """
    recipe = with_glue_defaults(recipe)
    data = read_rows(identifier, recipe.config, "test")
    names = [recipe.text or "text", *([] if recipe.text_pair is None else [recipe.text_pair])]
    for column in names:
        check_column(data, column, identifier, "text")
        check_texts(data[column][:], column, identifier)
    return data[names[0]][:] if len(names) == 1 else list(zip(*(data[column][:] for column in names), strict=True))


def _first_words(data: Dataset, count: int, identifier: str, section: str | None) -> Dataset:
    """The texts cut to their first `count` words; shorter texts are left out."""
    words = [text.split() for text in data["text"][:]]
    kept = [row for row, each in enumerate(words) if len(each) >= count]
    if not kept:
        raise InputError(
            f"'{identifier}': no text has {count} words or more" + ("" if section is None else f" ({section}.words)")
        )
    shortened = [" ".join(each[:count]) for each in words]
    return data.remove_columns("text").add_column("text", shortened).select(kept)


def _metric(recipe: DataRecipe, classes: tuple[Any, ...] | None) -> str:
    return recipe.metric or ("pearson" if classes is None else "accuracy")


def _classes(recipe: DataRecipe, train: Dataset) -> tuple[Any, ...]:
    if recipe.classes is not None:
        return tuple(recipe.classes)
    classes = sorted(set(train["label"]), key=lambda label: (isinstance(label, str), label))
    if len(classes) < 2:
        raise InputError(f"'{recipe.id}': all labels are {classes[0]!r}; classification needs at least two classes")
    stripped: dict[str, str] = {}
    for label in (each for each in classes if isinstance(each, str)):
        if (other := stripped.setdefault(label.strip(), label)) != label:
            raise InputError(f"'{recipe.id}': the labels {other!r} and {label!r} differ in spaces only; write them alike")
    for other, label in (*_equal_decimals(classes), *_equal_but_for_case(classes)):
        warnings.warn(
            f"'{recipe.id}': the labels {other!r} and {label!r} are two classes; write them alike if they are one", stacklevel=3
        )
    return tuple(classes)


def _equal_decimals(classes: Collection[Any]) -> list[tuple[str, str]]:
    """Pairs of texts among the classes that are one decimal number, such as 1.1 and 1.10."""
    known: dict[float, str] = {}
    pairs = []
    for label in (each for each in classes if isinstance(each, str)):
        if (number := _finite_number(label)) is not None and (other := known.setdefault(number, label)) != label:
            pairs += [(other, label)] if "." in other + label else []
    return pairs


def _equal_but_for_case(classes: Collection[Any]) -> list[tuple[str, str]]:
    """Pairs of texts among the classes that differ in upper and lower case only, such as Good and good."""
    known: dict[str, str] = {}
    texts = (each for each in classes if isinstance(each, str))
    return [(other, label) for label in texts if (other := known.setdefault(label.casefold(), label)) != label]


def _with_labels(data: Dataset, classes: tuple[Any, ...] | None, identifier: str) -> Dataset:
    """`data` with its labels as indices into `classes`, or as floats if `classes` is None."""
    labels: list[float | int] = []
    index = {label: number for number, label in enumerate(classes or ())}
    are_texts = bool(index) and all(isinstance(label, str) for label in index)
    for row, label in enumerate(data["label"][:]):
        if are_texts and isinstance(label, int | float):  # numbers or truth values only, of a file beside one with other texts
            label = _text_of(label, index, f"'{identifier}', row {row}")
        if classes is None:
            if (value := _finite_number(label)) is None:
                raise InputError(f"'{identifier}', row {row}: label {shown(label)} is not a finite number")
            labels.append(value)
        elif not isinstance(label, Hashable) or label not in index:
            listed = ", ".join(map(shown, classes[:8])) + (f" and {len(classes) - 8} more" if len(classes) > 8 else "")
            raise InputError(f"'{identifier}', row {row}: label {shown(label)} is outside the classes {listed}")
        else:
            labels.append(index[label])
    return data.remove_columns("label").add_column("label", labels)


def _text_of(label: float, classes: Collection[str], where: str) -> Any:
    """The class that is written as a number or truth value, or `label` without one. Raises InputError for one of two classes."""
    spellings = str(label), str(label).lower(), str(label).upper()
    same = [text for text in classes if _finite_number(text) == label] if isinstance(label, float) else []
    if len(same) > 1:
        raise InputError(f"{where}: label {label} may be the class {' or '.join(map(repr, same))}; give the file a row of each")
    return next((text for text in spellings if text in classes), label)


def _finite_number(label: Any) -> float | None:
    """A label, or the number that is written as text in a column with other texts; None for anything else."""
    if isinstance(label, bool) or not isinstance(label, int | float | str) or "_" in str(label):
        return None
    try:
        value = float(label)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None
