"""Modules that are trained in a model of half precision, such as its head, in float32: it would round small updates away."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def keep_in_float32(model: nn.Module, modules: Iterable[str]) -> None:
    """Convert the modules with these dotted paths to float32; they cast what they are called with."""
    for name in modules:
        module = model.get_submodule(name)
        if any(parameter.dtype != torch.float32 for parameter in module.parameters()):
            module.float().register_forward_pre_hook(_cast)


def _cast(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters()).dtype
    return tuple(each.to(dtype) if torch.is_tensor(each) and each.is_floating_point() else each for each in args)
