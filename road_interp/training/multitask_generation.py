"""Several tasks of a causal language model: the experiment of `kind: multitask-generation`.

Each task is trained on its own planes; tasks are scored alone and together (RoAd paper, section 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from road_interp.adapters.joined_names import join_names, split_names
from road_interp.data.answer_extraction import Question
from road_interp.data.behaviours import PARTS, Review
from road_interp.data.multitask import (
    MultiTaskData,
    encode_multitask_data,
    format_prompts,
    load_multitask_data,
    load_questions,
    warn_of_long_answers,
)
from road_interp.errors import InputError
from road_interp.measure.composition import CompositionReport, composition
from road_interp.measure.exact_match import ExactMatchReport, exact_match
from road_interp.measure.labels import MethodLabel
from road_interp.measure.perplexity import answer_perplexity
from road_interp.models.generation import make_generator
from road_interp.models.loading import check_length, load_model, load_text_tokenizer, on_device
from road_interp.models.road_model import RoadModel
from road_interp.progress import progress_bar, waiting
from road_interp.recipes.schema import PLAIN, MultiTaskClassificationRecipe, MultiTaskGenerationRecipe
from road_interp.runs.run import Run
from road_interp.runs.run_files import COMPOSITION, EXACT_MATCH, PLANES
from road_interp.sites.module_tree import evaluating
from road_interp.sites.positions import position_mask
from road_interp.training.arguments import training_arguments
from road_interp.training.experiment import Scores, identity_model
from road_interp.training.multitask_trainer import MultiTaskTrainer
from road_interp.training.parameter_counts import count_trained
from road_interp.training.trainer import RoadTrainer

NEUTRAL = 0.3  # weight of a token that does not decide the part of the example's own task, such as those of the comments


class GenerationTrainer(MultiTaskTrainer):
    """Trainer for prompts and answers of several tasks; the loss covers the answer tokens only.

    It is a weighted mean over the tokens of a batch: those that decide the part of the example's own task count more than
    the others, because most tokens of an answer belong to neutral sentences. Of a task without a part, all count alike.

    Args:
        parts: by task, the parts of the answer that belong to it, as bits of `behaviours.PARTS`.
        co_activation_loss: as in `MultiTaskGenerationRecipe`.
    """

    def __init__(self, parts: Mapping[str, int], co_activation_loss: str, **options: Any) -> None:
        super().__init__(**options)
        self._parts, self._rule = parts, co_activation_loss

    def call(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """The output and the loss for one batch. Positions other than "all" are those of the prompt, as in generation."""
        road: Any = self.accelerator.unwrap_model(model)
        own, active = self.active(inputs["task"])
        mask, labels = inputs["attention_mask"], inputs["labels"]
        positions = None
        if road.positions != "all":
            chosen, padding = position_mask(road.positions, mask * (labels == -100)), mask.argmax(1)
            positions = [(row.nonzero().flatten() - left).tolist() for row, left in zip(chosen, padding, strict=True)]
        pairs = zip(own, map(split_names, active), strict=True)
        others = [join_names(task for task in names if task != name) for name, names in pairs]
        of_others = self._decided_by(others, inputs["decides"])
        if self._rule == "own":
            labels = labels.masked_fill(of_others, -100)
        has_part = torch.tensor([name in self._parts for name in own], device=labels.device)[:, None]
        neutral = has_part & ~self._decided_by(own, inputs["decides"])
        # Logits are computed only at positions whose next token belongs to some row's answer; the others do not enter the loss.
        columns = (labels[:, 1:] != -100).any(0).nonzero().flatten()
        batch = {"input_ids": inputs["input_ids"], "attention_mask": mask, "logits_to_keep": columns}
        output = model(base=batch, tasks=active, trainable_tasks=own, positions=positions)[1]
        logits, labels = output.logits.float(), labels[:, columns + 1]
        losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")  # 0 where the label is -100
        taught = of_others[:, columns + 1]
        if self._rule == "distilled" and self.accelerator.gather(taught.any()).any():  # all processes call the model, or none
            with torch.no_grad(), evaluating(model):
                teacher = model(base=batch, tasks=others, positions=positions)[1].logits
            losses[taught] = functional.cross_entropy(logits[taught], teacher[taught].float().softmax(-1), reduction="none")
        weights = torch.where(neutral[:, columns + 1], NEUTRAL, 1.0) * (labels != -100)
        # The Trainer averages the gradients of the processes: each divides by its share of the tokens of all.
        output.loss = (losses * weights).sum() / self.accelerator.gather(weights.sum()).mean()
        return output

    def _decided_by(self, tasks: Sequence[str], decides: Int[Tensor, "rows tokens"]) -> Bool[Tensor, "rows tokens"]:
        """Whether a token decides a part of the answer that belongs to one of a row's tasks, such as "a+b"."""
        bits = [sum({self._parts.get(task, 0) for task in split_names(names)}) for names in tasks]  # two may have one part
        return decides & torch.tensor(bits, device=decides.device)[:, None] != 0


