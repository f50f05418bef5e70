"""Figures: every function takes a result and returns matplotlib Axes. Nothing here measures; only `export` writes files."""

from typing import Any

from road_interp.plots.ablation import ablation, ablation_by, ablation_curve
from road_interp.plots.angles import angle_histogram, angles, magnitudes, planes, shares
from road_interp.plots.capacity import capacity
from road_interp.plots.disentangle import disentangle
from road_interp.plots.drift import drift, drift_blocks, drift_grid, drift_scatter
from road_interp.plots.engine_cost import engine_cost
from road_interp.plots.interchange import interchange_depth, interchange_scan
from road_interp.plots.interference import interference
from road_interp.plots.joint_training import joint_training
from road_interp.plots.learning_rates import learning_rates
from road_interp.plots.means import means
from road_interp.plots.multitask import composition, composition_control, multitask_accuracy, strength
from road_interp.plots.parameter_share import parameter_share
from road_interp.plots.plane import plane
from road_interp.plots.structure import query_key, seed_structure
from road_interp.plots.style import STYLE
from road_interp.plots.throughput import throughput
from road_interp.plots.variables import variables

__all__ = [
    "STYLE",
    "ablation",
    "ablation_by",
    "ablation_curve",
    "angle_histogram",
    "angles",
    "capacity",
    "composition",
    "composition_control",
    "disentangle",
    "drift",
    "drift_blocks",
    "drift_grid",
    "drift_scatter",
    "engine_cost",
    "interchange_depth",
    "interchange_scan",
    "interference",
    "joint_training",
    "learning_rates",
    "magnitudes",
    "means",
    "multitask_accuracy",
    "parameter_share",
    "plane",
    "planes",
    "query_key",
    "seed_structure",
    "shares",
    "strength",
    "throughput",
    "variables",
]
_NAMES_OF_0_1_0 = {"heads": "multitask_accuracy"}


def __getattr__(name: str) -> Any:
    if name in _NAMES_OF_0_1_0:
        return globals()[_NAMES_OF_0_1_0[name]]
    raise AttributeError(f"module 'road_interp.plots' has no attribute '{name}'")


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted(__all__)
