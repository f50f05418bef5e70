"""The error for invalid input, and the exit of a program after an error."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class InputError(ValueError):
    """An input that cannot be used: the message says what is wrong, where, and what to do.

    The command line and the scripts print it as one line and exit with code 2.
    """


@contextmanager
def exit_on_error(program: str) -> Iterator[None]:
    """Turn InputError into one line and exit code 2, failed or interrupted work into one line and exit code 1."""
    try:
        yield
    except InputError as error:
        fail(program, str(error), 2)
    except KeyboardInterrupt:
        fail(program, "interrupted", 1)
    except (FloatingPointError, OSError) as error:
        fail(program, str(error), 1)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "known are", prefix: str = "") -> str:
    """The end of an error about an unknown name: the nearest known name behind `prefix`, or all of them after `otherwise`."""
    listed = list(known)
    near = difflib.get_close_matches(name, listed, n=1)
    return f"did you mean '{prefix}{near[0]}'?" if near else f"{otherwise} {', '.join(listed)}"


def first_line(error: Exception) -> str:
    """The first line of a library's error message, with the next one behind a colon; the error's name for an empty message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def one_line(error: Exception) -> str:
    """A library's error message on one line, in at most 200 characters; the error's name for an empty message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def shown(value: object) -> str:
    """A value in an error, in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def fail(program: str, message: str, code: int) -> NoReturn:
    """End the process with one line on standard error."""
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
