"""PEFT's RoAd format: read rotations from PEFT folders and PEFT models, and write folders that PEFT loads.

PEFT's RoAd rotates the whole output of `nn.Linear` modules at every token. Other sites, other positions and planes of several
tasks cannot be written in this format and raise InputError.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from road_interp.adapters.base_model import BaseModelSignature
from road_interp.adapters.modules_to_save import check_untied, differs, digest, load_tensors, module_tensors, read_safetensors
from road_interp.adapters.storage import DESCRIPTION, PEFT_DESCRIPTION, AdapterValues, load
from road_interp.arguments import check_argument, checked_list
from road_interp.errors import InputError
from road_interp.files import is_file, read_json_object, write_atomically
from road_interp.rotation import plane_maps
from road_interp.sites.find import in_module_order
from road_interp.sites.module_tree import layer_and_kind, layer_stacks
from road_interp.sites.site import Site
from road_interp.sources import local_folder

CONFIG, WEIGHTS = PEFT_DESCRIPTION, "adapter_model.safetensors"
PREFIX = "base_model.model."  # starts every name in PEFT's state dict
THETA, ALPHA = "road_theta", "road_alpha"
Source = str | os.PathLike[str] | nn.Module


def read_rotations(source: Source, adapter_name: str | None = None, base: PreTrainedModel | None = None) -> AdapterValues:
    """The rotations of a PEFT RoAd adapter, theta (radians) and alpha (factors) in fp32.

    Args:
        source: a folder (a path or `package://NAME/path`) with adapter_config.json and adapter_model.safetensors, or a PeftModel.
        adapter_name: which adapter of a PeftModel to read; its active adapter by default.
        base: the model that PEFT wraps (that of the PeftModel by default). Its modules determine the order and the layers of the
            sites, as in `find_sites`. Without it, the first number in a module's path is its layer.

    Raises:
        InputError: `source` is not a RoAd adapter or cannot be read; the message names file and reason.
    """
    check_argument("from_peft, base", base, (nn.Module, type(None)), "the base model, or leave it out")
    model: nn.Module | None = base
    if isinstance(source, nn.Module):
        name = _adapter_name(source, adapter_name)
        tensors, variant, group_size = _read_model(source, name)
        others = _modules_of(source, name)
        model = _unwrap(source) if base is None else base
    else:
        config, tensors = read_folder(source)
        variant, group_size = config.get("variant", "road_1"), config.get("group_size", 64)
        others = _without_rotations(tensors)
    plane_maps.check_variant(variant)
    theta, alpha = (dict(_tensors_of_kind(tensors, kind)) for kind in (THETA, ALPHA))
    if not theta:
        raise InputError("the adapter rotates no module: none of its tensors is a road_theta")
    stacks = tuple(layer_stacks(model)) if isinstance(model, PreTrainedModel) else None
    sites = [
        _site(module, 2 * values.numel() // plane_maps.num_parameters(2, variant), stacks) for module, values in theta.items()
    ]
    if model is not None:
        modules = dict(model.named_modules())
        if missing := [site.name for site in sites if site.name not in modules]:
            raise InputError(f"the adapter rotates '{missing[0]}', which {type(model).__name__} does not have")
        sites = list(in_module_order(sites, model))
    else:
        sites.sort(key=lambda site: (site.layer is None, site.layer or 0))
    signature = BaseModelSignature.of(model) if isinstance(model, PreTrainedModel) else None
    return AdapterValues(tuple(sites), theta, alpha, variant, group_size, signature, modules_to_save=digest(others))


def write_rotations(
    values: AdapterValues,
    folder: str | os.PathLike[str],
    base: PreTrainedModel | None = None,
    modules_to_save: Sequence[str] = (),
) -> None:
    """Write a folder that `PeftModel.from_pretrained(base, folder)` loads, with equal outputs.

    Args:
        base: the base model. The folder records its name, and every site is checked to be an `nn.Linear` of it.
        modules_to_save: modules of `base` that were trained too, such as "classifier"; as in PEFT, every module whose path ends
            with one of these names.

    Raises:
        InputError: PEFT cannot express a site, `base` lacks a module, or the folder already contains an adapter.
    """
    check_argument("to_peft", folder, (str, os.PathLike), "a folder")
    check_argument("to_peft, base", base, (nn.Module, type(None)), "the base model, or leave it out")
    checked_list("to_peft, modules_to_save", modules_to_save, str, "names of modules, as in ['classifier']")
    config, folder = _road_config(values, base, modules_to_save), Path(folder)
    if (folder / CONFIG).exists():
        raise InputError(f"'{folder}' already contains a PEFT adapter; choose another folder")
    if is_file(folder / DESCRIPTION) and not _are_equal(load(folder), values):
        raise InputError(f"'{folder}' contains another adapter, which adapter.json describes; choose another folder")
    if values.positions != "all":
        raise InputError(f"positions '{values.positions}' cannot be expressed in PEFT: its RoAd rotates every token")
    saved = _modules_to_save(base, modules_to_save)
    others = {} if base is None else module_tensors(base, saved)
    if base is not None:
        check_untied(base, set(others))
    if values.modules_to_save is not None and not saved:
        warnings.warn(
            "other modules were trained beside this adapter, such as a head, and the folder will not hold them: name them, as in "
            "modules_to_save=['classifier'], and give the model that has them",
            stacklevel=4,
        )
    for site in values.sites:
        _check_expressible(site, base, saved)
    tensors = {f"{PREFIX}{site.name}.{THETA}": values.theta[site.name] for site in values.sites}
    tensors |= {f"{PREFIX}{site.name}.{ALPHA}": values.alpha[site.name] for site in values.sites}
    tensors |= {f"{PREFIX}{name}": tensor for name, tensor in others.items()}
    folder.mkdir(parents=True, exist_ok=True)
    payload = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, {"format": "pt"})
    write_atomically(folder / WEIGHTS, payload)
    config.save_pretrained(str(folder))


def _are_equal(one: AdapterValues, other: AdapterValues) -> bool:
    """Whether two adapters are the same rotations of the same sites."""
    names = {site.name for site in one.sites}
    are_alike = (one.variant, one.group_size, names) == (other.variant, other.group_size, {site.name for site in other.sites})
    return are_alike and all(
        torch.equal(values[name].cpu(), same[name].cpu())
        for values, same in ((one.theta, other.theta), (one.alpha, other.alpha))
        for name in names
    )


def load_modules_to_save(base: PreTrainedModel, source: Source) -> None:
    """Load the other weights of a PEFT folder or PeftModel, such as those of a classification head, into `base`.

    Raises:
        InputError: a tensor does not fit `base`, or is tied there to one of which PEFT has no copy; the message names it.
    """
    tensors, known = other_weights(source), base.state_dict()
    changed = {name for name, values in tensors.items() if name not in known or differs(known[name], values)}
    check_untied(base, changed)
    load_tensors(base, tensors, "the PeftModel" if isinstance(source, nn.Module) else str(source))


def other_weights(source: Source, adapter_name: str | None = None) -> dict[str, Tensor]:
    """The weights of modules_to_save of a PEFT RoAd adapter, under the names of the base model. Raises InputError."""
    if isinstance(source, nn.Module):
        return _modules_of(source, _adapter_name(source, adapter_name))
    return _without_rotations(read_folder(source)[1])


def _without_rotations(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other tensors of an adapter, under the names of the base model: PEFT saves a rotated embedding or head as well."""
    others = {name: values for name, values in tensors.items() if not name.endswith((THETA, ALPHA))}
    return {name.replace(".base_layer.", "."): values for name, values in others.items()}


