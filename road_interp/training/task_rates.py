"""A learning rate of its own for every task whose planes and head are trained beside those of other tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


class TaskRates(TrainerCallback):
    """Scales the updates of the values that a task owns, after every optimizer step.

    An update of AdamW, weight decay included, is proportional to the learning rate: the scaled one is that of another rate.

    Args:
        factors: trained parameters, each with the factors of its updates, which broadcast to its shape.
    """

    def __init__(self, factors: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
        self._factors = list(factors)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Keep the values before the step."""
        self._before = [parameter.detach().clone() for parameter, _ in self._factors]

    @torch.no_grad()
    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Scale what the step has changed."""
        for (parameter, factors), before in zip(self._factors, self._before, strict=True):
            parameter.copy_(torch.lerp(before, parameter, factors.to(parameter)))
