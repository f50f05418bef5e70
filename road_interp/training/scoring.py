"""A finished run on its test examples, with any adapter in the place of the learned one: a scorer for every kind of run."""

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
from road_interp.data.labelled import load_labelled, subsample, tokenize
from road_interp.data.multitask import format_prompts, load_multitask_data
from road_interp.errors import InputError
from road_interp.measure.ablation import Scorer
from road_interp.measure.composition import satisfies
from road_interp.models.generation import Answer, make_generator
from road_interp.models.hidden_states import select_tokens
from road_interp.models.loading import find_device, load_model, load_tokenizer, on_device
from road_interp.models.road_model import RoadModel
from road_interp.runs.run import Run
from road_interp.training.arguments import forward_precision
from road_interp.training.multitask_classifier import (
    MultiTaskClassifier,
    load_labelled_tasks,
    load_multitask_classifier,
    outcomes,
)

BATCH = 64


def make_scorer(run: Run, limit: int | None = None, device: str | None = None) -> Scorer:
    """What scores a run as one number: of one classification, of one head, or of behaviours.

    Args:
        limit: test examples to take; all by default.

    Raises:
        InputError: a run of several heads, or one whose kind or metric has no scorer.
    """
    if not is_one_number(run):
        raise InputError(f"'{run.folder}' has several heads: a run is scored as one number with one head, or with behaviours")
    return SCORERS[run.recipe.kind](run, limit, device)


def is_one_number(run: Run) -> bool:
    """Whether one outcome per test example says how well a run does: not where several heads have texts of their own."""
    return run.recipe.kind != "multitask-classification" or len(run.recipe.task_names) == 1


class ClassifierScorer:
    """What the model of a run gets right with other adapters on the same weights, in the precision of its training.

    Args:
        run: of one classification.
        limit: test examples to draw; all by default.

    Attributes:
        task, metric: what is scored, and how it is called.

    Raises:
        InputError: a run of several tasks, or one that is not scored by accuracy.
    """

    def __init__(self, run: Run, limit: int | None = None, device: str | None = None) -> None:
        recipe: Any = run.recipe
        if run.classes is None:
            raise InputError(f"'{run.folder}' is not a run of one classification task: only such runs can be scored this way")
        self.positions = recipe.adapter.positions
        self.task, self.metric = recipe.data.id.rpartition("/")[2], "accuracy"
        self._device = find_device(device)
        self._precision = forward_precision(recipe.training, self._device)
        self._model: Any = on_device(run.load_model(), self._device).model
        self._tokenizer = load_tokenizer(recipe.model)
        data = load_labelled(recipe.data)
        if data.metric != "accuracy":
            raise InputError(f"'{run.folder}' is scored by {data.metric}; outcomes example by example need accuracy")
        self._train, self._test = (tokenize(each, self._tokenizer, recipe.model.max_length) for each in (data.train, data.test))
        if limit is not None:
            self._test = subsample(self._test, limit)

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
        return select_tokens(output.hidden_states[-1], mask, "first" if self._tokenizer.cls_token is not None else "last")[0]

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


class MultiTaskScorer:
    """For every test text of a task whether its head in a run is right, with other adapters on the same weights.

    Args:
        run: of several classifications, or of one with its own planes.
        limit: test texts to draw; all by default.
        task: whose head; by default the first task's.

    Attributes:
        task, metric: what is scored, and how it is called.
        refitted: None; no head is fitted again.

    Raises:
        InputError: a run without a head for that task.
    """

    refitted = None

    def __init__(self, run: Run, limit: int | None = None, device: str | None = None, task: str | None = None) -> None:
        recipe: Any = run.recipe
        task = next(iter(recipe.task_names), "") if task is None else task
        if recipe.kind != "multitask-classification" or task not in recipe.tasks:
            raise InputError(f"'{run.folder}' has no head for '{task}'")
        self.task, self.metric = task, "accuracy"
        data, self._tokenizer = load_labelled_tasks(recipe), load_tokenizer(recipe.model)
        self._active = "+".join(data)
        classifier = load_multitask_classifier(run, data, self._tokenizer)
        self._model: MultiTaskClassifier = on_device(classifier, find_device(device))
        test = tokenize(data[task].test, self._tokenizer, recipe.model.max_length)
        self._examples = test if limit is None else subsample(test, limit)

    def __call__(self, adapter: RoadAdapter) -> Bool[np.ndarray, " examples"]:
        """Text by text whether the head is right, with all planes active."""
        road = self._model.road
        self._model.road = RoadModel(road.model, adapter, road.positions, road.planes)
        return np.array(outcomes(self._model, self.task, self._active, self._examples, self._tokenizer))


class GenerationScorer:
    """Which prompts are answered with every behaviour of a run in one answer, with other adapters on the same weights.

    All planes are active: an adapter acts as a whole.

    Args:
        run: of behaviours that are scored on reviews.
        limit: test prompts to take, the first ones (they lie in a drawn order); all by default.

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

    def __init__(self, run: Run, limit: int | None = None, device: str | None = None) -> None:
        recipe: Any = run.recipe
        if recipe.kind != "multitask-generation" or not (data := load_multitask_data(recipe)).test:
            raise InputError(f"'{run.folder}' is not a run of behaviours on reviews: only such runs can be scored this way")
        self.base: Any = on_device(load_model(recipe.model, recipe.auto_class)[0], find_device(device)).eval()
        self.task, self.metric = "+".join(data.behaviours), "all in one answer" if len(data.behaviours) > 1 else "shown"
        self.behaviours = data.behaviours
        self.reviews = data.test[:limit]
        self._recipe, self._planes, self._tokenizer = recipe, run.planes, load_tokenizer(recipe.model)
        self.prompts = format_prompts(recipe, [review.text for review in self.reviews], self._tokenizer)

    def __call__(self, adapter: RoadAdapter) -> Bool[np.ndarray, " prompts"]:
        """Prompt by prompt, whether the answer with this adapter shows all behaviours."""
        answered = zip(self.answers(adapter), self.reviews, strict=True)
        return np.array([all(satisfies(each, *one) for each in self.behaviours.values()) for one in answered])

    def answers(self, adapter: RoadAdapter) -> list[Answer]:
        """Greedy answers with an adapter, in the prompts' order."""
        model = RoadModel(self.base, adapter, self._recipe.adapter.positions, self._planes)
        settings = self._recipe.scoring
        generate = make_generator(model, self._tokenizer, settings.max_new_tokens, settings.batch_size)
        return generate(self.prompts, "+".join(self._recipe.tasks))


SCORERS: dict[str, Callable[[Run, int | None, str | None], Scorer]] = {
    "classification": ClassifierScorer,
    "multitask-classification": MultiTaskScorer,
    "multitask-generation": GenerationScorer,
}
