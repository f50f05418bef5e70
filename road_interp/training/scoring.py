"""Score a finished run on its test examples with any adapter instead of the trained one: one scorer for each kind of run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from road_interp.adapters.joined_names import join_names
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.arguments import check_count
from road_interp.data.batches import batches_by_length
from road_interp.data.division import subsample
from road_interp.data.head_outputs import chosen_classes
from road_interp.data.labelled import load_labelled, tokenize
from road_interp.data.multitask import format_prompts, load_multitask_data
from road_interp.errors import InputError
from road_interp.measure.ablation import Scorer
from road_interp.measure.composition import shows
from road_interp.models.generation import Answer, make_generator
from road_interp.models.hidden_states import select_states, text_token
from road_interp.models.loading import find_device, load_model, load_text_tokenizer, load_tokenizer, on_device
from road_interp.models.road_model import RoadModel
from road_interp.progress import Progress, silent
from road_interp.recipes.schema import PLAIN, MultiTaskGenerationRecipe
from road_interp.runs.run import Run
from road_interp.training.arguments import forward_precision
from road_interp.training.multitask_classifier import (
    BATCH_SIZE,
    MultiTaskClassifier,
    load_labelled_tasks,
    load_multitask_classifier,
    outcomes,
)


def make_scorer(
    run: Run | str | Path, limit: int | None = None, device: str | None = None, progress: Progress = silent
) -> Scorer:
    """The scorer of a run: one outcome per test example. Every adapter is scored at its own positions, not at those of the run.

    Args:
        run: a finished run, or its folder.
        limit: largest number of test examples; all by default.
        device: "cpu" or "cuda"; by default "cuda" where torch finds it.
        progress: called before model and data are loaded.

    Raises:
        InputError: a run with several heads, one that its scorer does not accept, such as regression, or one whose data have
            changed.
    """
    if limit is not None:
        check_count("make_scorer", "limit", limit)
    run = run if isinstance(run, Run) else Run.load(run)
    if not is_one_number(run):
        raise InputError(f"'{run.folder}' has no single score: only runs with one head, or with behaviours on reviews, have one")
    progress(f"loading model and data of {run.folder}")
    run.check_data()
    return SCORERS[run.recipe.kind](run, limit, device)


def is_one_number(run: Run) -> bool:
    """Whether a run has one outcome per test example.

    A run with several heads has not, because each head has its own test texts, nor has one without behaviours on reviews.
    """
    if isinstance(run.recipe, MultiTaskGenerationRecipe):
        return any(task.behaviour not in (None, PLAIN) for task in run.recipe.tasks.values())
    return run.recipe.kind != "multitask-classification" or len(run.recipe.task_names) == 1


class ClassifierScorer:
    """Scores other adapters on the model and head of a classification run, in the precision of its training.

    Args:
        run: a run of `kind: classification`.
        limit: largest number of test examples, drawn at random; all by default.

    Attributes:
        task, metric: names of the data set and of the metric.

    Raises:
        InputError: a run of several tasks, of regression, or with a metric other than accuracy.
    """

    def __init__(self, run: Run, limit: int | None = None, device: str | None = None) -> None:
        recipe: Any = run.recipe
        if run.classes is None:
            raise InputError(f"'{run.folder}' is not a run of one classification task, which outcomes per example need")
        self.task, self.metric = recipe.data.id.rpartition("/")[2], "accuracy"
        self._device = find_device(device)
        self._precision = forward_precision(run.trained_recipe(self._device.type).training, self._device)
        self._model: Any = on_device(run.load_model(), self._device).model
        self._tokenizer = load_text_tokenizer(recipe.model)
        data = load_labelled(recipe.data)
        run.check_classes(data.classes)
        if data.metric != "accuracy":
            raise InputError(f"'{run.folder}' is scored by {data.metric}; outcomes per example need accuracy")
        self._train, self._test = (tokenize(split, self._tokenizer, recipe.model.max_length) for split in (data.train, data.test))
        if limit is not None:
            self._test = subsample(self._test, limit)

    def __call__(self, adapter: RoadAdapter) -> Bool[np.ndarray, " examples"]:
        """Whether the model with this adapter and the trained head is right, per test example."""
        logits = self._outputs(adapter, self._test, lambda output, mask: output.logits)
        return chosen_classes(logits) == np.asarray(self._test["labels"][:])

    def refitted(self, adapter: RoadAdapter) -> Bool[np.ndarray, " examples"]:
        """The same with a refitted head: logistic regression on the training texts' states under this adapter.

        The states are the standardised hidden states of the last layer at the [CLS] token, or at the last token where the
        tokeniser does not put [CLS] first.
        """
        train, test = (self._outputs(adapter, split, self._text_states) for split in (self._train, self._test))
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(train, self._train["labels"][:])
        return head.predict(test) == np.asarray(self._test["labels"][:])

    def _text_states(self, output: Any, mask: Tensor) -> Tensor:
        return select_states(output.hidden_states[-1], mask, text_token(self._tokenizer))[0]

    @torch.no_grad()
    def _outputs(
        self, adapter: RoadAdapter, examples: Dataset, select: Callable[[Any, Tensor], Tensor]
    ) -> Float[np.ndarray, "examples width"]:
        """`select(output, attention_mask)` for all examples, in their order."""
        model = RoadModel(self._model, adapter).eval()
        selected: dict[int, np.ndarray] = {}
        precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self._precision)
        with torch.autocast(self._device.type, dtype=precision, enabled=precision is not None):
            for rows, batch in self._batches(examples):
                output = model(base={**batch, "output_hidden_states": True})[1]
                values = select(output, batch["attention_mask"]).float().cpu().numpy()
                selected.update(zip(rows, values, strict=True))
        return np.stack([selected[row] for row in range(len(examples))])

    def _batches(self, examples: Dataset) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Row numbers and inputs of batches of texts of similar length."""
        columns = [name for name in examples.column_names if name != "labels"]
        rows = examples.select_columns(columns)[:]
        for chosen in batches_by_length(list(map(len, rows["input_ids"])), BATCH_SIZE):
            batch = {name: [rows[name][row] for row in chosen] for name in columns}
            yield chosen, dict(self._tokenizer.pad(batch, return_tensors="pt").to(self._device))


