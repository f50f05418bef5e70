"""The path under which pyvene's folders written by 0.1.0 name `RoadInterchangeIntervention`."""

from road_interp.models.interchange import RoadInterchangeIntervention

__all__ = ["RoadInterchangeIntervention"]
