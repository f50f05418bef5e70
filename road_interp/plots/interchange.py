"""Interchange accuracy by place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from road_interp.plots.style import styled

if TYPE_CHECKING:
    from road_interp.causal import ScanReport


@styled
def interchange_scan(report: ScanReport, ax: Axes) -> Axes:
    """Interchange accuracy by layer and span: where exchanging the state exchanges the answer."""
    cells = np.array(report.accuracy).T
    image = ax.imshow(cells, aspect="auto", vmin=0, vmax=1)
    step = 1 if len(report.layers) <= 16 else 4
    ax.set_xticks(range(0, len(report.layers), step), [str(layer) for layer in report.layers[::step]])
    ax.set_yticks(range(len(report.spans)), report.spans)
    ax.set(xlabel="output of block", title=f"{report.task}: {report.method}")
    ax.spines[:].set_visible(False)
    ax.figure.colorbar(image, ax=ax, label="interchange accuracy")
    return ax
