"""Measuring functions: model and data in, frozen results out, each with `to_json` and `from_json`."""

from road_interp.measure.angles import AngleReport, SiteAngles, angles

__all__ = ["AngleReport", "SiteAngles", "angles"]
