"""Measuring functions: model and data in, frozen results out, each with `to_json` and `from_json`."""

from road_interp.data.questions import Question
from road_interp.measure.ablation import Ablation, AblationReport, ablation
from road_interp.measure.angles import AngleReport, SiteAngles, angles
from road_interp.measure.capacity import CapacityPoint, CapacityReport
from road_interp.measure.composition import CompositionReport, SetScore, composition
from road_interp.measure.diagnose import Check, Diagnosis, fails_to_compose, hurts_others, needs_magnitudes
from road_interp.measure.disentangle import DisentangleReport, Features, disentangle, read_features
from road_interp.measure.drift import DriftReport, DriftStudy, PlaceDrift, drift, text_batches
from road_interp.measure.exact_match import MatchReport, matches
from road_interp.measure.interference import InterferenceReport, interference
from road_interp.measure.strength import StrengthReport, strength
from road_interp.measure.structure import QueryKey, SeedStructure, query_key, seed_structure

__all__ = [
    "Ablation",
    "AblationReport",
    "AngleReport",
    "CapacityPoint",
    "CapacityReport",
    "Check",
    "CompositionReport",
    "Diagnosis",
    "DisentangleReport",
    "DriftReport",
    "DriftStudy",
    "Features",
    "InterferenceReport",
    "MatchReport",
    "PlaceDrift",
    "QueryKey",
    "Question",
    "SeedStructure",
    "SetScore",
    "SiteAngles",
    "StrengthReport",
    "ablation",
    "angles",
    "composition",
    "disentangle",
    "drift",
    "fails_to_compose",
    "hurts_others",
    "interference",
    "matches",
    "needs_magnitudes",
    "query_key",
    "read_features",
    "seed_structure",
    "strength",
    "text_batches",
]
