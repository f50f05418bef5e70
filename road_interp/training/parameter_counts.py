"""Numbers of trained and of other parameters of a fine-tuned model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn


class ParameterCounts(NamedTuple):
    """Numbers of parameters.

    Attributes:
        trained: without those of the head.
        head: of the new head.
        backbone: of the pretrained model.
    """

    trained: int
    head: int
    backbone: int

    @property
    def percent(self) -> float:
        """The trained ones in percent of the backbone."""
        return 100 * self.trained / self.backbone


def count_trained(model: nn.Module) -> int:
    """Number of parameters that are trained: those of angles alone where the magnitudes are frozen."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_parameters(model: nn.Module, base: nn.Module, head: Sequence[str]) -> ParameterCounts:
    """Count the parameters of `model`, which trains the modules `head` of `base` and others."""
    in_head = sum(parameter.numel() for name in head for parameter in base.get_submodule(name).parameters())
    backbone = sum(parameter.numel() for parameter in base.parameters()) - in_head
    return ParameterCounts(count_trained(model) - in_head, in_head, backbone)
