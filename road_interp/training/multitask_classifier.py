"""Several classification heads on one rotated backbone: every task owns planes of the states, and a linear head of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, set_seed

from road_interp.adapters.modules_to_save import head_file, load_head
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.data.labelled import Task, load_task, tokenize
from road_interp.errors import InputError
from road_interp.measure.multitask_accuracy import HeadsReport, active_sets
from road_interp.models.loading import check_length, find_device, load_model, load_tokenizer
from road_interp.models.road_model import RoadModel, load_trained
from road_interp.recipes.schema import MixtureRecipe
from road_interp.runs.run import Run
from road_interp.runs.run_files import CLASSES, HEAD, HEADS, PLANES
from road_interp.runs.run_folder import finish_run, prepare_folder, start_run
from road_interp.sites.find import find_sites
from road_interp.training.arguments import training_arguments
from road_interp.training.distributed import shard_blocks
from road_interp.training.multitask_generation import MixtureTrainer, method_of
from road_interp.training.trainer import train_on


class HeadsModel(nn.Module):
    """A backbone with planes, and for every task a linear head on the token that stands for the text.

    Args:
        road: the rotated backbone.
        sizes: number of classes of every task.
        first: whether the first token stands for the text ([CLS]) or the last.
    """

    def __init__(self, road: RoadModel, sizes: Mapping[str, int], first: bool) -> None:
        super().__init__()
        self.road, self.tasks, self._first = road, tuple(sizes), first
        width = road.model.config.hidden_size
        self.heads = nn.ModuleList([nn.Linear(width, size) for size in sizes.values()])

    def forward(
        self, base: Mapping[str, Tensor], tasks: Sequence[str], learning: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Logits `(rows, classes)` of every head, with the planes of `tasks` active row by row."""
        states = self.road(base=base, tasks=tasks, learning=learning)[1].last_hidden_state
        mask = base["attention_mask"]
        place = mask.argmax(1) if self._first else mask.shape[1] - 1 - mask.flip(1).argmax(1)
        texts = states[torch.arange(len(states), device=states.device), place]
        return {task: head(texts.to(head.weight.device)) for task, head in zip(self.tasks, self.heads, strict=True)}

    @property
    def hf_device_map(self) -> dict[str, Any]:
        """Where accelerate has put the parts of the backbone, as in RoadModel."""
        return self.road.hf_device_map

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Read what `state_dict` gives, which is without the frozen backbone, as in RoadModel."""
        return load_trained(self, state_dict, strict, assign)


class HeadsTrainer(MixtureTrainer):
    """A mixture of labelled texts: each trains its task's planes and head."""

    def call(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """The loss of one batch: the mean over its rows, each under its own head."""
        own, active = self.active(inputs["task"])
        base = {key: value for key, value in inputs.items() if key not in ("task", "labels")}
        logits = model(base=base, tasks=active, learning=own)
        total = torch.zeros((), device=inputs["labels"].device)
        for index, task in enumerate(self._tasks):
            rows = inputs["task"] == index
            total = total + functional.cross_entropy(logits[task][rows].float(), inputs["labels"][rows], reduction="sum")
        return SimpleNamespace(loss=total / len(own))


def train_heads(
    recipe: MixtureRecipe,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    device: str | None = None,
    progress: bool = True,
) -> Run:
    """Learn the tasks of a mixture of labelled texts and leave a run folder with every head's accuracy.

    Arguments and errors are those of `road_interp.train`.
    """
    where = find_device(device)
    folder = prepare_folder(recipe, out, resume)
    set_seed(recipe.seed)
    data, tokenizer = load_labels(recipe), load_tokenizer(recipe.model)
    model = build_heads_model(recipe, data, tokenizer)
    if recipe.model.shard:
        shard_blocks(model.road.model, where)
    assert model.road.planes is not None
    trainer = HeadsTrainer(
        tasks=list(recipe.tasks),
        co_activation=recipe.co_activation,
        model=model,
        args=training_arguments(recipe.training, recipe.seed, folder, where, progress, eval_strategy="no"),
        train_dataset=_encode(data, tokenizer, recipe),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    classes = {name: task.classes for name, task in data.items()}
    start_run(folder, recipe, {PLANES: model.road.planes.to_json(), CLASSES: classes}, where)
    set_seed(recipe.seed)
    train_on(trainer, folder, resume)
    adapter = model.road.adapter
    metrics: dict[str, Any] = {
        "parameters": {"adapter": adapter.num_parameters, "heads": sum(each.numel() for each in model.heads.parameters())}
    }
    model = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # scored as `evaluate` will
    for split in ("validation", "test"):
        report = score_heads(recipe, model, tokenizer, data, split, progress)
        metrics[split] = report.summary()
    contents: dict[str, bytes | str] = {HEADS: report.to_json(), HEAD: head_file(model, ["heads"])}
    return finish_run(trainer, recipe, adapter, metrics, contents, folder, where)


def load_labels(recipe: MixtureRecipe) -> dict[str, Task]:
    """The splits of every task. Raises InputError for a task that is not scored by accuracy."""
    data = {name: load_task(task.labels) for name, task in recipe.tasks.items() if task.labels is not None}
    for name, task in data.items():
        if task.metric != "accuracy":
            raise InputError(f"task '{name}' is scored by {task.metric}: heads of a mixture are classifiers, scored by accuracy")
    return data


def build_heads_model(recipe: MixtureRecipe, data: Mapping[str, Task], tokenizer: PreTrainedTokenizerBase) -> HeadsModel:
    """The backbone with identity rotations, the tasks' planes, and fresh heads."""
    base, _ = load_model(recipe.model)
    check_length(base, recipe.model)
    where = recipe.adapter
    sites = find_sites(base, where.sites, where.layers, where.stack)
    planes = TaskPlanes.split(list(recipe.tasks), sites, recipe.planes)
    road = RoadModel(base, RoadAdapter.identity(sites, where.variant, where.group_size), where.positions, planes)
    return _with_heads(road.learn(where.learn), data, tokenizer)


def load_heads_model(run: Run, data: Mapping[str, Task], tokenizer: PreTrainedTokenizerBase) -> HeadsModel:
    """The trained model of a run folder."""
    model = _with_heads(run.load_model(), data, tokenizer)
    load_head(model, run.folder / HEAD)
    return model.eval()


def score_heads(
    recipe: MixtureRecipe,
    model: HeadsModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Mapping[str, Task],
    split: str,
    progress: bool = False,
) -> HeadsReport:
    """Every head on the texts of its task, with no planes, its own and all planes active."""
    correct: dict[str, dict[str, tuple[bool, ...]]] = {name: {} for name in data}
    with Console(stderr=True, quiet=not progress).status("") as status:
        for name, task in data.items():
            examples = tokenize(getattr(task, split), tokenizer, recipe.model.max_length)
            for active in active_sets(name, list(data)):
                status.update(f"{split} texts of '{name}' with {active}")
                correct[name][active] = outcomes(model, name, active, examples, tokenizer)
    return HeadsReport(recipe.model.name, method_of(recipe), tuple(data), (recipe.seed,), correct)


@torch.no_grad()
def outcomes(
    model: HeadsModel, task: str, active: str, examples: Dataset, tokenizer: PreTrainedTokenizerBase
) -> tuple[bool, ...]:
    """Example by example whether the head of a task is right; batches hold texts of similar length."""
    model.eval()
    device = model.road.model.device
    lengths = [len(ids) for ids in examples["input_ids"]]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    right: dict[int, bool] = {}
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        batch = examples[rows]
        labels = torch.tensor(batch.pop("labels"), device=device)
        base = tokenizer.pad(batch, return_tensors="pt").to(device)
        found = model(base, [active] * len(rows))[task].argmax(1) == labels
        right.update(zip(rows, found.tolist(), strict=True))
    return tuple(right[row] for row in range(len(order)))


def _with_heads(road: RoadModel, data: Mapping[str, Task], tokenizer: PreTrainedTokenizerBase) -> HeadsModel:
    return HeadsModel(road, {name: task.num_labels for name, task in data.items()}, tokenizer.cls_token is not None)


def _encode(data: Mapping[str, Task], tokenizer: PreTrainedTokenizerBase, recipe: MixtureRecipe) -> Dataset:
    """Token ids, labels and the index of the task of all training texts."""
    parts = []
    for index, task in enumerate(data.values()):
        encoded = tokenize(task.train, tokenizer, recipe.model.max_length)
        parts.append(encoded.add_column("task", [index] * len(encoded)))
    return concatenate_datasets(parts)
