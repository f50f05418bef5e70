"""Counterfactual pairs: two texts that differ in one variable, the answer to each, and where their spans lie.

A pair asks: if the model, reading `base`, is given the variable's value from `source`, does it give the answer of `source`? Pairs
come from templates in the format of CausalGym (Arora et al. 2024; `load_pairs`, which brings two tasks of its own, agreement and
gender), from a JSON-lines file (`read_pairs`), or from any Python code that makes `Pair`s; `encode_pairs` makes them ready for a
model.
"""

from __future__ import annotations

import difflib
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from road_interp.errors import InputError
from road_interp.files import read_json_object

COUNTS = (512, 128, 400)
DIVIDED = 10  # a slot with fewer words than this is taken for function words, which all splits share
LABEL_DIVIDED = 3  # the variable's own words are divided wherever each split can have one
Words = list[
    dict[str, str]
]  # one dictionary per choice: slot to word; slots such as clause.verb and clause.object are chosen together
Pool = dict[str, Words | dict[str, Words]]  # by group of slots; by class where the slots are the variable's


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


def load_pairs(
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    counts: tuple[int, int, int] = COUNTS,
    seed: int = 0,
    templates: Path | None = None,
    prefix: str = "",
) -> Splits:
    """Three splits of a task made from templates, with disjoint words.

    The words of a slot are divided between the splits; words with the same first four letters stay together, so that no split has
    the plural of another's noun. Short lists (prepositions, determiners) are shared by all splits.

    Args:
        task: "agreement" (a subject's number and the verb after a prepositional phrase), "gender" (a name and the pronoun), or a
            task of `templates`.
        counts: the most pairs of each split; all are different, and few words give fewer.
        templates: a JSON file of tasks in CausalGym's format instead of the built-in ones.
        prefix: as in `encode_pairs`.

    Raises:
        InputError: an unknown task, a template that cannot be read, words that cannot be divided.
    """
    source = resources.files("road_interp") / "templates.json"
    tasks = json.loads(source.read_text("utf-8")) if templates is None else read_json_object(templates)
    if task not in tasks:
        near = difflib.get_close_matches(task, tasks, n=1)
        raise InputError(f"unknown task '{task}'" + (f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(tasks)}"))
    try:
        pools = _pools(tasks[task], random.Random(seed))
        drawn = [
            _draw(tasks[task], pool, count, seed, number) for number, (pool, count) in enumerate(zip(pools, counts, strict=True))
        ]
    except InputError as error:
        raise InputError(f"task '{task}': {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"task '{task}' is not in CausalGym's template format ({type(error).__name__}: {error})") from None
    return Splits(*(encode_pairs(pairs, tokenizer, task, prefix) for pairs in drawn))


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


def _pools(task: Mapping[str, Any], rng: random.Random) -> tuple[Pool, Pool, Pool]:
    """The words of each split. The variable's words are divided first: others that share their letters follow them."""
    label_slots = [task["label"]] if isinstance(task["label"], str) else list(task["label"])
    slots = list(dict.fromkeys(slot for template in task["templates"] for slot in re.findall(r"{([\w.]+)}", template)))
    for slot in (*slots, *label_slots):
        if slot not in task["variables"]:
            raise InputError(f"the slot '{slot}' has no words")
    groups: dict[str, list[str]] = {}
    for slot in sorted(slots, key=lambda slot: slot not in label_slots):
        groups.setdefault(slot.partition(".")[0], []).append(slot)
    split_of: dict[str, int] = {}
    pools: tuple[Pool, Pool, Pool] = ({}, {}, {})
    for group, members in groups.items():
        if members[0] in label_slots:
            divided = {
                each: _divide(_choices({members[0]: task["variables"][members[0]][each]}), split_of, LABEL_DIVIDED, rng)
                for each in task["labels"]
            }
            for number, pool in enumerate(pools):
                pool[group] = {each: parts[number] for each, parts in divided.items()}
        else:
            parts = _divide(_choices({slot: task["variables"][slot] for slot in members}), split_of, DIVIDED, rng)
            for pool, part in zip(pools, parts, strict=True):
                pool[group] = part
    return pools


def _choices(words: Mapping[str, Sequence[str]]) -> Words:
    """Words of slots that are chosen together, without repetitions."""
    if len({len(each) for each in words.values()}) > 1:
        raise InputError(f"the slots {', '.join(words)} belong together but have lists of different lengths")
    return [dict(zip(words, choice, strict=True)) for choice in dict.fromkeys(zip(*words.values(), strict=True))]


def _divide(words: Words, split_of: dict[str, int], least: int, rng: random.Random) -> tuple[Words, Words, Words]:
    """Three parts, about 60, 15 and 25 percent, by the first letters of the words; or all words three times if there are few."""
    stems = [_stem(choice) for choice in words]
    if len(set(stems)) < least:
        return words, words, words
    fresh = sorted(set(stems) - set(split_of))
    rng.shuffle(fresh)
    tested, chosen = (max(1, round(share * len(fresh))) for share in (0.25, 0.15))
    split_of |= {stem: 2 if rank < tested else 1 if rank < tested + chosen else 0 for rank, stem in enumerate(fresh)}
    train, validation, test = ([w for w, stem in zip(words, stems, strict=True) if split_of[stem] == part] for part in range(3))
    if not (train and validation and test):
        raise InputError(f"the words of '{', '.join(words[0])}' cannot be divided into three splits; try another seed")
    return train, validation, test


def _stem(choice: Mapping[str, str]) -> str:
    return re.sub(r"\W", "", " ".join(choice.values()).lower())[:4]


def _draw(task: Mapping[str, Any], pool: Pool, count: int, seed: int, split: int) -> list[Pair]:
    """Different pairs of one split: `count`, or those that were met in fifty times as many draws."""
    rng = random.Random(f"{seed} {split}")
    drawn: dict[str, Pair] = {}
    for _ in range(50 * count):
        if len(drawn) < count:
            pair = _draw_pair(task, pool, rng)
            drawn.setdefault(str((pair.base, pair.source)), pair)
    return list(drawn.values())


def _draw_pair(task: Mapping[str, Any], pool: Pool, rng: random.Random) -> Pair:
    classes = rng.sample(sorted(task["labels"]), 2)
    words: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for choices in pool.values():
        same = rng.choice(choices) if isinstance(choices, list) else {}
        for each, side in zip(classes, words, strict=True):
            side.update(same if isinstance(choices, list) else rng.choice(choices[each]))
    template = rng.choice(task["templates"])
    base, source = (_spans(template, side) for side in words)
    answers = [task["labels"][each] for each in classes]
    number = rng.randrange(max(map(len, answers)))  # is with are, was with were
    space = " " if task["result_prepend_space"] else ""
    labels = [space + each[number % len(each)] for each in answers]
    return Pair(base, source, labels[0], labels[1], classes[0], classes[1])


def _spans(template: str, words: Mapping[str, str]) -> dict[str, str]:
    """The template's slots and the words between them, by name in order; a space belongs to what follows it."""
    spans: dict[str, str] = {}
    space = ""
    for piece in re.findall(r"{[\w.]+}|[^{]+", template):
        slot = piece.strip("{}") if piece.startswith("{") else None
        if slot is None and not piece.strip():
            space = piece
            continue
        name = slot or piece.strip()
        while name in spans:
            name += "'"
        spans[name] = space + (piece if slot is None else words[slot])
        space = ""
    return spans
