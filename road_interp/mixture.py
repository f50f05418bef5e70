"""Training several tasks in one state, each on its own planes, and scoring what they do together (paper, section 4.3).

With co-activation, the other tasks' planes are active during a part of each task's training, without gradient: every task then
learns to work in the presence of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Int
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase, TrainingArguments, set_seed

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.behaviours import Behaviour, Review, behaviour
from road_interp.errors import InputError
from road_interp.measure.composition import CompositionReport, answer_perplexity, answers_of, composition
from road_interp.measure.matches import MatchReport, Question, matches, said
from road_interp.model import RoadModel
from road_interp.pretrained import check_length, find_device, load_model, load_tokenizer, on_device
from road_interp.recipes.schema import DataRecipe, MixtureRecipe, TaskRecipe
from road_interp.run import COMPOSITION, MATCHES, PLANES, Run
from road_interp.sharding import shard_blocks
from road_interp.sites.find import find_sites
from road_interp.sites.positions import position_mask
from road_interp.tasks import read_examples, read_rows
from road_interp.trainer import RoadTrainer, finish_run, prepare_folder, start_run, train_on, training_arguments

# Sandboxed: a template comes with a recipe and must not reach beyond its row.
TEMPLATES = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError)  # Jinja's, and those of expressions in it


@dataclass(frozen=True)
class Mixture:
    """Prompts and answers to learn from, and untouched reviews to be asked about.

    Attributes:
        examples: for every task its (prompt, answer) pairs.
        scorers: how to score each task that has a behaviour.
        validation, test: reviews that no task learns from.
    """

    examples: Mapping[str, list[tuple[str, str]]]
    scorers: Mapping[str, Behaviour]
    validation: list[Review]
    test: list[Review]


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


def load_mixture(recipe: MixtureRecipe) -> Mixture:
    """Training examples of every task and the reviews to test on; no review serves twice."""
    scorers = {name: behaviour(task.behaviour) for name, task in recipe.tasks.items() if task.behaviour is not None}
    reviews = [] if recipe.reviews is None else load_reviews(recipe.reviews)
    validation, test = recipe.scoring.validation, recipe.scoring.test
    used = validation + test
    wanted = used + sum(task.examples for task in recipe.tasks.values() if task.id is None)
    if recipe.reviews is not None and len(reviews) < wanted:
        raise InputError(f"{wanted} reviews are needed, '{recipe.reviews.id}' has {len(reviews)}")
    examples = {}
    for name, task in recipe.tasks.items():
        if task.id is None:
            mine = reviews[used : used + task.examples]
            examples[name] = [(review.text, scorers[name].answer(review)) for review in mine]
            used += task.examples
        else:
            examples[name] = _pairs(name, task, task.id, task.split, task.examples, task.answer)
    return Mixture(examples, scorers if reviews else {}, reviews[:validation], reviews[validation : validation + test])


def load_reviews(recipe: DataRecipe) -> list[Review]:
    """All reviews of a data set in an order that depends on `split_seed` only. The greater of two labels is "positive"."""
    data = read_examples(recipe, recipe.id, "train")
    labels = sorted(set(data["label"]))
    if len(labels) != 2:
        raise InputError(f"'{recipe.id}': reviews need two labels, not {len(labels)}")
    order = np.random.default_rng(recipe.split_seed).permutation(len(data)).tolist()
    words = {labels[0]: "negative", labels[1]: "positive"}
    texts, marks = data["text"], data["label"]
    return [Review(texts[row], words[marks[row]], number) for number, row in enumerate(order)]


def load_questions(recipe: MixtureRecipe, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Question]]:
    """The questions of every task that is tested on some. Raises InputError where a reference answer says nothing."""
    questions = {}
    for name, task in recipe.tasks.items():
        if task.test is None or task.match is None:
            continue
        pairs = _pairs(name, task, task.test, "test", recipe.scoring.test, task.reference or task.answer)
        wanted = [said(task.match, answer) for _, answer in pairs]
        if None in wanted:
            missing = pairs[wanted.index(None)][1]
            raise InputError(f"task '{name}': {task.match!r} matches nothing in the reference {missing!r} of '{task.test}'")
        asked = ask(recipe, [prompt for prompt, _ in pairs], tokenizer)
        questions[name] = [Question(prompt, answer) for prompt, answer in zip(asked, wanted, strict=True) if answer is not None]
    return questions


def _pairs(name: str, task: TaskRecipe, source: str, split: str, most: int, told: str) -> list[tuple[str, str]]:
    """At most so many prompts of a data set, and what the template `told` says of each."""
    rows = read_rows(source, task.config, split)
    rows = rows.select(range(min(most, len(rows))))
    try:
        prompt, answer = TEMPLATES.from_string(task.prompt), TEMPLATES.from_string(told)
        return [(prompt.render(row), answer.render(row)) for row in rows]
    except TEMPLATE_ERRORS as error:
        columns = ", ".join(rows.column_names)
        raise InputError(f"task '{name}': its templates fail ({error}); the columns of '{source}' are {columns}") from None


def ask(recipe: MixtureRecipe, prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Prompts in the model's template; a text too long for `max_length` (with room for the answer) is cut first."""
    try:
        template = TEMPLATES.from_string(recipe.template)
        blank = template.render(prompt="")
    except TEMPLATE_ERRORS as error:
        raise InputError(f"template: {error}; it is given `prompt` alone") from None
    frame = len(tokenizer(blank, add_special_tokens=False)["input_ids"])
    room = recipe.model.max_length - frame - recipe.scoring.max_new_tokens
    if room < 1:
        raise InputError(f"model.max_length {recipe.model.max_length} leaves no room for a prompt beside template and answer")
    cut = tokenizer(list(prompts), add_special_tokens=False, truncation=True, max_length=room)["input_ids"]
    return [template.render(prompt=tokenizer.decode(ids)) for ids in cut]


def encode_mixture(mixture: Mixture, tokenizer: PreTrainedTokenizerBase, recipe: MixtureRecipe) -> Dataset:
    """Token ids of prompt and answer, with labels on the answer only and the index of the task.

    The end of the answer is learned too, but for behaviours that are not about it.
    """
    rows: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": [], "task": []}
    for index, (name, pairs) in enumerate(mixture.examples.items()):
        end = [] if name in mixture.scorers and not mixture.scorers[name].ends else [tokenizer.eos_token_id]
        asked = ask(recipe, [prompt for prompt, _ in pairs], tokenizer)
        for prompt, (_, answer) in zip(asked, pairs, strict=True):
            before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            after = [*tokenizer(answer, add_special_tokens=False)["input_ids"], *end]
            ids = (before + after)[: recipe.model.max_length]
            rows["input_ids"].append(ids)
            rows["attention_mask"].append([1] * len(ids))
            rows["labels"].append(([-100] * len(before) + after)[: len(ids)])
            rows["task"].append(index)
    return Dataset.from_dict(rows)


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