def read_folder(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a PEFT RoAd folder, the tensors under the names of the base model. Raises InputError."""
    folder = local_folder(folder)
    if is_file(folder / DESCRIPTION) and not is_file(folder / CONFIG):
        raise InputError(f"'{folder}' is not in PEFT's format: RoadAdapter.load reads it")
    config = read_json_object(folder / CONFIG)
    if (kind := config.get("peft_type")) != "ROAD":
        raise InputError(f"'{folder}' contains a PEFT adapter of type {kind!r}, not 'ROAD'")
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"'{folder}': {WEIGHTS} is missing; .bin files are not supported, save with safe_serialization=True")
    return config, {name.removeprefix(PREFIX): values for name, values in read_safetensors(folder / WEIGHTS).items()}


def _adapter_name(model: nn.Module, adapter_name: str | None) -> str:
    """The name of one adapter of a PeftModel, by default the active one.

    Raises InputError if the model does not have it, or if several rotations are active.
    """
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    if not configs:
        raise InputError("the model has no PEFT adapter: give a PeftModel, or a folder that one was saved to")
    active = getattr(model, "active_adapters", ())
    rotating = [name for name in (active() if callable(active) else active) if configs[name].peft_type == "ROAD"]
    if adapter_name is None and len(rotating) > 1:
        raise InputError(
            f"PEFT's adapters {', '.join(rotating)} are active together: choose one with RoadAdapter.from_peft(model, name), or "
            "read each with RoadBank.from_peft(model)"
        )
    name = str(getattr(model, "active_adapter", None) if adapter_name is None else adapter_name)
    if name not in configs:
        raise InputError(f"the model has no PEFT adapter '{name}'; it has {', '.join(configs)}")
    return name


def _read_model(model: nn.Module, name: str) -> tuple[dict[str, Tensor], Any, Any]:
    """Tensors, variant and group size of one adapter of a PeftModel."""
    config: Any = cast(Any, model).peft_config[name]
    if config.peft_type != "ROAD":
        raise InputError(f"the PEFT adapter '{name}' is of type '{config.peft_type.value}', not 'ROAD'")
    if any(getattr(module, "merged", False) is True for module in model.modules()):
        raise InputError("the PEFT adapter is merged: its weights would be rotated twice; call unmerge_adapter() first")
    tensors = {}
    for path, values in model.named_parameters():
        module, _, last = path.rpartition(".")
        if last == name and module.endswith((THETA, ALPHA)):
            tensors[module.removeprefix(PREFIX)] = values.detach().cpu().float()
    return tensors, config.variant, config.group_size


def _modules_of(model: nn.Module, name: str) -> dict[str, Tensor]:
    """The weights in modules_to_save of one adapter of a PeftModel, under the names of the base model."""
    inner = f".modules_to_save.{name}."
    state = model.state_dict().items()
    return {path.removeprefix(PREFIX).replace(inner, "."): values.detach().cpu() for path, values in state if inner in path}


def _tensors_of_kind(tensors: Mapping[str, Tensor], kind: str) -> Iterable[tuple[str, Tensor]]:
    """The modules that have a tensor of this kind, each with the tensor in fp32."""
    for name, values in tensors.items():
        module, _, last = name.rpartition(".")
        if last == kind:
            yield module, values.float()


def _unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside a PeftModel."""
    get: Any = getattr(model, "get_base_model", None)
    return model if get is None else get()


def _site(module: str, width: int, stacks: Iterable[str] | None) -> Site:
    """The site of the whole output of a module, given the paths of the model's block stacks, where there is a model."""
    if stacks is not None:
        return Site(module, width, *layer_and_kind(module, stacks))
    match = re.search(r"(?:^|\.)(\d{1,6})\.(.+)", module)
    return Site(module, width, None, module) if match is None else Site(module, width, int(match[1]), match[2])


def _road_config(values: AdapterValues, base: PreTrainedModel | None, modules_to_save: Sequence[str]) -> Any:
    """PEFT's config of the adapter."""
    try:
        from peft import RoadConfig
    except ImportError:
        raise InputError("writing PEFT folders needs PEFT: pip install peft") from None
    return RoadConfig(
        variant=values.variant,
        group_size=values.group_size,
        # PEFT matches the entries of a list as suffixes, which may select further modules; a pattern must match the full name.
        target_modules="|".join(re.escape(site.name) for site in values.sites),
        modules_to_save=list(modules_to_save) or None,
        base_model_name_or_path=getattr(base, "name_or_path", None) or None,
        # For other task types PEFT adds heads to modules_to_save, which this adapter may not have.
        task_type="CAUSAL_LM" if type(base).__name__.endswith("ForCausalLM") else None,
        inference_mode=True,
    )


def _modules_to_save(base: PreTrainedModel | None, names: Sequence[str]) -> list[str]:
    """The modules that PEFT saves for these names: every module whose path ends with one of them."""
    if not names:
        return []
    if base is None:
        raise InputError("modules_to_save needs the model that has these modules, as `base`")
    paths = [path for path, _ in base.named_modules() if path]
    for name in names:
        if not any(path.endswith(name) for path in paths):
            raise InputError(f"{type(base).__name__} has no module '{name}'")
    return [path for path in paths if path.endswith(tuple(names))]


def _check_expressible(site: Site, base: PreTrainedModel | None, saved: Sequence[str]) -> None:
    if any(f"{site.module}.".startswith(f"{path}.") for path in saved):
        raise InputError(f"site '{site.name}' is inside a module of modules_to_save, which PEFT does not rotate")
    if site.output_slice is not None:
        raise InputError(f"site '{site.name}' is a slice of a module's output; PEFT's RoAd rotates whole outputs only")
    if site.kind == "block-output":
        raise InputError(f"site '{site.name}' is the output of a block; PEFT's RoAd rotates the outputs of linear layers only")
    if base is None:
        return
    try:
        module = base.get_submodule(site.module)
    except AttributeError:
        raise InputError(f"{type(base).__name__} has no module '{site.module}'") from None
    if not isinstance(module, nn.Linear):
        raise InputError(f"site '{site.name}' is a {type(module).__name__}; PEFT's RoAd rotates the outputs of nn.Linear only")
