"""Rows of files and data sets: reading and filtering, with errors that name the file."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset, load_dataset_builder
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import metadata_load
from pandas.errors import ParserError
from yaml import YAMLError

from road_interp.data.table_files import FORMATS, read_tables, separator_hint
from road_interp.errors import InputError, first_line, shown
from road_interp.files import is_dir, is_file, path_and_split
from road_interp.sources import resolve

READING = {"configs", "dataset_info"}  # keys of a README.md that say how `datasets` reads the files beside it
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
    they and the columns of `keep` are numbers or truth values where all texts are, and stay text where one is "01". Labels stay
    text, too, where one number is written in two ways, as 1.1 and 1.10.
    """
    data = _read(identifier, config, split, keep or (), label)
    for column, value in (keep or {}).items():
        if column not in data.column_names:
            hint = "give it one" if section is None else f"{section}.filter=null drops it"
            raise InputError(f"'{identifier}' has no column '{column}' for filter; {listed_columns(data)}; {hint}")
        data = data.select([row for row, each in enumerate(data[column][:]) if each == value])
    if len(data) == 0:
        raise InputError(f"'{identifier}' holds no examples" + (f" with {keep}" if keep else ""))
    return data


def _read(identifier: str, config: str | None, split: str, valued: Collection[str], label: str | None) -> Dataset:
    path = Path(os.path.expanduser(resolved := resolve(identifier)))
    if path.suffix in FORMATS:
        if not is_file(path):
            raise InputError(f"data file '{identifier}' does not exist")
        if path.stat().st_size == 0:
            raise InputError(f"data file '{identifier}' is empty")
        return _tables(f"data file '{identifier}' cannot be read", [path], valued, label)
    if is_file(path):
        raise InputError(f"data file '{identifier}': '{path.suffix}' is not one of {', '.join(FORMATS)}")
    name, named_split = path_and_split(resolved)
    if not name.strip("/"):
        raise InputError(f"'{identifier}' names no data: give a file, a folder or the id of a data set")
    try:
        splits: Mapping[str, Any] = _files_of(name, config) or load_dataset(name, config)
    except (DatasetNotFoundError, DatasetGenerationError, OSError, RuntimeError, ValueError, YAMLError) as error:  # scripts, too
        raise InputError(f"data set '{identifier}' cannot be loaded: {_cause(error)}") from None
    if (chosen := named_split or split) not in splits:
        raise InputError(f"data set '{identifier}' has no split '{chosen}'; its splits are {', '.join(splits)}")
    found = splits[chosen]
    if isinstance(found, Dataset):
        return found
    names = " to ".join(dict.fromkeys((found[0].name, found[-1].name)))
    return _tables(f"data set '{identifier}' cannot be loaded: {names}", found, valued, label)


def _tables(failure: str, paths: Sequence[Path], valued: Collection[str], label: str | None) -> Dataset:
    try:
        return read_tables(paths, valued, label)
    except Exception as error:  # a damaged file may raise any exception of the parsers
        raise InputError(f"{failure}: {_cause(error)}") from None


def _files_of(folder: str, config: str | None) -> dict[str, list[Path]]:
    """The files of a folder by split, as `datasets` divides them.

    Its own reader joins lines at quotes, makes 1 of "01" and null of "NA", and may take a changed file for the one before. Empty
    for what is no such folder, or has a README.md that says how it is read. Raises ValueError for files of several formats in one
    split, of which `datasets` reads one.
    """
    readme = Path(folder) / "README.md"
    if not is_dir(folder) or (is_file(readme) and not READING.isdisjoint(metadata_load(readme) or {})):
        return {}
    found = load_dataset_builder(folder, config).config.data_files or {}
    files = {str(split): [Path(path) for path in paths] for split, paths in found.items()}
    if not all(path.suffix in FORMATS for paths in files.values() for path in paths):
        return {}
    of_every_format = DataFilesDict.from_patterns(get_data_patterns(folder), base_path=folder)
    for split, paths in of_every_format.items():
        if unread := [path for path in map(Path, paths) if path.suffix in FORMATS and path not in files.get(str(split), [])]:
            read = next(iter(files.values()))[0].name
            raise ValueError(f"'{unread[0].name}' would not be read beside '{read}'; keep files of one format in the folder")
    return files


def split_files(identifier: str, split: str) -> list[Path]:
    """The local files that `read_rows` reads; none for a data set of the Hub, and for what cannot be read."""
    path = Path(os.path.expanduser(resolved := resolve(identifier)))
    if is_file(path):
        return [path]
    name, named_split = path_and_split(resolved)
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
            if text is None:
                raise InputError(f"'{identifier}', row {row}: column '{column}' holds no text")
            hint = "; choose a column of texts (in JSON, numbers in quotes are texts; in CSV a column of numbers alone is none)"
            raise InputError(f"'{identifier}', row {row}: column '{column}' holds {shown(text)}, not text{hint}")


def listed_columns(data: Dataset) -> str:
    """The column names of data for an error: at most eight, each cut to 40 characters."""
    names = [name if len(name) <= 40 else f"{name[:39]}…" for name in data.column_names[:8]]
    more = len(data.column_names) - len(names)
    return f"its columns are {', '.join(names)}" + (f" and {more} more" if more else "") + separator_hint(names)


def _cause(error: Exception) -> str:
    """First line of the message of the innermost cause of an exception, or its class name if the message is empty."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return first_line(error) + next((hint for kind, hint in HINTS.items() if isinstance(error, kind)), "")
