"""Training a recipe with the Hugging Face Trainer, and scoring what came out."""

from __future__ import annotations

from collections.abc import Mapping
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
)

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.data.labelled import Task, tokenize
from road_interp.models.loading import check_length, load_model
from road_interp.models.road_model import RoadModel
from road_interp.recipes.schema import Recipe
from road_interp.sites.find import find_sites
from road_interp.training.arguments import training_arguments
from road_interp.training.trainer import RoadTrainer


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
