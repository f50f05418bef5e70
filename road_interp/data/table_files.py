"""Tables in files: CSV, TSV, JSON and Parquet, read anew from the file and with the texts that stand in it."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
import pyarrow.parquet
from datasets import Dataset

from road_interp.errors import shown
from road_interp.files import parse_json_values

SEPARATED: dict[str, dict[str, Any]] = {".csv": {}, ".tsv": {"sep": "\t", "quoting": csv.QUOTE_NONE}}
FORMATS = (*SEPARATED, ".jsonl", ".json", ".parquet")
KINDS = {str: "texts", bool: "truth values", int: "numbers", float: "numbers", list: "lists", dict: "objects"}


def read_tables(paths: Sequence[Path], valued: Collection[str], label: str | None = None) -> Dataset:
    """The rows of files of one of the FORMATS, one file behind another, with all columns. Raises any exception of the parsers.

    CSV and TSV hold texts. The columns in `valued` become what their texts mean (`_as_values`), and so does the column of labels,
    unless that would make one of two (`_as_labels`); another one becomes numbers if these, printed again, are the texts of the
    file. Values of JSON are read as they are written (`_table_of`).
    """
    if paths[0].suffix == ".parquet":
        return Dataset(pyarrow.parquet.read_table(paths, partitioning=None))
    if paths[0].suffix not in SEPARATED:
        return _table_of(_json_columns([row for path in paths for row in _json_rows(path)]), {*valued, label})
    tables = [_separated_columns(path, SEPARATED[path.suffix]) for path in paths]
    if other := [path.name for path, table in zip(paths, tables, strict=True) if table.keys() != tables[0].keys()]:
        raise ValueError(f"'{other[0]}' has other columns than '{paths[0].name}'")
    texts = {name: [text for table in tables for text in table[name]] for name in tables[0]}
    readers = {**dict.fromkeys(valued, _as_values), label: _as_labels}
    return Dataset.from_dict({name: readers.get(name, _as_numbers)(column) for name, column in texts.items()})


def separator_hint(columns: Sequence[Any]) -> str:
    """What to say in an error of data whose header is one column that another separator would divide; else nothing."""
    is_divided = len(columns) == 1 and re.search(r"[;\t|]", str(columns[0]))
    return "; a CSV file separates columns by commas" if is_divided else ""


def _separated_columns(path: Path, options: Mapping[str, Any]) -> dict[str, list[str]]:
    """The texts of every column of a CSV or TSV file; fields that a short row lacks are empty."""
    options = {"dtype": str, "keep_default_na": False, **options}
    _check_rows(path, quoted="quoting" not in options)
    header = Counter(pandas.read_csv(path, header=None, nrows=1, **options).iloc[0])
    if repeated := [name for name, count in header.items() if name and count > 1]:
        raise ValueError(f"the header names column '{repeated[0]}' twice")
    options["skip_blank_lines"] = len(header) > 1  # of a single column they are rows without text, as empty fields of others
    frame = pandas.read_csv(path, **options)
    if len(frame) and not isinstance(frame.index, pandas.RangeIndex):  # pandas takes the first fields of long rows for an index
        todo = separator_hint(list(header)) or "; put texts that contain the separator in double quotes, or name every column"
        raise ValueError(f"row 0: more fields than the columns of the header {shown(', '.join(map(str, header)))}{todo}")
    return {name: frame[name].tolist() for name in frame}


def _check_rows(path: Path, quoted: bool) -> None:
    """Raise ValueError where pandas joins or divides rows.

    It joins all lines between two quotes, where a text goes on behind its closing quote, and ends a row at a carriage return
    outside quotes, where other rows end with a line feed.
    """
    ends: dict[str, int] = {}
    last, number = "", 0

    def lines() -> Iterator[str]:
        nonlocal last, number
        for last in file:
            number += 1
            yield last

    limit = csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            for _ in csv.reader(lines(), strict=True) if quoted else lines():
                ends.setdefault(last[-1], number)
        except csv.Error as error:
            raise ValueError(
                f"line {number} ({error}): a text that begins with a double quote ends with one, before a comma or a "
                'line\'s end; write quotes inside it twice, as in "a ""good"" film"'
            ) from None
        finally:
            csv.field_size_limit(limit)
    if {"\r", "\n"} <= {*ends}:
        raise ValueError(
            f"line {ends[chr(13)]} ends with a carriage return, line {ends[chr(10)]} with a line feed: a text that holds one of "
            "them needs double quotes in CSV, and cannot stand in TSV"
        )


def _as_values(texts: Sequence[str]) -> list[Any]:
    """Texts as whole numbers, numbers or truth values where all can be exactly; all stay text where one is "01"."""
    stripped = [text.strip() for text in texts]
    kinds: list[tuple[str, Callable[[str], Any]]] = [
        (r"[-+]?(0|[1-9]\d{0,17})", int),
        (r"[-+]?((0|[1-9]\d{0,14})(\.\d*)?|\.\d+)([eE][-+]?\d+)?", float),
        (r"(?i)true|false", lambda text: text.lower() == "true"),
    ]
    for pattern, convert in kinds:
        if all(re.fullmatch(pattern, text) and convert(text) not in (math.inf, -math.inf) for text in stripped):
            return [convert(text) for text in stripped]
    return list(texts)


def _as_labels(texts: Sequence[str]) -> list[Any]:
    """Texts as values; all stay text where a decimal is written in two ways, as 1.1 and 1.10: they may be two classes."""
    values = _as_values(texts)
    are_decimals = bool(values) and isinstance(values[0], float)
    return list(texts) if are_decimals and len({*values}) < len({text.strip() for text in texts}) else values


def _as_numbers(texts: Sequence[str]) -> list[Any]:
    """Texts as numbers where every number is printed as its text; all stay text where one is "01", "0.50" or "1e3"."""
    kinds: list[tuple[str, Callable[[str], Any]]] = [(r"-?\d{1,18}", int), (r"-?\d+(\.\d+)?(e[-+]\d+)?", float)]
    for pattern, convert in kinds:
        if all(re.fullmatch(pattern, text) and str(convert(text)) == text for text in texts):
            return [convert(text) for text in texts]
    return list(texts)


def _table_of(columns: Mapping[str, list[Any]], valued: Collection[str | None]) -> Dataset:
    """The table of JSON's columns. Those that a table would change are held as JSON texts, and are values again where rows are
    read: 5 beside 2.5 would be 5.0, also in a list, and an object would have the keys of all others."""
    kinds = {name: set(map(type, column)) for name, column in columns.items()}
    changed = {name for name in columns if _is_changed(kinds[name] if name not in valued else kinds[name] - {int, float})}
    if not changed:
        return Dataset.from_dict(dict(columns))

    def read(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {name: [*map(json.loads, column)] if name in changed else column for name, column in batch.items()}

    held = {name: [*map(json.dumps, column)] if name in changed else column for name, column in columns.items()}
    return Dataset.from_dict(held).with_transform(read)


def _is_changed(kinds: Collection[type]) -> bool:
    """Whether a table changes values of these kinds in one column."""
    return list in kinds or dict in kinds or (int in kinds and float in kinds)


def _json_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON file: of an array, or one behind another."""
    rows = list(parse_json_values(path.read_text(encoding="utf-8-sig")))
    if len(rows) == 1 and isinstance(rows[0], list):
        rows = rows[0]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is not a JSON object")
    return rows


def _json_columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The columns of JSON's objects; keys that a row lacks are null."""
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    for name, column in columns.items():
        _check_kind(name, column)
    return columns


def _check_kind(name: str, column: Sequence[Any]) -> None:
    """Raise ValueError for a column with values of several kinds, which a table cannot hold."""
    found: dict[str, int] = {}
    for row, value in enumerate(column):
        if value is not None:
            found.setdefault(KINDS[type(value)], row)
    if len(found) > 1:
        (first, _), (second, row) = list(found.items())[:2]
        raise ValueError(f"column '{name}' holds {first} and, in row {row}, {second}; give it values of one kind")
