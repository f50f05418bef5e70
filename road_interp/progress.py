"""Progress of long functions: the callback that they call, and the bar of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Progress(Protocol):
    """Called before each step of the work.

    Args:
        what: name of the next step.
        done: number of finished steps.
        total: number of steps; None where it is not known.
    """

    def __call__(self, what: str, done: int = 0, total: int | None = None) -> None: ...


def silent(what: str, done: int = 0, total: int | None = None) -> None:
    """Report nothing."""


def prefixed(progress: Progress, name: str) -> Progress:
    """Progress whose steps begin with a name: "NAME, STEP"."""
    return lambda what, done=0, total=None: progress(f"{name}, {what}", done, total)


@contextmanager
def progress_bar(shown: bool = True) -> Iterator[Progress]:
    """A progress bar on standard error; in a log, the name of every new step on a line."""
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TextColumn

    console = Console(stderr=True, markup=False, emoji=False)
    if not console.is_terminal:
        yield _log_steps(console) if shown else silent
        return
    _, *numbers = Bars.get_default_columns()
    step = TextColumn("{task.description}", style="progress.description", markup=False)
    with Bars(step, *numbers, console=console, disable=not shown, transient=True) as bars:
        line = bars.add_task("", total=None)

        def update(what: str, done: int = 0, total: int | None = None) -> None:
            bars.update(line, description=what, completed=done, total=total)

        yield update


@contextmanager
def waiting(what: str, shown: bool = True) -> Iterator[None]:
    """Name what is done inside the `with` statement on a terminal; a log says nothing, as it takes seconds only."""
    from rich.console import Console

    console = Console(stderr=True)
    with progress_bar(shown and console.is_terminal) as update:
        update(what)
        yield


@contextmanager
def library_bars(shown: bool) -> Iterator[None]:
    """Without `shown`, hide the progress bars of transformers and datasets inside the `with` statement."""
    import datasets
    from transformers.utils import logging

    switches = (
        (logging.is_progress_bar_enabled(), logging.disable_progress_bar, logging.enable_progress_bar),
        (not datasets.are_progress_bars_disabled(), datasets.disable_progress_bars, datasets.enable_progress_bars),
    )
    with ExitStack() as undo:
        for is_on, hide, show in switches:
            if is_on and not shown:
                hide()
                undo.callback(show)
        yield


def _log_steps(console: Console) -> Progress:
    last = ""

    def update(what: str, done: int = 0, total: int | None = None) -> None:
        nonlocal last
        if what != last:
            console.print(what, soft_wrap=True, highlight=False)
        last = what

    return update
