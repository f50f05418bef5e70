"""Gradient checkpointing of a model: whether it acts, and whether it is torch's reentrant form, which cannot train rotations."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointFunction, checkpoint
from transformers import PreTrainedModel

from road_interp.models.call_stack import CALL, callers, runs_inside

REENTRANT = (
    "reentrant gradient checkpointing cannot train rotations: its blocks share the plane maps of the pass, whose graph the first "
    "of them frees. Use gradient_checkpointing_kwargs={'use_reentrant': False}"
)

RECOMPUTED = (
    "gradient checkpointing computes the forward pass again in backward, when the rotations of this call have ended: train "
    "inside `with model.attached() as base:`, with base(**inputs)"
)


def checkpoints_gradients(model: PreTrainedModel) -> bool:
    """Whether gradient checkpointing is on and acts, which it does in training mode only."""
    return model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def is_reentrant() -> bool:
    """Whether torch's reentrant gradient checkpointing runs this code for the first time, without gradients."""
    return runs_inside(CheckpointFunction.forward.__code__)


def is_recomputed(model: nn.Module) -> bool:
    """Whether this code runs in torch's non-reentrant checkpoint of a part of the model: backward computes the part again."""
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if hooks is not None and hooks(False) is None:  # a checkpoint has such hooks
        return False
    for frame in callers():
        if frame.f_code is checkpoint.__code__:
            return True
        if frame.f_code is CALL and frame.f_locals.get("self") is model:
            return False
    return False
