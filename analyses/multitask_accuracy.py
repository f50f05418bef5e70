"""Two classification heads on one hidden state of MiniLM, or of MPNet: accuracy lost when the planes of both tasks are active.

road-interp study multitask-accuracy                    # with and without co-activation, and each task alone, three seeds
road-interp study multitask-accuracy --only coact-0.5-longer    # with twice the epochs; -tuned: with a rate for each task
road-interp study multitask-accuracy-mpnet              # on MPNet, with fewer texts and the first three of these conditions
road-interp study multitask-accuracy-rates              # the learning rate of every task, together and alone, on validation texts

A task that is trained alone on its planes has a recipe with both tasks, so that it owns the same planes as in joint training, but
the other one has OTHER_TEXTS texts per class only, and is never active in its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from road_interp import plots
from road_interp.cli.app import main_of
from road_interp.errors import InputError
from road_interp.measure.multitask_accuracy import MultiTaskAccuracyReport, MultiTaskAccuracyStudy
from road_interp.models.loading import find_device
from road_interp.plots import export
from road_interp.results import Result
from road_interp.sources import is_here
from road_interp.training.multitask_classifier import MultiTaskClassificationExperiment
from road_interp.training.study import Condition, Described, Piece, Pieces, Study, best_rate, needs, with_interval
from road_interp.training.study_runs import run_of

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
QUICK = ("training.max_steps=2", *(f"tasks.{task}.labels.per_class=200" for task in ("sentiment", "source")))
OTHER_TEXTS = 50
OTHER = {"sentiment": "source", "source": "sentiment"}
ALONE = {f"{task}-alone": task for task in OTHER}
OWN_PLANES = {f"{task}-own-planes": task for task in OTHER}
VARIANTS = {"-longer": "four epochs", "-tuned": "own rates"}


def only_task(piece: Piece, task: str) -> Piece:
    """The piece with one task of its recipe, which owns all planes."""
    return piece._replace(recipe=replace(piece.recipe, tasks={task: piece.recipe.tasks[task]}))


def measure(piece: Piece) -> MultiTaskAccuracyReport:
    """Accuracy of the recipe's tasks, or of one task that owns all planes."""
    condition = base_condition(piece.condition)
    if condition in ALONE:
        piece = only_task(piece, ALONE[condition])
    found = run_of(piece).composition
    assert isinstance(found, MultiTaskAccuracyReport)
    return replace(found, method=STUDY.conditions[condition].name)


def base_condition(slug: str) -> str:
    """The condition of which another one is a variant, or itself."""
    return slug.removesuffix("-longer").removesuffix("-tuned")


def report(pieces: Pieces) -> MultiTaskAccuracyStudy:
    needs(pieces, *ALONE)
    found = {slug: MultiTaskAccuracyReport.over_seeds(each) for slug, each in pieces.items()}
    study = of_trainings({slug: each for slug, each in found.items() if slug == base_condition(slug)})
    if not study.together:
        raise InputError("the report needs a condition with both tasks: measure one with --only coact-0.5")
    variants = {}
    for end, name in VARIANTS.items():
        if of_variant := {base_condition(slug): each for slug, each in found.items() if slug.endswith(end)}:
            needs(pieces, f"coact-0.5{end}", *(f"{slug}{end}" for slug in ALONE))
            variants[name] = of_trainings(of_variant)
    return replace(study, variants=variants)


def of_trainings(found: Mapping[str, MultiTaskAccuracyReport]) -> MultiTaskAccuracyStudy:
    """The reports of conditions whose trainings are alike."""
    together = tuple(each for slug, each in found.items() if slug not in (*ALONE, *OWN_PLANES))
    alone, own_planes = ({of[slug]: each for slug, each in found.items() if slug in of} for of in (ALONE, OWN_PLANES))
    return MultiTaskAccuracyStudy(together, alone, own_planes)


def draw(found: MultiTaskAccuracyStudy, folder: Path, name: str) -> list[Path]:
    drawn = {name: found} | {f"{name}{end}": found.variants[each] for end, each in VARIANTS.items() if each in found.variants}
    return [export.save_figure(plots.multitask_accuracy(each), each, folder, name) for name, each in drawn.items()]


