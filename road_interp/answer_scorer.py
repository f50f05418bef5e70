"""A finished run of one or more behaviours on its test prompts, with any adapter in the place of the learned one."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.data.multitask import ask, load_mixture
from road_interp.errors import InputError
from road_interp.measure.composition import shows
from road_interp.models.generation import Answer, answers_of
from road_interp.models.loading import find_device, load_model, load_tokenizer, on_device
from road_interp.models.road_model import RoadModel
from road_interp.recipes.schema import MixtureRecipe
from road_interp.runs.run import Run


class AnswerScorer:
    """Which prompts are answered with every behaviour of a run in one answer, with other adapters on the same weights.

    All planes are active: an adapter acts as a whole.

    Args:
        run: of behaviours that are scored on reviews.
        most: test prompts to take, the first ones (they lie in a drawn order); all by default.

    Attributes:
        task, metric: what is scored, and how it is called.
        refitted: None; there is no head to fit again.
        base: the bare model.
        behaviours: by the names of the run's tasks.
        reviews, prompts: what is answered, in the same order.

    Raises:
        InputError: a run of another kind.
    """

    refitted = None

    def __init__(self, run: Run, most: int | None = None, device: str | None = None) -> None:
        recipe = run.recipe
        if not isinstance(recipe, MixtureRecipe) or not (mixture := load_mixture(recipe)).test:
            raise InputError(f"'{run.folder}' is not a run of behaviours on reviews: only such runs can be scored this way")
        self.base: Any = on_device(load_model(recipe.model, "causal-lm")[0], find_device(device)).eval()
        self.task, self.metric = "+".join(mixture.scorers), "all in one answer" if len(mixture.scorers) > 1 else "shown"
        self.behaviours = mixture.scorers
        self.reviews = mixture.test[:most]
        self._recipe, self._planes, self._tokenizer = recipe, run.planes, load_tokenizer(recipe.model)
        self.prompts = ask(recipe, [review.text for review in self.reviews], self._tokenizer)

    def __call__(self, adapter: RoadAdapter) -> Bool[np.ndarray, " prompts"]:
        """Prompt by prompt, whether the answer with this adapter shows all behaviours."""
        answered = zip(self.answers(adapter), self.reviews, strict=True)
        return np.array([all(shows(each, *one) for each in self.behaviours.values()) for one in answered])

    def answers(self, adapter: RoadAdapter) -> list[Answer]:
        """Greedy answers with an adapter, in the prompts' order."""
        model = RoadModel(self.base, adapter, self._recipe.adapter.positions, self._planes)
        settings = self._recipe.scoring
        answering = answers_of(model, self._tokenizer, settings.max_new_tokens, settings.batch_size)
        return answering(self.prompts, "+".join(self._recipe.tasks))
