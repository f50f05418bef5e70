"""Checks of the arguments of the measuring functions: an error names what was expected, and how to get it."""

from __future__ import annotations

from collections.abc import Mapping

from road_interp.errors import InputError


def check_argument(function: str, value: object, expected: type | tuple[type, ...], make: str) -> None:
    """Raise InputError unless `value` is of an expected class; `make` says how to get one."""
    if not isinstance(value, expected):
        kinds = expected if isinstance(expected, tuple) else (expected,)
        raise InputError(
            f"measure.{function} needs {' or '.join(kind.__name__ for kind in kinds)}, not {type(value).__name__}: give {make}"
        )


def check_callable(function: str, name: str, value: object, make: str) -> None:
    """Raise InputError unless `value`, the argument `name`, can be called; `make` says how to get one."""
    if not callable(value):
        raise InputError(f"measure.{function}: '{name}' must be a function, not {type(value).__name__}: give {make}")


def check_batch(function: str, batch: object) -> None:
    """Raise InputError unless a batch has an attention_mask, such as for a text."""
    if not isinstance(batch, Mapping) or "attention_mask" not in batch:
        raise InputError(
            f"measure.{function} needs batches of token ids with an attention_mask, not {type(batch).__name__}: "
            "give measure.text_batches(texts, tokenizer, max_length)"
        )
