"""The base class of results: frozen, with JSON of one format version, provenance, atomic writing and checked reading."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from road_interp.errors import InputError
from road_interp.files import read_text, write_atomically
from road_interp.from_mapping import from_mapping
from road_interp.provenance import Provenance, current_provenance

FORMAT = 1  # version of the JSON; 0.1.0 wrote no version
Loaded = TypeVar("Loaded", bound="Result")


@dataclass(frozen=True)
class Result:
    """The return value of a measuring function. Subclasses are frozen dataclasses of numbers, texts, tuples and mappings.

    Attributes:
        provenance: of a result that was read from a file; None for a result of this process.
    """

    provenance: Provenance | None = field(default=None, compare=False, repr=False, kw_only=True)

    def summary(self) -> Any:
        """Derived numbers that `to_json` adds under "summary"; None for no summary."""
        return None

    def to_json(self) -> str:
        """All fields as JSON text, with format version, provenance and summary; lists of booleans as strings of 0 and 1."""
        seeds = getattr(self, "seeds", (self.seed,) if hasattr(self, "seed") else ())
        provenance = self.provenance or current_provenance(seeds if isinstance(seeds, tuple) else ())
        values = {name: value for name, value in _plain(self).items() if name != "provenance"}
        content = {"format": FORMAT, "result": type(self).__name__, **values, "provenance": _plain(provenance)}
        if (summary := self.summary()) is not None:
            content["summary"] = summary
        return json.dumps(content)

    @classmethod
    def from_json(cls: type[Loaded], text: str) -> Loaded:
        """The result that `to_json` wrote. Raises InputError that names the invalid key and the reason."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:  # also integers with too many digits
            raise InputError(f"not valid JSON ({error})") from None
        if not isinstance(content, dict):
            raise InputError(f"the JSON of {cls.__name__} must hold one object")
        content.pop("summary", None)
        if (number := content.pop("format", FORMAT)) != FORMAT:
            raise InputError(f"format {number!r} is not supported, only {FORMAT}: use the release that wrote it")
        if (kind := content.pop("result", cls.__name__)) != cls.__name__:
            raise InputError(f"this is the JSON of {kind}, not of {cls.__name__}")
        return from_mapping(cls, content, finite=False)

    def save(self, path: Path) -> None:
        """Write the JSON to `path` atomically."""
        write_atomically(path, self.to_json() + "\n")

    @classmethod
    def load(cls: type[Loaded], path: Path) -> Loaded:
        """The result in a file. Raises InputError that names file and key."""
        try:
            return cls.from_json(read_text(path))
        except InputError as error:
            raise InputError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None


def _plain(value: Any) -> Any:
    """The value with dataclasses as mappings, and lists of booleans as strings of 0 and 1."""
    if is_dataclass(value):
        named = {entry.name: getattr(value, entry.name) for entry in fields(value)}
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
