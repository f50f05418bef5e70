"""Generation of counterfactual pairs from templates in CausalGym's format (Arora et al. 2024)."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from road_interp.arguments import check_argument, check_count
from road_interp.causal.arguments import check_tokenizer
from road_interp.causal.counterfactuals import CounterfactualPairs, Pair, Splits, encode_pairs
from road_interp.errors import InputError, did_you_mean
from road_interp.files import read_json_object

COUNTS = (512, 128, 400)  # pairs of the training, validation and test split
DIVIDED = 10  # slots with fewer different stems are taken for function words, which all splits share
LABEL_DIVIDED = 3  # the variable's words are divided if there are at least as many stems: one per split
SLOT = r"{([^{}]+)}"

# One dictionary from slot to word per choice; slots such as clause.verb and clause.object are chosen together.
Words = list[dict[str, str]]
# By group of slots; for the slots of the variable also by class.
Pool = dict[str, Words | dict[str, Words]]


def load_pairs(
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    counts: tuple[int, int, int] = COUNTS,
    seed: int = 0,
    templates: str | Path | None = None,
    prefix: str = "",
) -> Splits:
    """Generate the three splits of a task from templates, with disjoint words.

    The words of a slot are divided among the splits. Words with the same first four letters stay in one split and count as one in
    intervals, so that singular and plural of a noun are not separated. Words of several slots that are chosen together are
    divided by those of the first slot. Lists with fewer than ten different beginnings (prepositions, determiners) are shared by
    all splits, but for words that another list has divided; those of the variable are divided from three on.

    Args:
        task: "agreement" (number of a subject, and the verb after a prepositional phrase), "gender" (a name and its pronoun), or
            a task of `templates`.
        counts: largest number of pairs of each split. Pairs are distinct, so a split may have fewer.
        seed: of the division of words and of the pairs.
        templates: a JSON file of tasks in CausalGym's format, used instead of the built-in ones.
        prefix: as in `encode_pairs`.

    Raises:
        InputError: an unknown task, a task that is not in CausalGym's format, or words that cannot be divided.
    """
    check_argument("causal.load_pairs", task, str, "the name of a task, such as 'agreement'")
    check_tokenizer("causal.load_pairs", tokenizer)
    check_argument("causal.load_pairs", counts, (tuple, list), "the numbers of training, validation and test pairs")
    if len(counts) != 3:
        raise InputError(f"counts must be the numbers of training, validation and test pairs, not {counts!r}")
    for count in counts:
        check_count("causal.load_pairs", "every number of counts", count)
    check_argument("causal.load_pairs", templates, (str, os.PathLike, type(None)), "a JSON file in CausalGym's format")
    source = resources.files("road_interp.causal") / "templates.json"
    tasks = json.loads(source.read_text("utf-8")) if templates is None else read_json_object(Path(templates))
    if task not in tasks:
        raise InputError(f"unknown task '{task}'; {did_you_mean(task, tasks)}")
    try:
        _check_format(tasks[task])
        pools = _pools(tasks[task], random.Random(seed))
        drawn = [
            _draw(tasks[task], pool, count, seed, number) for number, (pool, count) in enumerate(zip(pools, counts, strict=True))
        ]
    except InputError as error:
        raise InputError(f"task '{task}': {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"task '{task}' is not in CausalGym's template format ({type(error).__name__}: {error})") from None
    return Splits(*(_with_stems(encode_pairs(pairs, tokenizer, task, prefix)) for pairs in drawn))


def _with_stems(pairs: CounterfactualPairs) -> CounterfactualPairs:
    """Pairs whose words count as one where they stay in one split."""
    words = {word for of_span in pairs.words.values() for both in of_span for word in both}
    return replace(pairs, stems={word: _stem({"word": word}) for word in words})


def _check_format(task: Mapping[str, Any]) -> None:
    """Raise InputError unless templates, answers and words are lists of texts, and there are two classes of answers."""
    lists = {"templates": task["templates"]}
    lists |= {f"labels.{name}": answers for name, answers in task["labels"].items()}
    for slot, words in task["variables"].items():
        by_class = words if isinstance(words, Mapping) else {"": words}
        lists |= {f"variables.{slot}{'.' if name else ''}{name}": listed for name, listed in by_class.items()}
    for name, values in lists.items():
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise InputError(f"{name} must be a list of texts that is not empty")
    if len(task["labels"]) < 2:
        raise InputError("labels must have at least two classes")
    if not isinstance(task["result_prepend_space"], bool):
        raise InputError(f"result_prepend_space must be true or false, not {task['result_prepend_space']!r}")


def _pools(task: Mapping[str, Any], rng: random.Random) -> tuple[Pool, Pool, Pool]:
    """The words of each split. The variable's words are divided first; other words with the same first letters follow them."""
    label_slots = [task["label"]] if isinstance(task["label"], str) else list(task["label"])
    slots = list(dict.fromkeys(slot for template in task["templates"] for slot in re.findall(SLOT, template)))
    if unpaired := [template for template in task["templates"] if re.search("[{}]", re.sub(SLOT, "", template))]:
        raise InputError(f"the template {unpaired[0]!r} has a brace without its partner")
    for slot in (*slots, *label_slots):
        if slot not in task["variables"]:
            raise InputError(f"the slot '{slot}' has no words")
    _check_variable(task, slots, label_slots)
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
                pool[group] = {each: words[number] for each, words in divided.items()}
        elif by_class := [slot for slot in members if isinstance(task["variables"][slot], Mapping)]:
            raise InputError(f"the words of the slot '{by_class[0]}' are listed by class, so 'label' must name it, too")
        else:
            shares = _divide(_choices({slot: task["variables"][slot] for slot in members}), split_of, DIVIDED, rng)
            for pool, share in zip(pools, shares, strict=True):
                pool[group] = share
    return pools


