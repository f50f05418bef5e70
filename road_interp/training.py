"""Training a recipe with the Hugging Face Trainer, and scoring what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy import stats
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from road_interp.adapters.modules_to_save import head_file
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.data.labelled import Task, load_examples, load_task, tokenize
from road_interp.data.multitask import load_mixture, load_questions
from road_interp.errors import InputError
from road_interp.heads import load_heads_model, load_labels, score_heads, train_heads
from road_interp.mixture import score_matches, score_mixture, train_mixture
from road_interp.models.loading import check_length, find_device, load_model, load_tokenizer, on_device
from road_interp.models.road_model import RoadModel
from road_interp.recipes.loader import trainable
from road_interp.recipes.schema import AnyRecipe, MixtureRecipe, Recipe
from road_interp.runs.run import Run
from road_interp.runs.run_files import CLASSES, HEAD
from road_interp.runs.run_folder import finish_run, prepare_folder, start_run
from road_interp.sharding import shard_blocks
from road_interp.sites.find import find_sites
from road_interp.trainer import RoadTrainer, train_on, training_arguments


def train(
    recipe: AnyRecipe, out: str | Path | None = None, *, resume: bool = False, device: str | None = None, progress: bool = True
) -> Run:
    """Learn the rotations of a recipe and leave a run folder.

    Args:
        recipe: what to train.
        out: the run folder; by default the next free one under runs/.
        resume: go on from the last checkpoint in `out`.
        device: "cpu" or "cuda"; by default whatever torch finds.
        progress: show progress bars.

    Raises:
        InputError: an input that cannot be used, or an `out` that holds something else. Nothing has been written then.
    """
    recipe = trainable(recipe)
    if isinstance(recipe, MixtureRecipe):
        learn = train_heads if recipe.has_heads else train_mixture
        return learn(recipe, out, resume=resume, device=device, progress=progress)
    where = find_device(device)
    folder = prepare_folder(recipe, out, resume)
    set_seed(recipe.seed)
    task = load_task(recipe.data)
    tokenizer = load_tokenizer(recipe.model)
    model, head = _build(recipe, task)
    if recipe.model.shard:
        shard_blocks(model.model, where)
    splits = {name: encode(getattr(task, name), tokenizer, recipe) for name in ("train", "validation", "test")}
    trainer = make_trainer(recipe, model, task, tokenizer, splits, folder, where, progress)
    start_run(folder, recipe, {CLASSES: {"classes": task.classes}}, where)
    frozen = _frozen_scores(trainer, model, task, splits, tokenizer)
    set_seed(recipe.seed)
    train_on(trainer, folder, resume)
    metrics = {
        "validation": score_split(trainer, task, splits["validation"]),
        "test": score_split(trainer, task, splits["test"]),
        "frozen backbone, trained head": frozen,
        "parameters": _count(model, head),
    }
    return finish_run(trainer, recipe, model.adapter, metrics, {HEAD: head_file(model.model, head)}, folder, where)


def evaluate(run: Run, data: str | None = None, *, device: str | None = None, progress: bool = True) -> dict[str, Any]:
    """Score a run's model again from its files: on the recipe's test set, or on another file or data set read alike.

    For a mixture the summaries of its reports (`CompositionReport`, `HeadsReport`, `MatchReport`), on its own test data; for one
    task that is tested on questions, on others too.
    """
    tokenizer = load_tokenizer(run.recipe.model)
    if isinstance(run.recipe, MixtureRecipe):
        recipe = run.recipe if data is None else with_questions(run.recipe, data)
        if run.recipe.has_heads:
            labels = load_labels(run.recipe)
            heads = on_device(load_heads_model(run, labels, tokenizer), find_device(device))
            return score_heads(run.recipe, heads, tokenizer, labels, "test", progress).summary()
        return _evaluate_mixture(run, recipe, tokenizer, device, progress)
    task = load_task(run.recipe.data)
    examples = task.test if data is None else load_examples(run.recipe.data, data, run.classes)
    encoded = encode(examples, tokenizer, run.recipe)
    model = run.load_model()
    trainer = make_trainer(run.recipe, model, task, tokenizer, {"validation": encoded}, run.folder, find_device(device), progress)
    return score_split(trainer, task, encoded)


def _evaluate_mixture(
    run: Run, recipe: MixtureRecipe, tokenizer: PreTrainedTokenizerBase, device: str | None, progress: bool
) -> dict[str, Any]:
    """The scores of a run's behaviours and questions; what the tasks learned from is read only where reviews are shared."""
    questions = load_questions(recipe, tokenizer)
    behaving = any(task.behaviour is not None for task in recipe.tasks.values())
    if not questions and not behaving:
        raise InputError("the recipe tests its tasks on nothing: give them 'test' and 'match'")
    model = on_device(run.load_model(), find_device(device))
    summary = score_mixture(recipe, model, tokenizer, load_mixture(recipe), "test", progress).summary() if behaving else {}
    return summary | (score_matches(recipe, model, tokenizer, questions, progress).summary() if questions else {})


def with_questions(recipe: MixtureRecipe, data: str) -> MixtureRecipe:
    """The recipe of one task with other questions to test it on. Raises InputError for tasks that are not tested on questions."""
    if len(recipe.tasks) > 1 or any(task.test is None for task in recipe.tasks.values()):
        raise InputError(
            "a mixture is scored on the test prompts of its recipe; --data is for labelled text and one task's questions"
        )
    return replace(recipe, tasks={name: replace(task, test=data) for name, task in recipe.tasks.items()})


