"""Panels that share an axis, as those of `plt.subplots(1, 2, sharey=True)`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.projections.polar import PolarAxes
from matplotlib.ticker import FixedLocator

from road_interp.errors import InputError

NUMBER = re.compile(r"[-+\u2212\d.,]+(e[-+]\d+)?")


@dataclass(frozen=True)
class _SharedAxis:
    """The x or the y axis of a panel."""

    ax: Axes
    letter: str

    @property
    def axis(self) -> Axis:
        return self.ax.xaxis if self.letter == "x" else self.ax.yaxis

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call the method of the axes for this axis, such as `set_xlim` for "set_{}lim"."""
        return getattr(self.ax, method.format(self.letter))(*arguments, **options)

    def is_shared(self) -> bool:
        """Whether other panels with data share the axis."""
        panels = self.call("get_shared_{}_axes").get_siblings(self.ax)
        return any(each is not self.ax and each.has_data() for each in panels)

    def names(self) -> dict[float, str]:
        """The names that were given to places on the axis; empty for an axis of numbers."""
        if not isinstance(self.axis.get_major_locator(), FixedLocator):
            return {}
        places = self.axis.get_majorticklocs().tolist()
        names = self.axis.get_major_formatter().format_ticks(places)
        return {place: " ".join(name.split()) for place, name in zip(places, names, strict=True)}

    def widen(self, limits: tuple[float, float]) -> None:
        """Widen the limits of the axis by those that it had before."""
        ends = [end for end in (*limits, *self.call("get_{}lim")) if end > 0 or self.axis.get_scale() != "log"]
        low, high = (max(ends), min(ends)) if self.axis.get_inverted() else (min(ends), max(ends))
        self.call("set_{}lim", low, high, auto=None)


@contextmanager
def others_kept(function: str, ax: Axes | None) -> Iterator[None]:
    """Draw into `ax` so that the panels which share an axis with it keep their data in view and their names of rows.

    Raises InputError where the drawing has other names than the panels before.
    """
    letters = "y" if isinstance(ax, PolarAxes) else "xy"  # every panel has a range of angles of its own
    axes = [] if ax is None else [_SharedAxis(ax, letter) for letter in letters]
    before = [(shared, shared.call("get_{}lim"), shared.names()) for shared in axes if shared.is_shared()]
    for shared, _, names in before:
        shared.call("set_autoscale{}_on", True)  # the first panel may have set the limits for all
        if names and all(map(NUMBER.fullmatch, names.values())):
            shared.call(
                "set_{}scale", shared.axis.get_scale()
            )  # and have left out numbers that overlap: ticks are automatic again
    yield
    for shared, limits, names in before:
        shared.widen(limits)
        now = shared.names()
        for place, name in names.items():
            if now.get(place, name if NUMBER.fullmatch(name) else None) != name:
                raise InputError(
                    f"plots.{function}: another panel shares this {shared.letter} axis and has '{name}' in the place of "
                    f"'{now.get(place, '')}': make the panels with share{shared.letter}=False"
                )
