"""Rows of files and data sets: reading, filtering, and the types of labels in CSV files."""

from __future__ import annotations

import csv
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pandas
from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from road_interp.errors import InputError, first_line
from road_interp.files import is_file
from road_interp.sources import resolve

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t", "quoting": csv.QUOTE_NONE}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
}


def read_rows(
    identifier: str,
    config: str | None,
    split: str,
    keep: Mapping[str, Any] | None = None,
    section: str | None = "data",
    label: str | None = None,
) -> Dataset:
    """Read the rows of one split that have all column values of `keep`, with all columns. Raises InputError if there are none.

    `section` is as in `load_labelled`; None where the recipe cannot be changed. `label` names a column of labels: in a CSV file
    they stay text if one is a whole number with zeros before it, such as "01".
    """
    data = _read(identifier, config, split, label)
    for column, value in (keep or {}).items():
        if column not in data.column_names:
            hint = "give it one" if section is None else f"{section}.filter=null drops it"
            raise InputError(f"'{identifier}' has no column '{column}' for filter; {listed_columns(data)}; {hint}")
        data = data.filter(lambda row, column=column, value=value: row[column] == value, load_from_cache_file=False)
    if len(data) == 0:
        raise InputError(f"'{identifier}' holds no examples" + (f" with {keep}" if keep else ""))
    return data


def _read(identifier: str, config: str | None, split: str, label: str | None) -> Dataset:
    path = Path(os.path.expanduser(resolved := resolve(identifier)))
    if path.suffix in FORMATS:
        if not is_file(path):
            raise InputError(f"data file '{identifier}' does not exist")
        builder, options = FORMATS[path.suffix]
        if path.stat().st_size == 0:
            raise InputError(f"data file '{identifier}' is empty")
        told = datasets.logging.get_verbosity()
        datasets.logging.set_verbosity(logging.CRITICAL)  # its readers log what they raise
        try:
            if builder == "csv" and label is not None:
                options = {**options, "converters": {label: str}}
            data = load_dataset(builder, data_files=str(path), split="train", **options)
            if builder == "csv":
                _check_first_row(path, identifier, options)
            return _with_typed(data, label) if builder == "csv" and label in data.column_names else data
        except InputError:
            raise
        except Exception as error:  # the readers of `datasets` pass on any exception of the parsers that they use
            if "corresponds to no data" in str(error):
                raise InputError(f"'{identifier}' holds no examples") from None
            raise InputError(f"data file '{identifier}' cannot be read: {_cause(error)}") from None
        finally:
            datasets.logging.set_verbosity(told)
    if is_file(path):
        raise InputError(f"data file '{identifier}': '{path.suffix}' is not one of {', '.join(FORMATS)}")
    name, _, named_split = resolved.partition(":")
    try:
        splits = load_dataset(name, config)
    except (DatasetNotFoundError, DatasetGenerationError, OSError, RuntimeError, ValueError) as error:  # also of scripts
        raise InputError(f"data set '{identifier}' cannot be loaded: {_cause(error)}") from None
    return _split_of(splits, named_split or split, identifier)


def _check_first_row(path: Path, identifier: str, options: Mapping[str, Any]) -> None:
    """Raise InputError for a first row with more fields than the header: pandas would take its first ones for an index."""
    first = pandas.read_csv(path, nrows=1, **options)
    if not isinstance(first.index, pandas.RangeIndex):
        raise InputError(
            f"'{identifier}', row 0: more fields than the {len(first.columns)} columns of the header; put texts that contain the "
            "separator in double quotes, or name every column"
        )


def _with_typed(data: Dataset, column: str | None) -> Dataset:
    """A column of texts as whole numbers, numbers or truth values where all can be exactly; all stay text where one is "01"."""
    texts = [text.strip() for text in data[column]]
    kinds: list[tuple[str, Callable[[str], Any]]] = [
        (r"[-+]?(0|[1-9]\d{0,17})", int),
        (r"[-+]?((0|[1-9]\d{0,14})(\.\d*)?|\.\d+)([eE][-+]?\d+)?", float),
        (r"(?i)true|false", lambda text: text.lower() == "true"),
    ]
    for pattern, convert in kinds:
        if all(re.fullmatch(pattern, text) for text in texts):
            return data.remove_columns(column).add_column(column, [convert(text) for text in texts])
    return data


def _split_of(splits: DatasetDict, split: str, identifier: str) -> Dataset:
    if split not in splits:
        raise InputError(f"data set '{identifier}' has no split '{split}'; its splits are {', '.join(splits)}")
    return splits[split]


def check_column(data: Dataset, column: str, identifier: str, role: str) -> None:
    """Raise InputError for a column that the data do not have; `role` is what it is for."""
    if column not in data.column_names:
        raise InputError(f"'{identifier}' has no column '{column}' for {role}; {listed_columns(data)}")


def check_texts(values: Iterable[Any], column: str, identifier: str) -> None:
    """Raise InputError for a value of a column that is not text."""
    for row, text in enumerate(values):
        if not isinstance(text, str):
            hint = "; choose a column of texts (in JSON, numbers in quotes are texts)"
            raise InputError(f"'{identifier}', row {row}: column '{column}' holds {cut(text)}, not text{hint}")


def cut(value: object) -> str:
    """A value of a file in an error, in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def listed_columns(data: Dataset) -> str:
    """The column names of data for an error: at most eight, each cut to 40 characters."""
    names = [name if len(name) <= 40 else f"{name[:39]}…" for name in data.column_names[:8]]
    more = len(data.column_names) - len(names)
    hint = "; a CSV file separates columns by commas" if len(names) == 1 and re.search(r"[;\t|]", names[0]) else ""
    return f"its columns are {', '.join(names)}" + (f" and {more} more" if more else "") + hint


def _cause(error: Exception) -> str:
    """First line of the message of the innermost cause of an exception, or its class name if the message is empty."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    hint = "; save it as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
    return first_line(error) + hint
