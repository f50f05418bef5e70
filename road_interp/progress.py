"""How measuring functions say what they do next, and how a terminal shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Called before each piece of work.

    Args:
        what: the piece that comes next.
        done: pieces that are finished.
        total: how many there are; None where that is not known.
    """

    def __call__(self, what: str, done: int = 0, total: int | None = None) -> None: ...


def silent(what: str, done: int = 0, total: int | None = None) -> None:
    """Say nothing."""


@contextmanager
def progress_bar(shown: bool = True) -> Iterator[Progress]:
    """A bar on standard error for as long as the block lasts."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), disable=not shown, transient=True) as bars:
        line = bars.add_task("", total=None)

        def update(what: str, done: int = 0, total: int | None = None) -> None:
            bars.update(line, description=what, completed=done, total=total)

        yield update
