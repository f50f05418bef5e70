"""Entities with several attributes, and prompts that ask for one of them: the data of RAVEL (Huang et al. 2024).

A city has a country and a continent. If the model stores both in the state of the city's last token, an interchange of one
variable's coordinates should change the answer to prompts that ask for it, and no other answer.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from transformers import PreTrainedTokenizerBase

from road_interp.arguments import check_argument, check_count, checked_list
from road_interp.causal.arguments import check_tokenizer
from road_interp.causal.counterfactuals import CounterfactualPairs, Pair, encode_pairs
from road_interp.errors import InputError
from road_interp.files import read_json_object

SplitName = Literal["train", "val", "test"]
SPLITS = get_args(SplitName)
SLOT = "%s"  # the place of the entity in a prompt
OPENS = tuple("\"'`“‘«([{/\n\t")  # a prompt that ends with one of these is continued without a space


class Question(NamedTuple):
    """An entity and a prompt that asks for one of its attributes."""

    entity: str
    attribute: str
    prompt: str


@dataclass(frozen=True)
class EntityTask:
    """Entities, their attributes, and prompts.

    Attributes:
        name: of the type of entity.
        values: the values of the attributes, by entity.
        prompts: by attribute, texts with `%s` for the entity that end where the value begins.
        split: of every entity: "train", "val" or "test".
        group: of every entity, such as all forms of a noun, which belong into one split. By default an entity is its own.
        cluster: of every entity, such as the country of a city, whose entities are not independent: intervals are over clusters.
            By default its group.

    Raises:
        InputError: no prompts; a prompt without the place of the entity; an entity without a value, or in another split than
            these three; a group in two splits, or of a name that is no entity.
    """

    name: str
    values: Mapping[str, Mapping[str, str]]
    prompts: Mapping[str, tuple[str, ...]]
    split: Mapping[str, str]
    group: Mapping[str, str] = field(default_factory=dict)
    cluster: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("values", "prompts", "split", "group", "cluster"):
            check_argument("causal.EntityTask", getattr(self, name), Mapping, f"a dictionary as {name}")
        if not self.prompts:
            raise InputError(f"{self.name}: there are no prompts: give those of one attribute at least")
        for attribute, prompts in self.prompts.items():
            listed = checked_list("causal.EntityTask", prompts, str, f"the prompts of '{attribute}', as in ('The %s is',)")
            if wrong := [prompt for prompt in listed if prompt.count(SLOT) != 1]:
                raise InputError(f"{self.name}: the prompt {wrong[0]!r} must have one {SLOT}, the place of the entity")
        for entity, values in self.values.items():
            check_argument("causal.EntityTask", values, Mapping, f"the values of '{entity}' by attribute")
            if self.split.get(entity) not in SPLITS:
                raise InputError(f"{self.name}: the split of '{entity}' is {self.split.get(entity)!r}; use {', '.join(SPLITS)}")
            for what, value in (("name", entity), *((attribute, values.get(attribute)) for attribute in self.prompts)):
                if not isinstance(value, str) or not value or value != value.strip():  # prompts have the spaces
                    must = "must be a text without space at its ends"
                    raise InputError(f"{self.name}: the {what} of '{entity}' {must}, not {value!r}")
        self._check_groups()

    def _check_groups(self) -> None:
        """Raise InputError for a group or a cluster of no entity, or that is no text, and for a group in two splits."""
        for what, given in (("group", self.group), ("cluster", self.cluster)):
            for entity, name in given.items():
                if entity not in self.split:
                    raise InputError(f"{self.name}: {what} has '{entity}', which is no entity")
                if not isinstance(name, str) or not name:
                    raise InputError(f"{self.name}: the {what} of '{entity}' must be a text, not {name!r}")
        splits: dict[str, str] = {}
        for entity in self.values:
            group, split = self.group.get(entity, entity), self.split[entity]
            if splits.setdefault(group, split) != split:
                raise InputError(
                    f"{self.name}: the group '{group}' is in the splits {splits[group]} and {split}: put it into one"
                )

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes that prompts ask for."""
        return tuple(self.prompts)

    def questions(self, split: SplitName | None = None) -> Iterator[Question]:
        """Every prompt about every entity of a split, or of all. Raises InputError for another split."""
        if split not in (None, *SPLITS):
            raise InputError(f"unknown split {split!r}; use {', '.join(SPLITS)}")
        for entity in self.values:
            if split in (None, self.split[entity]):
                for attribute, prompts in self.prompts.items():
                    for prompt in prompts:
                        yield Question(entity, attribute, prompt)

    def sampled(self, count: int) -> EntityTask:
        """The task with `count` of its entities, drawn at random with seed 0, or all of them if it has fewer."""
        check_count("EntityTask.sampled", "count", count)
        drawn = set(random.Random(0).sample(sorted(self.values), min(count, len(self.values))))
        return replace(self, values={entity: values for entity, values in self.values.items() if entity in drawn})

    def answer(self, question: Question) -> str:
        """The value that a question asks for, with a space in front unless its prompt ends with one of OPENS."""
        space = "" if question.prompt.endswith(OPENS) else " "
        return space + self.values[question.entity][question.attribute]


