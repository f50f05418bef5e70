"""Several variables in one state: RAVEL's score of rotations, low-rank subspaces and masks.

road-interp study variables                                     # number and gender, SmolLM2-135M, three seeds
road-interp study variables ravel=FOLDER --only smollm2_city_16 # a type of entity in RAVEL's format
road-interp study variables-boundless ravel=FOLDER              # boundless forms, which learn their numbers of coordinates
road-interp study variables-longer ravel=FOLDER                 # rotations and multi-task DAS with four times the steps
road-interp study variables-three ravel=FOLDER                  # three variables: country, continent and language
road-interp study variables-whitened ravel=FOLDER               # rotations of a whitened state
road-interp study variables-wider-grid ravel=FOLDER             # rotations and multi-task DAS with five learning rates
road-interp study variable-rates                                # the learning rate of every method, by validation
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from road_interp import plots
from road_interp.causal.answered_questions import answered_rightly, with_best_prompts
from road_interp.causal.entity_task import EntityTask, Question, SplitName, draw_variable_pairs, load_ravel, ravel_files
from road_interp.causal.noun_task import number_and_gender
from road_interp.causal.variable_methods import (
    BOUNDLESS,
    BOUNDLESS_DAS,
    BOUNDLESS_DEEP,
    DEEP,
    FROM_COMPONENTS,
    KNOWN_METHODS,
    MASKED_BASIS,
    METHODS,
    NO_SWAP,
    PLANES,
    SEPARATE,
    SHARED,
    STACKED,
    WHITENED,
)
from road_interp.causal.variables import VariableRuns, VariablesReport
from road_interp.causal.variables_comparison import (
    Trial,
    VariablesComparison,
    compare_variables,
    count_runs,
    disentangle_over_seeds,
    number_clusters,
    try_methods,
)
from road_interp.cli.app import main_of
from road_interp.errors import InputError
from road_interp.files import read_json_object, write_atomically
from road_interp.measure.intervals import mean_of_seeds
from road_interp.plots import export
from road_interp.recipes.schema import ModelRecipe
from road_interp.results import Result
from road_interp.runs.digests import model_files
from road_interp.sources import SMOLLM2, is_here, readable_name
from road_interp.training.study import Condition, Described, Piece, Pieces, Study, best_rate, settings_hash, with_interval
from road_interp.training.study_runs import language_model

GEMMA = "models://gemma-3-270m"
MODELS = {"smollm2": (SMOLLM2, 12, "<|endoftext|>"), "gemma-3-270m": (GEMMA, 8, "")}  # id, block, and text before every prompt
LAYERS = {identity: layer for identity, layer, _ in MODELS.values()}
NOUNS = "number-gender"
ENTITIES = {NOUNS: ("number", "gender"), "city": ("Country", "Continent"), "physical_object": ("Category", "Size")}
ROTATIONS = (STACKED, DEEP, PLANES, FROM_COMPONENTS)
COMPARED = [
    *((each, SHARED) for each in (*ROTATIONS, MASKED_BASIS, *WHITENED, *BOUNDLESS)),
    *((each, SEPARATE) for each in (*ROTATIONS, MASKED_BASIS)),  # RAVEL's MDAS
    (BOUNDLESS_DEEP, BOUNDLESS_DAS),
]
CLUSTERS = {"city": "Country"}  # cities of one country are not independent
SHOWN = 16  # coordinates per variable whose learning rates are tuned, and whose cause and isolation are listed
COORDINATES = (1, 2, 4, 8, 16, 32, 64)
RATES = (3e-3, 2e-2, 1e-1)
CHOSEN: Mapping[tuple[str, str], Mapping[str, float]] = {  # by model and entities: the best of RATES, by validation
    (SMOLLM2, "city"): {
        STACKED: 1e-1,
        DEEP: 2e-2,
        PLANES: 3e-3,
        FROM_COMPONENTS: 1e-1,
        SHARED: 2e-2,
        SEPARATE: 2e-2,
        "masked neurons": 1e-1,
        "masked components": 1e-1,
        MASKED_BASIS: 2e-2,
        "masked RoAd planes": 3e-3,
        BOUNDLESS_DAS: 2e-2,
        BOUNDLESS_DEEP: 2e-2,
    },
    (SMOLLM2, "physical_object"): {
        STACKED: 2e-2,
        DEEP: 1e-1,
        PLANES: 3e-3,
        FROM_COMPONENTS: 1e-1,
        SHARED: 1e-1,
        SEPARATE: 3e-3,
        "masked neurons": 3e-3,
        "masked components": 2e-2,
        MASKED_BASIS: 3e-3,
        "masked RoAd planes": 2e-2,
        BOUNDLESS_DAS: 3e-3,
        BOUNDLESS_DEEP: 2e-2,
    },
    (GEMMA, "city"): {
        STACKED: 1e-1,
        DEEP: 2e-2,
        PLANES: 2e-2,
        FROM_COMPONENTS: 2e-2,
        SHARED: 1e-1,
        SEPARATE: 2e-2,
        "masked neurons": 3e-3,
        "masked components": 3e-3,
        MASKED_BASIS: 1e-1,
        "masked RoAd planes": 3e-3,
        BOUNDLESS_DAS: 2e-2,
        BOUNDLESS_DEEP: 1e-1,
    },
    (GEMMA, "physical_object"): {
        STACKED: 1e-1,
        DEEP: 2e-2,
        PLANES: 2e-2,
        FROM_COMPONENTS: 1e-1,
        SHARED: 3e-3,
        SEPARATE: 3e-3,
        "masked neurons": 1e-1,
        "masked components": 2e-2,
        MASKED_BASIS: 3e-3,
        "masked RoAd planes": 2e-2,
        BOUNDLESS_DAS: 2e-2,
        BOUNDLESS_DEEP: 2e-2,
    },
}


@dataclass(frozen=True)
class Settings:
    """Settings of the studies of several variables.

    Attributes:
        model: id.
        layer: number of the block at whose output states are exchanged, at the last token of the entity.
        prefix: text before every prompt.
        entities: "number-gender", or a type of entity in RAVEL's format.
        variables: attributes of a type in RAVEL's format.
        ravel: folder of RAVEL's files.
        asked: largest number of entities that the model is asked about.
        prompts: of every attribute, those that the model answers best.
        coordinates: per variable.
        rates: learning rates to choose from; by default the one of every method. Where CHOSEN has those that validation chose
            at seed 0 and 16 coordinates, other seeds and other numbers of coordinates take them instead of RATES, at the same
            block and of the same variables.
        steps: of every training.
        pairs: per swapped and asked variable, for training, validation and test.
    """

    model: str = SMOLLM2
    layer: int = 12
    prefix: str = "<|endoftext|>"
    entities: str = NOUNS
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


def task_of(settings: Settings) -> EntityTask:
    """The entities of the settings, at most as many as are asked about."""
    if settings.entities == NOUNS:
        return number_and_gender()
    if settings.ravel is None:
        raise InputError(f"entities '{settings.entities}' need ravel=FOLDER, a folder with files in RAVEL's format")
    cluster = CLUSTERS.get(settings.entities)
    return load_ravel(settings.ravel, settings.entities, settings.variables, cluster).sampled(settings.asked)


def answered(settings: Settings, task: EntityTask, piece: Piece) -> tuple[list[Question], int]:
    """The questions that the model answers rightly, kept in a file for other pieces, and the number of questions."""
    model, tokenizer = language_model(settings.model)
    key = settings_hash(settings.model, settings.prefix, settings.prompts, task, *model_files(settings.model))
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


def runs_of(settings: Settings, piece: Piece, splits: tuple[SplitName, ...]) -> tuple[list[VariableRuns], tuple[int, int, int]]:
    """The runs of splits, and numbers of entities and questions that are answered rightly, and of questions."""
    task = task_of(settings)
    model, tokenizer = language_model(settings.model)
    right, asked = answered(settings, task, piece)
    runs = []
    for split, count in zip(splits, settings.pairs, strict=False):
        piece.progress(f"{split} pairs")
        pairs = draw_variable_pairs(task, right, tokenizer, split, count, settings.seed, settings.prefix)
        runs.append(VariableRuns(model, pairs, settings.layer, task.attributes, progress=piece.progress))
    return runs, (len({question.entity for question in right}), len(right), asked)


def training_of(settings: Settings, piece: Piece) -> dict[str, Any]:
    """The arguments of `try_methods`."""
    options: dict[str, Any] = {"methods": settings.methods, "rates": rates_of(settings), "steps": settings.steps}
    return {**options, "seed": settings.seed, "progress": piece.progress}


def rates_of(settings: Settings) -> dict[str, tuple[float, ...]] | None:
    """The learning rates to try, by method; None for those of METHODS."""
    as_chosen = (settings.layer, settings.variables) == (LAYERS.get(settings.model), ENTITIES.get(settings.entities))
    chosen = CHOSEN.get((settings.model, settings.entities)) if as_chosen else None
    tuned_here = settings.seed == 0 and settings.coordinates == SHOWN
    if not tuned_here and settings.rates == RATES and chosen is not None:
        return {method: (chosen[method],) if method in chosen else settings.rates for method in settings.methods}
    return dict.fromkeys(settings.methods, settings.rates) if settings.rates else None


def measure(piece: Piece) -> VariablesComparison:
    """The controls and all methods. What an interrupted measurement has finished is read from files beside the runs."""
    settings: Settings = piece.recipe
    runs, counts = runs_of(settings, piece, ("train", "val", "test"))
    rates = [learning_rates(settings, method) for method in settings.methods]
    key = settings_hash(replace(settings, ravel=None), task_of(settings), rates, *model_files(settings.model))
    folder = piece.runs / f"{piece.condition}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for method in (None, *settings.methods):
        path = folder / f"{(method or 'controls').replace(' ', '-')}.json"
        if not path.is_file():
            training = training_of(replace(settings, methods=() if method is None else (method,)), piece)
            parts = compare_variables(*runs, settings.coordinates, method is None, **training)
            comparison(settings, counts, runs, *parts).save(path)
        found.append(VariablesComparison.load(path))
    trials, reports = (tuple(part for each in found for part in getattr(each, name)) for name in ("trials", "reports"))
    shutil.rmtree(folder)
    return replace(found[0], trials=trials, reports=reports)


def learning_rates(settings: Settings, method: str) -> tuple[float, ...]:
    """The rates that a method is trained at."""
    return (rates_of(settings) or {}).get(method, (KNOWN_METHODS[method].learning_rate,))


def measure_rates(piece: Piece) -> VariablesComparison:
    """Without test pairs."""
    settings: Settings = piece.recipe
    runs, counts = runs_of(settings, piece, ("train", "val"))
    tried = try_methods(*runs, settings.coordinates, **training_of(settings, piece))
    return comparison(settings, counts, runs, [each.trial for each in tried], [])


def comparison(
    settings: Settings,
    counts: tuple[int, int, int],
    runs: list[VariableRuns],
    trials: list[Trial],
    reports: list[VariablesReport],
) -> VariablesComparison:
    train, validation, *test = (len(each.pairs) for each in runs)
    tested = runs[2].pairs if test else None
    return VariablesComparison(
        ModelRecipe(settings.model).name,
        runs[0].pairs.pairs.name,
        runs[0].variables,
        settings.layer,
        settings.coordinates,
        settings.steps,
        settings.seed,
        counts,
        (train, validation, sum(test)),
        () if tested is None else count_runs(tested.cells),
        *number_clusters(() if tested is None else tested.clusters),
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


def draw(found: VariablesStudy, folder: Path, by_method: str = "variables-by-method") -> list[Path]:
    """By the number of coordinates where several are measured, else by method."""
    figures, others = [], {}
    for slug, each in found.groups().items():
        if len({one.coordinates for one in each}) > 1:
            figures.append(export.draw_variables(each, found, folder, f"variables-{slug.replace('_', '-')}"))
        else:
            methods = [report.method for report in each[0].reports]
            others[name_of(each[0])] = {method: disentangle_of(each, method) for method in methods}
    if others:
        ax = plots.means(others, label="disentangle (fraction)")
        figures.append(export.save_figure(ax, found, folder, by_method))
    return figures


def draw_rates(found: VariablesStudy, folder: Path) -> list[Path]:
    scores: dict[str, dict[float, float]] = {}
    for trial in (trial for seeds in found.comparisons.values() for trial in seeds[0].trials):
        scores.setdefault(trial.method, {})[trial.rate] = trial.validation
    best = {method: best_rate(tried) for method, tried in scores.items()}
    ax = plots.learning_rates(scores, best=best, label="disentangle of validation entities (fraction)")
    return [export.save_figure(ax, found, folder, "variable-rates")]


def name_of(found: VariablesComparison) -> str:
    return f"{readable_name(ModelRecipe(found.model).name)}, {found.task.replace('_', ' ')}, {found.coordinates} per variable"


def describe(found: VariablesStudy) -> Described:
    rows = []
    for seeds in found.comparisons.values():
        measured = [report.method for report in seeds[0].reports]
        entities, right, asked = seeds[0].answered
        known = f"{right:,} of {asked:,} questions, about {entities} entities, are answered rightly"
        rows.append((f"{name_of(seeds[0])}, data", f"{known}; {seeds[0].pairs[2]} test pairs"))
        for method in measured:
            rows += values_of(seeds, method)
            if seeds[0].coordinates == SHOWN:
                rows.append((f"{name_of(seeds[0])}, {method}, cause and isolation", parts_of(seeds, method)))
                if trained := seeds[0].of(method).parameters:
                    rows.append((f"{name_of(seeds[0])}, {method}, trained values", f"{trained:,}"))
            if learned := [" and ".join(map(str, one.of(method).owned)) for one in seeds if one.of(method).owned]:
                rows.append((f"{name_of(seeds[0])}, {method}, learned numbers of coordinates by seed", ", ".join(learned)))
        for method in (DEEP, SHARED):
            if losses := [f"{each:.2f}" for each in losses_of(seeds, method)]:
                rows.append((f"{name_of(seeds[0])}, {method}, training loss by seed", ", ".join(losses)))
        if seeds[0].coordinates == SHOWN:
            rows += frequent_clusters(seeds)
        for method, other in COMPARED:
            if {method, other} <= {*measured}:
                rows += values_of(seeds, method, other)
    sentence = (
        "Disentangle, the mean of cause and isolation over variables, on unseen entities, with the 95% interval over clusters of "
        "entities (nouns with all their forms, countries with their cities), for the trainings of these seeds; differences on "
        "the same pairs. Rows over seeds have the interval of the seeds' means instead (Student's t), which holds for other "
        "trainings, too. The test nouns are 8, so few that their intervals may be too narrow."
    )
    return sentence, rows


def values_of(seeds: Sequence[VariablesComparison], method: str, other: str | None = None) -> list[tuple[str, str]]:
    """Disentangle of a method, or its difference from another: the mean over seeds, and where there are several, each."""
    name = f"{name_of(seeds[0])}, {method}" + ("" if other is None else f" minus {other}")
    value = disentangle_of(seeds, method, other)
    rows = [(name, f"{value[0]:.3f}" if method == NO_SWAP else with_interval(value))]
    if len(seeds) > 1:
        each = [one.of(method).disentangle - (0 if other is None else one.of(other).disentangle) for one in seeds]
        rows.append((f"{name}, by seed", ", ".join(f"{value:.3f}" for value in each)))
        if other is not None and max(each) - min(each) > 1e-9:  # equal values say nothing about other trainings
            rows.append((f"{name}, over seeds", with_interval(mean_of_seeds(each))))
    return rows


def disentangle_of(seeds: Sequence[VariablesComparison], method: str, other: str | None = None) -> tuple[float, float, float]:
    """`disentangle_over_seeds`, but without an interval where nothing is swapped.

    The score is .5 by definition there, if the model gives the answers that the pairs were drawn by.
    """
    value, low, high = disentangle_over_seeds(seeds, method, other)
    return (value, value, value) if method == NO_SWAP else (value, low, high)


def losses_of(seeds: Sequence[VariablesComparison], method: str) -> list[float]:
    """The loss of the last tenth of steps (nats) of every interchange that was tested; none if nothing is trained."""
    return [trial.loss for one in seeds for trial in one.trials if trial.method == method and trial.rate == one.of(method).rate]


def parts_of(seeds: Sequence[VariablesComparison], method: str) -> str:
    """Cause and isolation of every variable, means over seeds."""
    found = []
    for index, variable in enumerate(seeds[0].variables):
        scores = [one.of(method).scores[index] for one in seeds]
        cause, isolation = (np.mean([getattr(score, part) for score in scores]) for part in ("cause", "isolation"))
        found.append(f"{variable} {cause:.2f} and {isolation:.2f}")
    return ", ".join(found)


def frequent_clusters(seeds: Sequence[VariablesComparison]) -> list[tuple[str, str]]:
    """How many test pairs the most frequent clusters of entities are in, and the scores of DEEP and SHARED without the first."""
    name = name_of(seeds[0])
    pairs = [({*clusters}, cell) for one in seeds for clusters, cell in zip(one.clusters, one.cells, strict=True)]
    (first, count), *_ = Counter(cluster for clusters, _ in pairs for cluster in sorted(clusters)).most_common()
    rows = [(f"{name}, most frequent", f"{first} is in {count:,} of {len(pairs):,} pairs ({count / len(pairs):.0%})")]
    for variable in seeds[0].variables:
        cells = {f"{swapped}, {variable}" for swapped in seeds[0].variables}
        about = [clusters for clusters, cell in pairs if cell in cells]
        two = [cluster for cluster, _ in Counter(cluster for both in about for cluster in sorted(both)).most_common(2)]
        count = sum(not clusters.isdisjoint(two) for clusters in about)
        rows.append((f"{name}, most frequent about {variable}", f"{' or '.join(two)} is in {count:,} of {len(about):,} pairs"))
    kept = [one.without(first) if any(first in both for both in one.clusters) else one for one in seeds]
    for method in (DEEP, SHARED):
        if all(method in {report.method for report in one.reports} for one in seeds):
            value = disentangle_over_seeds(kept, method)
            rows.append((f"{name}, {method}, without {first}", with_interval(value)))
    return rows


def describe_rates(found: VariablesStudy) -> Described:
    rows = []
    for seeds in found.comparisons.values():
        for trial in seeds[0].trials:
            rows.append((f"{name_of(seeds[0])}, {trial.method}, rate {trial.rate:g}", f"{trial.validation:.3f}"))
        for method, tried in groupby(seeds[0].trials, lambda trial: trial.method):
            best = best_rate({trial.rate: trial.validation for trial in tried})
            rows.append((f"{name_of(seeds[0])}, {method}, best rate", f"{best:g}"))
    return "Disentangle on validation entities by learning rate.", rows


def condition(model: str, entities: str, coordinates: int, rates: bool) -> Condition:
    """A condition of the studies; `rates` chooses among the learning rates."""
    identity, layer, prefix = MODELS[model]
    variables = ENTITIES[entities]
    places = (f"model={identity}", f"layer={layer}", f"prefix={json.dumps(prefix)}", f"entities={entities}")
    chosen = [f"variables=[{', '.join(variables)}]", f"coordinates={coordinates}"]
    if rates:
        chosen.append(f"rates={list(RATES)}")
    name = f"{model}, {entities}, {coordinates} coordinates per variable"
    return Condition(name, (*places, *chosen), requires=() if entities == NOUNS else ("ravel",))


COMMON: dict[str, Any] = {
    "recipe": Settings,
    "report": over_conditions,
    "result": VariablesComparison,
    "quick": ("steps=3", "pairs=[8, 8, 8]", "asked=60", "methods=[stacked RoAd, multi-task DAS, masked components]"),
    "quick_conditions": 1,
    "inputs": {"ravel": lambda settings: [] if settings.entities == NOUNS else ravel_files(settings.ravel, settings.entities)},
    "applies": lambda settings: is_here(settings.model),
}
VARIABLES = Study(
    name="variables",
    title="Several variables in one state",
    question="Can one rotation hold several variables in disjoint coordinates as well as a trained low-rank subspace does?",
    caveat=(
        "Small models, one block each, three seeds, and learning rates chosen with 16 coordinates. Gemma-3-270M was not "
        "tested on nouns. Comparisons are not corrected for their number, and that two methods are not told apart does not make "
        "them equal."
    ),
    conditions={
        f"{model}_{entities}_{count}": condition(model, entities, count, (model, entities) != ("smollm2", NOUNS))
        for model in MODELS
        for entities in ENTITIES
        for count in COORDINATES
        if (model, entities) != ("gemma-3-270m", NOUNS)  # Gemma answers "plural" to nearly every question for the number
    },
    measure=measure,
    draw=draw,
    describe=describe,
    minutes=3000,
    **COMMON,
)
CITIES = VARIABLES.conditions["smollm2_city_16"]
BORDERS = f"methods={json.dumps([SHARED, *BOUNDLESS])}"
VARIABLES_BOUNDLESS = Study(
    name="variables-boundless",
    title="Several variables in one state, with learned borders",
    question="Do boundless forms, which learn how many coordinates each variable owns, separate several variables better?",
    caveat=(
        "Two models and two types of entity, one block each, learning rates chosen at seed 0. The "
        "test entities are those of the study with given numbers, whose outcomes had been seen."
    ),
    conditions={
        slug: replace(VARIABLES.conditions[slug], overrides=(*VARIABLES.conditions[slug].overrides, BORDERS))
        for model in ("smollm2", "gemma-3-270m")
        for slug in (f"{model}_city_16", f"{model}_physical_object_16")
    },
    measure=measure,
    draw=partial(draw, by_method="variables-boundless"),
    describe=describe,
    minutes=500,
    **COMMON,
)
LONGER = ("steps=800", f"methods=[{STACKED}, {DEEP}, {SHARED}]")
VARIABLES_LONGER = Study(
    name="variables-longer",
    title="Several variables in one state, with four times the steps",
    question="Do more steps of training bring rotations nearer to multi-task DAS?",
    caveat=(
        "One model, one block, one type of entity and two seeds. Learning rates were chosen with 200 steps, and the test "
        "entities are those of the study with 200 steps."
    ),
    conditions={"smollm2_city_16": replace(CITIES, overrides=(*CITIES.overrides, *LONGER))},
    measure=measure,
    draw=partial(draw, by_method="variables-longer"),
    describe=describe,
    minutes=60,
    seeds=(1, 2),
    **COMMON,
)
THREE = ("variables=[Country, Continent, Language]", f"methods={json.dumps((STACKED, DEEP, SHARED, SEPARATE))}")
VARIABLES_THREE = Study(
    name="variables-three",
    title="Three variables in one state",
    question="Can one rotation hold three variables in disjoint coordinates as well as a trained low-rank subspace does?",
    caveat=(
        "One model, one block, one type of entity, three seeds. Country, Continent and Language of a city depend on each other, "
        "and the test entities are those of the study with two variables."
    ),
    conditions={"smollm2_city_16": replace(CITIES, overrides=(*CITIES.overrides, *THREE))},
    measure=measure,
    draw=partial(draw, by_method="variables-three"),
    describe=describe,
    minutes=100,
    **COMMON,
)
GEMMAS_CITIES = VARIABLES.conditions["gemma-3-270m_city_16"]
WHITE = f"methods={json.dumps([SHARED, *WHITENED])}"
VARIABLES_WHITENED = Study(
    name="variables-whitened",
    title="Several variables in one whitened state",
    question="Does a whitened state bring rotations nearer to multi-task DAS?",
    caveat=(
        "One model, one block, one type of entity and one seed. The test entities are those of the study without whitening, "
        "whose outcomes had been seen."
    ),
    conditions={"gemma-3-270m_city_16": replace(GEMMAS_CITIES, overrides=(*GEMMAS_CITIES.overrides, WHITE))},
    measure=measure,
    draw=partial(draw, by_method="variables-whitened"),
    describe=describe,
    minutes=60,
    seeds=(0,),
    **COMMON,
)
WIDER = (f"rates={[1e-3, *RATES, 3e-1]}", f"methods=[{STACKED}, {DEEP}, {SHARED}]")
VARIABLES_WIDER_GRID = Study(
    name="variables-wider-grid",
    title="Several variables in one state, with five learning rates",
    question="Are rotations behind multi-task DAS because their best learning rate is outside the grid?",
    caveat=(
        "One model, one block, one type of entity and one seed. The test entities are those of the study with three rates, whose "
        "outcomes had been seen."
    ),
    conditions={"smollm2_city_16": replace(CITIES, overrides=(*CITIES.overrides, *WIDER))},
    measure=measure,
    draw=partial(draw, by_method="variables-wider-grid"),
    describe=describe,
    minutes=60,
    seeds=(0,),
    **COMMON,
)
VARIABLE_RATES = Study(
    name="variable-rates",
    title="Learning rates of the interchanges of several variables",
    question="Which learning rate does each interchange of several variables need?",
    caveat=(
        "One model, one block, one seed, three rates and 200 steps; the validation pairs choose the rate, so that these scores "
        "are optimistic."
    ),
    conditions={"smollm2_number-gender_16": replace(condition("smollm2", NOUNS, 16, True), seeds=1)},
    measure=measure_rates,
    draw=draw_rates,
    describe=describe_rates,
    minutes=30,
    **COMMON,
)

if __name__ == "__main__":
    main_of(VARIABLES)
