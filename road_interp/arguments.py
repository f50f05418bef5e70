"""Checks of the arguments of public functions: an error names what was expected, and how to get it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, TypeGuard, TypeVar

from road_interp.errors import InputError

Value = TypeVar("Value")


def check_argument(function: str, value: object, expected: type | tuple[type, ...], make: str) -> None:
    """Raise InputError unless `value` is of an expected class.

    Args:
        function: the public name of the function, such as "measure.drift".
        make: says how to get such a value.
    """
    if not isinstance(value, expected):
        kinds = expected if isinstance(expected, tuple) else (expected,)
        names = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"{function} needs {names}, not {type(value).__name__}: give {make}")


def checked_list(function: str, values: object, expected: type[Value], make: str) -> list[Value]:
    """The values as a list. Raises InputError unless all are of the expected class; a text is no list of texts."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"{function} needs a list of {expected.__name__}, not {type(values).__name__}: give {make}")
    for value in (listed := list(values)):
        check_argument(function, value, expected, make)
    return listed


def checked_reports(kind: type[Value], reports: object) -> list[Value]:
    """The reports that `kind.over_seeds` combines. Raises InputError unless there are some, all of that class."""
    listed = checked_list(f"{kind.__name__}.over_seeds", reports, kind, "reports of several seeds")
    if not listed:
        raise InputError(f"{kind.__name__}.over_seeds needs one report at least")
    return listed


def check_callable(function: str, name: str, value: object, make: str) -> None:
    """Raise InputError unless `value`, the argument `name`, can be called; `make` says how to get one."""
    if not callable(value):
        raise InputError(f"{function}: '{name}' must be a function, not {type(value).__name__}: give {make}")


def is_whole(value: object) -> TypeGuard[int]:
    """Whether `value` is a whole number, also one of NumPy."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_count(function: str, name: str, value: object) -> None:
    """Raise InputError unless `value`, the argument `name`, is a whole number of at least 1."""
    if not is_whole(value) or value < 1:
        raise InputError(f"{function}: {name} must be a whole number of at least 1, not {value!r}")


def check_positive(function: str, name: str, value: Any) -> None:
    """Raise InputError unless `value`, the argument `name`, a number or a tensor of one, is above 0."""
    try:
        is_positive = bool(value > 0)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{function}: {name} must be a number above 0, not {value!r}") from None
    if not is_positive:
        raise InputError(f"{function}: {name} must be above 0, not {float(value):g}")


def check_not_negative(function: str, name: str, value: Any) -> None:
    """Raise InputError unless `value`, the argument `name`, is a finite number of at least 0."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < math.inf:
        raise InputError(f"{function}: {name} must be a finite number of at least 0, not {value!r}")


def lone_surrogate(text: str) -> str:
    """The first surrogate in a text, half of a character that no tokeniser reads, written as in JSON; empty without one."""
    return next((f"\\u{ord(letter):x}" for letter in text if "\ud800" <= letter <= "\udfff"), "")
