"""Rotations and one classification or regression head, trained on labelled text: the experiment of `kind: classification`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedModel

from road_interp.adapters.modules_to_save import serialize_modules
from road_interp.data.head_outputs import check_logits
from road_interp.data.labelled import LabelledDataset, by_length, label_options, load_labelled, load_test_set, tokenize
from road_interp.errors import InputError
from road_interp.files import write_atomically
from road_interp.measure.intervals import wilson
from road_interp.measure.linear_probe import fit_probe
from road_interp.models.float32_modules import keep_in_float32
from road_interp.models.hidden_states import select_states, text_token
from road_interp.models.loading import check_length, load_model, load_text_tokenizer, pad_as
from road_interp.models.road_model import RoadModel
from road_interp.progress import Progress, prefixed, progress_bar, waiting
from road_interp.recipes.schema import ClassificationRecipe
from road_interp.runs.answers import texts_of
from road_interp.runs.prediction import predictions_csv, predictions_of
from road_interp.runs.run import Run
from road_interp.runs.run_files import CLASSES, FROZEN, HEAD
from road_interp.training.arguments import training_arguments
from road_interp.training.experiment import Scores, identity_model
from road_interp.training.parameter_counts import count_parameters
from road_interp.training.trainer import RoadTrainer

SPLITS = ("train", "validation", "test")


class ClassificationExperiment:
    """Data, model, trainer and scores of one labelled data set."""

    def __init__(self, recipe: ClassificationRecipe) -> None:
        self.recipe, self.tokenizer = recipe, load_text_tokenizer(recipe.model)
        self.head: list[str] = []  # dotted paths of the modules of the head, once the model is built

    def load_data(self) -> None:
        """Read the labelled text."""
        self.data: LabelledDataset = load_labelled(self.recipe.data)

    @cached_property
    def splits(self) -> dict[str, Dataset]:
        """Token ids of all splits."""
        return {name: self.encode(getattr(self.data, name)) for name in SPLITS}

    def encode(self, examples: Dataset) -> Dataset:
        """Token ids, sorted by length so that a batch needs little padding."""
        encoded = tokenize(examples, self.tokenizer, self.recipe.model.max_length)
        return encoded.select(by_length(encoded))

    def load_classifier(self) -> tuple[PreTrainedModel, list[str]]:
        """The base model with a head for the data, and the dotted paths of the modules to train with it.

        They are the head's, new or from the checkpoint, and those that the checkpoint lacks in the backbone, such as a pooler.
        """
        problem = "regression" if self.data.classes is None else "single_label_classification"
        recipe = self.recipe
        options = label_options(self.data.classes)
        model, new = load_model(recipe.model, recipe.auto_class, problem_type=problem, **options)
        check_length(model, recipe.model)
        if model.config.is_encoder_decoder:
            raise InputError(
                f"kind: classification reads states of one stack, and {type(model).__name__} has an encoder and a decoder"
            )
        outside = _modules_outside_backbone(model)
        keep_in_float32(model, outside)
        if not (head := [*dict.fromkeys((*new, *outside))]):
            raise InputError(f"{type(model).__name__} has no head that can be trained: all its modules belong to its backbone")
        return pad_as(self.tokenizer, model), head

    def build_model(self, device: torch.device) -> RoadModel:
        """The classifier with identity rotations; rotations and head are trainable."""
        base, self.head = self.load_classifier()
        model = identity_model(base, self.recipe.adapter)
        unfreeze(base, self.head)
        return model

    def road_model(self, model: Any) -> RoadModel:
        """The model itself."""
        return model

    def make_trainer(self, model: nn.Module, folder: Path, device: torch.device, progress: bool, **options: Any) -> RoadTrainer:
        """The trainer for the recipe's data; `model` is called as RoadModel is."""
        return self._trainer(model, self.splits, folder, device, progress, **options)

    def files_at_start(self, model: nn.Module) -> dict[str, Any]:
        """The class labels in the order of the head's outputs."""
        return {CLASSES: {"classes": self.data.classes}}

    def score_frozen(self, trainer: RoadTrainer) -> dict[str, Any]:
        """Scores of a linear head on the frozen backbone: the control that shows what the rotations add.

        The features are the backbone's last hidden states at the [CLS] token, or at the last token where the tokeniser does not
        put [CLS] first. scikit-learn fits the head, and the validation score selects its regularisation.
        """
        with progress_bar(not trainer.args.disable_tqdm and trainer.is_world_process_zero()) as update:
            features = {name: self._features(trainer, split, name, update) for name, split in self.splits.items()}
            return {FROZEN: self._score_heads(features, update)}

    def _score_heads(self, features: Mapping[str, np.ndarray], progress: Progress) -> dict[str, Any]:
        """The metric of the linear head with the best validation score, on validation and test."""
        labels = {name: np.asarray(split["labels"][:]) for name, split in self.splits.items()}
        train, validation = ((features[name], labels[name]) for name in ("train", "validation"))
        told = prefixed(progress, "frozen backbone")
        probe, _ = fit_probe(train, validation, self.data.metric, self.data.classes is None, told)
        scores = {}
        for name in ("validation", "test"):
            predicted = probe.predict(features[name])
            logits = predicted if self.data.classes is None else np.eye(self.data.num_labels)[predicted]
            scores[name] = self._metric(logits, labels[name])
        return scores

    def score(self, trainer: RoadTrainer, progress: bool) -> Scores:
        """The metric on the validation and test texts, and the parameter counts."""
        model: Any = trainer.model
        metrics: dict[str, Any] = {name: self.score_split(trainer, self.splits[name]) for name in ("validation", "test")}
        counts = count_parameters(model, model.model, self.head)
        shown = {"adapter": counts.trained, "head": counts.head, "backbone": counts.backbone}
        metrics["parameters"] = {**shown, "percent of backbone": counts.percent}
        if best := trainer.state.best_global_step:
            epochs = {entry["step"]: entry["epoch"] for entry in trainer.state.log_history if "epoch" in entry}
            metrics["kept epoch"] = math.ceil(epochs[best])
        return Scores(metrics, {HEAD: serialize_modules(model.model, self.head)})

    @classmethod
    def evaluate(
        cls, run: Run, data: str | None, device: torch.device, progress: bool, predictions: Path | None = None
    ) -> dict[str, Any]:
        """The metric on the recipe's test texts, or on other data with the same columns, in the precision of the training.

        `predictions` is a CSV file to write.
        """
        with waiting("loading model and data", progress):
            experiment = cls(run.trained_recipe(device.type))  # type: ignore[arg-type]
            if data is None:
                experiment.load_data()
                run.check_classes(experiment.data.classes)
            else:
                experiment.data = load_test_set(experiment.recipe.data, data, run.classes)
            test = experiment.data.test
            encoded = tokenize(test, experiment.tokenizer, experiment.recipe.model.max_length)
            order = by_length(encoded)
            encoded, model = encoded.select(order), run.load_model()
        with TemporaryDirectory() as scratch:  # the Trainer makes a folder for checkpoints
            trainer = experiment._trainer(model, {"validation": encoded}, Path(scratch), device, progress)
            logits = experiment._logits(trainer, encoded)
        if predictions is not None and trainer.is_world_process_zero():
            write_atomically(predictions, _predictions_csv(test, logits[np.argsort(order)], run.classes))
        return experiment._score(logits, encoded)

    def score_split(self, trainer: RoadTrainer, split: Dataset) -> dict[str, Any]:
        """The metric and the loss on a split, gathered from all processes; accuracy has a 95% Wilson interval."""
        return self._score(self._logits(trainer, split), split)

    def _logits(self, trainer: RoadTrainer, split: Dataset) -> Float[np.ndarray, "examples num_labels"]:
        return np.asarray(trainer.predict(split).predictions, dtype=np.float32)

    def _score(self, logits: Float[np.ndarray, "examples num_labels"], split: Dataset) -> dict[str, Any]:
        outputs, labels = torch.from_numpy(logits), torch.as_tensor(split["labels"][:])
        loss = mse_loss(outputs.flatten(), labels) if self.data.classes is None else cross_entropy(outputs, labels)
        return {**self._metric(logits, labels.numpy()), "loss": loss.item()}

    def _metric(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """The metric, the number of examples, and for accuracy the 95% Wilson interval. Raises InputError for NaN."""
        check_logits(logits)
        value = self.data.score(logits, labels)[self.data.metric]
        score: dict[str, Any] = {self.data.metric: value, "examples": len(labels)}
        if self.data.metric == "accuracy":
            score["interval"] = list(wilson(round(value * len(labels)), len(labels)))
        return score

    def _trainer(
        self, model: nn.Module, splits: Mapping[str, Dataset], folder: Path, device: torch.device, progress: bool, **options: Any
    ) -> RoadTrainer:
        def metrics(prediction: EvalPrediction) -> dict[str, float]:
            return self.data.score(np.asarray(prediction.predictions), np.asarray(prediction.label_ids))

        best = {"load_best_model_at_end": True, "metric_for_best_model": f"eval_{self.data.metric}", "greater_is_better": True}
        tracked: dict[str, Any] = options if "train" in splits else {"report_to": []}
        return RoadTrainer(
            model=model,
            args=training_arguments(self.recipe, folder, device, progress, eval_strategy="epoch", **best, **tracked),
            train_dataset=splits.get("train"),
            eval_dataset=splits["validation"],
            data_collator=DataCollatorWithPadding(self.tokenizer),
            processing_class=self.tokenizer,
            compute_metrics=metrics,
        )

    @torch.no_grad()
    def _features(self, trainer: RoadTrainer, split: Dataset, name: str, progress: Progress) -> np.ndarray:
        """Hidden states `(examples, width)` of the frozen backbone, one row per example."""
        model: Any = trainer.model
        model.eval()
        token = text_token(self.tokenizer)
        states = []
        batches = trainer.get_test_dataloader(split)
        for number, batch in enumerate(batches):
            progress(f"frozen backbone: {name} texts", number, len(batches))
            batch = trainer._prepare_inputs(batch)
            with trainer.compute_loss_context_manager():
                hidden = model.model(**{**batch, "labels": None}, output_hidden_states=True).hidden_states[-1]
            selected = select_states(hidden, batch["attention_mask"], token)[0].float()
            states.append(trainer.accelerator.gather_for_metrics(selected).cpu().numpy())
        return np.concatenate(states)


def _modules_outside_backbone(model: PreTrainedModel) -> list[str]:
    """Dotted paths of the modules with parameters of their own that belong to the head."""
    inside = {id(module) for module in (model, *model.base_model.modules())}
    outside = [(name, module) for name, module in model.named_modules() if id(module) not in inside]
    return [name for name, module in outside if next(module.parameters(recurse=False), None) is not None]


def unfreeze(model: nn.Module, modules: Sequence[str]) -> None:
    """Set the parameters of these modules, given by their dotted paths, to trainable."""
    for name in modules:
        model.get_submodule(name).requires_grad_(True)


def _predictions_csv(test: Dataset, logits: Float[np.ndarray, "examples num_labels"], classes: Sequence[Any] | None) -> str:
    """The predictions for the texts of `test` beside their labels, as CSV."""
    values = test["label"][:]
    labels = values if classes is None else [classes[index] for index in values]
    return predictions_csv(predictions_of(texts_of(test), logits, classes), labels)
