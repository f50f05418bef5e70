"""Prompts and answers of several tasks, reviews to test on, and questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from road_interp.data.behaviours import Behaviour, Review, behaviour
from road_interp.data.labelled import read_examples, read_rows
from road_interp.data.questions import Question, extract_answer
from road_interp.errors import InputError
from road_interp.recipes.schema import DataRecipe, MultiTaskGenerationRecipe, TaskRecipe

# Sandboxed: a template comes with a recipe and must not reach beyond its row.
TEMPLATES = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError)  # Jinja's, and those of expressions in it


@dataclass(frozen=True)
class MultiTaskData:
    """Prompts and answers to learn from, and untouched reviews to be asked about.

    Attributes:
        examples: for every task its (prompt, answer) pairs.
        behaviours: how to score each task that has one.
        validation, test: reviews that no task learns from.
    """

    examples: Mapping[str, list[tuple[str, str]]]
    behaviours: Mapping[str, Behaviour]
    validation: list[Review]
    test: list[Review]


def load_multitask_data(recipe: MultiTaskGenerationRecipe) -> MultiTaskData:
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
    return MultiTaskData(examples, scorers if reviews else {}, reviews[:validation], reviews[validation : validation + test])


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


def load_questions(recipe: MultiTaskGenerationRecipe, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Question]]:
    """The questions of every task that is tested on some. Raises InputError where a reference answer says nothing."""
    questions = {}
    for name, task in recipe.tasks.items():
        if task.test is None or task.match is None:
            continue
        pairs = _pairs(name, task, task.test, "test", recipe.scoring.test, task.reference or task.answer)
        wanted = [extract_answer(task.match, answer) for _, answer in pairs]
        if None in wanted:
            missing = pairs[wanted.index(None)][1]
            raise InputError(f"task '{name}': {task.match!r} matches nothing in the reference {missing!r} of '{task.test}'")
        asked = format_prompts(recipe, [prompt for prompt, _ in pairs], tokenizer)
        questions[name] = [Question(prompt, answer) for prompt, answer in zip(asked, wanted, strict=True) if answer is not None]
    return questions


def _pairs(name: str, task: TaskRecipe, source: str, split: str, limit: int, told: str) -> list[tuple[str, str]]:
    """At most so many prompts of a data set, and what the template `told` says of each."""
    rows = read_rows(source, task.config, split)
    rows = rows.select(range(min(limit, len(rows))))
    try:
        prompt, answer = TEMPLATES.from_string(task.prompt), TEMPLATES.from_string(told)
        return [(prompt.render(row), answer.render(row)) for row in rows]
    except TEMPLATE_ERRORS as error:
        columns = ", ".join(rows.column_names)
        raise InputError(f"task '{name}': its templates fail ({error}); the columns of '{source}' are {columns}") from None


def format_prompts(recipe: MultiTaskGenerationRecipe, prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
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


def encode_multitask_data(data: MultiTaskData, tokenizer: PreTrainedTokenizerBase, recipe: MultiTaskGenerationRecipe) -> Dataset:
    """Token ids of prompt and answer, with labels on the answer only and the index of the task.

    The end of the answer is learned too, but for behaviours that are not about it.
    """
    rows: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": [], "task": []}
    for index, (name, pairs) in enumerate(data.examples.items()):
        end = [] if name in data.behaviours and not data.behaviours[name].learns_eos else [tokenizer.eos_token_id]
        asked = format_prompts(recipe, [prompt for prompt, _ in pairs], tokenizer)
        for prompt, (_, answer) in zip(asked, pairs, strict=True):
            before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            after = [*tokenizer(answer, add_special_tokens=False)["input_ids"], *end]
            ids = (before + after)[: recipe.model.max_length]
            rows["input_ids"].append(ids)
            rows["attention_mask"].append([1] * len(ids))
            rows["labels"].append(([-100] * len(before) + after)[: len(ids)])
            rows["task"].append(index)
    return Dataset.from_dict(rows)
