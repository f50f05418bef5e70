"""Perplexity of answers under a language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

JUDGED, BATCH = 32, 16  # answers whose perplexity is computed, and answers per pass


def answer_perplexity(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Callable[[Sequence[str], Sequence[str]], float]:
    """A function that computes the perplexity per token of the first 32 answers under the base model.

    An end token is appended to every answer, so that an empty answer counts as its end token.
    """

    @torch.no_grad()
    def perplexity(prompts: Sequence[str], answers: Sequence[str]) -> float:
        prompt_ids = tokenizer(list(prompts[:JUDGED]), add_special_tokens=False)["input_ids"]
        answer_ids = tokenizer(list(answers[:JUDGED]), add_special_tokens=False)["input_ids"]
        answer_ids = [[*ids, tokenizer.eos_token_id] for ids in answer_ids]
        rows = sorted(zip(prompt_ids, answer_ids, strict=True), key=lambda row: len(row[0]))
        total = 0.0
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            sequences = [prompt + answer for prompt, answer in batch]
            inputs = tokenizer.pad({"input_ids": sequences}, padding_side="right", return_tensors="pt")
            labels = torch.full_like(inputs["input_ids"], -100)
            for row, (prompt, answer) in enumerate(batch):
                labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
            columns = (labels[:, 1:] != -100).any(0).nonzero().flatten()
            logits = base(**inputs.to(base.device), logits_to_keep=columns.to(base.device)).logits.float().cpu()
            total += functional.cross_entropy(logits.flatten(0, 1), labels[:, columns + 1].flatten(), reduction="sum").item()
        return float(np.exp(total / sum(map(len, answer_ids))))

    return perplexity