def ravel_files(folder: str | Path, entity_type: str) -> list[Path]:
    """RAVEL's files of a type of entity: attributes, prompts, and the splits of both."""
    names = ("entity_attributes", "attribute_to_prompts", "entity_to_split", "prompt_to_split")
    return [Path(folder) / f"ravel_{entity_type}_{name}.json" for name in names]


def load_ravel(folder: str | Path, entity_type: str, attributes: Sequence[str], cluster: str | None = None) -> EntityTask:
    """Read a type of entity in RAVEL's format: four JSON files called `ravel_TYPE_...`.

    Prompts are those of RAVEL's training split, for entities of every split: its test of new entities, not of new contexts.
    Warns of entities and prompts that have no split, which are left out.

    Args:
        folder: with the files entity_attributes, attribute_to_prompts, entity_to_split and prompt_to_split.
        entity_type: such as "city".
        attributes: such as "Country" and "Continent"; entities without a value of one of them are left out.
        cluster: the one of them whose values are the clusters of entities that intervals are over, such as "Country".

    Raises:
        InputError: a missing file or another format, or an attribute that has no prompts.
    """
    check_argument("causal.load_ravel", folder, (str, os.PathLike), "the folder of RAVEL's files")
    attributes = checked_list("causal.load_ravel", attributes, str, "their names, as in ['Country', 'Continent']")
    values, prompts, split, prompt_split = map(read_json_object, ravel_files(folder, entity_type))
    if unknown := [attribute for attribute in attributes if attribute not in prompts]:
        raise InputError(f"'{unknown[0]}' is not an attribute of {entity_type}; there are {', '.join(prompts)}")
    try:
        chosen = {
            entity: {attribute: _as_text(of_entity[attribute]) for attribute in attributes}
            for entity, of_entity in values.items()
            if entity in split and all(_as_text(of_entity.get(attribute)) for attribute in attributes)
        }
        texts = {
            attribute: tuple(text for text in prompts[attribute] if text.count(SLOT) == 1 and prompt_split.get(text) == "train")
            for attribute in attributes
        }
        unsplit = [entity for entity in values if entity not in split]
        unsplit += [text for attribute in attributes for text in prompts[attribute] if prompt_split.get(text) not in SPLITS]
    except (AttributeError, TypeError) as error:
        raise InputError(f"'{folder}': ravel_{entity_type}_... is not in RAVEL's format ({error})") from None
    if unsplit:
        message = f"{entity_type}: {len(unsplit)} entities and prompts have no split and are left out, such as '{unsplit[0]}'"
        warnings.warn(message, stacklevel=2)
    if silent := [attribute for attribute, of_attribute in texts.items() if not of_attribute]:
        raise InputError(f"{entity_type} has no prompt of the training split that asks for '{silent[0]}' with one {SLOT}")
    if cluster is not None and cluster not in attributes:
        raise InputError(f"cluster '{cluster}' is not among the attributes {', '.join(attributes)}")
    clusters = {} if cluster is None else {entity: of_entity[cluster] for entity, of_entity in chosen.items()}
    return EntityTask(entity_type, chosen, texts, split, cluster=clusters)


def _as_text(value: Any) -> str:
    """The value of an attribute; empty for null and NaN."""
    return "" if value is None or value != value else str(value).strip()


@dataclass(frozen=True)
class VariablePairs:
    """Counterfactual pairs in which the coordinates of one variable are swapped; entry `i` of every tuple belongs to pair `i`.

    Where the swapped variable is asked for, the answer should become that of the source (cause). Where another is asked for, it
    should stay that of the base (isolation).

    Attributes:
        pairs: texts, answers of base and source to the base's question, and the position of the span "entity".
        swapped, asked: variables.
        entities: of base and source.
        groups, clusters: of both entities.
    """

    pairs: CounterfactualPairs
    swapped: tuple[str, ...]
    asked: tuple[str, ...]
    entities: tuple[tuple[str, str], ...]
    groups: tuple[tuple[str, str], ...]
    clusters: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"VariablePairs({self.pairs.name}, {len(self)} pairs of {', '.join(dict.fromkeys(self.swapped))})"

    @property
    def cells(self) -> list[str]:
        """The swapped and the asked variable of every pair as one text."""
        return [f"{swapped}, {asked}" for swapped, asked in zip(self.swapped, self.asked, strict=True)]

    @property
    def is_cause(self) -> tuple[bool, ...]:
        """Whether the answer should become that of the source."""
        return tuple(swapped == asked for swapped, asked in zip(self.swapped, self.asked, strict=True))

    @property
    def targets(self) -> tuple[int, ...]:
        """The first token of the answer that every pair should give."""
        labels = zip(self.is_cause, self.pairs.source_label, self.pairs.base_label, strict=True)
        return tuple(source if cause else base for cause, source, base in labels)


