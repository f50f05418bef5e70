"""RoadModels on tiny language models, with one random adapter or a bank of random adapters."""

from __future__ import annotations

import pyvene

from helpers.models import random_adapter, tiny_model
from road_interp.adapters.bank import RoadBank
from road_interp.models.road_model import RoadModel
from road_interp.models.row_arguments import RowArguments
from road_interp.sites.find import find_sites

ARCHITECTURES = ["Llama", "GPT2", "GPTNeoX", "OPT", "Phi3"]
GREEDY = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 2}


def road_model(architecture="Llama", target_modules="all-linear", variant="road_1", group_size=2, positions="all", seed=0):
    base = tiny_model(architecture, "causal-lm")
    return RoadModel(base, random_adapter(find_sites(base, target_modules), variant, group_size, seed=seed), positions)


def bank_model(names="abc", target_modules="all-linear", architecture="Llama", variant="road_1", positions="all"):
    base = tiny_model(architecture, "causal-lm")
    sites = find_sites(base, target_modules)
    bank = RoadBank({name: random_adapter(sites, variant, seed=seed) for seed, name in enumerate(names)})
    return RoadModel(base, bank, positions)


def through_pyvene(model, batch, **options):
    """The logits of the same call through pyvene's own loop."""
    with model._rows_in_interventions(RowArguments(options.pop("adapter_names", None)), batch):
        return pyvene.IntervenableModel.forward(model, batch, **options)[1].logits


def untouched(model):
    """Whether the base model has no hooks and no wrapped forward."""
    return not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in model.model.modules())
