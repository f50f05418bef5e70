"""Train several tasks on separate planes of the same hidden states (RoAd paper, section 4.3), with co-activation.

Co-activation also activates the planes of the other tasks for a fraction of the examples, without a gradient, so that each task
is trained in the presence of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from road_interp.training.trainer import RoadTrainer


class MultiTaskTrainer(RoadTrainer):
    """Trainer in which every example trains the planes of its own task.

    With probability `co_activation` an example also activates the planes of all other tasks, which get no gradient from it.

    Args:
        tasks: names, in the order of the column `task` of the data.
        options: arguments of the Trainer.
    """

    def __init__(self, tasks: Sequence[str], co_activation: float, **options: Any) -> None:
        super().__init__(**options)
        self._tasks, self._co_activation = tuple(tasks), co_activation

    def active(self, task: Int[Tensor, " rows"]) -> tuple[list[str], list[str]]:
        """For each row the task that is trained, and the tasks whose planes are active, such as "a+b"."""
        own = [self._tasks[index] for index in task.tolist()]
        activate_all = (torch.rand(len(own)) < self._co_activation).tolist()
        return own, ["+".join(self._tasks) if all_active else name for name, all_active in zip(own, activate_all, strict=True)]
