"""Structure in learned angles: agreement between seeds, and between query and key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from road_interp.errors import InputError
from road_interp.plots.style import error_bars, prepared, styled

if TYPE_CHECKING:
    from road_interp.measure import QueryKey, SeedStructure

LABELS = {
    "sites": "mean |angle| of a site",
    "planes": "|angle| of a plane",
    "planes_within_sites": "|angle| of a plane within its site",
    "signed": "signed angle of a plane",
    "magnitudes": "log magnitude of a plane",
}


@styled
def seed_structure(result: SeedStructure, ax: Axes | None = None) -> Axes:
    """Correlation of each quantity of an adapter with that of another seed, with 95% intervals over sites.

    A quantity that does not vary has no correlation and is left out.
    """
    found = {label: getattr(result, name) for name, label in LABELS.items() if getattr(result, name) is not None}
    if not found:
        raise InputError("plots.seed_structure: no quantity of these adapters varies, so that there is no correlation to draw")
    ax = prepared(ax)
    middle, low, high = np.array(list(found.values())).T
    ax.axvline(0, color="0.7", linewidth=0.8, linestyle=":")
    ax.errorbar(middle, range(len(found)), xerr=error_bars(middle, low, high), fmt="o", markersize=4, capsize=2)
    ax.set_yticks(range(len(found)), list(found))
    ax.yaxis.set_inverted(True)
    ax.set(xlabel="correlation between seeds", xlim=(min(-0.1, low.min() - 0.05), 1.05))
    ax.set_title(f"Agreement between {result.seeds} seeds")
    return ax


@styled
def query_key(result: QueryKey, ax: Axes | None = None) -> Axes:
    """Angle of every key plane by the angle of its query plane, in degrees, coloured by layer. Dashed: opposite angles."""
    ax = prepared(ax)
    query, key = (np.degrees(np.concatenate(each)) for each in (result.query_angles, result.key_angles))
    count = len(result.layers)
    layers = np.repeat(range(count), [len(planes) for planes in result.query_angles])
    end = 1.05 * max(1.0, np.abs([query, key]).max())
    ax.plot([-end, end], [end, -end], color="0.6", linewidth=0.8, linestyle="--", label=r"$\theta_k = -\theta_q$", zorder=0)
    shades = plt.get_cmap(lut=count)
    points = ax.scatter(query, key, s=5, c=layers, cmap=shades, vmin=-0.5, vmax=count - 0.5, linewidths=0, rasterized=True)
    bar = ax.figure.colorbar(points, ax=ax, label="layer")
    step = 1 if count <= 16 else 4
    bar.set_ticks(range(0, count, step), labels=[str(layer) for layer in result.layers[::step]])
    ax.set(xlim=(-end, end), ylim=(-end, end), aspect="equal")
    ax.set(xlabel=f"angle of a plane of {result.query} (degrees)", ylabel=f"angle of a plane of {result.key} (degrees)")
    correlation = result.correlations()["angles"]
    ax.set_title("Query and key" + ("" if correlation is None else f": correlation {correlation:.3f}"))
    ax.legend()
    return ax