class AnswerCollator(DataCollatorForSeq2Seq):
    """Pads the inputs, the labels and the column `decides` of a batch on the tokeniser's side."""

    def __call__(self, rows: Sequence[dict[str, Any]], return_tensors: str | None = None) -> Any:
        """The batch as tensors."""
        batch = super().__call__([{key: row[key] for key in row if key != "decides"} for row in rows], return_tensors)
        width = batch["input_ids"].shape[1]
        batch["decides"] = torch.zeros(len(rows), width, dtype=torch.long)
        for place, row in enumerate(rows):
            values = torch.tensor(row["decides"])
            columns = slice(width - len(values), None) if self.tokenizer.padding_side == "left" else slice(len(values))
            batch["decides"][place, columns] = values
        return batch


class MultiTaskGenerationExperiment:
    """Data, model, trainer and scores of several tasks of a causal language model.

    Behaviours are scored alone and together (composition.json); tasks with test questions are scored by exact match
    (exact-match.json).
    """

    def __init__(self, recipe: MultiTaskGenerationRecipe) -> None:
        self.recipe, self.tokenizer = recipe, load_text_tokenizer(recipe.model)
        if self.tokenizer.eos_token_id is None:
            raise InputError(
                f"the tokeniser of '{recipe.model.id}' has no end token, with which answers end: give it an eos_token"
            )
        self.questions = load_questions(recipe, self.tokenizer)

    def load_data(self) -> None:
        """Read the training examples and the reviews."""
        self.data: MultiTaskData = load_multitask_data(self.recipe)
        warn_of_long_answers(self.recipe, self.data, self.tokenizer)
        self.parts = {name: 1 << PARTS.index(each.part) for name, each in self.data.behaviours.items()}

    def build_model(self, device: torch.device) -> RoadModel:
        """The base model with identity rotations and the tasks' planes."""
        base, _ = load_model(self.recipe.model, self.recipe.auto_class)
        check_length(base, self.recipe.model)
        return on_device(identity_model(base, self.recipe.adapter, self.recipe.task_names, self.recipe.planes), device)

    def road_model(self, model: Any) -> RoadModel:
        """The model itself."""
        return model

    def make_trainer(
        self, model: nn.Module, folder: Path, device: torch.device, progress: bool, **options: Any
    ) -> GenerationTrainer:
        """The trainer for the examples of all tasks; `model` is called as RoadModel is.

        Args:
            options: further arguments of `TrainingArguments`, such as save_strategy.
        """
        recipe = self.recipe
        return GenerationTrainer(
            parts=self.parts,
            co_activation_loss=recipe.co_activation_loss,
            tasks=recipe.tasks,
            co_activation=recipe.co_activation,
            co_activation_warmup=recipe.co_activation_warmup,
            shared=recipe.shared,
            model=model,
            args=training_arguments(recipe, folder, device, progress, eval_strategy="no", **options),
            train_dataset=encode_multitask_data(self.data.examples, self.tokenizer, recipe),
            data_collator=AnswerCollator(self.tokenizer),
            processing_class=self.tokenizer,
        )

    def files_at_start(self, model: Any) -> dict[str, Any]:
        """The tasks' planes."""
        return {PLANES: model.planes.to_json()}

    def score_frozen(self, trainer: RoadTrainer) -> dict[str, Any]:
        """Empty: `score` also scores the answers without active planes."""
        return {}

    def score(self, trainer: RoadTrainer, progress: bool) -> Scores:
        """Composition of the behaviours on the validation and test reviews, and exact match on the questions."""
        model: Any = trainer.model
        metrics: dict[str, Any] = {"parameters": {"adapter": count_trained(model)}}
        files: dict[str, bytes | str] = {}
        if self.data.behaviours:
            reports = {
                split: score_composition(self.recipe, model, self.tokenizer, self.data, split, progress)
                for split in ("validation", "test")
            }
            metrics |= {split: report.summary() for split, report in reports.items()}
            files[COMPOSITION] = reports["test"].to_json()
        if self.questions:
            matches = score_exact_match(self.recipe, model, self.tokenizer, self.questions, progress)
            metrics["test"] = {**metrics.get("test", {}), **matches.summary()}
            files[EXACT_MATCH] = matches.to_json()
        return Scores(metrics, files)

    @classmethod
    def evaluate(cls, run: Run, data: str | None, device: torch.device, progress: bool) -> dict[str, Any]:
        """The scores on reviews and questions; `data` replaces the questions of a run whose only task has test questions."""
        recipe: Any = run.recipe if data is None else _with_questions(run.recipe, data)
        experiment = cls(recipe)
        has_behaviours = any(task.behaviour not in (None, PLAIN) for task in recipe.tasks.values())
        if not experiment.questions and not has_behaviours:
            raise InputError("the tasks of the recipe have no test data: set 'test' and 'match'")
        with waiting("loading model and data", progress):
            model = on_device(run.load_model(), device)
            if has_behaviours:
                experiment.load_data()
        summary: dict[str, Any] = {}
        if has_behaviours:
            summary |= score_composition(recipe, model, experiment.tokenizer, experiment.data, "test", progress).summary()
        if experiment.questions:
            summary |= score_exact_match(recipe, model, experiment.tokenizer, experiment.questions, progress).summary()
        return summary


