"""Checks of the arguments of the measuring functions: an error names what was expected, and how to get it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError


class HasAdapter(Protocol):
    """A value with an adapter, such as a Run or a RoadModel."""

    @property
    def adapter(self) -> RoadAdapter: ...


def adapter_of(function: str, value: Any) -> RoadAdapter:
    """An adapter, or that of a value that has one (a Run, a RoadModel). Raises InputError for another value."""
    adapter = value if isinstance(value, RoadAdapter) else getattr(value, "adapter", None)
    if not isinstance(adapter, RoadAdapter):
        raise InputError(
            f"measure.{function} needs a RoadAdapter, a Run or a RoadModel, not {_named(value)}: "
            "load one with RoadAdapter.load(folder) or Run.load(folder)"
        )
    return adapter


def check_argument(function: str, value: object, expected: type | tuple[type, ...], make: str) -> None:
    """Raise InputError unless `value` is of an expected class; `make` says how to get one."""
    if not isinstance(value, expected):
        kinds = expected if isinstance(expected, tuple) else (expected,)
        raise InputError(
            f"measure.{function} needs {' or '.join(kind.__name__ for kind in kinds)}, not {_named(value)}: give {make}"
        )


def check_callable(function: str, name: str, value: object, make: str) -> None:
    """Raise InputError unless `value`, the argument `name`, can be called; `make` says how to get one."""
    if not callable(value):
        raise InputError(f"measure.{function}: '{name}' must be a function, not {_named(value)}: give {make}")


def check_batch(function: str, batch: object) -> None:
    """Raise InputError unless a batch has an attention_mask, such as for a text."""
    if not isinstance(batch, Mapping) or "attention_mask" not in batch:
        raise InputError(
            f"measure.{function} needs batches of token ids with an attention_mask, not {_named(batch)}: "
            "give measure.text_batches(texts, tokenizer, max_length)"
        )


def _named(value: object) -> str:
    return f"{type(value).__name__}"
