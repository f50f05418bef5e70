"""Folders of pyvene's interventions, read into adapters."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.files import read_json_object
from road_interp.models.intervention import RoadIntervention, pyvene, read_form
from road_interp.rotation import plane_maps
from road_interp.sites.find import find_sites
from road_interp.sites.module_tree import block_stacks, place
from road_interp.sites.site import Part, Site

CONFIG = "config.json"
TYPES = ("<class 'road_interp.RoadIntervention'>", "<class 'road_interp.intervention.RoadIntervention'>")  # the second is 0.1.0's


def from_pyvene(folder: str | os.PathLike[str], base: PreTrainedModel) -> RoadAdapter:
    """The rotations of a folder that `RoadModel.save_pyvene`, or pyvene's own `save` of RoadInterventions, wrote.

    Args:
        base: the model that they were made for; it is not changed.

    Raises:
        InputError: no such folder, other interventions than RoadIntervention's, places that the model does not have.
    """
    folder = Path(folder)
    config = read_json_object(folder / CONFIG)
    if not isinstance(config.get("representations"), list) or not isinstance(config.get("intervention_types"), list):
        raise InputError(f"'{folder}': {CONFIG} is not one of pyvene's interventions")
    if other := [kind for kind in config["intervention_types"] if kind not in TYPES]:
        raise InputError(f"'{folder}' holds an intervention of type {other[0]}, not RoadIntervention")
    sites, theta, alpha, forms = [], {}, {}, set()
    for key, module in _places(folder, config["representations"], base):
        state = _read_state(folder / f"intkey_{key}.bin")
        variant, group_size, part = read_form(state["form"])
        site = _site(base, module, variant, state["theta"], part)
        sites.append(site)
        theta[site.name], alpha[site.name] = state["theta"].float(), state["alpha"].float()
        forms.add((variant, group_size))
    if not forms:
        raise InputError(f"'{folder}' holds no intervention")
    if len(forms) > 1:
        raise InputError(f"'{folder}' mixes variants or group sizes: {sorted(forms)}; an adapter has one of each")
    order = {name: index for index, (name, _) in enumerate(base.named_modules())}
    sites.sort(key=lambda site: (order[site.module], site.part.start if site.part else 0))
    return RoadAdapter(tuple(sites), theta, alpha, *forms.pop())


def _places(folder: Path, representations: list[Any], base: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """Every intervention's key, and the path of the module whose output it takes, as pyvene finds them."""
    paths = {module: name for name, module in base.named_modules()}
    learning, training = [parameter for parameter in base.parameters() if parameter.requires_grad], base.training
    try:
        entries = [pyvene.RepresentationConfig(*entry)._replace(intervention=RoadIntervention(2)) for entry in representations]
        model = pyvene.IntervenableModel(pyvene.IntervenableConfig(entries), base)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"'{folder}' names a place that {type(base).__name__} does not have ({error})") from None
    finally:  # pyvene freezes the model
        base.train(training)
        for parameter in learning:
            parameter.requires_grad_(True)
    for key, hook in model.intervention_hooks.items():
        if hook.__name__ != "register_forward_hook":
            raise InputError(f"'{folder}': '{key}' rotates a module's input; an adapter rotates outputs only")
        yield key, paths[hook.__self__]


def _read_state(path: Path) -> dict[str, Tensor]:
    """theta, alpha and form of one intervention; nothing but tensors is unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except Exception as error:  # what a damaged pickle raises has no common kind
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path} cannot be read as tensors ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(state.get(name), Tensor) for name in ("theta", "alpha", "form")):
        raise InputError(f"{path} is not the state of a RoadIntervention")
    return state


def _site(base: PreTrainedModel, module: str, variant: plane_maps.Variant, theta: Tensor, part: Part | None) -> Site:
    """The site of a module's output, or of a part of it, which has the name that `find_sites` gives it."""
    width = 2 * theta.numel() // plane_maps.num_parameters(2, variant)
    if part is None:
        return Site(module, width, *place(module, block_stacks(base)))
    for site in find_sites(base, "attention-qk"):
        if (site.module, site.part) == (module, part):
            return site
    return Site(f"{module}[{part.start}:{part.stop} of {part.period}]", width, *place(module, block_stacks(base)), part)