class MultiTaskScorer:
    """Scores other adapters on the backbone and one head of a multi-task classification run, with all planes active.

    Args:
        run: a run of `kind: multitask-classification`.
        limit: largest number of test texts, drawn at random; all by default.
        task: the task whose head is scored; by default the first one.

    Attributes:
        task, metric: names of the task and of the metric.
        refitted: None, because heads are not refitted.

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
        data, self._tokenizer = load_labelled_tasks(recipe), load_text_tokenizer(recipe.model)
        self._active = join_names(data)
        classifier = load_multitask_classifier(run, data, self._tokenizer)
        self._model: MultiTaskClassifier = on_device(classifier, find_device(device))
        test = tokenize(data[task].test, self._tokenizer, recipe.model.max_length)
        self._examples = test if limit is None else subsample(test, limit)

    def __call__(self, adapter: RoadAdapter) -> Bool[np.ndarray, " examples"]:
        """Whether the head is right with all planes active, per text."""
        road = self._model.road
        self._model.road = RoadModel(road.model, adapter, planes=road.planes)
        return np.array(outcomes(self._model, self.task, self._active, self._examples, self._tokenizer))


class GenerationScorer:
    """Scores other adapters on the model of a generation run, with all planes active.

    An outcome is whether one answer satisfies all behaviours of the run.

    Args:
        run: a run of `kind: multitask-generation` with behaviours that are scored on reviews.
        limit: number of test prompts, the first ones (their order is random); all by default.

    Attributes:
        task, metric: names of the tasks, such as "a+b", and of the metric.
        refitted: None, because there is no head.
        same_examples: False: studies divide the reviews anew for every seed.
        base: the bare model.
        behaviours: behaviours by task.
        reviews, prompts: test reviews and their prompts, in the same order.

    Raises:
        InputError: a run of another kind, or without test reviews.
    """

    refitted = None
    same_examples = False

    def __init__(self, run: Run, limit: int | None = None, device: str | None = None) -> None:
        recipe: Any = run.recipe
        has_behaviours = recipe.kind == "multitask-generation" and is_one_number(run)
        if not has_behaviours or not (data := load_multitask_data(recipe)).test:
            raise InputError(f"'{run.folder}' is not a run of behaviours on reviews; GenerationScorer needs one")
        self.base: Any = on_device(load_model(recipe.model, recipe.auto_class)[0], find_device(device)).eval()
        self.task, self.metric = join_names(data.behaviours), "all in one answer" if len(data.behaviours) > 1 else "shown"
        self.behaviours = data.behaviours
        self.reviews = data.test[:limit]
        self._recipe, self._planes, self._tokenizer = recipe, run.planes, load_tokenizer(recipe.model)
        self.prompts = format_prompts(recipe, [review.text for review in self.reviews], self._tokenizer)

    def __call__(self, adapter: RoadAdapter) -> Bool[np.ndarray, " prompts"]:
        """Whether the answer with this adapter satisfies all behaviours, per prompt."""
        answered = zip(self.answers(adapter), self.reviews, strict=True)
        behaviours = self.behaviours.values()
        return np.array([all(shows(behaviour, answer, review) for behaviour in behaviours) for answer, review in answered])

    def answers(self, adapter: RoadAdapter) -> list[Answer]:
        """Greedy answers with an adapter, in the order of the prompts."""
        model = RoadModel(self.base, adapter, planes=self._planes)
        generate = make_generator(model, self._tokenizer, self._recipe.scoring)
        return generate(self.prompts, join_names(self._recipe.tasks))


SCORERS: dict[str, Callable[[Run, int | None, str | None], Scorer]] = {
    "classification": ClassifierScorer,
    "multitask-classification": MultiTaskScorer,
    "multitask-generation": GenerationScorer,
}
