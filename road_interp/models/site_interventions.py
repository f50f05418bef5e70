"""The interventions of an adapter on a model: one per site, with its parameters and on its device."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.models.intervention import RoadIntervention
from road_interp.sites.module_tree import check_has_states, has_forward_of_its_own, is_linear, output_width
from road_interp.sites.site import Site


def site_intervention(model: PreTrainedModel, site: Site, adapter: RoadAdapter) -> RoadIntervention:
    """The intervention of one site, with the angles and scales of the adapter.

    Raises:
        InputError: the model has no such module, or its output has another width.
    """
    try:
        module = model.get_submodule(site.module)
    except AttributeError:
        made_for = "another model"
        if _is_without_head(model, site.module):
            made_for = "this model with a head: load_model(id, 'classifier') or 'causal-lm', or Run.load(folder).load_model()"
        raise InputError(f"{type(model).__name__} has no module '{site.module}': the adapter was made for {made_for}") from None
    check_has_states(site.module, module)
    width = site.module_width
    if is_linear(module) and not has_forward_of_its_own(module) and output_width(module) != width:
        raise InputError(
            f"the output of '{site.module}' has width {output_width(module)}, not {width}: the adapter was made for another model"
        )
    intervention = RoadIntervention(width, adapter.variant, adapter.group_size, site.output_slice)
    with torch.no_grad():
        intervention.theta.copy_(adapter.theta[site.name])
        intervention.alpha.copy_(adapter.alpha[site.name])
    return intervention


def _is_without_head(model: PreTrainedModel, module: str) -> bool:
    """Whether a module that the model lacks is one of the same model with a head, which has its own modules inside."""
    prefix, _, inside = module.partition(".")
    return prefix == model.base_model_prefix and inside in dict(model.named_modules())


def device_of(module: nn.Module, model: PreTrainedModel) -> torch.device:
    """The device on which a module computes: that of accelerate's hooks if its weights are offloaded, else that of its weights.

    The CPU for a model without weights ("meta"), as before they are loaded.
    """
    hook: Any = getattr(module, "_hf_hook", None)
    if getattr(hook, "execution_device", None) is not None:
        return torch.device(hook.execution_device)
    found = next((tensor.device for tensor in module.parameters()), model.device)
    if found.type != "meta":
        return found
    inside = (getattr(getattr(each, "_hf_hook", None), "execution_device", None) for each in module.modules())
    return torch.device(next((device for device in inside if device is not None), "cpu"))
