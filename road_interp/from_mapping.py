"""Frozen dataclasses (recipes, results) from YAML or JSON, with every key and type checked."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from math import isfinite
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from road_interp.errors import InputError, did_you_mean, shown

Built = TypeVar("Built")


class FieldError(InputError):
    """A value that a dataclass rejects. `from_mapping` prefixes the field with the path of the dataclass in the file.

    Args:
        field: name of the field.
        reason: what is wrong, such as "must be positive, not -1".
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"'{field}' {reason}")
        self.field, self.reason = field, reason


def from_mapping(cls: type[Built], content: Any, key_path: str = "", finite: bool = True) -> Built:
    """An instance of a dataclass from a mapping.

    Args:
        key_path: path of the mapping in its file, such as "tasks.label"; the prefix of every key in an error.
        finite: whether infinite numbers and NaN are errors.

    Raises:
        InputError: an unknown key (the message names the closest one), a missing key, or a value of the wrong type or range.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"{key_path or 'the content'} must be a mapping, not {shown(content)}")
    hints, known = type_hints(cls), {field.name: field for field in fields(cls) if field.init}  # type: ignore[arg-type]
    for key in content:
        if key not in known:
            inner = [
                f"'{_join(key_path, f'{name}.{key}')}'"
                for name, hint in hints.items()
                if is_dataclass(hint) and key in {field.name for field in fields(hint) if field.init}
            ]
            hint = f"did you mean {' or '.join(inner)}?" if inner else did_you_mean(str(key), known, prefix=_join(key_path, ""))
            raise InputError(f"unknown key '{_join(key_path, key)}'; {hint}")
    for name, field in known.items():
        if field.default is MISSING and field.default_factory is MISSING and name not in content:
            raise InputError(f"'{_join(key_path, name)}' is missing")
    values = {key: _value(hints[key], value, _join(key_path, key), finite) for key, value in content.items()}
    try:
        return cls(**values)
    except FieldError as error:
        raise InputError(f"'{_join(key_path, error.field)}' {error.reason}") from None
    except InputError as error:
        raise InputError(f"{key_path}: {error}" if key_path else str(error)) from None


@cache
def type_hints(cls: type) -> Mapping[str, Any]:
    """The types of a dataclass's fields, which are evaluated once."""
    return get_type_hints(cls)


def _value(hint: Any, value: Any, key_path: str, finite: bool) -> Any:
    """`value` converted to the type hint. Raises InputError that names the innermost invalid key."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if is_dataclass(option) and value is not None:
            return from_mapping(option, value, key_path, finite)  # type: ignore[arg-type]
        if get_origin(option) in (list, tuple) and isinstance(value, list):
            return _sequence(option, value, key_path, finite)
        if option == tuple[bool, ...] and isinstance(value, str) and not value.strip("01"):
            return tuple(bit == "1" for bit in value)
        if isinstance(value, Mapping) and (option is dict or get_origin(option) in (dict, Mapping)):
            inner = (get_args(option) or (str, Any))[1]
            return {str(key): _value(inner, each, _join(key_path, key), finite) for key, each in value.items()}
    for option in options:
        if (scalar := _scalar(option, value, finite)) is not MISSING:
            return scalar
    raise InputError(f"'{key_path}' must be {' or '.join(map(_describe, options))}, not {shown(value)}")


def _sequence(hint: Any, values: list[Any], key_path: str, finite: bool) -> Any:
    kinds = get_args(hint)
    if get_origin(hint) is list:
        return [_value(kinds[0], each, f"{key_path}[{index}]", finite) for index, each in enumerate(values)]
    kinds = (kinds[0],) * len(values) if kinds[-1:] == (Ellipsis,) else kinds
    if len(kinds) != len(values):
        raise InputError(f"'{key_path}' must be a list of {len(kinds)} values, not of {len(values)}")
    if set(kinds) == {float} and all(type(each) is float and (isfinite(each) or not finite) for each in values):
        return tuple(values)  # shortcut with the same result
    return tuple(
        _value(kind, each, f"{key_path}[{index}]", finite) for index, (kind, each) in enumerate(zip(kinds, values, strict=True))
    )


def _scalar(option: Any, value: Any, finite: bool) -> Any:
    """`value` as `option`, or MISSING. A float may be an integer, or text such as "1e-3", which YAML reads as text."""
    if get_origin(option) is Literal:
        return value if value in get_args(option) and isinstance(value, str) else MISSING
    if option is Any:
        return value
    if option is float and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return MISSING
    if option is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an integer beyond the range of floats
            return MISSING
        return number if isfinite(number) or not finite else MISSING
    if isinstance(value, bool) and option is not bool:
        return MISSING
    is_class = isinstance(option, type) and get_origin(option) is None  # list[int] is a type in Python 3.10
    return value if is_class and isinstance(value, option) else MISSING


def _describe(option: Any) -> str:
    if get_origin(option) is Literal:
        return " or ".join(f"'{choice}'" for choice in get_args(option))
    if get_origin(option) in (list, tuple):
        return f"a list of {_describe(get_args(option)[0])}s"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
    mapping = option is dict or get_origin(option) in (dict, Mapping) or is_dataclass(option)
    return names.get(option, "a mapping" if mapping else "value")


def _join(key_path: str, key: Any) -> str:
    return f"{key_path}.{key}" if key_path else str(key)
