"""Drawing: a result in, matplotlib Axes out. Nothing here measures, shows or saves."""

from road_interp.plots.angles import angles, magnitudes, planes
from road_interp.plots.interchange import interchange_scan
from road_interp.plots.style import STYLE
from road_interp.plots.tasks import composition, heads, strength
from road_interp.plots.throughput import throughput

__all__ = ["STYLE", "angles", "composition", "heads", "interchange_scan", "magnitudes", "planes", "strength", "throughput"]
