"""Counterfactual pairs: two texts that differ in one variable, the answer to each, and where their spans lie.

A pair asks: if the model, reading `base`, is given the variable's value from `source`, does it give the answer of `source`? Pairs
come from templates in the format of CausalGym (Arora et al. 2024; `load_pairs`, which brings two tasks of its own, agreement and
gender), from a JSON-lines file (`read_pairs`), or from any Python code that makes `Pair`s; `encode_pairs` makes them ready for a
model.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from road_interp.errors import InputError


class Pair(NamedTuple):
    """One counterfactual pair as text.

    Attributes:
        base, source: a text, or its spans by name in order, spaces included: `{"subject": "The author", "verb": " wrote"}`.
        base_label, source_label: the answer that follows, spaces included: `" is"`.
        base_class, source_class: the variable's values; by default the answers.
    """

    base: str | Mapping[str, str]
    source: str | Mapping[str, str]
    base_label: str
    source_label: str
    base_class: str | None = None
    source_class: str | None = None


@dataclass(frozen=True)
class CounterfactualPairs:
    """Pairs as a model reads them; entry `i` of every tuple belongs to pair `i`.

    Attributes:
        name: of the task.
        base, source: texts.
        base_ids, source_ids: their tokens, unpadded; the last is the one that the answer follows.
        base_label, source_label: first token of either answer, as it would follow the base text.
        base_class, source_class: values of the variable.
        positions: for every span that all texts have, the token that ends it, in base and in source. "last" is the last token.
    """

    name: str
    base: tuple[str, ...]
    source: tuple[str, ...]
    base_ids: tuple[tuple[int, ...], ...]
    source_ids: tuple[tuple[int, ...], ...]
    base_label: tuple[int, ...]
    source_label: tuple[int, ...]
    base_class: tuple[str, ...]
    source_class: tuple[str, ...]
    positions: Mapping[str, tuple[tuple[int, int], ...]]

    def __len__(self) -> int:
        return len(self.base)

    @property
    def label_tokens(self) -> list[int]:
        """Every token that is an answer, sorted."""
        return sorted({*self.base_label, *self.source_label})

    def span(self, name: str) -> tuple[tuple[int, int], ...]:
        """Positions of one span. Raises InputError for a span that the pairs do not have."""
        if name not in self.positions:
            raise InputError(f"'{name}' is not a span of {self.name}; its spans are {', '.join(self.positions)}")
        return self.positions[name]

    def with_arbitrary_labels(self, vocabulary: int, seed: int = 0) -> CounterfactualPairs:
        """The control task (Hewitt & Liang 2019): every answer is another token, drawn once from the whole vocabulary.

        The same seed gives every split the same answers.
        """
        drawn = random.Random(seed).sample(range(vocabulary), vocabulary)
        labels = [tuple(drawn[label] for label in side) for side in (self.base_label, self.source_label)]
        return replace(self, name=f"{self.name}, arbitrary answers", base_label=labels[0], source_label=labels[1])


class Splits(NamedTuple):
    """Pairs to train on, to choose settings with, and to report."""

    train: CounterfactualPairs
    validation: CounterfactualPairs
    test: CounterfactualPairs


def read_pairs(path: Path) -> list[Pair]:
    """Pairs from a file with one JSON object per line, whose keys are the fields of `Pair`."""
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    pairs = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if line.strip():
            try:
                pairs.append(Pair(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise InputError(f"{path}, line {number}: not a pair ({error}); its keys are {', '.join(Pair._fields)}") from None
    return pairs


def encode_pairs(
    pairs: Iterable[Pair] | Callable[[], Iterable[Pair]],
    tokenizer: PreTrainedTokenizerBase,
    name: str = "pairs",
    prefix: str = "",
) -> CounterfactualPairs:
    """Tokens, answers and span positions of pairs, or of what a callable gives.

    Texts are read whole, as they would be without spans. A span's position is the token that holds its last character, so that it
    is found in base and source however many tokens its words take.

    Args:
        prefix: stands before every text, such as the model's separator of documents. Many models give the very first token a
            state of enormous norm that has little to do with its word; where the tokeniser puts no token of its own, that place
            falls to the text.

    Raises:
        InputError: no pairs; two answers with one first token; an answer that would join the last word of its text.
    """
    pairs = list(pairs() if callable(pairs) else pairs)
    if not pairs:
        raise InputError(f"{name}: there are no pairs")
    if not tokenizer.is_fast:
        raise InputError(f"{name}: {type(tokenizer).__name__} cannot tell where its tokens lie; load the fast tokeniser")
    base, source = (_encode([getattr(pair, side) for pair in pairs], tokenizer, name, prefix) for side in ("base", "source"))
    base_label = _answers(base, [pair.base_label for pair in pairs], tokenizer, name)
    source_label = _answers(base, [pair.source_label for pair in pairs], tokenizer, name)
    for pair, one, other in zip(pairs, base_label, source_label, strict=True):
        if one == other:
            raise InputError(f"{name}: the answers '{pair.base_label}' and '{pair.source_label}' begin with the same token")
    shared = [span for span in base[0].ends if all(span in text.ends for text in (*base, *source))]
    return CounterfactualPairs(
        name,
        tuple(text.text for text in base),
        tuple(text.text for text in source),
        tuple(text.ids for text in base),
        tuple(text.ids for text in source),
        base_label,
        source_label,
        tuple(pair.base_class or pair.base_label for pair in pairs),
        tuple(pair.source_class or pair.source_label for pair in pairs),
        {span: tuple((b.ends[span], s.ends[span]) for b, s in zip(base, source, strict=True)) for span in shared},
    )


# ---------------------------------------------------------------------- tokens


class _Text(NamedTuple):
    text: str
    ids: tuple[int, ...]
    ends: dict[str, int]  # by span: the token that holds its last character


def _encode(texts: Sequence[str | Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, name: str, prefix: str) -> list[_Text]:
    spans = [{"text": text} if isinstance(text, str) else dict(text) for text in texts]
    whole = [prefix + "".join(each.values()).rstrip() for each in spans]
    encoded = tokenizer(whole, return_offsets_mapping=True)
    found = []
    for text, parts, ids, offsets in zip(whole, spans, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if text == prefix:
            raise InputError(f"{name}: a text is empty")
        last = _token_at(offsets, len(text) - 1)
        ends, stop = {}, len(prefix)
        for span, part in parts.items():
            if part.strip():
                ends[span] = _token_at(offsets, stop + len(part.rstrip()) - 1)
            stop += len(part)
        found.append(_Text(text, tuple(ids[: last + 1]), {**ends, "last": last}))  # without what the tokeniser puts at the end
    return found


def _answers(texts: Sequence[_Text], answers: Sequence[str], tokenizer: PreTrainedTokenizerBase, name: str) -> tuple[int, ...]:
    """First token of every answer behind its text."""
    encoded = tokenizer([text.text + answer for text, answer in zip(texts, answers, strict=True)])["input_ids"]
    for text, answer, ids in zip(texts, answers, encoded, strict=True):
        if tuple(ids[: len(text.ids)]) != text.ids or not answer.strip():
            raise InputError(f"{name}: the answer '{answer}' does not begin a token of its own behind '{text.text}'")
    return tuple(ids[len(text.ids)] for text, ids in zip(texts, encoded, strict=True))


def _token_at(offsets: Sequence[tuple[int, int]], character: int) -> int:
    return next(index for index, (start, stop) in enumerate(offsets) if start <= character < stop)


# ---------------------------------------------------------------------- templates
