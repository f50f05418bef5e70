"""Training several tasks in one state, each on its own planes, and scoring what they do together (paper, section 4.3).

With co-activation, the other tasks' planes are active during a part of each task's training, without gradient: every task then
learns to work in the presence of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase, TrainingArguments, set_seed

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.data.behaviours import Review
from road_interp.data.multitask import Mixture, ask, encode_mixture, load_mixture, load_questions
from road_interp.data.questions import Question
from road_interp.measure.composition import CompositionReport, composition
from road_interp.measure.exact_match import MatchReport, matches
from road_interp.models.generation import answer_perplexity, answers_of
from road_interp.models.loading import check_length, find_device, load_model, load_tokenizer, on_device
from road_interp.models.road_model import RoadModel
from road_interp.recipes.schema import MixtureRecipe
from road_interp.runs.run import Run
from road_interp.runs.run_files import COMPOSITION, MATCHES, PLANES
from road_interp.runs.run_folder import finish_run, prepare_folder, start_run
from road_interp.sites.find import find_sites
from road_interp.sites.positions import position_mask
from road_interp.training.arguments import training_arguments
from road_interp.training.distributed import shard_blocks
from road_interp.training.trainer import RoadTrainer, train_on


def train_mixture(
    recipe: MixtureRecipe,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    device: str | None = None,
    progress: bool = True,
) -> Run:
    """Learn the tasks of a mixture and leave a run folder with their scores.

    Behaviours are scored alone and together (composition.json), tasks that are tested on questions by exact match (matches.json).

    Arguments and errors are those of `road_interp.train`.
    """
    where = find_device(device)
    folder = prepare_folder(recipe, out, resume)
    set_seed(recipe.seed)
    mixture = load_mixture(recipe)
    tokenizer = load_tokenizer(recipe.model)
    questions = load_questions(recipe, tokenizer)
    arguments = training_arguments(recipe.training, recipe.seed, folder, where, progress, eval_strategy="no")
    model: RoadModel = on_device(build_mixture_model(recipe), where)
    if recipe.model.shard:
        shard_blocks(model.model, where)
    assert model.planes is not None
    trainer = mixture_trainer(recipe, model, model.planes.tasks, mixture, tokenizer, arguments)
    start_run(folder, recipe, {PLANES: model.planes.to_json()}, where)
    set_seed(recipe.seed)
    train_on(trainer, folder, resume)
    metrics: dict[str, Any] = {"parameters": {"adapter": model.adapter.num_parameters}}
    contents: dict[str, str] = {}
    if mixture.scorers:
        for split in ("validation", "test"):
            report = score_mixture(recipe, model, tokenizer, mixture, split, progress)
            metrics[split] = report.summary()
        contents[COMPOSITION] = report.to_json()
    if questions:
        found = score_matches(recipe, model, tokenizer, questions, progress)
        metrics["test"] = {**metrics.get("test", {}), **found.summary()}
        contents[MATCHES] = found.to_json()
    return finish_run(trainer, recipe, model.adapter, metrics, contents, folder, where)


class MixtureTrainer(RoadTrainer):
    """Every example activates its own task's part; with probability `co_activation` all others too, held still."""

    def __init__(self, tasks: Sequence[str], co_activation: float, **options: Any) -> None:
        super().__init__(**options)
        self._tasks, self._co_activation = tuple(tasks), co_activation

    def active(self, task: Int[Tensor, " rows"]) -> tuple[list[str], list[str]]:
        """For every row's task index its own task, which learns, and all that are active beside it."""
        own = [self._tasks[index] for index in task.tolist()]
        together = (torch.rand(len(own)) < self._co_activation).tolist()
        return own, ["+".join(self._tasks) if both else name for name, both in zip(own, together, strict=True)]

    def call(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """The output for one batch. Positions other than "all" are the prompt's, as in generation."""
        road: Any = self.accelerator.unwrap_model(model)
        own, active = self.active(inputs["task"])
        mask, labels = inputs["attention_mask"], inputs["labels"]
        positions = None
        if road.positions != "all":
            chosen, padding = position_mask(road.positions, mask * (labels == -100)), mask.argmax(1)
            positions = [(row.nonzero().flatten() - left).tolist() for row, left in zip(chosen, padding, strict=True)]
        # Logits are computed only where some row's answer goes on: of prompts they would cost much and count for nothing.
        columns = (labels[:, 1:] != -100).any(0).nonzero().flatten()
        batch = {"input_ids": inputs["input_ids"], "attention_mask": mask, "logits_to_keep": columns}
        output = model(base=batch, tasks=active, learning=own, positions=positions)[1]
        output.loss = functional.cross_entropy(output.logits.float().flatten(0, 1), labels[:, columns + 1].flatten())
        return output


def mixture_trainer(
    recipe: MixtureRecipe,
    model: nn.Module,
    tasks: Sequence[str],
    mixture: Mixture,
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainingArguments,
) -> MixtureTrainer:
    """The trainer of a mixture's examples, for a RoadModel or whatever else is called like one."""
    return MixtureTrainer(
        tasks=tasks,
        co_activation=recipe.co_activation,
        model=model,
        args=arguments,
        train_dataset=encode_mixture(mixture, tokenizer, recipe),
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        processing_class=tokenizer,
    )


def build_mixture_model(recipe: MixtureRecipe) -> RoadModel:
    """The base model with identity rotations and the tasks' planes."""
    base, _ = load_model(recipe.model, "causal-lm")
    check_length(base, recipe.model)
    where = recipe.adapter
    sites = find_sites(base, where.sites, where.layers, where.stack)
    planes = TaskPlanes.split(list(recipe.tasks), sites, recipe.planes)
    adapter = RoadAdapter.identity(sites, where.variant, where.group_size)
    return RoadModel(base, adapter, where.positions, planes).learn(where.learn)


def score_mixture(
    recipe: MixtureRecipe,
    model: RoadModel,
    tokenizer: PreTrainedTokenizerBase,
    mixture: Mixture,
    split: str,
    progress: bool = False,
) -> CompositionReport:
    """The composition scores of a trained model on the "validation" or "test" reviews."""
    model.eval()
    reviews: list[Review] = getattr(mixture, split)
    settings = recipe.scoring
    with Console(stderr=True, quiet=not progress).status("") as status:
        return composition(
            answers_of(model, tokenizer, settings.max_new_tokens, settings.batch_size),
            answer_perplexity(model.model, tokenizer),
            mixture.scorers,
            reviews,
            ask(recipe, [review.text for review in reviews], tokenizer),
            model=recipe.model.name,
            method=method_of(recipe),
            seed=recipe.seed,
            progress=lambda active: status.update(f"{split} prompts with {active}"),
        )


def score_matches(
    recipe: MixtureRecipe,
    model: RoadModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Mapping[str, list[Question]],
    progress: bool = False,
) -> MatchReport:
    """How often a trained model's greedy answers say what the reference answers say."""
    model.eval()
    settings = recipe.scoring
    with Console(stderr=True, quiet=not progress).status("") as status:
        return matches(
            answers_of(model, tokenizer, settings.max_new_tokens, settings.batch_size),
            questions,
            {name: task.match for name, task in recipe.tasks.items() if task.match is not None},
            list(recipe.tasks),
            model=recipe.model.name,
            method=method_of(recipe),
            seed=recipe.seed,
            progress=status.update,
        )


def method_of(recipe: MixtureRecipe) -> str:
    """How a mixture is trained, in a few words."""
    return f"{recipe.adapter.variant}, {recipe.planes}, co-activation {recipe.co_activation:g}"
