"""A finished run on its test examples, with any adapter in the place of the learned one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.answer_scorer import AnswerScorer
from road_interp.data.labelled import drawn, load_task, tokenize
from road_interp.errors import InputError
from road_interp.head_scorer import HeadScorer
from road_interp.models.hidden_states import pick
from road_interp.models.loading import find_device, load_tokenizer, on_device
from road_interp.models.road_model import RoadModel
from road_interp.recipes.schema import MixtureRecipe, Recipe
from road_interp.runs.run import Run
from road_interp.training.arguments import forward_precision

BATCH = 64


def scorer_of(run: Run, most: int | None = None, device: str | None = None) -> RunScorer | HeadScorer | AnswerScorer:
    """What scores a run of one classification task, of one head, or of behaviours. Raises InputError for others."""
    if not isinstance(run.recipe, MixtureRecipe):
        return RunScorer(run, most, device)
    if not run.recipe.has_heads:
        return AnswerScorer(run, most, device)
    if len(run.recipe.tasks) > 1:
        raise InputError(f"'{run.folder}' has several heads: a run is scored as one number with one head, or with behaviours")
    return HeadScorer(run, next(iter(run.recipe.tasks)), most, device)


class RunScorer:
    """What the model of a run gets right with other adapters on the same weights, in the precision of its training.

    Args:
        run: of one classification task.
        most: test examples to draw; all by default.

    Attributes:
        task, metric: what is scored, and how it is called.

    Raises:
        InputError: a run of several tasks, or of one that is not scored by accuracy.
    """

    def __init__(self, run: Run, most: int | None = None, device: str | None = None) -> None:
        recipe = run.recipe
        if not isinstance(recipe, Recipe) or run.classes is None:
            raise InputError(f"'{run.folder}' is not a run of one classification task: only such runs can be scored this way")
        self.positions = recipe.adapter.positions
        self.task, self.metric = recipe.data.id.rpartition("/")[2], "accuracy"
        self._device = find_device(device)
        self._precision = forward_precision(recipe.training, self._device)
        self._model: Any = on_device(run.load_model(), self._device).model
        self._tokenizer = load_tokenizer(recipe.model)
        task = load_task(recipe.data)
        if task.metric != "accuracy":
            raise InputError(f"'{run.folder}' is scored by {task.metric}; outcomes example by example need accuracy")
        self._train, self._test = (tokenize(each, self._tokenizer, recipe.model.max_length) for each in (task.train, task.test))
        if most is not None:
            self._test = drawn(self._test, most)

    def __call__(self, adapter: RoadAdapter) -> Bool[np.ndarray, " examples"]:
        """Test example by test example, whether the model with this adapter and the trained head is right."""
        logits = self._over(adapter, self._test, lambda output, mask: output.logits)
        return logits.argmax(1) == np.asarray(self._test["labels"])

    def refitted(self, adapter: RoadAdapter) -> Bool[np.ndarray, " examples"]:
        """The same with a new head: logistic regression on the states that the adapter gives to the training texts.

        The states are those of the last layer at the token that stands for the text ([CLS], or the last one), standardised.
        """
        train, test = (self._over(adapter, each, self._text_states) for each in (self._train, self._test))
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(train, self._train["labels"])
        return head.predict(test) == np.asarray(self._test["labels"])

    def _text_states(self, output: Any, mask: Tensor) -> Tensor:
        return pick(output.hidden_states[-1], mask, "first" if self._tokenizer.cls_token is not None else "last")[0]

    @torch.no_grad()
    def _over(
        self, adapter: RoadAdapter, examples: Dataset, take: Callable[[Any, Tensor], Tensor]
    ) -> Float[np.ndarray, "examples width"]:
        """What `take` makes of every output, in the examples' order."""
        model = RoadModel(self._model, adapter, self.positions).eval()
        taken: dict[int, np.ndarray] = {}
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self._precision)
        with torch.autocast(self._device.type, dtype=precision, enabled=precision is not None):
            for rows, batch in self._batches(examples):
                output = model(base={**batch, "output_hidden_states": True})[1]
                found = take(output, batch["attention_mask"]).float().cpu().numpy()
                taken.update(zip(rows, found, strict=True))
        return np.stack([taken[row] for row in range(len(examples))])

    def _batches(self, examples: Dataset) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Batches of texts of similar length, with their row numbers."""
        columns = [name for name in examples.column_names if name != "labels"]
        rows = examples.select_columns(columns)[:]
        order = np.argsort([len(ids) for ids in rows["input_ids"]], kind="stable").tolist()
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            batch = {name: [rows[name][row] for row in chosen] for name in columns}
            yield chosen, dict(self._tokenizer.pad(batch, return_tensors="pt").to(self._device))
