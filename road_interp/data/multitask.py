"""Data of multi-task generation: prompts and answers of every task, held-out reviews, and test questions."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from jinja2 import Template
from transformers import PreTrainedTokenizerBase

from road_interp.arguments import check_argument, lone_surrogate
from road_interp.data.answer_extraction import Question, extract_answer
from road_interp.data.behaviours import PARTS, Behaviour, Review, answer_parts, behaviour
from road_interp.data.labelled import read_examples
from road_interp.data.rows import read_rows
from road_interp.data.templates import TEMPLATE_ERRORS, TEMPLATES, with_nulls
from road_interp.errors import InputError, shown
from road_interp.recipes.schema import PLAIN, DataRecipe, MultiTaskGenerationRecipe, TaskRecipe

LABEL_WORDS = (("neg", "negative"), ("pos", "positive"))  # texts that say which label they are, in lower case


@dataclass(frozen=True)
class Example:
    """A prompt and its answer.

    Attributes:
        parts: of the answer, each with the name of the part (`behaviours.PARTS`); the answer of a data set is one part without a
            name.
    """

    prompt: str
    parts: tuple[tuple[str, str], ...]

    @property
    def answer(self) -> str:
        """The parts, joined by spaces."""
        return " ".join(text for _, text in self.parts)


@dataclass(frozen=True)
class MultiTaskData:
    """Training examples of every task and held-out reviews.

    Attributes:
        examples: by task.
        behaviours: by task, for the tasks that have one; the shared task has none.
        validation, test: reviews on which no task is trained.
    """

    examples: Mapping[str, list[Example]]
    behaviours: Mapping[str, Behaviour]
    validation: list[Review]
    test: list[Review]


def load_multitask_data(recipe: MultiTaskGenerationRecipe) -> MultiTaskData:
    """Load the training examples of every task and the held-out reviews; every review is used at most once.

    Raises:
        InputError: fewer reviews than needed, data that cannot be read, or a template that fails.
    """
    named = {name: task.behaviour for name, task in recipe.tasks.items() if task.behaviour is not None}
    behaviours = {name: behaviour(text) for name, text in named.items() if text != PLAIN}
    reviews = [] if recipe.reviews is None else load_reviews(recipe.reviews)
    validation, test = recipe.scoring.validation, recipe.scoring.test
    used = validation + test
    needed = used + sum(task.examples for task in recipe.tasks.values() if task.id is None)
    if recipe.reviews is not None and len(reviews) < needed:
        raise InputError(f"{needed} reviews are needed, '{recipe.reviews.id}' has {len(reviews)}")
    _warn_of_copies(recipe, reviews[:used], reviews[used:needed])
    examples = {}
    for name, task in recipe.tasks.items():
        if task.id is None:
            chosen = reviews[used : used + task.examples]
            own = [behaviours[name]] if name in behaviours else []
            examples[name] = [Example(review.text, tuple(answer_parts(own, review))) for review in chosen]
            used += task.examples
        else:
            rows = _first_rows(task, task.id, task.split, task.examples)
            pairs = _prompts_and_answers(name, task, task.id, rows, task.answer)
            examples[name] = [Example(prompt, (("", answer),)) for prompt, answer in pairs]
            _warn_of_rows(name, task, [answer for _, answer in pairs])
            if task.test is not None:
                _warn_of_questions(recipe, name, task, task.test, {prompt for prompt, _ in pairs})
                _warn_of_kinds(name, task, rows, _first_rows(task, task.test, "test", recipe.scoring.test))
    return MultiTaskData(examples, behaviours if reviews else {}, reviews[:validation], reviews[validation : validation + test])


def _warn_of_copies(recipe: MultiTaskGenerationRecipe, held_out: Sequence[Review], training: Sequence[Review]) -> None:
    """Warn of held-out reviews whose text is also trained on."""
    known = {review.text for review in training}
    if recipe.reviews is not None and (shared := sum(review.text in known for review in held_out)):
        warnings.warn(
            f"'{recipe.reviews.id}': {shared} of {len(held_out)} validation and test reviews are also training reviews; leave "
            "out the copies",
            stacklevel=3,
        )


def _warn_of_rows(name: str, task: TaskRecipe, answers: Sequence[str]) -> None:
    """Warn of a data set with fewer rows than a task has examples, and of empty answers, which teach to end at once."""
    if len(answers) < task.examples:
        warnings.warn(
            f"task '{name}': '{task.id}' has {len(answers)} rows and all are used; tasks.{name}.examples is {task.examples}",
            stacklevel=3,
        )
    if empty := sum(not answer.strip() for answer in answers):
        warnings.warn(
            f"task '{name}': {empty} of {len(answers)} answers of '{task.id}' are empty; leave out these rows", stacklevel=3
        )


def _warn_of_questions(
    recipe: MultiTaskGenerationRecipe, name: str, task: TaskRecipe, source: str, training: Collection[str]
) -> None:
    """Warn of test questions whose prompt is also trained on."""
    questions = _test_pairs(recipe, name, task, source)
    if shared := sum(prompt in training for prompt, _ in questions):
        warnings.warn(
            f"task '{name}': {shared} of {len(questions)} test questions of '{source}' are also training prompts; "
            "leave out the copies",
            stacklevel=3,
        )


def _warn_of_kinds(name: str, task: TaskRecipe, training: Dataset, questions: Dataset) -> None:
    """Warn of a column with numbers in one file and texts in the other, where a template would write something else for texts."""
    files = ((task.id, training), (task.test, questions))
    templates = [TEMPLATES.from_string(each) for each in (task.prompt, task.answer, task.reference or task.answer)]
    for column in (each for each in training.column_names if each in questions.column_names):
        for (source, rows), (other, compared) in (files, files[::-1]):
            numbers = [row for row in rows if isinstance(row[column], int | float)]
            if not numbers or not any(isinstance(value, str) for value in compared[column]):
                continue
            as_texts = [{**row, column: str(row[column])} for row in numbers]
            if any(_rendered(each, numbers) != _rendered(each, as_texts) for each in templates):
                warnings.warn(
                    f"task '{name}': '{column}' is a number in '{source}' and text in '{other}', for which a template writes "
                    "something else",
                    stacklevel=3,
                )


def _rendered(template: Template, rows: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """The texts of rows; None if the template fails for one."""
    try:
        return [template.render(row) for row in map(with_nulls, rows)]
    except TEMPLATE_ERRORS:
        return None


def load_reviews(recipe: DataRecipe) -> list[Review]:
    """Load all reviews of a data set, shuffled with `split_seed`; `classes` of the recipe names the negative label first.

    Raises InputError if the data has another number of labels, or labels of which it is not known which one is positive.
    """
    data = read_examples(recipe, recipe.id, "train", "reviews")
    labels = sorted(set(data["label"]))
    if len(labels) != 2:
        raise InputError(f"'{recipe.id}': reviews need two labels, not {len(labels)}")
    order = np.random.default_rng(recipe.split_seed).permutation(len(data)).tolist()
    names = dict(zip(_negative_and_positive(labels, recipe), ("negative", "positive"), strict=True))
    texts, values = data["text"][:], data["label"][:]
    return [Review(texts[row], names[values[row]], number) for number, row in enumerate(order)]


def _negative_and_positive(labels: Sequence[Any], recipe: DataRecipe) -> Sequence[Any]:
    """The two labels, in the order of `classes`; by default numbers by size, and texts that say it."""
    named = " and ".join(map(shown, labels))
    if recipe.classes is not None:
        if len(recipe.classes) != 2 or any(label not in recipe.classes for label in labels):
            raise InputError(
                f"'{recipe.id}': the labels are {named}; reviews.classes must list these two, the negative one first"
            )
        return recipe.classes
    if isinstance(labels[0], str):
        labels = sorted(labels, key=str.lower)
        if not all(label.lower() in words for label, words in zip(labels, LABEL_WORDS, strict=True)):
            raise InputError(
                f"'{recipe.id}': which of {named} is positive? Set reviews.classes=[NEGATIVE, POSITIVE] to the labels"
            )
    return labels


def load_questions(recipe: MultiTaskGenerationRecipe, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Question]]:
    """Load the test questions of every task that has a test set. Raises InputError if `match` finds nothing in a reference."""
    questions = {}
    for name, task in recipe.tasks.items():
        if task.test is None or task.match is None:
            continue
        pairs = _test_pairs(recipe, name, task, task.test)
        answers = [extract_answer(task.match, reference) for _, reference in pairs]
        if None in answers:
            missing = pairs[answers.index(None)][1]
            raise InputError(f"task '{name}': {task.match!r} matches nothing in the reference {missing!r} of '{task.test}'")
        prompts = format_prompts(recipe, [prompt for prompt, _ in pairs], tokenizer)
        questions[name] = [
            Question(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer is not None
        ]
    return questions


def _test_pairs(recipe: MultiTaskGenerationRecipe, name: str, task: TaskRecipe, source: str) -> list[tuple[str, str]]:
    """The prompts of a test set and their reference answers."""
    rows = _first_rows(task, source, "test", recipe.scoring.test)
    return _prompts_and_answers(name, task, source, rows, task.reference or task.answer)


def _first_rows(task: TaskRecipe, source: str, split: str, limit: int) -> Dataset:
    rows = read_rows(source, task.config, split)
    return rows.select(range(min(limit, len(rows))))


def _prompts_and_answers(name: str, task: TaskRecipe, source: str, rows: Dataset, answer_template: str) -> list[tuple[str, str]]:
    """Rows of a data set as pairs of a prompt and the rendered `answer_template`."""
    try:
        prompt, answer = TEMPLATES.from_string(task.prompt), TEMPLATES.from_string(answer_template)
        pairs = [(prompt.render(row), answer.render(row)) for row in map(with_nulls, rows)]
    except TEMPLATE_ERRORS as error:
        columns = ", ".join(rows.column_names)
        raise InputError(f"task '{name}': a template fails ({error}); the columns of '{source}' are {columns}") from None
    for row, pair in enumerate(pairs):
        if lone := lone_surrogate("".join(pair)):
            raise InputError(f"task '{name}': row {row} of '{source}' has {lone}, half of a character, which no tokeniser reads")
    return pairs


def format_prompts(
    recipe: MultiTaskGenerationRecipe, prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, ending: str = ""
) -> list[str]:
    """Render prompts in the template of the model's input.

    A prompt is truncated first, with a warning, if template, prompt and `scoring.max_new_tokens` together exceed
    `model.max_length`. Others are kept as they are: the text of their tokens may be another.

    Args:
        ending: text behind every prompt, such as an instruction; it is never truncated.

    Raises:
        InputError: a template that fails, or one that leaves no tokens for a prompt.
    """
    make = "a recipe of kind: multitask-generation, load_recipe('composition-smollm2')"
    check_argument("format_prompts", recipe, MultiTaskGenerationRecipe, make)
    try:
        template = TEMPLATES.from_string(recipe.template)
        empty = template.render(prompt=ending)
    except TEMPLATE_ERRORS as error:
        raise InputError(f"template: {error}; its only variable is `prompt`") from None
    if lone := lone_surrogate(empty):
        raise InputError(f"template: it has {lone}, half of a character, which no tokeniser reads")
    template_length = len(tokenizer(empty, add_special_tokens=False)["input_ids"])
    limit = recipe.model.max_length - template_length - recipe.scoring.max_new_tokens
    if limit < 1:
        raise InputError(f"model.max_length {recipe.model.max_length} is too small for a prompt, the template and the answer")
    whole = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    kept = tokenizer(list(prompts), add_special_tokens=False, truncation=True, max_length=limit)["input_ids"]
    truncated = {row: str(tokenizer.decode(ids)) for row, ids in enumerate(kept) if len(ids) < len(whole[row])}
    if truncated:
        needed = recipe.model.max_length - limit + max(map(len, whole))
        warnings.warn(
            f"{len(truncated)} of {len(whole)} prompts are cut to {limit} tokens: to keep all, set model.max_length to {needed}",
            stacklevel=2,
        )
    return [template.render(prompt=f"{truncated.get(row, text)}{ending}") for row, text in enumerate(prompts)]


def encode_multitask_data(
    examples: Mapping[str, Sequence[Example]], tokenizer: PreTrainedTokenizerBase, recipe: MultiTaskGenerationRecipe
) -> Dataset:
    """Tokenise the training examples of every task.

    Returns:
        Rows with the token ids of prompt and answer, labels on the answer and its end token only, `task`, the index of the task,
        and `decides`: for every token, the parts of the answer that it decides (see `_answer_tokens`).
    """
    rows: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": [], "decides": [], "task": []}
    cut_off = 0
    for index, of_task in enumerate(examples.values()):
        prompts = format_prompts(recipe, [example.prompt for example in of_task], tokenizer)
        for prompt, example in zip(prompts, of_task, strict=True):
            prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            answer_ids, decides = _answer_tokens(example.parts, tokenizer)
            ids = (prompt_ids + answer_ids)[: recipe.model.max_length]
            cut_off += len(ids) < len(prompt_ids) + len(answer_ids)
            rows["input_ids"].append(ids)
            rows["attention_mask"].append([1] * len(ids))
            rows["labels"].append(([-100] * len(prompt_ids) + answer_ids)[: len(ids)])
            rows["decides"].append(([0] * len(prompt_ids) + decides)[: len(ids)])
            rows["task"].append(index)
    _warn_of_missing_bos(tokenizer, recipe)
    _warn_of_whole_loss(recipe)
    if cut_off:
        warnings.warn(
            f"{cut_off} of {len(rows['task'])} training answers are cut off, so that nothing teaches their end: set "
            f"model.max_length above {recipe.model.max_length}, or scoring.max_new_tokens to the length of the answers",
            stacklevel=2,
        )
    return Dataset.from_dict(rows)


def warn_of_long_answers(recipe: MultiTaskGenerationRecipe, data: MultiTaskData, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn of test reviews whose answer with all behaviours is longer than `scoring.max_new_tokens`: cut off, it is wrong."""
    parts = [answer_parts([*data.behaviours.values()], review) for review in data.test if data.behaviours]
    lengths = [len(_answer_tokens(each, tokenizer)[0]) for each in parts]
    if long := sum(length > recipe.scoring.max_new_tokens for length in lengths):
        warnings.warn(
            f"{long} of {len(lengths)} test answers with all behaviours are longer than scoring.max_new_tokens "
            f"({recipe.scoring.max_new_tokens}), and what is cut off counts as wrong: set it to {max(lengths)} or more",
            stacklevel=3,
        )


