"""The base of every result: frozen, as JSON with a format version and its provenance, saved whole, checked when it is read."""

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

FORMAT = 1  # of the JSON of results; files without a number were written by 0.1.0
Found = TypeVar("Found", bound="Result")


@dataclass(frozen=True)
class Result:
    """What a measuring function returns. Subclasses are frozen dataclasses of numbers, texts, tuples and mappings.

    Attributes:
        provenance: of a result that was read from a file; None for one that this process has made.
    """

    provenance: Provenance | None = field(default=None, compare=False, repr=False, kw_only=True)

    def summary(self) -> Any:
        """What the numbers come to, written beside them; nothing by default."""
        return None

    def to_json(self) -> str:
        """All fields as JSON text, with format version, provenance and summary; outcomes (booleans) as texts of 0 and 1."""
        seeds = getattr(self, "seeds", (self.seed,) if hasattr(self, "seed") else ())
        provenance = self.provenance or current_provenance(seeds if isinstance(seeds, tuple) else ())
        found = {name: value for name, value in _plain(self).items() if name != "provenance"}
        content = {"format": FORMAT, "result": type(self).__name__, **found, "provenance": _plain(provenance)}
        if (summary := self.summary()) is not None:
            content["summary"] = summary
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls: type[Found], text: str) -> Found:
        """The result that `to_json` wrote. Raises InputError naming the key that cannot be used, and why."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:  # also numbers of too many digits
            raise InputError(f"not valid JSON ({error})") from None
        if not isinstance(content, dict):
            raise InputError(f"the JSON of {cls.__name__} must hold one object")
        content.pop("summary", None)
        if (number := content.pop("format", FORMAT)) != FORMAT:
            raise InputError(f"format {number!r} is not known, only {FORMAT}: take the release of road-interp that wrote it")
        if (kind := content.pop("result", cls.__name__)) != cls.__name__:
            raise InputError(f"this is the JSON of {kind}, not of {cls.__name__}")
        return from_mapping(cls, content)

    def save(self, path: Path) -> None:
        """Write the JSON in one step: a reader sees the old file or the new one."""
        write_atomically(path, self.to_json() + "\n")

    @classmethod
    def load(cls: type[Found], path: Path) -> Found:
        """The result in a file. Raises InputError naming file and key."""
        try:
            return cls.from_json(read_text(path))
        except InputError as error:
            raise InputError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None


def _plain(value: Any) -> Any:
    """A value as JSON holds it."""
    if is_dataclass(value):
        named = {entry.name: getattr(value, entry.name) for entry in fields(value)}
        return {name: _plain(each) for name, each in named.items() if name != "provenance" or each is not None}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        if value and all(isinstance(each, bool) for each in value):
            return "".join("01"[each] for each in value)
        return [_plain(each) for each in value]
    return value
