"""Rows of files and data sets: reading and filtering, with errors that name the file."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from pandas.errors import ParserError

from road_interp.data.table_files import FORMATS, TEXT_FORMATS, read_tables
from road_interp.errors import InputError, first_line, shown
from road_interp.files import is_dir, is_file
from road_interp.sources import resolve

HINTS = {
    UnicodeDecodeError: "; save it as UTF-8",
    ParserError: "; commas separate the columns of a CSV file, where a text with a comma stands in double quotes; tabs a TSV's",
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

    `section` is as in `load_labelled`; None where the recipe cannot be changed. `label` names a column of labels. In a CSV file
    they and the columns of `keep` are numbers or truth values where all texts are, and stay text where one is "01".
    """
    data = _read(identifier, config, split, {label, *(keep or {})})
    for column, value in (keep or {}).items():
        if column not in data.column_names:
            hint = "give it one" if section is None else f"{section}.filter=null drops it"
            raise InputError(f"'{identifier}' has no column '{column}' for filter; {listed_columns(data)}; {hint}")
        data = data.select([row for row, each in enumerate(data[column][:]) if each == value])
    if len(data) == 0:
        raise InputError(f"'{identifier}' holds no examples" + (f" with {keep}" if keep else ""))
    return data


def _read(identifier: str, config: str | None, split: str, valued: Collection[str | None]) -> Dataset:
    path = Path(os.path.expanduser(resolved := resolve(identifier)))
    if path.suffix in FORMATS:
        if not is_file(path):
            raise InputError(f"data file '{identifier}' does not exist")
        if path.stat().st_size == 0:
            raise InputError(f"data file '{identifier}' is empty")
        return _tables(f"data file '{identifier}' cannot be read", [path], valued)
    if is_file(path):
        raise InputError(f"data file '{identifier}': '{path.suffix}' is not one of {', '.join(FORMATS)}")
    name, _, named_split = resolved.partition(":")
    if not name.strip("/"):
        raise InputError(f"'{identifier}' names no data: give a file, a folder or the id of a data set")
    try:
        splits: Mapping[str, Any] = _files_of(name, config) or load_dataset(name, config)
    except (DatasetNotFoundError, DatasetGenerationError, OSError, RuntimeError, ValueError) as error:  # also of scripts
        raise InputError(f"data set '{identifier}' cannot be loaded: {_cause(error)}") from None
    if (chosen := named_split or split) not in splits:
        raise InputError(f"data set '{identifier}' has no split '{chosen}'; its splits are {', '.join(splits)}")
    found = splits[chosen]
    if isinstance(found, Dataset):
        return found
    names = " to ".join(dict.fromkeys((found[0].name, found[-1].name)))
    return _tables(f"data set '{identifier}' cannot be loaded: {names}", found, valued)


def _tables(failure: str, paths: Sequence[Path], valued: Collection[str | None]) -> Dataset:
    try:
        return read_tables(paths, valued)
    except Exception as error:  # a damaged file may raise any exception of the parsers
        raise InputError(f"{failure}: {_cause(error)}") from None


def _files_of(folder: str, config: str | None) -> dict[str, list[Path]]:
    """The text files of a folder by split, as `datasets` divides them, whose own reader joins lines at quotes, makes 1 of "01"
    and null of "NA". Empty for what is no such folder, or has a README.md, which may say how the files are read."""
    if not is_dir(folder) or is_file(Path(folder) / "README.md"):
        return {}
    found = load_dataset_builder(folder, config).config.data_files or {}
    files = {str(split): [Path(path) for path in paths] for split, paths in found.items()}
    return files if all(path.suffix in TEXT_FORMATS for paths in files.values() for path in paths) else {}


def split_files(identifier: str, split: str) -> list[Path]:
    """The local text files that `read_rows` reads; none for a data set of the Hub, and for what cannot be read."""
    path = Path(os.path.expanduser(resolved := resolve(identifier)))
    if is_file(path):
        return [path]
    name, _, named_split = resolved.partition(":")
    try:
        return _files_of(name, None).get(named_split or split, [])
    except (OSError, RuntimeError, ValueError):
        return []


def check_column(data: Dataset, column: str, identifier: str, role: str) -> None:
    """Raise InputError for a column that the data do not have; `role` is what it is for."""
    if column not in data.column_names:
        raise InputError(f"'{identifier}' has no column '{column}' for {role}; {listed_columns(data)}")


def check_texts(values: Iterable[Any], column: str, identifier: str) -> None:
    """Raise InputError for a value of a column that is not text."""
    for row, text in enumerate(values):
        if not isinstance(text, str):
            hint = "; choose a column of texts (in JSON, numbers in quotes are texts; in CSV a column of numbers alone is none)"
            raise InputError(f"'{identifier}', row {row}: column '{column}' holds {shown(text)}, not text{hint}")


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
    return first_line(error) + next((hint for kind, hint in HINTS.items() if isinstance(error, kind)), "")