def draw_variable_pairs(
    task: EntityTask,
    answered: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    split: SplitName,
    count: int,
    seed: int = 0,
    prefix: str = "",
) -> VariablePairs:
    """Draw pairs for every swapped and asked variable, `count` of each, from questions that the model answers rightly.

    Base and source are questions about two entities of the split that differ in the swapped attribute and in the asked one. The
    source's question asks for any attribute; the base's question is answered rightly about the source's entity, too, because the
    model could not give an answer that it does not know.

    Args:
        answered: questions of the task, as `answered_rightly` returns them.
        split: of the entities.
        count: number of pairs for every swapped and asked variable.
        seed: of the draw; every split has a draw of its own.
        prefix: as in `encode_pairs`.

    Raises:
        InputError: too few different pairs, an unknown split, or a slow tokeniser, which has no offsets.
    """
    check_argument("causal.draw_variable_pairs", task, EntityTask, "number_and_gender() or load_ravel(folder, type, attributes)")
    make = "the questions that answered_rightly returns"
    answered = checked_list("causal.draw_variable_pairs", answered, Question, make)
    check_tokenizer("causal.draw_variable_pairs", tokenizer)
    check_questions(answered, task)
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; use {', '.join(SPLITS)}")
    check_count("causal.draw_variable_pairs", "count", count)
    rng = random.Random(f"{seed} {split}")
    of_split = [question for question in answered if task.split[question.entity] == split]
    known = {name: [question for question in of_split if question.attribute == name] for name in task.attributes}
    drawn: list[tuple[Pair, str, str, tuple[str, str]]] = []
    for swapped, asked in product(task.attributes, repeat=2):
        tried = _draw(task, known[asked], of_split, swapped, rng, 200 * count)
        found = _different_pairs(tried, count, tokenizer, prefix)
        if len(found) < count:
            raise InputError(
                f"{task.name}: {len(found)} pairs of {count} that swap {swapped} and ask for {asked}: too few {split} "
                "questions are answered rightly with different answers; draw fewer pairs, or give more entities"
            )
        drawn += [(pair, swapped, asked, (base.entity, source.entity)) for (base, source), pair in found.items()]
    pairs, swaps, asks, entities = zip(*drawn, strict=True)
    groups = tuple((task.group.get(base, base), task.group.get(source, source)) for base, source in entities)
    clusters = tuple(
        (task.cluster.get(base, one), task.cluster.get(source, other))
        for (base, source), (one, other) in zip(entities, groups, strict=True)
    )
    return VariablePairs(encode_pairs(pairs, tokenizer, task.name, prefix), swaps, asks, entities, groups, clusters)


def _draw(
    task: EntityTask, bases: Sequence[Question], sources: Sequence[Question], swapped: str, rng: random.Random, tries: int
) -> Iterator[tuple[Question, Question, Pair]]:
    """Pairs whose entities differ in the swapped attribute and in the answer, and whose base is answered rightly about both."""
    right = set(sources)
    for _ in range(tries if bases else 0):
        base, source = rng.choice(bases), rng.choice(sources)
        differ = task.values[base.entity][swapped] != task.values[source.entity][swapped]
        if differ and base._replace(entity=source.entity) in right and (pair := _pair(task, base, source)) is not None:
            yield base, source, pair


def _different_pairs(
    drawn: Iterator[tuple[Question, Question, Pair]], count: int, tokenizer: PreTrainedTokenizerBase, prefix: str
) -> dict[tuple[Question, Question], Pair]:
    """The first `count` different pairs among the drawn ones that can be encoded, by the questions of base and source."""
    found: dict[tuple[Question, Question], Pair] = {}
    for base, source, pair in drawn:
        if (base, source) not in found and _can_be_encoded(pair, tokenizer, prefix):
            found[base, source] = pair
        if len(found) == count:
            break
    return found


def check_questions(questions: Sequence[Question], task: EntityTask) -> None:
    """Raise InputError for a question about an entity or an attribute that the task does not have, or without its place."""
    for question in questions:
        if question.prompt.count(SLOT) != 1:
            raise InputError(f"{task.name}: the question {question.prompt!r} must have one {SLOT}, the place of the entity")
        if question.entity not in task.values or question.attribute not in task.prompts:
            raise InputError(f"{task.name} has no {question.attribute} of '{question.entity}': the question is of another task")


def _pair(task: EntityTask, base: Question, source: Question) -> Pair | None:
    """The pair of a base and a source question, or None if their answers to the base's question are equal."""
    answers = task.answer(base), task.answer(base._replace(entity=source.entity))
    return None if answers[0] == answers[1] else Pair(spans_of(base), spans_of(source), *answers)


def spans_of(question: Question) -> dict[str, str]:
    """The text of a question as spans, with the entity in the span "entity"."""
    before, after = question.prompt.split(SLOT)
    return {"before": before, "entity": question.entity, "after": after}


def _can_be_encoded(pair: Pair, tokenizer: PreTrainedTokenizerBase, prefix: str) -> bool:
    """Whether the answers begin with different tokens, each of them new after the text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all pairs together are warned of when they are encoded
        try:
            encode_pairs([pair], tokenizer, prefix=prefix)
        except InputError:
            return False
    return True
