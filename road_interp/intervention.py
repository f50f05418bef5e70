"""The path under which pyvene's folders written by 0.1.0 name `RoadIntervention`."""

from road_interp.models.intervention import RoadIntervention

__all__ = ["RoadIntervention"]
