"""Data of multi-task generation: prompts and answers of every task, held-out reviews, and test questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from road_interp.data.answer_extraction import Question, extract_answer
from road_interp.data.behaviours import Behaviour, Review, behaviour
from road_interp.data.labelled import read_examples, read_rows
from road_interp.errors import InputError
from road_interp.recipes.schema import DataRecipe, MultiTaskGenerationRecipe, TaskRecipe

# Sandboxed, because a recipe from elsewhere may contain any template.
TEMPLATES = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError)  # Jinja's, and those of its expressions


@dataclass(frozen=True)
class MultiTaskData:
    """Training examples of every task and held-out reviews.

    Attributes:
        examples: (prompt, answer) pairs by task.
        behaviours: by task, for the tasks that have one.
        validation, test: reviews on which no task is trained.
    """

    examples: Mapping[str, list[tuple[str, str]]]
    behaviours: Mapping[str, Behaviour]
    validation: list[Review]
    test: list[Review]


def load_multitask_data(recipe: MultiTaskGenerationRecipe) -> MultiTaskData:
    """Load the training examples of every task and the held-out reviews; every review is used at most once.

    Raises:
        InputError: fewer reviews than needed, data that cannot be read, or a template that fails.
    """
    behaviours = {name: behaviour(task.behaviour) for name, task in recipe.tasks.items() if task.behaviour is not None}
    reviews = [] if recipe.reviews is None else load_reviews(recipe.reviews)
    validation, test = recipe.scoring.validation, recipe.scoring.test
    used = validation + test
    needed = used + sum(task.examples for task in recipe.tasks.values() if task.id is None)
    if recipe.reviews is not None and len(reviews) < needed:
        raise InputError(f"{needed} reviews are needed, '{recipe.reviews.id}' has {len(reviews)}")
    examples = {}
    for name, task in recipe.tasks.items():
        if task.id is None:
            chosen = reviews[used : used + task.examples]
            examples[name] = [(review.text, behaviours[name].answer(review)) for review in chosen]
            used += task.examples
        else:
            examples[name] = _prompts_and_answers(name, task, task.id, task.split, task.examples, task.answer)
    return MultiTaskData(examples, behaviours if reviews else {}, reviews[:validation], reviews[validation : validation + test])


def load_reviews(recipe: DataRecipe) -> list[Review]:
    """Load all reviews of a data set, shuffled with `split_seed`. The greater of the two labels becomes "positive".

    Raises InputError if the data has another number of labels.
    """
    data = read_examples(recipe, recipe.id, "train")
    labels = sorted(set(data["label"]))
    if len(labels) != 2:
        raise InputError(f"'{recipe.id}': reviews need two labels, not {len(labels)}")
    order = np.random.default_rng(recipe.split_seed).permutation(len(data)).tolist()
    names = {labels[0]: "negative", labels[1]: "positive"}
    texts, values = data["text"], data["label"]
    return [Review(texts[row], names[values[row]], number) for number, row in enumerate(order)]


def load_questions(recipe: MultiTaskGenerationRecipe, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Question]]:
    """Load the test questions of every task that has a test set. Raises InputError if `match` finds nothing in a reference."""
    questions = {}
    for name, task in recipe.tasks.items():
        if task.test is None or task.match is None:
            continue
        pairs = _prompts_and_answers(name, task, task.test, "test", recipe.scoring.test, task.reference or task.answer)
        answers = [extract_answer(task.match, reference) for _, reference in pairs]
        if None in answers:
            missing = pairs[answers.index(None)][1]
            raise InputError(f"task '{name}': {task.match!r} matches nothing in the reference {missing!r} of '{task.test}'")
        prompts = format_prompts(recipe, [prompt for prompt, _ in pairs], tokenizer)
        questions[name] = [
            Question(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer is not None
        ]
    return questions


def _prompts_and_answers(
    name: str, task: TaskRecipe, source: str, split: str, limit: int, answer_template: str
) -> list[tuple[str, str]]:
    """The first `limit` rows of a data set as pairs of a prompt and the rendered `answer_template`."""
    rows = read_rows(source, task.config, split)
    rows = rows.select(range(min(limit, len(rows))))
    try:
        prompt, answer = TEMPLATES.from_string(task.prompt), TEMPLATES.from_string(answer_template)
        return [(prompt.render(row), answer.render(row)) for row in rows]
    except TEMPLATE_ERRORS as error:
        columns = ", ".join(rows.column_names)
        raise InputError(f"task '{name}': a template fails ({error}); the columns of '{source}' are {columns}") from None


def format_prompts(recipe: MultiTaskGenerationRecipe, prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Render prompts in the template of the model's input.

    A prompt is truncated first if template, prompt and `scoring.max_new_tokens` together exceed `model.max_length`.

    Raises:
        InputError: a template that fails, or one that leaves no tokens for a prompt.
    """
    try:
        template = TEMPLATES.from_string(recipe.template)
        empty = template.render(prompt="")
    except TEMPLATE_ERRORS as error:
        raise InputError(f"template: {error}; its only variable is `prompt`") from None
    template_length = len(tokenizer(empty, add_special_tokens=False)["input_ids"])
    limit = recipe.model.max_length - template_length - recipe.scoring.max_new_tokens
    if limit < 1:
        raise InputError(f"model.max_length {recipe.model.max_length} is too small for a prompt, the template and the answer")
    truncated = tokenizer(list(prompts), add_special_tokens=False, truncation=True, max_length=limit)["input_ids"]
    return [template.render(prompt=tokenizer.decode(ids)) for ids in truncated]


def encode_multitask_data(data: MultiTaskData, tokenizer: PreTrainedTokenizerBase, recipe: MultiTaskGenerationRecipe) -> Dataset:
    """Tokenise all training examples: token ids of prompt and answer, labels on the answer only, and the index of the task.

    The answer ends with the end token, except for behaviours without `learns_eos`.
    """
    rows: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": [], "task": []}
    for index, (name, pairs) in enumerate(data.examples.items()):
        end = [] if name in data.behaviours and not data.behaviours[name].learns_eos else [tokenizer.eos_token_id]
        prompts = format_prompts(recipe, [prompt for prompt, _ in pairs], tokenizer)
        for prompt, (_, answer) in zip(prompts, pairs, strict=True):
            prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            answer_ids = [*tokenizer(answer, add_special_tokens=False)["input_ids"], *end]
            ids = (prompt_ids + answer_ids)[: recipe.model.max_length]
            rows["input_ids"].append(ids)
            rows["attention_mask"].append([1] * len(ids))
            rows["labels"].append(([-100] * len(prompt_ids) + answer_ids)[: len(ids)])
            rows["task"].append(index)
    return Dataset.from_dict(rows)