def describe(found: MultiTaskAccuracyStudy) -> Described:
    rows = rows_of(found)
    for variant, trained in found.variants.items():
        rows += [(f"{variant}: {name}", value) for name, value in rows_of(trained)]
        for each in trained.together:
            for task in each.tasks:
                name = f"{each.method}: {task}, lost minus lost with {variant}"
                rows.append((name, with_interval(found.gap_closed(task, each.method, variant))))
    sentence = (
        "Accuracy that each task loses when both tasks are trained on one hidden state and both are active, with 95% intervals "
        "over seeds and texts. What it does not lose to the other active task it loses by training on half of the planes, or "
        "with the other task; these two are told apart where each task was also trained alone on its half."
    )
    return sentence, rows


def rows_of(found: MultiTaskAccuracyStudy) -> list[tuple[str, str]]:
    """The losses and accuracies of every task and way of training."""
    rows = []
    for each in found.together:
        for task in each.tasks:
            examples = len(found.alone[task].correct[task][task]) // len(found.alone[task].seeds)
            alone, own, both = (
                found.alone[task].accuracy(task, task)[0],
                each.accuracy(task, task)[0],
                each.accuracy(task, each.together)[0],
            )
            rows.append((f"{each.method}: {task}, lost against training alone", with_interval(found.gap(task, each))))
            if task in found.own_planes:
                rows.append((f"{each.method}: {task}, lost to fewer planes", with_interval(found.lost_to_fewer_planes(task))))
                lost = found.lost_to_joint_training(task, each)
                rows.append((f"{each.method}: {task}, lost to joint training", with_interval(lost)))
            rows.append((f"{each.method}: {task}, lost to the other active task", with_interval(each.cost(task))))
            value = f"alone {alone:.3f}, with its own planes {own:.3f}, with all planes {both:.3f}, {examples} texts"
            rows.append((f"{each.method}: {task}, accuracy", value))
    return rows


def measure_rate(piece: Piece) -> MultiTaskAccuracyReport:
    """Accuracy on the validation texts of the tasks together, or of one task that owns all planes."""
    slug, _, _ = piece.condition.rpartition("_")
    if slug in ALONE:
        piece = only_task(piece, ALONE[slug])
    found = MultiTaskClassificationExperiment.accuracy_of(run_of(piece), "validation", find_device(None))
    return replace(found, method=RATES_STUDY.conditions[piece.condition].name)


@dataclass(frozen=True)
class HeadRates(Result):
    """Accuracies on the validation texts, by condition."""

    reports: Mapping[str, MultiTaskAccuracyReport]

    @property
    def scores(self) -> dict[str, dict[float, float]]:
        """By task and way of training, the accuracy for each learning rate; with both tasks that with all planes active."""
        found: dict[str, dict[float, float]] = {}
        for slug, each in self.reports.items():
            way, _, rate = slug.rpartition("_")
            for task in each.tasks:
                name = f"{task} alone" if way in ALONE else f"{task}, both tasks"
                found.setdefault(name, {})[float(rate)] = each.accuracy(task, each.together)[0]
        return found

    @property
    def best(self) -> dict[str, float]:
        """The learning rate with the highest accuracy, of equal ones the smallest, where the whole grid is measured."""
        return {name: best_rate(scores) for name, scores in self.scores.items() if len(scores) == len(RATES)}


def rates_report(pieces: Pieces) -> HeadRates:
    return HeadRates({slug: only for slug, (only,) in pieces.items()})


def draw_rates(found: HeadRates, folder: Path) -> list[Path]:
    ax = plots.learning_rates(found.scores, best=found.best, label="validation accuracy")
    return [export.save_figure(ax, found, folder, "multitask-accuracy-rates")]


