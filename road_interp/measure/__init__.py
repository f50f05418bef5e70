"""Measuring functions: model and data in, frozen results out, each with `to_json` and `from_json`."""

from road_interp.measure.angles import AngleReport, SiteAngles, angles
from road_interp.measure.composition import CompositionReport, SetScore, composition

__all__ = ["AngleReport", "CompositionReport", "SetScore", "SiteAngles", "angles", "composition"]