def _build(recipe: Recipe, task: Task) -> tuple[RoadModel, list[str]]:
    """The model to train, and the modules of its fresh head."""
    base, head = load_classifier(recipe, task)
    where = recipe.adapter
    sites = find_sites(base, where.sites, where.layers, where.stack)
    model = RoadModel(base, RoadAdapter.identity(sites, where.variant, where.group_size), where.positions).learn(where.learn)
    for name in head:
        base.get_submodule(name).requires_grad_(True)
    return model, head


def load_classifier(recipe: Recipe, task: Task) -> tuple[PreTrainedModel, list[str]]:
    """The base model with a fresh head for the task, and the modules of that head."""
    problem = "regression" if task.classes is None else "single_label_classification"
    model, head = load_model(recipe.model, "classifier", num_labels=task.num_labels, problem_type=problem)
    check_length(model, recipe.model)
    return model, head


def encode(examples: Dataset, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Dataset:
    """Token ids, shortest first: neighbours in a batch then need little padding."""
    encoded = tokenize(examples, tokenizer, recipe.model.max_length)
    return encoded.select(np.argsort([len(ids) for ids in encoded["input_ids"]], kind="stable"))


def make_trainer(
    recipe: Recipe,
    model: nn.Module,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    splits: Mapping[str, Dataset],
    folder: Path,
    where: torch.device,
    progress: bool,
) -> RoadTrainer:
    """The trainer of a recipe's task, for a RoadModel or whatever else is called like one."""

    def score(prediction: EvalPrediction) -> dict[str, float]:
        return task.score(np.asarray(prediction.predictions), np.asarray(prediction.label_ids))

    args = training_arguments(
        recipe.training,
        recipe.seed,
        folder,
        where,
        progress,
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{task.metric}",
        greater_is_better=True,
    )
    return RoadTrainer(
        model=model,
        args=args,
        train_dataset=splits.get("train"),
        eval_dataset=splits["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=score,
    )


def score_split(trainer: RoadTrainer, task: Task, split: Dataset) -> dict[str, Any]:
    """The task's metric and loss on a split, from any number of processes; for accuracy with its 95% interval (Wilson)."""
    found = trainer.predict(split)
    logits, labels = torch.as_tensor(found.predictions).float(), torch.as_tensor(found.label_ids)
    loss = mse_loss(logits.flatten(), labels) if task.classes is None else cross_entropy(logits, labels)
    value = task.score(logits.numpy(), labels.numpy())[task.metric]
    score: dict[str, Any] = {task.metric: value, "loss": loss.item(), "examples": len(split)}
    if task.metric == "accuracy":
        interval = stats.binomtest(round(value * len(split)), len(split)).proportion_ci(method="wilson")
        score["interval"] = [float(interval.low), float(interval.high)]
    return score


def _frozen_scores(
    trainer: RoadTrainer, model: RoadModel, task: Task, splits: Mapping[str, Dataset], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """What a linear head on the frozen backbone reaches: the control for what the rotations add.

    Features are the backbone's last hidden state at the token that stands for the text ([CLS], or the last one where the
    tokeniser has none). scikit-learn fits the head; validation chooses its regularisation.
    """
    features = {name: _features(trainer, model, split, tokenizer.cls_token is not None) for name, split in splits.items()}
    labels = {name: np.asarray(split["labels"]) for name, split in splits.items()}
    best: tuple[float, float] | None = None
    for strength in (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0):
        head = LogisticRegression(C=strength, max_iter=2000) if task.classes is not None else Ridge(alpha=1 / strength)
        fitted = make_pipeline(StandardScaler(), head).fit(features["train"], labels["train"])
        scores = []
        for name in ("validation", "test"):
            predicted = fitted.predict(features[name])
            logits = predicted if task.classes is None else np.eye(task.num_labels)[predicted]
            scores.append(task.score(logits, labels[name])[task.metric])
        if best is None or scores[0] > best[0]:
            best = (scores[0], scores[1])
    assert best is not None
    return {"validation": {task.metric: best[0]}, "test": {task.metric: best[1]}}


@torch.no_grad()
def _features(trainer: RoadTrainer, model: RoadModel, split: Dataset, first: bool) -> np.ndarray:
    """`(examples, hidden)` states of the frozen backbone, one row per example."""
    model.eval()
    states = []
    for batch in trainer.get_test_dataloader(split):
        batch = trainer._prepare_inputs(batch)
        mask = batch["attention_mask"]
        with trainer.compute_loss_context_manager():
            hidden = model.model(**{**batch, "labels": None}, output_hidden_states=True).hidden_states[-1]
        index = mask.argmax(1) if first else mask.shape[1] - 1 - mask.flip(1).argmax(1)
        own = hidden[torch.arange(len(hidden)), index].float()
        states.append(trainer.accelerator.gather_for_metrics(own).cpu().numpy())
    return np.concatenate(states)


def _count(model: RoadModel, head: list[str]) -> dict[str, Any]:
    """Trained values beside the backbone's."""
    in_head = sum(parameter.numel() for name in head for parameter in model.model.get_submodule(name).parameters())
    backbone = sum(parameter.numel() for parameter in model.model.parameters()) - in_head
    rotations = (parameter for each in model.interventions.values() for parameter in each.parameters())
    adapter = sum(parameter.numel() for parameter in rotations if parameter.requires_grad)
    return {"adapter": adapter, "head": in_head, "backbone": backbone, "percent of backbone": 100 * adapter / backbone}
