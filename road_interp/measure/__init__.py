"""Measuring functions: model and data in, frozen results out, each with `to_json` and `from_json`."""

from road_interp.measure.angles import AngleReport, SiteAngles, angles
from road_interp.measure.composition import CompositionReport, SetScore, composition
from road_interp.measure.strength import StrengthReport, strength

__all__ = [
    "AngleReport",
    "CompositionReport",
    "SetScore",
    "SiteAngles",
    "StrengthReport",
    "angles",
    "composition",
    "strength",
]
