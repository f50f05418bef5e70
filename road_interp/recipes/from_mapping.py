"""A dataclass from a mapping, with every key and kind of value checked."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from road_interp.errors import InputError


def _build(cls: type, content: Any, where: str) -> Any:
    """An instance of a dataclass from a mapping, with every key and kind of value checked."""
    if not isinstance(content, Mapping):
        raise InputError(f"{where or 'the recipe'} must be a mapping, not {content!r}")
    hints = get_type_hints(cls)
    for key in content:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(hints)}"
            raise InputError(f"unknown key '{_join(where, key)}'; {hint}")
    for entry in fields(cls):
        required = entry.default is MISSING and entry.default_factory is MISSING
        if required and entry.name not in content:
            raise InputError(f"'{_join(where, entry.name)}' is missing")
    values = {key: _value(hints[key], value, _join(where, key)) for key, value in content.items()}
    try:
        return cls(**values)
    except InputError as error:  # what lies deeper than the recipe's own parts does not know where it stands
        raise InputError(f"{where}: {error}" if "." in where else str(error)) from None


def _value(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return _build(hint, value, where)  # type: ignore[arg-type]
    if get_origin(hint) is dict and is_dataclass(kind := get_args(hint)[1]):
        if not isinstance(value, Mapping):
            raise InputError(f"'{where}' must be a mapping of names, not {value!r}")
        return {str(name): _build(kind, entry, _join(where, name)) for name, entry in value.items()}  # type: ignore[arg-type]
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if is_dataclass(option) and value is not None:
            return _build(option, value, where)  # type: ignore[arg-type]
        if (fitted := _fit(option, value)) is not MISSING:
            return fitted
    raise InputError(f"'{where}' must be {' or '.join(map(_describe, options))}, not {value!r}")


def _fit(option: Any, value: Any) -> Any:
    """`value` as `option`, or MISSING. A whole number fits float, and so does "1e-3", which YAML reads as text."""
    origin = get_origin(option)
    if origin is Literal:
        return value if value in get_args(option) and isinstance(value, str) else MISSING
    if origin is list:
        items = [_fit(get_args(option)[0], item) for item in value] if isinstance(value, list) else [MISSING]
        return MISSING if any(item is MISSING for item in items) else items
    if origin is dict:
        return dict(value) if isinstance(value, Mapping) else MISSING
    if option is Any:
        return value
    if option is float and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return MISSING
    if option is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if value == value and abs(value) != float("inf") else MISSING
    if isinstance(value, bool) and option is not bool:
        return MISSING
    return value if isinstance(value, option) else MISSING


def _describe(option: Any) -> str:
    if get_origin(option) is Literal:
        return " or ".join(f"'{choice}'" for choice in get_args(option))
    if get_origin(option) is list:
        return f"a list of {_describe(get_args(option)[0])}s"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
    return names.get(option, "a mapping" if get_origin(option) is dict else "value")


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)
