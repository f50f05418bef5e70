"""The base class of results: frozen, with JSON of one format version, provenance, checked reading, and a table for pandas."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from road_interp.errors import InputError, first_line
from road_interp.files import parse_json, read_text, write_atomically
from road_interp.formats import check_format, release_of
from road_interp.from_mapping import from_mapping, type_hints
from road_interp.provenance import Provenance, current_provenance
from road_interp.results_of_0_1_0 import upgraded

FORMAT = 1  # version of the JSON; 0.1.0 wrote no version
Loaded = TypeVar("Loaded", bound="Result")
Entry = TypeVar("Entry")
INTERVALS = {2: ("_low", "_high"), 3: ("", "_low", "_high")}  # endings of the columns of (low, high) and of (value, low, high)

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Result:
    """The return value of a measuring function. Subclasses are frozen dataclasses of numbers, texts, tuples and mappings.

    Attributes:
        provenance: of a result that was read from a file; None for a result of this process.
    """

    provenance: Provenance | None = field(default=None, compare=False, repr=False, kw_only=True)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):
            cls.__repr__ = Result.__repr__  # type: ignore[method-assign]  # dataclass would write one of its own, of all entries

    def __repr__(self) -> str:
        """One line: single values, and the numbers of entries of longer fields."""
        shown = (f"{each.name}={_in_brief(getattr(self, each.name))}" for each in fields(self) if each.repr)
        return f"{type(self).__name__}({', '.join(shown)})"

    def summary(self) -> Any:
        """Derived numbers that `to_json` adds under "summary"; None for no summary."""
        return None

    def records(self) -> Sequence[Any]:
        """The rows of `to_frame`, dataclasses or mappings: the only sequence of dataclasses, or else the result as one row."""
        values = [getattr(self, each.name) for each in fields(self)]
        tables = [value for value in values if isinstance(value, tuple) and value and is_dataclass(value[0])]
        return tables[0] if len(tables) == 1 else [self]

    def to_frame(self) -> DataFrame:
        """The result as a pandas DataFrame: a row per site, read point, method or the like, and a column per number or text.

        A value with its interval fills three columns: NAME, NAME_low and NAME_high. Outcomes of single examples, and times of
        single rounds, are left out.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ImportError:
            raise InputError("a table needs pandas: pip install pandas") from None
        return DataFrame([columns(record) for record in self.records()])

    def to_json(self, with_summary: bool = True) -> str:
        """All fields as JSON text, with format version, provenance and summary; lists of booleans as strings of 0 and 1.

        Raises InputError for a value that is no number, text, tuple, mapping or dataclass.
        """
        seeds = getattr(self, "seeds", (self.seed,) if hasattr(self, "seed") else ())
        provenance = self.provenance or current_provenance(seeds if isinstance(seeds, tuple) else ())
        values = {name: value for name, value in _plain(self).items() if name != "provenance"}
        content = {"format": FORMAT, "result": type(self).__name__, **values, "provenance": _plain(provenance)}
        if with_summary and (summary := self.summary()) is not None:
            content["summary"] = summary
        return json.dumps(content, separators=(",", ":"), default=_python_numbers)

    @classmethod
    def from_json(cls: type[Loaded], text: str) -> Loaded:
        """The result that `to_json` wrote. Raises InputError that names the invalid key and the reason."""
        try:
            content = parse_json(text)
        except ValueError as error:
            raise InputError(f"not valid JSON ({error})") from None
        if not isinstance(content, dict):
            raise InputError(f"the JSON of {cls.__name__} must hold one object")
        content = upgraded(cls.__name__, content) if "format" not in content else content
        content.pop("summary", None)
        check_format(content.pop("format", FORMAT), FORMAT, release_of(content.get("provenance")))
        if (kind := content.pop("result", cls.__name__)) != cls.__name__:
            raise InputError(f"this is the JSON of {kind}, not of {cls.__name__}")
        found = from_mapping(cls, content, finite=False)
        try:
            found.summary()
            for record in found.records():
                columns(record)
        except InputError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"the entries of this {cls.__name__} do not fit together ({first_line(error)})") from None
        return found

    def save(self, path: str | Path) -> None:
        """Write the JSON to `path` atomically, compressed if it ends in .gz; its folder is made."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), self.to_json() + "\n")

    @classmethod
    def load(cls: type[Loaded], path: str | Path) -> Loaded:
        """The result in a file, compressed if its name ends in .gz. Raises InputError that names file and key."""
        try:
            return cls.from_json(read_text(Path(path)))
        except InputError as error:
            raise InputError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None


def _in_brief(value: Any) -> str:
    """A single value, or a tuple of up to three, as it is; otherwise the number of entries, or else the type."""
    if value is None or isinstance(value, str | int | float):
        return reprlib.repr(value)
    if isinstance(value, tuple) and len(value) <= 3 and all(isinstance(each, str | int | float) for each in value):
        return reprlib.repr(value)
    return f"<{len(value)}>" if isinstance(value, Sized) else f"<{type(value).__name__}>"


def entry(entries: Mapping[str, Entry], name: str, what: str) -> Entry:
    """The entry of a result under a name.

    Args:
        what: noun for an entry in the message, such as "condition".

    Raises:
        InputError: there is no such name; the message lists those that there are.
    """
    if name not in entries:
        raise InputError(f"no {what} '{name}'; there are {', '.join(entries)}")
    return entries[name]


def columns(record: Any) -> dict[str, Any]:
    """The columns of a dataclass or a mapping in `Result.to_frame`; those of a value that has columns itself bear its name."""
    found: dict[str, Any] = {}
    for name, value in (_cells(record) if is_dataclass(record) else record).items():
        if is_dataclass(value) or isinstance(value, Mapping):
            found |= {f"{name}_{inner}": each for inner, each in columns(value).items()}
        elif isinstance(value, tuple | list):
            found |= {f"{name}{ending}": each for ending, each in zip(INTERVALS[len(value)], value, strict=True)}
        else:
            found[name] = value
    return found


def _cells(record: Any) -> dict[str, Any]:
    """The fields and properties of a dataclass that are numbers, texts, intervals or dataclasses."""
    kind: type = type(record)
    return {name: getattr(record, name) for name in _cell_names(kind)}


@cache
def _cell_names(cls: type) -> tuple[str, ...]:
    kinds = dict(type_hints(cls))
    for name, each in vars(cls).items():
        if isinstance(each, property):
            kinds[name] = get_type_hints(each.fget)["return"]
    return tuple(name for name, kind in kinds.items() if name != "provenance" and _is_cell(kind))


def _is_cell(kind: Any) -> bool:
    """Whether values of a type, or of one of the types of a union, have a fixed number of columns."""
    if kind in (bool, int, float, str) or is_dataclass(kind) or get_origin(kind) is Literal:
        return True
    if get_origin(kind) is tuple:
        return get_args(kind) in ((float, float), (float, float, float))
    return isinstance(kind, UnionType) and any(map(_is_cell, get_args(kind)))


def _plain(value: Any) -> Any:
    """The value with dataclasses as mappings, and lists of booleans as strings of 0 and 1."""
    if is_dataclass(value):
        named = {each.name: getattr(value, each.name) for each in fields(value)}
        return {name: _plain(each) for name, each in named.items() if name != "provenance" or each is not None}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        kinds = set(map(type, value))
        if kinds == {bool}:
            return "".join("01"[each] for each in value)
        if kinds == {float}:
            return list(value)
        return [_plain(each) for each in value]
    return value


def _python_numbers(value: Any) -> Any:
    """Numbers of NumPy or torch, such as a seed of `np.arange`, as those of Python. Raises InputError for another value."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise InputError(f"{type(value).__name__} cannot be written as JSON: results hold numbers, texts, tuples and mappings")
