"""Read pyvene folders of interventions as adapters, and write them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
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
from road_interp.sites.module_tree import layer_and_kind, layer_stacks
from road_interp.sites.site import OutputSlice, Site

CONFIG = "config.json"
# The second is the type of version 0.1.0.
TYPES = (
    "<class 'road_interp.RoadIntervention'>",
    "<class 'road_interp.intervention.RoadIntervention'>",
)


def from_pyvene(folder: str | os.PathLike[str], base: PreTrainedModel) -> RoadAdapter:
    """The rotations in a folder written by `RoadModel.save_pyvene` or by pyvene's `save` of RoadInterventions.

    Args:
        base: the base model of the interventions; it is not changed.

    Raises:
        InputError: the folder does not exist, contains interventions other than RoadIntervention, or names components that the
            model does not have.
    """
    folder = Path(folder)
    config = read_json_object(folder / CONFIG)
    if not isinstance(config.get("representations"), list) or not isinstance(config.get("intervention_types"), list):
        raise InputError(f"'{folder}': {CONFIG} is not a pyvene config")
    if other := [kind for kind in config["intervention_types"] if kind not in TYPES]:
        raise InputError(f"'{folder}' contains an intervention of type {other[0]}, not RoadIntervention")
    sites, theta, alpha, forms = [], {}, {}, set()
    for key, module in _components(folder, config["representations"], base):
        state = _read_state(folder / f"intkey_{key}.bin")
        variant, group_size, output_slice = read_form(state["form"])
        site = _site(base, module, variant, state["theta"], output_slice)
        sites.append(site)
        theta[site.name], alpha[site.name] = state["theta"].float(), state["alpha"].float()
        forms.add((variant, group_size))
    if not forms:
        raise InputError(f"'{folder}' contains no intervention")
    if len(forms) > 1:
        raise InputError(f"'{folder}' contains several variants or group sizes, {sorted(forms)}; an adapter has one of each")
    order = {name: index for index, (name, _) in enumerate(base.named_modules())}
    sites.sort(key=lambda site: (order[site.module], site.output_slice.start if site.output_slice else 0))
    return RoadAdapter(tuple(sites), theta, alpha, *forms.pop())


def save_pyvene(model: pyvene.IntervenableModel, folder: str | os.PathLike[str]) -> None:
    """Write the interventions of a RoadModel: see `RoadModel.save_pyvene`."""
    if model.bank is not None:
        raise InputError("a bank holds several adapters: save one model per adapter")
    if (Path(folder) / CONFIG).exists():
        raise InputError(f"'{folder}' already contains a {CONFIG}; choose another folder")
    Path(folder).mkdir(parents=True, exist_ok=True)
    config = model.config
    pairs = zip(config.representations, model.interventions.values(), strict=True)
    model.config = pyvene.IntervenableConfig(
        [entry._replace(latent_dim=int(each.embed_dim), subspace_partition=each.subspace_partition) for entry, each in pairs]
    )
    try:
        with redirect_stdout(io.StringIO()):  # pyvene prints that the folder exists
            model.save(str(folder))
    finally:
        model.config = config


def _components(folder: Path, representations: list[Any], base: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """The key of every intervention, and the path of the module whose output it rotates, as resolved by pyvene."""
    paths = {module: name for name, module in base.named_modules()}
    trainable, training = [parameter for parameter in base.parameters() if parameter.requires_grad], base.training
    try:
        entries = [pyvene.RepresentationConfig(*entry)._replace(intervention=RoadIntervention(2)) for entry in representations]
        model = pyvene.IntervenableModel(pyvene.IntervenableConfig(entries), base)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"'{folder}' names a component that {type(base).__name__} does not have ({error})") from None
    finally:  # pyvene freezes the model
        base.train(training)
        for parameter in trainable:
            parameter.requires_grad_(True)
    for key, hook in model.intervention_hooks.items():
        if hook.__name__ != "register_forward_hook":
            raise InputError(f"'{folder}': '{key}' rotates a module's input; an adapter rotates outputs only")
        yield key, paths[hook.__self__]


def _read_state(path: Path) -> dict[str, Tensor]:
    """theta, alpha and form of one intervention. Only tensors are unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except Exception as error:  # damaged pickles raise many types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path} cannot be read as tensors ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(state.get(name), Tensor) for name in ("theta", "alpha", "form")):
        raise InputError(f"{path} is not the state of a RoadIntervention")
    return state


def _site(
    base: PreTrainedModel, module: str, variant: plane_maps.Variant, theta: Tensor, output_slice: OutputSlice | None
) -> Site:
    """The site of a module's output or of a slice of it, named as in `find_sites` where `find_sites` has it."""
    width = 2 * theta.numel() // plane_maps.num_parameters(2, variant)
    if output_slice is None:
        return Site(module, width, *layer_and_kind(module, layer_stacks(base)))
    for site in find_sites(base, "attention-qk"):
        if (site.module, site.output_slice) == (module, output_slice):
            return site
    return Site(
        f"{module}[{output_slice.start}:{output_slice.stop} of {output_slice.period}]",
        width,
        *layer_and_kind(module, layer_stacks(base)),
        output_slice,
    )
