"""Counterfactual pairs made from templates in CausalGym's format (Arora et al. 2024)."""

from __future__ import annotations

import difflib
import json
import random
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from road_interp.causal.counterfactuals import Pair, Splits, encode_pairs
from road_interp.errors import InputError
from road_interp.files import read_json_object

COUNTS = (512, 128, 400)


DIVIDED = 10  # a slot with fewer words than this is taken for function words, which all splits share


LABEL_DIVIDED = 3  # the variable's own words are divided wherever each split can have one


Words = list[
    dict[str, str]
]  # one dictionary per choice: slot to word; slots such as clause.verb and clause.object are chosen together


Pool = dict[str, Words | dict[str, Words]]  # by group of slots; by class where the slots are the variable's


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
    source = resources.files("road_interp.causal") / "templates.json"
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
