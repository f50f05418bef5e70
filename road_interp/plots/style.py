"""The style shared by all figures."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import resources
from typing import Any

import matplotlib.pyplot as plt
from matplotlib import rc_params_from_file
from matplotlib.axes import Axes

STYLE = str(resources.files("road_interp.plots") / "road.mplstyle")
# Read from the style: "C0" would be resolved when a notebook shows the figure, outside the style.
COLORS: list[str] = rc_params_from_file(STYLE, use_default_template=False)["axes.prop_cycle"].by_key()["color"]


def styled(draw: Callable[..., Axes]) -> Callable[..., Axes]:
    """Draw in the style of the package, on new axes where none are given."""

    @wraps(draw)
    def drawn(result: Any, ax: Axes | None = None, **options: Any) -> Axes:
        with plt.style.context(STYLE):
            if ax is None:
                ax = plt.figure(layout="constrained").add_subplot()
            return draw(result, ax, **options)

    return drawn
