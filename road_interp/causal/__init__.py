"""Interchange interventions on counterfactual pairs: pairs, training, accuracy, controls, depth and cost.

Names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from road_interp.lazy import lazy_names

if TYPE_CHECKING:
    from road_interp.causal.accuracy import InterchangeReport, interchange_accuracy
    from road_interp.causal.answered_questions import answered_rightly
    from road_interp.causal.bases import Columns, Neurons, PlaneRotations
    from road_interp.causal.boundless_interchange import BoundlessInterchange
    from road_interp.causal.controls import ControlReport
    from road_interp.causal.cost import CostReport
    from road_interp.causal.counterfactuals import CounterfactualPairs, Pair, Splits, encode_pairs, read_pairs
    from road_interp.causal.depth_sweep import DepthReport, depth_by_rows
    from road_interp.causal.entity_task import EntityTask, VariablePairs, draw_variable_pairs, load_ravel
    from road_interp.causal.interchange_runs import InterchangeRuns, full_swap, no_swap
    from road_interp.causal.layer_scan import ScanReport, scan
    from road_interp.causal.masked_interchange import MaskedInterchange
    from road_interp.causal.method_scores import TaskScores, score_methods
    from road_interp.causal.noun_task import number_and_gender
    from road_interp.causal.template_pairs import load_pairs
    from road_interp.causal.training import train_interchange
    from road_interp.causal.variable_methods import SeparateInterchanges, no_variable, whole_state
    from road_interp.causal.variables import VariableRuns, VariablesReport, measure_variables, train_variables
    from road_interp.causal.variables_comparison import TrainedInterchange, VariablesComparison, compare_variables, try_methods

_LAZY_IMPORTS = {
    "InterchangeReport": "accuracy",
    "ScanReport": "layer_scan",
    "interchange_accuracy": "accuracy",
    "scan": "layer_scan",
    "answered_rightly": "answered_questions",
    "Columns": "bases",
    "Neurons": "bases",
    "PlaneRotations": "bases",
    "BoundlessInterchange": "boundless_interchange",
    "ControlReport": "controls",
    "CostReport": "cost",
    "CounterfactualPairs": "counterfactuals",
    "Pair": "counterfactuals",
    "Splits": "counterfactuals",
    "encode_pairs": "counterfactuals",
    "read_pairs": "counterfactuals",
    "DepthReport": "depth_sweep",
    "depth_by_rows": "depth_sweep",
    "EntityTask": "entity_task",
    "VariablePairs": "entity_task",
    "draw_variable_pairs": "entity_task",
    "load_ravel": "entity_task",
    "InterchangeRuns": "interchange_runs",
    "full_swap": "interchange_runs",
    "no_swap": "interchange_runs",
    "MaskedInterchange": "masked_interchange",
    "TaskScores": "method_scores",
    "score_methods": "method_scores",
    "number_and_gender": "noun_task",
    "load_pairs": "template_pairs",
    "train_interchange": "training",
    "VariablesComparison": "variables_comparison",
    "TrainedInterchange": "variables_comparison",
    "compare_variables": "variables_comparison",
    "try_methods": "variables_comparison",
    "SeparateInterchanges": "variable_methods",
    "no_variable": "variable_methods",
    "whole_state": "variable_methods",
    "VariableRuns": "variables",
    "VariablesReport": "variables",
    "measure_variables": "variables",
    "train_variables": "variables",
}

__all__ = [
    "BoundlessInterchange",
    "Columns",
    "ControlReport",
    "CostReport",
    "CounterfactualPairs",
    "DepthReport",
    "EntityTask",
    "InterchangeReport",
    "InterchangeRuns",
    "MaskedInterchange",
    "Neurons",
    "Pair",
    "PlaneRotations",
    "ScanReport",
    "SeparateInterchanges",
    "Splits",
    "TaskScores",
    "TrainedInterchange",
    "VariablePairs",
    "VariableRuns",
    "VariablesComparison",
    "VariablesReport",
    "answered_rightly",
    "compare_variables",
    "depth_by_rows",
    "draw_variable_pairs",
    "encode_pairs",
    "full_swap",
    "interchange_accuracy",
    "load_pairs",
    "load_ravel",
    "measure_variables",
    "no_swap",
    "no_variable",
    "number_and_gender",
    "read_pairs",
    "scan",
    "score_methods",
    "train_interchange",
    "train_variables",
    "try_methods",
    "whole_state",
]

__getattr__, __dir__ = lazy_names(__name__, _LAZY_IMPORTS)
