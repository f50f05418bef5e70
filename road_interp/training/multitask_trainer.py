"""Train several tasks on separate planes of the same hidden states (RoAd paper, section 4.3), with co-activation.

Co-activation also activates the planes of other tasks for a fraction of the examples, without a gradient, so that each task is
trained in the presence of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from road_interp.adapters.joined_names import join_names
from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel
from road_interp.recipes.schema import LabelledTaskRecipe, TaskRecipe
from road_interp.rotation.plane_maps import parameter_mask
from road_interp.training.task_rates import TaskRates
from road_interp.training.trainer import RoadTrainer


class MultiTaskTrainer(RoadTrainer):
    """Trainer in which every example trains the planes of its own task.

    With probability `co_activation` an example also activates the planes of other tasks, which get no gradient from it: a random
    set of at least one of them.

    Args:
        tasks: of the recipe, by name, in the order of the column `task` of the data.
        co_activation_warmup: fraction of the steps over which the probability rises linearly from 0.
        shared: a task whose planes are active in every row; its own examples activate no others.
        options: arguments of the Trainer.
    """

    def __init__(
        self,
        tasks: Mapping[str, LabelledTaskRecipe | TaskRecipe],
        co_activation: float,
        co_activation_warmup: float = 0.0,
        shared: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._tasks, self._shared = tuple(tasks), shared
        self._co_activation, self._warmup = co_activation, co_activation_warmup
        rates = {name: task.learning_rate for name, task in tasks.items() if task.learning_rate is not None}
        if rates:
            self.add_callback(TaskRates(self._factors(rates)))

    def _factors(self, rates: Mapping[str, float]) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """The factors of the updates, for learning rates of tasks."""
        factors = {name: rate / self.args.learning_rate for name, rate in rates.items()}
        for task, factor in factors.items():
            for parameter in self.own_parameters(task):
                yield parameter, torch.tensor(factor)
        road = next((module for module in self._model.modules() if isinstance(module, RoadModel)), None)
        if road is None or road.planes is None:
            task = next(iter(rates))
            raise InputError(f"tasks.{task}.learning_rate is of the planes of '{task}', and this model has no planes of tasks")
        masks = {task: road.planes.of(task) for task in factors}
        for site, intervention in road.by_site():
            of_site = torch.ones_like(intervention.theta)
            for task, factor in factors.items():
                mask = parameter_mask(masks[task][site.name], intervention.variant, intervention.group_size)
                of_site[mask.to(of_site.device)] = factor
            yield from ((parameter, of_site) for parameter in (intervention.theta, intervention.alpha))

    def own_parameters(self, task: str) -> Iterable[nn.Parameter]:
        """The parameters beside the rotations that belong to one task: none."""
        return ()

    def active(self, task: Int[Tensor, " rows"]) -> tuple[list[str], list[str]]:
        """For each row the task that is trained, and the tasks whose planes are active, such as "a+b"."""
        tasks = [self._tasks[index] for index in self.accelerator.gather(task).tolist()]  # every process draws for all rows
        with_others = (torch.rand(len(tasks)) < self.probability).tolist()
        active = [join_names(self._active(name, others)) for name, others in zip(tasks, with_others, strict=True)]
        before = len(task) * self.args.process_index
        own = slice(before, before + len(task))
        return tasks[own], active[own]

    @property
    def probability(self) -> float:
        """Of co-activation in the present step."""
        steps = self._warmup * self.state.max_steps
        return self._co_activation * (min(1.0, self.state.global_step / steps) if steps else 1.0)

    def _active(self, own: str, with_others: bool) -> list[str]:
        chosen = [name for name in self._tasks if name not in (own, self._shared)]
        if own == self._shared or not with_others:
            chosen = []
        elif len(chosen) > 1:
            number = int(torch.randint(1, 2 ** len(chosen), ()))
            chosen = [name for place, name in enumerate(chosen) if number >> place & 1]
        return [name for name in self._tasks if name in (own, self._shared, *chosen)]