def _warn_of_missing_bos(tokenizer: PreTrainedTokenizerBase, recipe: MultiTaskGenerationRecipe) -> None:
    """Warn of a template without the BOS token that the tokeniser puts before other texts."""
    text = TEMPLATES.from_string(recipe.template).render(prompt="a")
    own, other = (tokenizer(text, add_special_tokens=added)["input_ids"][:1] for added in (False, True))
    if other == [tokenizer.bos_token_id] != own:
        warnings.warn(
            f"the tokeniser of '{recipe.model.id}' begins texts with {tokenizer.bos_token!r}, and the template does not, so that "
            f"the model is trained and asked without it: begin the template with {tokenizer.bos_token!r}",
            stacklevel=3,
        )


def _warn_of_whole_loss(recipe: MultiTaskGenerationRecipe) -> None:
    """Warn of a loss that leaves out what other tasks decide, of which the answers of a data set say nothing."""
    together = {name: task for name, task in recipe.tasks.items() if name != recipe.shared}
    of_data = [name for name, task in together.items() if task.id is not None]
    if len(together) > 1 and of_data and recipe.co_activation and recipe.co_activation_loss != "all":
        warnings.warn(
            f"co_activation_loss: {recipe.co_activation_loss} is for built-in behaviours: of the data set of task '{of_data[0]}' "
            "all tokens of an answer are learned, which may teach that other active tasks say nothing; set it to all",
            stacklevel=3,
        )


def _answer_tokens(parts: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids of an answer with its end token, and the parts that every token decides, as bits of `behaviours.PARTS`.

    The first token of a part decides this part and those before it that the answer leaves out; the end token decides those that
    are left out at the end. The one part of a data set's answer decides nothing.
    """
    ids: list[int] = []
    decides: list[int] = []
    undecided = 0
    for name, text in parts:
        tokens = tokenizer(f" {text}" if ids else text, add_special_tokens=False)["input_ids"]
        ids += tokens
        if not name:
            decides += [0] * len(tokens)
            continue
        place = PARTS.index(name)
        decides += [sum(1 << part for part in range(undecided, place + 1)), *[1 << place] * (len(tokens) - 1)]
        undecided = place + 1
    named = any(name for name, _ in parts)
    end = sum(1 << part for part in range(undecided, len(PARTS))) if named else 0
    return [*ids, tokenizer.eos_token_id], [*decides, end]
