"""The questions about entities that a model answers rightly: RAVEL draws pairs from them alone (Huang et al. 2024)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby, takewhile
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from road_interp.arguments import check_argument, check_count, checked_list
from road_interp.causal.arguments import check_language_model, check_numbers, check_tokenizer, check_vocabulary
from road_interp.causal.counterfactuals import encode_texts
from road_interp.causal.entity_task import EntityTask, Question, check_questions, spans_of
from road_interp.causal.stored_keys import cache_argument, supports_stored_keys
from road_interp.models.head_logits import logits_at
from road_interp.progress import Progress, silent
from road_interp.sites.module_tree import evaluating

TRIED = 48  # entities that every prompt is tried on


@torch.no_grad()
def answered_rightly(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: EntityTask,
    questions: Iterable[Question],
    prefix: str = "",
    batch_size: int = 64,
    progress: Progress = silent,
) -> list[Question]:
    """The questions to which the model's most likely next token is the first of the right answer.

    A first token of a space alone, as many tokenisers put before a digit, begins every such answer: it is not right.

    Args:
        questions: of the task, such as `task.questions("train")`.
        prefix: text before every prompt.
        batch_size: questions per pass.
        progress: called after every pass.

    Raises:
        InputError: an argument of a wrong type, or logits that are NaN or infinite, which have no most likely token.
    """
    check_language_model("causal.answered_rightly", model)
    check_count("causal.answered_rightly", "batch_size", batch_size)
    check_tokenizer("causal.answered_rightly", tokenizer)
    check_argument("causal.answered_rightly", task, EntityTask, "number_and_gender() or load_ravel(folder, type, attributes)")
    asked = checked_list("causal.answered_rightly", questions, Question, "questions of the task, task.questions('train')")
    check_questions(asked, task)
    if not asked:
        return []
    encoded = encode_texts([spans_of(question) for question in asked], tokenizer, task.name, prefix)
    texts, ids = [each.text for each in encoded], [list(each.ids) for each in encoded]
    whole = tokenizer([text + task.answer(question) for text, question in zip(texts, asked, strict=True)])["input_ids"]
    check_vocabulary(model, ids)
    order = sorted(range(len(asked)), key=lambda number: (asked[number].prompt, len(ids[number])))
    by_prompt = [list(rows) for _, rows in groupby(order, key=lambda number: asked[number].prompt)]
    batches = [rows[start : start + batch_size] for rows in by_prompt for start in range(0, len(rows), batch_size)]
    right, done = [], 0
    with evaluating(model):
        for rows in batches:
            for row, token in zip(rows, next_tokens(model, [ids[row] for row in rows]), strict=True):
                length = len(ids[row])
                if whole[row][: length + 1] == [*ids[row], token] and str(tokenizer.decode([token])).strip():
                    right.append(row)
            done += len(rows)
            progress("asking the model", done, len(order))
    return [asked[row] for row in sorted(right)]


def with_best_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: EntityTask,
    count: int,
    prefix: str = "",
    progress: Progress = silent,
) -> EntityTask:
    """The task with the `count` prompts of every attribute that the model answers rightly most often, about TRIED training
    entities, drawn with seed 0."""
    check_count("causal.with_best_prompts", "count", count)
    trained = sorted(entity for entity in task.values if task.split[entity] == "train")
    tried = set(random.Random(0).sample(trained, min(TRIED, len(trained))))
    questions = [question for question in task.questions("train") if question.entity in tried]
    right = answered_rightly(model, tokenizer, task, questions, prefix, progress=progress)
    times = Counter((question.attribute, question.prompt) for question in right)
    best = {
        attribute: tuple(sorted(prompts, key=lambda prompt: -times[attribute, prompt])[:count])
        for attribute, prompts in task.prompts.items()
    }
    return replace(task, prompts=best)


@torch.no_grad()
def next_tokens(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> list[int]:
    """The most likely token after every text. The tokens that all texts begin with are computed once.

    Raises InputError for logits that are NaN or infinite.
    """
    alike = (len(set(tokens)) == 1 for tokens in zip(*texts, strict=False))
    start = min(sum(takewhile(bool, alike)), min(map(len, texts)) - 1)
    start = start if start and supports_stored_keys(model, texts[0]) else 0
    lengths = torch.tensor([len(text) - start for text in texts], device=model.device)
    batch = pad_sequence([torch.tensor(text[start:]) for text in texts], batch_first=True).to(model.device)
    mask = torch.arange(batch.shape[1], device=model.device) < lengths.unsqueeze(1)
    options: dict[str, Any] = {"use_cache": False}
    if start:
        cache = DynamicCache()
        options = {"use_cache": True, cache_argument(model): cache}
        model(input_ids=torch.tensor([texts[0][:start]], device=model.device), logits_to_keep=1, **options)
        cache.batch_repeat_interleave(len(texts))
        mask = torch.cat((torch.ones(len(texts), start, dtype=torch.bool, device=model.device), mask), 1)
    logits = logits_at(model, lengths - 1, input_ids=batch, attention_mask=mask.long(), **options)
    check_numbers(logits, "the model's logits")
    return logits.argmax(-1).tolist()
