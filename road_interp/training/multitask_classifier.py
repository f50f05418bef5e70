"""Several classification heads on one rotated backbone: the experiment of `kind: multitask-classification`.

Every task owns planes of the hidden states and has its own linear head.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn
from torch.nn import functional
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from road_interp.adapters.joined_names import BASE, join_names
from road_interp.adapters.modules_to_save import load_modules, serialize_modules
from road_interp.data.batches import batches_by_length
from road_interp.data.head_outputs import chosen_classes
from road_interp.data.labelled import LabelledDataset, load_labelled, tokenize
from road_interp.errors import InputError
from road_interp.measure.answers import Answers, in_turn
from road_interp.measure.multitask_accuracy import MultiTaskAccuracyReport, active_sets
from road_interp.models.hidden_states import select_states, text_token
from road_interp.models.loading import check_length, find_device, load_model, load_text_tokenizer, on_device
from road_interp.models.pyvene_model import load_trained
from road_interp.models.road_model import RoadModel
from road_interp.progress import Progress, progress_bar, silent, waiting
from road_interp.recipes.schema import MultiTaskClassificationRecipe
from road_interp.runs.answers import READ_TEXTS, states_before, texts_of
from road_interp.runs.run import Run
from road_interp.runs.run_files import CLASSES, HEAD, MULTITASK_ACCURACY, PLANES
from road_interp.training.arguments import training_arguments
from road_interp.training.experiment import Scores, identity_model
from road_interp.training.multitask_generation import method_label
from road_interp.training.multitask_trainer import MultiTaskTrainer
from road_interp.training.parameter_counts import count_trained
from road_interp.training.trainer import RoadTrainer

BATCH_SIZE = 64  # texts per forward pass in scoring


class MultiTaskClassifier(nn.Module):
    """A rotated backbone with task planes, and for every task a linear head on the state of the [CLS] or the last token.

    Args:
        road: the rotated backbone.
        sizes: number of classes of every task.
        token: the token of a text that the heads read.
    """

    def __init__(self, road: RoadModel, sizes: Mapping[str, int], token: Literal["first", "last"]) -> None:
        super().__init__()
        self.road, self.tasks, self._token = road, tuple(sizes), token
        width = road.model.config.hidden_size
        self.heads = nn.ModuleList([nn.Linear(width, size) for size in sizes.values()])

    def forward(
        self, base: Mapping[str, Tensor], tasks: Sequence[str], trainable_tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Logits `(rows, classes)` of every head, by task; the planes of `tasks` are active per row."""
        states = self.road(base=base, tasks=tasks, trainable_tasks=trainable_tasks)[1].last_hidden_state
        texts: Any = select_states(states, base["attention_mask"], self._token)[0]
        return {task: head(texts.to(head.weight)) for task, head in zip(self.tasks, self.heads, strict=True)}

    @property
    def hf_device_map(self) -> dict[str, Any]:
        """The device of each module of the backbone, as accelerate placed it; as in RoadModel."""
        return self.road.hf_device_map

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state dict without the frozen backbone, as in RoadModel."""
        return load_trained(self, state_dict, strict, assign)


class MultiTaskClassifierTrainer(MultiTaskTrainer):
    """Trainer for labelled texts of several tasks; each text trains the planes and the head of its task."""

    def own_parameters(self, task: str) -> Iterable[nn.Parameter]:
        """The head of a task."""
        heads: Any = self._model.heads
        return heads[self._tasks.index(task)].parameters()

    def call(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """The loss of one batch: the mean of the rows' cross-entropies, each from the head of its task."""
        own, active = self.active(inputs["task"])
        base = {key: value for key, value in inputs.items() if key not in ("task", "labels")}
        logits = model(base=base, tasks=active, trainable_tasks=own)
        total = torch.zeros((), device=inputs["labels"].device)
        for index, task in enumerate(self._tasks):
            rows = inputs["task"] == index
            total = total + functional.cross_entropy(logits[task][rows].float(), inputs["labels"][rows], reduction="sum")
        return SimpleNamespace(loss=total / len(own))


