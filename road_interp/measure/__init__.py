"""Measuring functions, which return frozen values; reports have `to_json` and `from_json`."""

from typing import Any

from road_interp.data.answer_extraction import Question
from road_interp.data.batches import text_batches
from road_interp.measure.ablation import Ablation, AblationReport, ablation
from road_interp.measure.angles import AngleReport, SiteAngles, angles
from road_interp.measure.bank_cost import BankCostReport, bank_cost
from road_interp.measure.capacity import CapacityPoint, CapacityReport
from road_interp.measure.composition import CompositionReport, SetScore, composition
from road_interp.measure.diagnose import Check, Diagnosis, fails_to_compose, hurts_others, needs_magnitudes
from road_interp.measure.disentangle import DisentangleReport, disentangle
from road_interp.measure.drift import DriftReport, DriftStudy, ReadPointDrift, drift
from road_interp.measure.engine_cost import EngineCostReport
from road_interp.measure.exact_match import ExactMatchReport, exact_match
from road_interp.measure.frozen_states import Features, read_features
from road_interp.measure.interference import InterferenceReport, interference
from road_interp.measure.joint_training import JointTraining, JointTrainingReport, joint_training
from road_interp.measure.labels import MethodLabel
from road_interp.measure.multitask_accuracy import MultiTaskAccuracyReport, MultiTaskAccuracyStudy
from road_interp.measure.parameter_share import MethodOutcomes, ParameterShareReport
from road_interp.measure.strength import StrengthReport, strength
from road_interp.measure.structure import QueryKey, SeedStructure, query_key, seed_structure
from road_interp.measure.throughput import ThroughputReport, Timing, throughput

__all__ = [
    "Ablation",
    "AblationReport",
    "AngleReport",
    "BankCostReport",
    "CapacityPoint",
    "CapacityReport",
    "Check",
    "CompositionReport",
    "Diagnosis",
    "DisentangleReport",
    "DriftReport",
    "DriftStudy",
    "EngineCostReport",
    "ExactMatchReport",
    "Features",
    "InterferenceReport",
    "JointTraining",
    "JointTrainingReport",
    "MethodLabel",
    "MethodOutcomes",
    "MultiTaskAccuracyReport",
    "MultiTaskAccuracyStudy",
    "ParameterShareReport",
    "QueryKey",
    "Question",
    "ReadPointDrift",
    "SeedStructure",
    "SetScore",
    "SiteAngles",
    "StrengthReport",
    "ThroughputReport",
    "Timing",
    "ablation",
    "angles",
    "bank_cost",
    "composition",
    "disentangle",
    "drift",
    "exact_match",
    "fails_to_compose",
    "hurts_others",
    "interference",
    "joint_training",
    "needs_magnitudes",
    "query_key",
    "read_features",
    "seed_structure",
    "strength",
    "text_batches",
    "throughput",
]
_NAMES_OF_0_1_0 = {"MatchReport": "ExactMatchReport", "PlaceDrift": "ReadPointDrift", "matches": "exact_match"}


def __getattr__(name: str) -> Any:
    if name in _NAMES_OF_0_1_0:
        return globals()[_NAMES_OF_0_1_0[name]]
    raise AttributeError(f"module 'road_interp.measure' has no attribute '{name}'")


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted(__all__)
