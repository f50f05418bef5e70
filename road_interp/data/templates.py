"""Templates of prompts and answers, in which a null of a row is an error where its text would be "None"."""

from __future__ import annotations

from typing import Any

from jinja2 import StrictUndefined, TemplateError, Undefined
from jinja2.sandbox import SandboxedEnvironment


class _Null(Undefined):
    """A null of a row. A template may test and replace it; in a text, also in that of a filter, it would be "None"."""

    __slots__ = ()
    __str__ = __iter__ = __len__ = Undefined._fail_with_undefined_error

    def __init__(self) -> None:
        super().__init__("a value is null: leave the row out, or print something else, as in {{ answer or 'unknown' }}")

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, _Null)

    __hash__ = Undefined.__hash__

    def __repr__(self) -> str:
        return "None"


NULL = _Null()


def with_nulls(value: Any) -> Any:
    """A value of a row with NULL for None, also inside lists and objects."""
    if isinstance(value, list):
        return [*map(with_nulls, value)]
    if isinstance(value, dict):
        return {name: with_nulls(each) for name, each in value.items()}
    return NULL if value is None else value


def _json_of(value: Any) -> None:
    """What Jinja's `tojson` writes for NULL. Raises TypeError for other values without a form in JSON."""
    if value is not NULL:
        raise TypeError(f"{type(value).__name__} has no form in JSON")


# Sandboxed, because a recipe from elsewhere may contain any template.
TEMPLATES = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=with_nulls)
TEMPLATES.tests["none"] = lambda value: value is None or value is NULL
TEMPLATES.policies["json.dumps_kwargs"] = {"sort_keys": True, "default": _json_of}
TEMPLATE_ERRORS = (  # Jinja's, and those of its expressions and filters
    *(TemplateError, TypeError, ValueError, ArithmeticError, LookupError),
    *(AttributeError, AssertionError, RuntimeError),
)