class MultiTaskClassificationExperiment:
    """Data, model, trainer and scores of several labelled data sets, one per task."""

    def __init__(self, recipe: MultiTaskClassificationRecipe) -> None:
        self.recipe, self.tokenizer = recipe, load_text_tokenizer(recipe.model)

    def load_data(self) -> None:
        """Read every task's texts."""
        self.data: dict[str, LabelledDataset] = load_labelled_tasks(self.recipe)

    def build_model(self, device: torch.device) -> MultiTaskClassifier:
        """The backbone with identity rotations, the tasks' planes, and new heads."""
        base, _ = load_model(self.recipe.model, self.recipe.auto_class)
        check_length(base, self.recipe.model)
        if base.config.is_encoder_decoder:
            whose = f"{type(base).__name__} has an encoder and a decoder"
            raise InputError(f"kind: multitask-classification reads states of one stack, and {whose}")
        road = identity_model(base, self.recipe.adapter, self.recipe.task_names, self.recipe.planes)
        return _with_heads(road, self.data, self.tokenizer)

    def road_model(self, model: Any) -> RoadModel:
        """The rotated backbone."""
        return model.road

    def make_trainer(
        self, model: nn.Module, folder: Path, device: torch.device, progress: bool, **options: Any
    ) -> MultiTaskClassifierTrainer:
        """The trainer for the texts of all tasks."""
        return MultiTaskClassifierTrainer(
            tasks=self.recipe.tasks,
            co_activation=self.recipe.co_activation,
            model=model,
            args=training_arguments(self.recipe, folder, device, progress, eval_strategy="no", **options),
            train_dataset=self._encode(),
            data_collator=DataCollatorWithPadding(self.tokenizer),
            processing_class=self.tokenizer,
        )

    def files_at_start(self, model: Any) -> dict[str, Any]:
        """The tasks' planes, and each task's class labels in the order of its head's outputs."""
        return {
            PLANES: model.road.planes.to_json(),
            CLASSES: {name: data.classes for name, data in self.data.items()},
        }

    def score_frozen(self, trainer: RoadTrainer) -> dict[str, Any]:
        """Empty: `score` also scores every head without planes."""
        return {}

    def score(self, trainer: RoadTrainer, progress: bool) -> Scores:
        """Accuracies of all heads on validation and test texts."""
        trained: Any = trainer.model
        model = trainer.accelerator.unwrap_model(trained, keep_fp32_wrapper=False)  # scored in the precision of `evaluate`
        heads = sum(parameter.numel() for parameter in model.heads.parameters())
        metrics: dict[str, Any] = {"parameters": {"adapter": count_trained(model.road), "heads": heads}}
        reports = {split: self.accuracy(model, split, progress) for split in ("validation", "test")}
        metrics |= {split: report.summary() for split, report in reports.items()}
        return Scores(metrics, {MULTITASK_ACCURACY: reports["test"].to_json(), HEAD: serialize_modules(model, ["heads"])})

    @classmethod
    def evaluate(cls, run: Run, data: str | None, device: torch.device, progress: bool) -> dict[str, Any]:
        """Accuracies of all heads on the recipe's test texts. Raises InputError for other data."""
        if data is not None:
            raise InputError("several heads are scored on the test texts of their recipe; --data is for one classification")
        return cls.accuracy_of(run, "test", device, progress).summary()

    @classmethod
    def accuracy_of(cls, run: Run, split: str, device: torch.device, progress: bool = False) -> MultiTaskAccuracyReport:
        """The accuracy of a trained run on the texts of a split, as `accuracy`."""
        with waiting("loading model and data", progress):
            experiment = cls(run.recipe)  # type: ignore[arg-type]
            experiment.load_data()
            model = on_device(load_multitask_classifier(run, experiment.data, experiment.tokenizer), device)
        return experiment.accuracy(model, split, progress)

    def accuracy(self, model: MultiTaskClassifier, split: str, progress: bool = False) -> MultiTaskAccuracyReport:
        """The accuracy of every head on the texts of its task, with no planes, its own planes and all planes active."""
        correct: dict[str, dict[str, tuple[bool, ...]]] = {name: {} for name in self.data}
        with progress_bar(progress) as update:
            for name, data in self.data.items():
                examples = tokenize(getattr(data, split), self.tokenizer, self.recipe.model.max_length)
                for active in active_sets(name, list(self.data)):
                    update(f"{split} texts of '{name}' with {active}")
                    correct[name][active] = outcomes(model, name, active, examples, self.tokenizer)
        recipe = self.recipe
        return MultiTaskAccuracyReport(recipe.model.name, method_label(recipe), tuple(self.data), (recipe.seed,), correct)

    def _encode(self) -> Dataset:
        """Token ids, labels and task index of all training texts."""
        sets = []
        for index, data in enumerate(self.data.values()):
            encoded = tokenize(data.train, self.tokenizer, self.recipe.model.max_length)
            sets.append(encoded.add_column("task", [index] * len(encoded)))
        return concatenate_datasets(sets)


