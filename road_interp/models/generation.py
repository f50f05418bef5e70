"""Greedy generation of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from road_interp.adapters.joined_names import join_names, split_names
from road_interp.data.batches import batches_by_length
from road_interp.recipes.schema import ScoringRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """A generated text, and whether it ended with the end-of-sequence token."""

    text: str
    finished: bool


GenerateFn = Callable[[Sequence[str], str], list[Answer]]  # prompts and the active tasks


def make_generator(
    model: Any, tokenizer: PreTrainedTokenizerBase, scoring: ScoringRecipe, shared: str | None = None
) -> GenerateFn:
    """A function that generates greedy answers with a RoadModel that has planes, or with an object that has the same methods.

    Args:
        scoring: the length of the answers, and the number of prompts that are answered at once.
        shared: a task that is active besides those that the function is called with.
    """

    def generate_answers(prompts: Sequence[str], active: str) -> list[Answer]:
        names = active if shared is None else join_names([*split_names(active), shared])

        def generate(inputs: dict[str, Any]) -> torch.Tensor:
            tasks = [names] * len(inputs["input_ids"])
            return model.generate(inputs, tasks=tasks, **greedy_settings(tokenizer, scoring.max_new_tokens))[1]

        return greedy_answers(generate, tokenizer, prompts, scoring.batch_size, model.model)

    return generate_answers


def greedy_settings(tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> dict[str, Any]:
    """The arguments of `generate` for greedy decoding, also of models whose own configuration has beams or penalties."""
    plain = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    return {**plain, "max_new_tokens": max_new_tokens, "pad_token_id": tokenizer.pad_token_id}


@torch.no_grad()
def greedy_answers(
    generate: Callable[[dict[str, Any]], torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    batch_size: int,
    model: PreTrainedModel,
) -> list[Answer]:
    """The answers of `generate`, a function from tokenised prompts to ids of prompts and answers, in the order of the prompts.

    Prompts are batched with others of similar length, on the device of `model`. An answer ends at the first token that ends it
    for the generation configuration of `model`, which may name several, or for the tokeniser.
    """
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    answers: dict[int, Answer] = {}
    for rows in batches_by_length(list(map(len, ids)), batch_size):
        padded = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, padding_side="left", return_tensors="pt").to(
            model.device
        )
        generated = generate(dict(padded))[:, padded["input_ids"].shape[1] :]
        for row, tokens in zip(rows, generated.tolist(), strict=True):
            answer = list(takewhile(lambda token: token not in ends, tokens))
            text = tokenizer.decode(answer, skip_special_tokens=True)
            answers[row] = Answer(str(text).strip(), finished=len(answer) < len(tokens))
    return [answers[row] for row in range(len(prompts))]