def _check_variable(task: Mapping[str, Any], slots: Sequence[str], label_slots: Sequence[str]) -> None:
    """Raise InputError for templates without a slot of the variable, whose texts are the same for every class, and for a word of
    such a slot that two classes have."""
    for template in task["templates"]:
        if not any(slot in label_slots for slot in re.findall(SLOT, template)):
            raise InputError(f"the template {template!r} has no slot of the variable ({', '.join(label_slots)})")
    for slot in (slot for slot in label_slots if slot in slots):
        class_of: dict[str, str] = {}
        for each in task["labels"]:
            for word in set(task["variables"][slot][each]):
                if class_of.setdefault(word, each) != each:
                    raise InputError(f"the word '{word}' of the slot '{slot}' is of the classes '{class_of[word]}' and '{each}'")


def _choices(words: Mapping[str, Sequence[str]]) -> Words:
    """The distinct choices for slots whose words are chosen together."""
    if len({len(each) for each in words.values()}) > 1:
        raise InputError(f"the slots {', '.join(words)} are chosen together but have lists of different lengths")
    return [dict(zip(words, choice, strict=True)) for choice in dict.fromkeys(zip(*words.values(), strict=True))]


def _divide(words: Words, split_of: dict[str, int], least: int, rng: random.Random) -> tuple[Words, Words, Words]:
    """Divide words among the splits by their stems: about 60, 15 and 25 percent, or all words to each if stems are few.

    Args:
        split_of: split of every known stem; new stems are added in place.
        least: number of distinct stems from which words are divided.
    """
    stems = [_stem(choice) for choice in words]
    if len(set(stems)) < least:
        return _undivided(words, stems, split_of)
    new_stems = sorted(set(stems) - set(split_of))
    rng.shuffle(new_stems)
    tests, validations = (max(1, round(share * len(new_stems))) for share in (0.25, 0.15))
    split_of |= {stem: 2 if rank < tests else 1 if rank < tests + validations else 0 for rank, stem in enumerate(new_stems)}
    train, validation, test = ([w for w, stem in zip(words, stems, strict=True) if split_of[stem] == split] for split in range(3))
    if not (train and validation and test):
        raise InputError(f"the words of '{', '.join(words[0])}' cannot be divided into three splits; try another seed")
    return train, validation, test


def _undivided(words: Words, stems: Sequence[str], split_of: Mapping[str, int]) -> tuple[Words, Words, Words]:
    """All words in every split, but those whose stem another list has put into one: they stay in it, if none is left empty."""
    shares = [[w for w, stem in zip(words, stems, strict=True) if split_of.get(stem, split) == split] for split in range(3)]
    train, validation, test = shares if all(shares) else (words, words, words)
    return train, validation, test


def _stem(choice: Mapping[str, str]) -> str:
    """The first four letters, in lower case."""
    return re.sub(r"\W", "", " ".join(choice.values()).lower())[:4]


def _draw(task: Mapping[str, Any], pool: Pool, count: int, seed: int, split: int) -> list[Pair]:
    """Draw distinct pairs of one split until there are `count`, in at most fifty times as many draws."""
    rng = random.Random(f"{seed} {split}")
    drawn: dict[str, Pair] = {}
    for _ in range(50 * count):
        if len(drawn) == count:
            break
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
    number = rng.randrange(max(map(len, answers)))  # one index for both lists, so that is/are and was/were stay pairs
    space = " " if task["result_prepend_space"] else ""
    labels = [space + each[number % len(each)] for each in answers]
    return Pair(base, source, labels[0], labels[1], classes[0], classes[1])


def _spans(template: str, words: Mapping[str, str]) -> dict[str, str]:
    """The slots of a template and the texts between them, by name in order; a space belongs to the span after it."""
    spans: dict[str, str] = {}
    space = ""
    for token in re.findall(r"{[^{}]+}|[^{]+", template):
        slot = token.strip("{}") if token.startswith("{") else None
        if slot is None and not token.strip():
            space = token
            continue
        name = slot or token.strip()
        while name in spans:
            name += "'"
        spans[name] = space + (token if slot is None else words[slot])
        space = ""
    return {**spans, name: spans[name] + space} if spans else {}
