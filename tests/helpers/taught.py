"""A word-level tokeniser, pairs of its texts, and a tiny model trained to predict the pronoun for a name."""

from __future__ import annotations

import json
from importlib import resources

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from helpers.models import tiny_model
from road_interp.causal.counterfactuals import CounterfactualPairs, Pair, encode_pairs
from road_interp.causal.template_pairs import load_pairs


def word_tokenizer(*texts: str) -> PreTrainedTokenizerFast:
    """A tokeniser with one token per word of the built-in causal tasks, and of further texts."""
    text = (resources.files("road_interp.causal") / "templates.json").read_text()
    words = sorted({word for phrase in (*_strings(json.loads(text)), *texts) for word in phrase.split()})
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(["[UNK]", "[PAD]", *words])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")


def _strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in _strings(each)]
    if isinstance(value, list):
        return [text for each in value for text in _strings(each)]
    return [value] if isinstance(value, str) else []


def taught_model(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedModel, CounterfactualPairs]:
    """A model that predicts the pronouns of all names correctly, and its training pairs.

    The attention output of the first block is zero, so that information about the name leaves the token of the name only in the
    second block.
    """
    model = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    zeroed = model.model.layers[0].self_attn.o_proj.weight
    zeroed.data.zero_()
    pairs = load_pairs("gender", tokenizer, (256, 32, 64)).train
    batch = tokenizer([*pairs.base, *pairs.source], padding=True, return_tensors="pt")
    teach(model, zeroed, batch, torch.tensor([*pairs.base_label, *pairs.source_label]), steps=40)
    return model, pairs


def teach(model, frozen, batch, answers, steps):
    """Train all weights but `frozen` to predict the answers behind the last tokens. Returns the last loss."""
    last = batch["attention_mask"].sum(1) - 1
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight is not frozen], lr=1e-2)
    for _ in range(steps):
        logits = model(batch["input_ids"], batch["attention_mask"]).logits[torch.arange(len(answers)), last]
        loss = functional.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (logits.argmax(1) == answers).all()
    return loss


def ragged_pairs(tokenizer: PreTrainedTokenizerFast) -> CounterfactualPairs:
    """Pairs of texts of different lengths whose spans end at different tokens."""
    return encode_pairs(
        [
            Pair({"who": "Basil", "does": " cried because"}, {"who": "the baker Ida", "does": " cried because"}, " he", " she"),
            Pair({"who": "Ida", "does": " came back because"}, {"who": "Otto", "does": " cried because"}, " she", " he"),
            Pair({"who": "the nurse Ivy", "does": " smiled because"}, {"who": "Max", "does": " smiled because"}, " she", " he"),
        ],
        tokenizer,
    )
