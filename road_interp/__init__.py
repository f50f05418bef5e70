"""road-interp: RoAd rotations as interventions on the hidden states of language models.

    import road_interp as ri

Names are imported on first use, so that the command line starts fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from road_interp.lazy import lazy_names

if TYPE_CHECKING:
    from road_interp import causal, measure, plots, recipes
    from road_interp.adapters.bank import RoadBank
    from road_interp.adapters.road_adapter import RoadAdapter
    from road_interp.adapters.task_planes import TaskPlanes
    from road_interp.causal.accuracy import interchange_accuracy
    from road_interp.causal.counterfactuals import Pair, encode_pairs, read_pairs
    from road_interp.causal.interchange_runs import InterchangeRuns
    from road_interp.causal.template_pairs import load_pairs
    from road_interp.causal.training import train_interchange
    from road_interp.data.labelled import load_labelled
    from road_interp.data.multitask import format_prompts
    from road_interp.errors import InputError
    from road_interp.models.interchange import RoadInterchangeIntervention
    from road_interp.models.intervention import RoadIntervention
    from road_interp.models.loading import load_model, load_tokenizer
    from road_interp.models.low_rank_interchange import LowRankInterchangeIntervention
    from road_interp.models.road_model import RoadModel
    from road_interp.models.variable_coordinates import VariableCoordinates
    from road_interp.plots.explorer import Explorer
    from road_interp.recipes.loader import load_recipe
    from road_interp.runs.run import Run
    from road_interp.sites.find import find_sites
    from road_interp.sites.site import Site
    from road_interp.training.api import evaluate, train
    from road_interp.training.scoring import make_scorer
    from road_interp.version import __version__

_LAZY_IMPORTS = {
    "RoadBank": "adapters.bank",
    "RoadAdapter": "adapters.road_adapter",
    "TaskPlanes": "adapters.task_planes",
    "interchange_accuracy": "causal.accuracy",
    "Pair": "causal.counterfactuals",
    "encode_pairs": "causal.counterfactuals",
    "read_pairs": "causal.counterfactuals",
    "InterchangeRuns": "causal.interchange_runs",
    "load_pairs": "causal.template_pairs",
    "train_interchange": "causal.training",
    "load_labelled": "data.labelled",
    "format_prompts": "data.multitask",
    "InputError": "errors",
    "RoadInterchangeIntervention": "models.interchange",
    "LowRankInterchangeIntervention": "models.low_rank_interchange",
    "VariableCoordinates": "models.variable_coordinates",
    "RoadIntervention": "models.intervention",
    "load_model": "models.loading",
    "load_tokenizer": "models.loading",
    "RoadModel": "models.road_model",
    "Explorer": "plots.explorer",
    "load_recipe": "recipes.loader",
    "Run": "runs.run",
    "find_sites": "sites.find",
    "Site": "sites.site",
    "evaluate": "training.api",
    "train": "training.api",
    "make_scorer": "training.scoring",
    "__version__": "version",
}

__all__ = [
    "Explorer",
    "InputError",
    "InterchangeRuns",
    "LowRankInterchangeIntervention",
    "Pair",
    "RoadAdapter",
    "RoadBank",
    "RoadInterchangeIntervention",
    "RoadIntervention",
    "RoadModel",
    "Run",
    "Site",
    "TaskPlanes",
    "VariableCoordinates",
    "__version__",
    "causal",
    "encode_pairs",
    "evaluate",
    "find_sites",
    "format_prompts",
    "interchange_accuracy",
    "load_labelled",
    "load_model",
    "load_pairs",
    "load_recipe",
    "load_tokenizer",
    "make_scorer",
    "measure",
    "plots",
    "read_pairs",
    "recipes",
    "train",
    "train_interchange",
]

__getattr__, __dir__ = lazy_names(__name__, _LAZY_IMPORTS, ("causal", "measure", "plots", "recipes"))
