"""Several variables in one state: RAVEL's score of rotations, low-rank subspaces and masks.

road-interp study variables                                     # number and gender, SmolLM2-135M, three seeds
road-interp study variables ravel=FOLDER --only smollm2_city_16 # a type of entity in RAVEL's format
road-interp study variable-rates                                # the learning rate of every method, by validation
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from road_interp.causal.answered_questions import answered_rightly, with_best_prompts
from road_interp.causal.entity_task import EntityTask, Question, SplitName, draw_variable_pairs, load_ravel
from road_interp.causal.number_and_gender import number_and_gender
from road_interp.causal.variable_methods import METHODS, VariablesComparison, compare_variables
from road_interp.causal.variables import VariableRuns
from road_interp.cli.app import main_of
from road_interp.errors import InputError
from road_interp.files import read_json_object, write_atomically
from road_interp.models.loading import load_model, load_tokenizer
from road_interp.plots import export
from road_interp.recipes.schema import ModelRecipe
from road_interp.results import Result
from road_interp.sources import SMOLLM2, readable_name
from road_interp.training.study import Condition, Described, Piece, Pieces, Study, settings_hash, with_interval

GEMMA = "models://gemma-3-270m"
MODELS = {"smollm2": (SMOLLM2, 12, "<|endoftext|>"), "gemma-3-270m": (GEMMA, 8, "")}  # id, block, and text before every prompt
ENTITIES = {"number-gender": (), "city": ("Country", "Continent"), "physical_object": ("Category", "Size")}
COORDINATES = (1, 2, 4, 8, 16, 32, 64)
RATES = (5e-3, 2e-2, 1e-1)


@dataclass(frozen=True)
class Settings:
    """Settings of the studies of several variables.

    Attributes:
        model: id.
        layer: number of the block at whose output states are exchanged, at the last token of the entity.
        prefix: text before every prompt.
        entities: "number-gender", or a type of entity in RAVEL's format.
        variables: attributes of that type.
        ravel: folder of RAVEL's files.
        asked: largest number of entities that the model is asked about.
        prompts: of every attribute, those that the model answers best.
        coordinates: per variable.
        rates: learning rates to choose from; by default the one of every method.
        steps: of every training.
        pairs: per swapped and asked variable, for training, validation and test.
    """

    model: str = SMOLLM2
    layer: int = 12
    prefix: str = "<|endoftext|>"
    entities: str = "number-gender"
    variables: tuple[str, ...] = ("number", "gender")
    ravel: str | None = None
    asked: int = 900
    prompts: int = 4
    coordinates: int = 16
    rates: tuple[float, ...] = ()
    methods: tuple[str, ...] = tuple(METHODS)
    steps: int = 200
    pairs: tuple[int, int, int] = (128, 48, 96)
    seed: int = 0


@cache
def load(model: str) -> tuple[Any, Any]:
    """A model and its tokeniser."""
    recipe = ModelRecipe(model)
    return load_model(recipe, "causal-lm")[0], load_tokenizer(recipe)


def task_of(settings: Settings) -> EntityTask:
    """The entities of the settings, at most as many as are asked about."""
    if settings.entities == "number-gender":
        return number_and_gender()
    if settings.ravel is None:
        raise InputError(f"entities '{settings.entities}' need ravel=FOLDER, a folder with files in RAVEL's format")
    return load_ravel(settings.ravel, settings.entities, settings.variables).sampled(settings.asked)


def answered(settings: Settings, task: EntityTask, piece: Piece) -> tuple[list[Question], int]:
    """The questions that the model answers rightly, kept in a file for other pieces, and the number of questions."""
    model, tokenizer = load(settings.model)
    key = settings_hash(settings.model, settings.prefix, settings.entities, settings.variables, settings.asked, settings.prompts)
    path = piece.runs / f"answered-{key}.json"
    if path.is_file():
        content = read_json_object(path)
        return [Question(*each) for each in content["answered"]], content["asked"]
    chosen = with_best_prompts(model, tokenizer, task, settings.prompts, settings.prefix, progress=piece.progress)
    questions = list(chosen.questions())
    right = answered_rightly(model, tokenizer, chosen, questions, settings.prefix, progress=piece.progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"asked": len(questions), "answered": right}))
    return right, len(questions)


def measure(piece: Piece) -> VariablesComparison:
    settings: Settings = piece.recipe
    model, tokenizer = load(settings.model)
    task = task_of(settings)
    right, asked = answered(settings, task, piece)
    splits: tuple[SplitName, ...] = ("train", "val", "test")
    runs = []
    for split, count in zip(splits, settings.pairs, strict=True):
        piece.progress(f"{split} pairs")
        pairs = draw_variable_pairs(task, right, tokenizer, split, count, settings.seed, settings.prefix)
        runs.append(VariableRuns(model, pairs, settings.layer, task.attributes))
    trials, reports = compare_variables(
        *runs,
        task.attributes,
        settings.coordinates,
        settings.methods,
        settings.rates,
        settings.steps,
        settings.seed,
        piece.progress,
    )
    return VariablesComparison(
        ModelRecipe(settings.model).name,
        task.name,
        task.attributes,
        settings.layer,
        settings.coordinates,
        settings.steps,
        settings.seed,
        (len({question.entity for question in right}), len(right), asked),
        tuple(map(len, (each.pairs for each in runs))),
        tuple(trials),
        tuple(reports),
    )


@dataclass(frozen=True)
class VariablesStudy(Result):
    """The comparisons of all seeds, by condition."""

    comparisons: Mapping[str, tuple[VariablesComparison, ...]]

    def groups(self) -> dict[str, list[VariablesComparison]]:
        """All comparisons of one model and one type of entity, by the first two parts of their conditions."""
        found: dict[str, list[VariablesComparison]] = {}
        for slug, seeds in self.comparisons.items():
            found.setdefault(slug.rpartition("_")[0], []).extend(seeds)
        return found


def over_conditions(pieces: Pieces) -> VariablesStudy:
    return VariablesStudy({slug: tuple(found) for slug, found in pieces.items()})


def draw(found: VariablesStudy, folder: Path) -> list[Path]:
    return [
        export.draw_variables(each, found, folder, f"variables-{slug.replace('_', '-')}")
        for slug, each in found.groups().items()
        if len({one.coordinates for one in each}) > 1
    ]


def name_of(found: VariablesComparison) -> str:
    return f"{readable_name(ModelRecipe(found.model).name)}, {found.task}, {found.coordinates} per variable"


def describe(found: VariablesStudy) -> Described:
    rows = []
    for seeds in found.comparisons.values():
        for report in seeds[0].reports:
            values = [one.of(report.method).disentangle for one in seeds]
            rows.append(
                (f"{name_of(seeds[0])}, {report.method}", with_interval((float(np.mean(values)), min(values), max(values))))
            )
    sentence = "Disentangle, the mean of cause and isolation over variables, on unseen entities (mean, lowest and highest seed)."
    return sentence, rows


def describe_rates(found: VariablesStudy) -> Described:
    rows = []
    for seeds in found.comparisons.values():
        for trial in seeds[0].trials:
            rows.append((f"{name_of(seeds[0])}, {trial.method}, rate {trial.rate:g}", f"{trial.validation:.3f}"))
    return "Disentangle on validation entities by learning rate.", rows


def condition(model: str, entities: str, coordinates: int, *more: str) -> Condition:
    """A condition of the studies; those of Gemma and of RAVEL's data are left out unless they are chosen by name."""
    identity, layer, prefix = MODELS[model]
    variables = ENTITIES[entities]
    given = (f"variables=[{', '.join(variables)}]", f"rates={list(RATES)}") if variables else ()
    places = (f"model={identity}", f"layer={layer}", f"prefix={json.dumps(prefix)}", f"entities={entities}")
    requires = ("model",) if identity == GEMMA else ("ravel",) if variables else ()
    name = f"{model}, {entities}, {coordinates} coordinates per variable"
    return Condition(name, (*places, *given, f"coordinates={coordinates}", *more), requires=requires)


COMMON: dict[str, Any] = {
    "recipe": Settings,
    "measure": measure,
    "report": over_conditions,
    "result": VariablesComparison,
    "quick": ("steps=3", "pairs=[8, 8, 8]", "asked=60", "methods=[stacked RoAd, multi-task DAS, masked components]"),
    "quick_conditions": 1,
    "inputs": ("ravel",),
}
VARIABLES = Study(
    name="variables",
    title="Several variables in one state",
    conditions={
        f"{model}_{entities}_{count}": condition(model, entities, count)
        for model in MODELS
        for entities in ENTITIES
        for count in COORDINATES
    },
    draw=draw,
    describe=describe,
    minutes=600,
    **COMMON,
)
VARIABLE_RATES = Study(
    name="variable-rates",
    title="Learning rates of the interchanges of several variables",
    conditions={"smollm2_number-gender_16": condition("smollm2", "number-gender", 16, f"rates={list(RATES)}")},
    draw=lambda found, folder: [],
    describe=describe_rates,
    minutes=60,
    **COMMON,
)

if __name__ == "__main__":
    main_of(VARIABLES)