def load_labelled_tasks(recipe: MultiTaskClassificationRecipe) -> dict[str, LabelledDataset]:
    """The splits of every task. Raises InputError for a task that is not scored by accuracy.

    Warns of test texts of one task that another is trained on: both read the same states.
    """
    data = {name: load_labelled(task.labels, f"tasks.{name}.labels") for name, task in recipe.tasks.items()}
    for name, dataset in data.items():
        if dataset.metric != "accuracy":
            raise InputError(f"task '{name}' is scored by {dataset.metric}; multitask-classification needs metric: accuracy")
    for (name, tested), (other, trained) in permutations(data.items(), 2):
        known = set(texts_of(trained.train))
        if shared := sum(text in known for text in texts_of(tested.test)):
            warnings.warn(
                f"{shared} of {len(tested.test)} test texts of task '{name}' are training texts of task '{other}': "
                "split_by_text=true in the labels of both, with fractions as sizes, holds out the same texts",
                stacklevel=2,
            )
    return data


def load_multitask_classifier(
    run: Run, data: Mapping[str, LabelledDataset], tokenizer: PreTrainedTokenizerBase
) -> MultiTaskClassifier:
    """The trained model of a run folder. Raises InputError if a task's data have other classes than its head."""
    for name, dataset in data.items():
        run.check_classes(dataset.classes, name)
    model = _with_heads(run.load_model(), data, tokenizer)
    load_modules(model, run.folder / HEAD)
    return model.eval()


def answers_by_task(run: Run, progress: Progress = silent) -> list[Answers]:
    """The answers of every task's head to its test texts, with the task's planes active and with none.

    The states are those that the run rotates with the planes of all tasks active.
    """
    progress(f"loading model and data of {run.folder}")
    run.check_data()
    recipe: MultiTaskClassificationRecipe = run.recipe  # type: ignore[assignment]
    data, tokenizer = load_labelled_tasks(recipe), load_text_tokenizer(recipe.model)
    model = on_device(load_multitask_classifier(run, data, tokenizer), find_device(None))
    found = []
    for name, of_task in data.items():
        examples = tokenize(of_task.test, tokenizer, recipe.model.max_length)
        answers = {}
        for active in (name, BASE):
            progress(f"test texts of '{name}' with {'its planes' if active == name else 'no planes'}")
            answers[active] = np.array(predicted(model, name, active, examples, tokenizer))
        texts, labels, classes = texts_of(of_task.test), np.array(of_task.test["label"][:]), tuple(of_task.classes or ())
        read = in_turn(range(len(texts)), labels)[:READ_TEXTS]
        with model.road.attached(tasks=[join_names(data)] * len(read)) as base:
            states = states_before(base, run.adapter, tokenizer, [texts[row] for row in read], recipe.model.max_length)
        found.append(Answers(texts, classes, labels, answers[name], answers[BASE], tuple(read), states, name))
    return found


def outcomes(
    model: MultiTaskClassifier, task: str, active: str, examples: Dataset, tokenizer: PreTrainedTokenizerBase
) -> tuple[bool, ...]:
    """Whether the head of a task is right, per example."""
    answers = predicted(model, task, active, examples, tokenizer)
    return tuple(answer == label for answer, label in zip(answers, examples["labels"][:], strict=True))


@torch.no_grad()
def predicted(
    model: MultiTaskClassifier, task: str, active: str, examples: Dataset, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Index of the class that the head of a task chooses, per example; batches hold texts of similar length."""
    model.eval()
    chosen: dict[int, int] = {}
    for rows in batches_by_length(list(map(len, examples["input_ids"])), BATCH_SIZE):
        batch = {key: values for key, values in examples[rows].items() if key != "labels"}
        base = tokenizer.pad(batch, return_tensors="pt").to(model.road.model.device)
        logits = model(base, [active] * len(rows))[task].float().cpu().numpy()
        chosen.update(zip(rows, chosen_classes(logits).tolist(), strict=True))
    return [chosen[row] for row in range(len(examples))]


def _with_heads(road: RoadModel, data: Mapping[str, LabelledDataset], tokenizer: PreTrainedTokenizerBase) -> MultiTaskClassifier:
    sizes = {name: dataset.num_labels for name, dataset in data.items()}
    return MultiTaskClassifier(road, sizes, text_token(tokenizer))