def _with_questions(recipe: Any, data: str) -> MultiTaskGenerationRecipe:
    """The recipe with `data` as the test questions of its only task. Raises InputError for other recipes."""
    if len(recipe.tasks) > 1 or any(task.test is None for task in recipe.tasks.values()):
        raise InputError(
            "several tasks are scored on the test prompts of their recipe; --data is for labelled text and one task's questions"
        )
    return replace(recipe, tasks={name: replace(task, test=data) for name, task in recipe.tasks.items()})


def score_composition(
    recipe: MultiTaskGenerationRecipe,
    model: RoadModel,
    tokenizer: PreTrainedTokenizerBase,
    data: MultiTaskData,
    split: str,
    progress: bool = False,
) -> CompositionReport:
    """The composition scores of a trained model on the "validation" or "test" reviews."""
    model.eval()
    reviews: list[Review] = getattr(data, split)
    with progress_bar(progress) as update:
        return composition(
            make_generator(model, tokenizer, recipe.scoring, recipe.shared),
            answer_perplexity(model.model, tokenizer),
            data.behaviours,
            reviews,
            format_prompts(recipe, [review.text for review in reviews], tokenizer),
            MethodLabel(recipe.model.name, method_label(recipe), recipe.seed),
            update,
        )


def score_exact_match(
    recipe: MultiTaskGenerationRecipe,
    model: RoadModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Mapping[str, list[Question]],
    progress: bool = False,
) -> ExactMatchReport:
    """The exact-match scores of a trained model's greedy answers to the questions of each task."""
    model.eval()
    with progress_bar(progress) as update:
        return exact_match(
            make_generator(model, tokenizer, recipe.scoring),
            questions,
            {name: task.match for name, task in recipe.tasks.items() if task.match is not None},
            list(recipe.tasks),
            MethodLabel(recipe.model.name, method_label(recipe), recipe.seed),
            update,
            shared=recipe.shared,
        )


def method_label(recipe: MultiTaskGenerationRecipe | MultiTaskClassificationRecipe) -> str:
    """Short name of the training method: variant, plane split, co-activation, and what differs from the defaults."""
    parts = [recipe.adapter.variant, recipe.planes, f"co-activation {recipe.co_activation:g}"]
    if recipe.adapter.trainable != "both":
        parts.append(f"{recipe.adapter.trainable} only")
    if recipe.adapter.positions != "all":
        parts.append(f"positions {recipe.adapter.positions}")
    rates = [f"{name} {task.learning_rate:g}" for name, task in recipe.tasks.items() if task.learning_rate is not None]
    if rates:
        parts.append(f"rate of {', of '.join(rates)}")
    if isinstance(recipe, MultiTaskGenerationRecipe):
        if recipe.co_activation_warmup:
            parts.append(f"co-activation rising for {recipe.co_activation_warmup:g} of the steps")
        if recipe.co_activation_loss != "own":
            parts.append(f"loss of {recipe.co_activation_loss} tokens")
        if recipe.shared is not None:
            parts.append(f"shared {recipe.shared}")
    return ", ".join(parts)