def describe_rates(found: HeadRates) -> Described:
    rows = [(f"{name}, rate {rate:g}", f"{score:.3f}") for name, of in found.scores.items() for rate, score in of.items()]
    rows += [(f"{name}, best rate", f"{rate:g}") for name, rate in found.best.items()]
    best = ", ".join(f"{name} {rate:g}" for name, rate in found.best.items()) or "no grid is complete yet"
    return f"Accuracy on validation texts by learning rate; all planes are active. The best: {best}.", rows


STUDY = Study(
    name="multitask-accuracy",
    title="Two tasks on one hidden state",
    question="How much accuracy do two tasks lose when they share one hidden state and are active together?",
    caveat=(
        "One model, two tasks on film reviews and three seeds. Tasks that are trained alone own all planes, and so twice as many "
        "trained values, except those that are trained alone on their planes."
    ),
    recipe="multitask-minilm",
    conditions={
        "coact-0.5": Condition("co-activation 0.5", ("co_activation=0.5",)),
        "coact-0": Condition("co-activation 0", ("co_activation=0.0",)),
        **{slug: Condition(f"{task} alone") for slug, task in ALONE.items()},
        **{
            slug: Condition(
                f"{task} alone on its planes",
                ("co_activation=0.0", f"tasks.{OTHER[task]}.labels.per_class={OTHER_TEXTS}"),
            )
            for slug, task in OWN_PLANES.items()
        },
        "coact-0.5-longer": Condition("co-activation 0.5, four epochs", ("co_activation=0.5", "training.epochs=4")),
        **{f"{slug}-longer": Condition(f"{task} alone, four epochs", ("training.epochs=4",)) for slug, task in ALONE.items()},
        # the rates with the highest accuracy in "multitask-accuracy-rates"; that of source alone is the recipe's
        "coact-0.5-tuned": Condition(
            "co-activation 0.5, own rates", ("co_activation=0.5", *(f"tasks.{task}.learning_rate=0.003" for task in OTHER))
        ),
        "sentiment-alone-tuned": Condition("sentiment alone, own rate", ("training.learning_rate=0.003",)),
        "source-alone-tuned": Condition("source alone, own rate"),
    },
    measure=measure,
    report=report,
    result=MultiTaskAccuracyReport,
    draw=partial(draw, name="multitask-accuracy"),
    describe=describe,
    minutes=150,
    seeds=(3, 4, 5),
    quick=QUICK,
)

ON_MPNET = ("model.id=models://mpnet", *(f"tasks.{task}.labels.per_class=2000" for task in OTHER))
MPNET = replace(
    STUDY,
    name="multitask-accuracy-mpnet",
    title="Two tasks on one hidden state of MPNet",
    question="How much accuracy do two tasks lose when they share one hidden state of a larger model and are active together?",
    caveat=(
        "One model, two tasks on 4,000 film reviews each, and three seeds, nothing tuned for two tasks. Tasks that are "
        "trained alone own all planes, and so twice as many trained values."
    ),
    conditions={
        slug: replace(STUDY.conditions[slug], overrides=(*STUDY.conditions[slug].overrides, *ON_MPNET))
        for slug in ("coact-0.5", *ALONE)
    },
    draw=partial(draw, name="multitask-accuracy-mpnet"),
    applies=lambda recipe: is_here(recipe.model.id),
    minutes=150,
    seeds=(0, 1, 2),
)

RATES_STUDY = replace(
    STUDY,
    name="multitask-accuracy-rates",
    title="Learning rates of two tasks on one hidden state",
    question="Which learning rate does each task need, trained together with the other and alone?",
    caveat="One model and one seed: rates whose accuracies differ by little are not told apart.",
    conditions={
        f"{slug}_{rate:g}": Condition(
            f"{STUDY.conditions[slug].name}, rate {rate:g}",
            (*STUDY.conditions[slug].overrides, f"training.learning_rate={rate:g}"),
        )
        for slug in ("coact-0.5", *ALONE)
        for rate in RATES
    },
    measure=measure_rate,
    report=rates_report,
    draw=draw_rates,
    describe=describe_rates,
    minutes=60,
    seeds=(6,),
)

if __name__ == "__main__":
    main_of(STUDY)
