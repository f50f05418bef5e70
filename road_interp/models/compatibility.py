"""Whether a base model is the one that an adapter was made for, with the weights that were trained beside it."""

from __future__ import annotations

import os
import warnings
from typing import Any

from transformers import PreTrainedModel

from road_interp.adapters import peft_format
from road_interp.adapters.base_model import BaseModelSignature
from road_interp.adapters.modules_to_save import differ, read_safetensors
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.storage import head_file, is_peft_folder
from road_interp.errors import InputError
from road_interp.sources import local_folder


def check_made_for(base_model: PreTrainedModel, adapter: RoadAdapter, made: str) -> None:
    """Raise InputError if the adapter was made for a model of another architecture or shape.

    Args:
        made: which adapters, for the error: "the adapter was made".
    """
    signature = BaseModelSignature.of(base_model)
    if adapter.base is not None and (difference := adapter.base.difference(signature)):
        raise InputError(f"{made} for another model, {adapter.base.title}, not for {signature.title}: {difference}")


def check_without_peft(base_model: PreTrainedModel) -> None:
    """Raise InputError if PEFT's RoAd layers are still in the model: they and the adapter would both rotate."""
    for name, module in base_model.named_modules():
        if _is_peft_rotation(module):
            raise InputError(
                f"'{name}' is rotated by PEFT already, and would be rotated twice: read the adapter with RoadAdapter.from_peft "
                "and give the model without it, peft_model.unload()"
            )


def check_rotated_once(path: str, module: Any) -> None:
    """Raise InputError for a site that PEFT rotates since the RoadModel was made: PEFT changes the model that it is given."""
    if _is_peft_rotation(module) and not module.disable_adapters and {*module.active_adapters} & {*module.road_theta}:
        raise InputError(
            f"PEFT rotates '{path}' since the RoadModel was made, and it would be rotated twice: give PEFT a copy of the model, "
            "or call inside `with peft_model.disable_adapter():`"
        )


def _is_peft_rotation(module: Any) -> bool:
    return type(module).__module__ == "peft.tuners.road.layer"


def warn_of_other_weights(base_model: PreTrainedModel, source: Any) -> None:
    """Warn if the folder of an adapter has weights that were trained beside it, such as a head, and the model others."""
    if isinstance(source, str | os.PathLike) and (difference := other_weights_beside(base_model, source)):
        warnings.warn(difference, stacklevel=3)


def other_weights_beside(base_model: PreTrainedModel, source: str | os.PathLike[str]) -> str:
    """Which weights the folder of an adapter has beside it that are others in the model, and what has both; empty for none."""
    folder = local_folder(source)
    head = head_file(folder)
    name = type(base_model).__name__
    if head is not None and differ(base_model, read_safetensors(head)):
        return (
            f"{name} has another head than the one that was trained beside the adapter of '{source}': "
            f"Run.load('{source}').load_model() has both"
        )
    if is_peft_folder(folder) and differ(base_model, others := peft_format.other_weights(folder)):
        return (
            f"{name} has other weights than those that were trained beside the adapter of '{source}' "
            f"({', '.join(sorted(others))}): RoadModel.from_peft(model, '{source}') loads both"
        )
    return ""
