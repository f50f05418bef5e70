"""The unit circle of one plane before and after its rotation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from road_interp.adapters.road_adapter import RoadAdapter, Source
from road_interp.arguments import is_whole
from road_interp.errors import InputError
from road_interp.plots.style import COLORS, prepared, styled

if TYPE_CHECKING:
    from road_interp.sites.site import Site


@styled
def plane(adapter: Source, ax: Axes | None = None, site: Site | str = "", index: int = 0) -> Axes:
    """The unit circle of one plane (grey) and its image (colour): a circle for road_1, an ellipse for other variants.

    Args:
        adapter: a RoadAdapter, or what `RoadAdapter.of` takes: its folder, a Run or a RoadModel.
        site: of the adapter, or its name; its first site by default.
        index: of the plane.

    Raises:
        InputError: a value without an adapter, no such site, or no such plane of it.
    """
    adapter = RoadAdapter.of(adapter)
    ax = prepared(ax)
    chosen = adapter.site(site or adapter.sites[0])
    maps = adapter.plane_maps(chosen)
    if not is_whole(index) or not 0 <= index < len(maps.a):
        raise InputError(f"site '{chosen.name}' has planes 0 to {len(maps.a) - 1}, not {index!r}")
    before = np.exp(1j * np.linspace(0, 2 * np.pi, 181))
    after = maps.a[index].item() * before
    if maps.b is not None:
        after = after + maps.b[index].item() * before.conj()
    for points, color in ((before, "0.6"), (after, COLORS[0])):
        ax.plot(points.real, points.imag, color=color, linewidth=1)
        style = {"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (points[0].real, points[0].imag), (0, 0), arrowprops=style)
    reach = 1.1 * max(1.0, float(np.abs(after).max()))
    magnitude, polar = adapter.magnitudes(chosen)[index].item(), adapter.polar(chosen)
    turn = "reflection" if polar.reflection[index] else f"{np.degrees(polar.angle[index].item()):+.1f}°"
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_title(f"plane {index}: {turn}, × {magnitude:.3f}")
    return ax
