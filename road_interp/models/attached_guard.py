"""Uses of an attached model that lose its rotations in silence: to save it, and to train it without them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from transformers import PreTrainedModel

from road_interp.errors import InputError


@contextmanager
def guarded(model: nn.Module, name: str) -> Iterator[None]:
    """While the rotations `name` are attached, `save_pretrained` warns, and an optimizer that can change nothing is an error."""

    def check_optimizer(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if not any(parameter.requires_grad or parameter.grad is not None for parameter in parameters):
            raise InputError(
                f"the optimizer trains nothing: the rotations of {name} are parameters of the RoadModel, not of the model inside "
                "`attached`: give the RoadModel's parameters() to the optimizer, or the RoadModel to the Trainer"
            )

    with ExitStack() as undo:
        undo.callback(register_optimizer_step_pre_hook(check_optimizer).remove)
        if isinstance(model, PreTrainedModel):  # a PeftModel saves its own adapter only
            undo.enter_context(_saves_with_warning(model, name))
        yield


@contextmanager
def _saves_with_warning(model: PreTrainedModel, name: str) -> Iterator[None]:
    replaced, original = model.__dict__.get("save_pretrained"), model.save_pretrained

    @wraps(original)
    def save_pretrained(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(
            f"save_pretrained writes the weights without the rotations of {name}: RoadModel.merge() has those of "
            "linear layers in the weights, RoadModel.save(folder) keeps the rotations themselves",
            stacklevel=2,
        )
        return original(*args, **kwargs)

    model.__dict__["save_pretrained"] = save_pretrained
    try:
        yield
    finally:
        del model.__dict__["save_pretrained"]
        if replaced is not None:
            model.__dict__["save_pretrained"] = replaced
