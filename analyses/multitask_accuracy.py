"""Two classification heads on one hidden state of MiniLM, or of MPNet: accuracy lost when the planes of both tasks are active.

road-interp study multitask-accuracy                    # with and without co-activation, and each task alone, three seeds
road-interp study multitask-accuracy --only coact-0.5-longer    # with twice the epochs
road-interp study multitask-accuracy-mpnet              # on MPNet, with fewer texts and the first three of these conditions

A task that is trained alone on its planes has a recipe with both tasks, so that it owns the same planes as in joint training, but
the other one has OTHER_TEXTS texts per class only, and is never active in its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from road_interp import plots
from road_interp.cli.app import main_of
from road_interp.errors import InputError
from road_interp.measure.multitask_accuracy import MultiTaskAccuracyReport, MultiTaskAccuracyStudy
from road_interp.plots import export
from road_interp.sources import is_here
from road_interp.training.study import Condition, Described, Piece, Pieces, Study, needs, with_interval
from road_interp.training.study_runs import run_of

QUICK = ("training.max_steps=2", *(f"tasks.{task}.labels.per_class=200" for task in ("sentiment", "source")))
OTHER_TEXTS = 50
OTHER = {"sentiment": "source", "source": "sentiment"}
ALONE = {f"{task}-alone": task for task in OTHER}
OWN_PLANES = {f"{task}-own-planes": task for task in OTHER}
LONGER, FOUR_EPOCHS = "-longer", "training.epochs=4"


def only_task(piece: Piece, task: str) -> Piece:
    """The piece with one task of its recipe, which owns all planes."""
    return piece._replace(recipe=replace(piece.recipe, tasks={task: piece.recipe.tasks[task]}))


def measure(piece: Piece) -> MultiTaskAccuracyReport:
    """Accuracy of the recipe's tasks, or of one task that owns all planes."""
    condition = piece.condition.removesuffix(LONGER)
    if condition in ALONE:
        piece = only_task(piece, ALONE[condition])
    found = run_of(piece).composition
    assert isinstance(found, MultiTaskAccuracyReport)
    return replace(found, method=STUDY.conditions[condition].name)


def report(pieces: Pieces) -> MultiTaskAccuracyStudy:
    needs(pieces, *ALONE)
    if any(slug.endswith(LONGER) for slug in pieces):
        needs(pieces, f"coact-0.5{LONGER}", *(f"{slug}{LONGER}" for slug in ALONE))
    found = {slug: MultiTaskAccuracyReport.over_seeds(each) for slug, each in pieces.items()}
    longer = {slug.removesuffix(LONGER): each for slug, each in found.items() if slug.endswith(LONGER)}
    study = of_trainings({slug: each for slug, each in found.items() if not slug.endswith(LONGER)})
    if not study.together:
        raise InputError("the report needs a condition with both tasks: measure one with --only coact-0.5")
    return replace(study, longer=of_trainings(longer)) if longer else study


def of_trainings(found: Mapping[str, MultiTaskAccuracyReport]) -> MultiTaskAccuracyStudy:
    """The reports of conditions with an equal number of epochs."""
    together = tuple(each for slug, each in found.items() if slug not in (*ALONE, *OWN_PLANES))
    alone, own_planes = ({of[slug]: each for slug, each in found.items() if slug in of} for of in (ALONE, OWN_PLANES))
    return MultiTaskAccuracyStudy(together, alone, own_planes)


def draw(found: MultiTaskAccuracyStudy, folder: Path, name: str) -> list[Path]:
    drawn = {name: found} | ({} if found.longer is None else {f"{name}{LONGER}": found.longer})
    return [export.save_figure(plots.multitask_accuracy(each), each, folder, name) for name, each in drawn.items()]


def describe(found: MultiTaskAccuracyStudy) -> Described:
    rows = rows_of(found)
    if found.longer is not None:
        rows += [(f"four epochs: {name}", value) for name, value in rows_of(found.longer)]
        for each in found.longer.together:
            for task in each.tasks:
                name = f"{each.method}: {task}, lost with two epochs less lost with four"
                rows.append((name, with_interval(found.gap_closed(task, each.method))))
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


STUDY = Study(
    name="multitask-accuracy",
    title="Two tasks on one hidden state",
    question="How much accuracy do two tasks lose when they share one hidden state and are active together?",
    caveat=(
        "One model, two tasks on film reviews and three seeds. Tasks that are trained alone own all planes, and so twice as many "
        "trained values, except those that are trained alone on their planes. Learning rates for each task are not tried."
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
        f"coact-0.5{LONGER}": Condition("co-activation 0.5, four epochs", ("co_activation=0.5", FOUR_EPOCHS)),
        **{f"{slug}{LONGER}": Condition(f"{task} alone, four epochs", (FOUR_EPOCHS,)) for slug, task in ALONE.items()},
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

if __name__ == "__main__":
    main_of(STUDY)
