"""Uses of an attached model that would lose its rotations in silence: to save it, and to train it without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from transformers import PreTrainedModel

from road_interp.errors import InputError


@contextmanager
def guarded(model: nn.Module, name: str) -> Iterator[None]:
    """Errors, while the rotations `name` are attached, of `save_pretrained` and of optimizers that can change nothing."""

    def save_pretrained(*args: Any, **kwargs: Any) -> None:
        raise InputError(
            f"save_pretrained would write the weights without the rotations of {name}: RoadModel.merge() returns a model with "
            "those of linear layers in its weights, RoadModel.save(folder) keeps the rotations themselves"
        )

    def check_optimizer(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if not any(parameter.requires_grad or parameter.grad is not None for parameter in parameters):
            raise InputError(
                f"the optimizer trains nothing: the rotations of {name} are parameters of the RoadModel, not of the model inside "
                "`attached`: give their owner's parameters() to the optimizer, or a Trainer the RoadModel"
            )

    with ExitStack() as undo:
        undo.callback(register_optimizer_step_pre_hook(check_optimizer).remove)
        if isinstance(model, PreTrainedModel):  # a PeftModel saves its own adapter only
            replaced = {key: value for key, value in model.__dict__.items() if key == "save_pretrained"}
            model.__dict__["save_pretrained"] = save_pretrained
            undo.callback(model.__dict__.update, replaced)
            undo.callback(model.__dict__.pop, "save_pretrained")
        yield
