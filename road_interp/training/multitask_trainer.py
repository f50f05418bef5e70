"""Training several tasks on planes of one state (paper, section 4.3), with co-activation.

With co-activation, the other tasks' planes are active during a part of each task's training, without gradient: every task then
learns to work in the presence of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from road_interp.training.trainer import RoadTrainer


class MultiTaskTrainer(RoadTrainer):
    """Every example activates the planes of its own task; with probability `co_activation` those of all others too, held still.

    Args:
        tasks: names, in the order of the column `task` of the data.
        options: of the Trainer.
    """

    def __init__(self, tasks: Sequence[str], co_activation: float, **options: Any) -> None:
        super().__init__(**options)
        self._tasks, self._co_activation = tuple(tasks), co_activation

    def active(self, task: Int[Tensor, " rows"]) -> tuple[list[str], list[str]]:
        """For every row's task index the task that is trained, and all tasks whose planes are active."""
        own = [self._tasks[index] for index in task.tolist()]
        together = (torch.rand(len(own)) < self._co_activation).tolist()
        return own, ["+".join(self._tasks) if both else name for name, both in zip(own, together, strict=True)]
