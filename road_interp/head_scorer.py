"""A finished run of classification heads on the test texts of one of them, with any adapter in the place of the learned one."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.data.labelled import drawn, tokenize
from road_interp.errors import InputError
from road_interp.models.loading import find_device, load_tokenizer, on_device
from road_interp.models.road_model import RoadModel
from road_interp.recipes.schema import MixtureRecipe
from road_interp.runs.run import Run
from road_interp.training.multitask_classifier import HeadsModel, load_heads_model, load_labels, outcomes


class HeadScorer:
    """For every test text of a task whether its head in a run is right, with other adapters on the same weights.

    Args:
        run: with a head for the task.
        task: its name.
        most: test texts to draw; all by default.

    Attributes:
        task, metric: what is scored, and how it is called.
        refitted: None; no head is fitted again.

    Raises:
        InputError: a run without a head for that task.
    """

    refitted = None

    def __init__(self, run: Run, task: str, most: int | None = None, device: str | None = None) -> None:
        recipe = run.recipe
        if not isinstance(recipe, MixtureRecipe) or not recipe.has_heads or task not in recipe.tasks:
            raise InputError(f"'{run.folder}' has no head for '{task}'")
        self.task, self.metric = task, "accuracy"
        data, self._tokenizer = load_labels(recipe), load_tokenizer(recipe.model)
        self._active = "+".join(data)
        self._model: HeadsModel = on_device(load_heads_model(run, data, self._tokenizer), find_device(device))
        test = tokenize(data[task].test, self._tokenizer, recipe.model.max_length)
        self._examples = test if most is None else drawn(test, most)

    def __call__(self, adapter: RoadAdapter) -> Bool[np.ndarray, " examples"]:
        """Text by text whether the head is right, with all planes active."""
        road = self._model.road
        self._model.road = RoadModel(road.model, adapter, road.positions, road.planes)
        return np.array(outcomes(self._model, self.task, self._active, self._examples, self._tokenizer))
