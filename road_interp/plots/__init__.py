"""Drawing: a result in, matplotlib Axes out. Nothing here measures, shows or saves."""

from road_interp.plots.ablation import ablation, ablation_by, ablation_curve
from road_interp.plots.angles import angle_histogram, angles, magnitudes, planes, shares
from road_interp.plots.capacity import capacity
from road_interp.plots.disentangle import disentangle
from road_interp.plots.drift import drift_blocks, drift_grid, drift_scatter
from road_interp.plots.interchange import interchange_depth, interchange_scan
from road_interp.plots.interference import interference
from road_interp.plots.multitask import composition, heads, strength
from road_interp.plots.plane import plane
from road_interp.plots.structure import query_key, seed_structure
from road_interp.plots.style import STYLE
from road_interp.plots.throughput import throughput

__all__ = [
    "STYLE",
    "ablation",
    "ablation_by",
    "ablation_curve",
    "angle_histogram",
    "angles",
    "capacity",
    "composition",
    "disentangle",
    "drift_blocks",
    "drift_grid",
    "drift_scatter",
    "heads",
    "interchange_depth",
    "interchange_scan",
    "interference",
    "magnitudes",
    "plane",
    "planes",
    "query_key",
    "seed_structure",
    "shares",
    "strength",
    "throughput",
]
