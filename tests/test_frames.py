"""Results as pandas DataFrames."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

from helpers.compositions import composition_report
from helpers.models import random_adapter, tiny_model
from road_interp import causal, measure
from road_interp.causal.accuracy import InterchangeReport
from road_interp.causal.controls import ControlReport
from road_interp.causal.cost import CostReport, MethodCost
from road_interp.causal.depth_sweep import DepthReport
from road_interp.causal.layer_scan import ScanReport
from road_interp.causal.variables import VariableScore, VariablesReport
from road_interp.causal.variables_comparison import VariablesComparison
from road_interp.data.answer_extraction import Question
from road_interp.errors import InputError
from road_interp.measure.disentangle import CONSTANT, Outcome
from road_interp.measure.joint_training import JointTraining, JointTrainingReport
from road_interp.measure.multitask_accuracy import MultiTaskAccuracyReport, MultiTaskAccuracyStudy
from road_interp.measure.parameter_share import MethodOutcomes, ParameterShareReport
from road_interp.measure.two_layer_classifier import ARMS
from road_interp.results import Result
from road_interp.sites.find import find_sites

SWAP = InterchangeReport("t", "s", "span", "swap", 4, 2, 0.5, (0.25, 0.75), 0.5, 1.0, (0.0, 2.0), (True, False))
VARIABLES = VariablesReport(
    "t", "s", "swap", 1, 4, 0, 0.1, None, 2, (VariableScore("x", 0.5, 1.0, 4, 8),), 0.75, (0.5, 1.0), (True,)
)
HEADS = MultiTaskAccuracyReport("m", "joint", ("a", "b"), (0,), {"a": {"a": (True, False), "a+b": (True, True)}})
OUTCOMES = MethodOutcomes("m", "t", "road", 0, 0.1, 4, 0.5, 0.9, (True, False))
PLACE = measure.ReadPointDrift(
    3, False, False, (0.1, 0.0, 0.2), (0.1, 0.0, 0.2), (0.9, 0.8, 1.0), (9.0, 8.0, 10.0), None, ((0.9, 0.1),)
)
DRIFT = measure.DriftReport("before", "after", "first", 1, 1, (PLACE,))
QUESTIONS = {"a": (Question("p", "1"), Question("q", "2"))}
ADAPTER = random_adapter(find_sites(tiny_model("Bert"), "all-linear"))
ANGLES = measure.angles(ADAPTER)
OUTCOME_OF = {name: Outcome(name, 2, (0.0, 1.0), ()) for name in (*ARMS, CONSTANT)}
ABLATION = measure.AblationReport(
    "m",
    "t",
    "road_1",
    (0,),
    tuple(measure.Ablation("components", "all planes", each, (True, False)) for each in ("both", "neither")),
)
RESULTS = [
    ABLATION,
    ANGLES,
    composition_report(),
    measure.InterferenceReport("m", ("a", "b"), (0,), (), (), {"a": {"nothing": (True, True), "b": (True, False)}}),
    HEADS,
    MultiTaskAccuracyStudy((HEADS,), {"a": HEADS}),
    measure.Diagnosis((measure.Check("hurts?", "no", "margin", {"lost": (0.0, -0.1, 0.1)}),)),
    measure.DisentangleReport("m", "t", "accuracy", (0,), (0.0, 1.0), tuple(OUTCOME_OF.values())),
    DRIFT,
    measure.DriftStudy((DRIFT, DRIFT), ({}, {})),
    measure.ExactMatchReport("m", "joint", 0, QUESTIONS, {"a": {"a": ("1", "0")}}, {"a": {"a": (True, False)}}),
    measure.StrengthReport("m", "t", (0.0, 1.0), ((False, False), (True, True)), (2.0, 3.0)),
    measure.SeedStructure(2, (0.5, 0.4, 0.6), (0.5, 0.4, 0.6), (0.5, 0.4, 0.6), (0.5, 0.4, 0.6), None),
    measure.query_key(ANGLES),
    ParameterShareReport({"one": (OUTCOMES, replace(OUTCOMES, seed=1))}),
    OUTCOMES,
    JointTrainingReport("m", "cpu", 1, 2, 4, (JointTraining(2, (1.0, 3.0), (2.0, 4.0), 8, 8),)),
    SWAP,
    ScanReport("t", "swap", (0, 1), ("x",), ((0.5,), (1.0,)), ((0.0,), (2.0,))),
    ControlReport(0, 2, (SWAP, replace(SWAP, method="other")), (), {"swap": 0.1}, {}),
    CostReport(8, 2, "cpu", 1, (MethodCost("swap", 4, 4, (1.0, 2.0, 4.0)),)),
    DepthReport((0,), (1, 2), (1,), (((SWAP,), (SWAP,)),)),
    VARIABLES,
    VariablesComparison("m", "t", ("x",), 0, 1, 2, 0, (1, 1, 1), (1, 1, 1), (), (), (), (), (VARIABLES, VARIABLES)),
]
ROWS = {
    "AblationReport": 2,
    "AngleReport": 12,
    "CompositionReport": 4,
    "InterferenceReport": 2,
    "MultiTaskAccuracyReport": 2,
    "MultiTaskAccuracyStudy": 4,
    "DisentangleReport": 5,
    "DriftStudy": 2,
    "StrengthReport": 2,
    "SeedStructure": 5,
    "QueryKey": 32,
    "ScanReport": 2,
    "ControlReport": 2,
    "DepthReport": 2,
    "VariablesComparison": 2,
}  # of the others: 1


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_a_result_has_a_row_per_thing_measured_and_a_scalar_per_cell(result):
    frame = result.to_frame()
    assert len(frame) == ROWS.get(type(result).__name__, 1)
    assert len(frame.columns) > 2
    assert all(each is None or np.isscalar(each) for each in frame.to_numpy().ravel())


def test_every_kind_of_result_has_numbers_in_its_table():
    for room in (measure, causal):
        for module in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
            importlib.import_module(module.name)
    without = {
        "BankCostReport",
        "CapacityReport",
        "EngineCostReport",
        "SizeReport",
        "TaskScores",
        "ThroughputReport",
        "AngleStudy",
    }
    kinds = {
        kind.__name__
        for kind in Result.__subclasses__()
        if kind.__module__.startswith(("road_interp.measure", "road_interp.causal"))
    }
    assert kinds - without == {type(result).__name__ for result in RESULTS}


def test_a_site_has_its_statistics_and_a_value_its_interval():
    site = ANGLES.to_frame().iloc[3]
    assert site["name"] == ANGLES.sites[3].name
    assert site["mean |angle|"] == pytest.approx(np.degrees(np.abs(ANGLES.sites[3].angle).mean()))
    row = DRIFT.to_frame().iloc[0]
    assert (row["dM"], row["dM_low"], row["dM_high"]) == (0.1, 0.0, 0.2)
    assert row["over_null"] == DRIFT.places[0].over_null[0]
    assert row["over_turn_high"] == DRIFT.places[0].over_turn[2]
    assert "points" not in row
    assert ABLATION.to_frame()["accuracy"].tolist() == [0.5, 0.5]
    lost = RESULTS[3].to_frame().set_index("composed_with")["cost"]
    assert (lost["nothing"], lost["b"]) == (0, 0.5)


@dataclass(frozen=True)
class Nested(Result):
    """A result that holds another."""

    inner: InterchangeReport
    optional: float | None


def test_a_result_in_a_result_gives_columns_with_its_name():
    row = Nested(SWAP, None).to_frame().iloc[0]
    assert (row["inner_accuracy"], row["inner_log_odds_interval_high"]) == (0.5, 2.0)
    assert row["optional"] is None


def test_frames_of_several_results_can_be_joined():
    joined = pd.concat([ANGLES.to_frame(), ANGLES.to_frame()], keys=[0, 1], names=["seed"])
    assert joined.groupby("kind")["max |angle|"].mean().size == len(ANGLES.kinds)


def test_without_pandas_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="pip install pandas"):
        ANGLES.to_frame()
