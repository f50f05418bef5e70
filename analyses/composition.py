"""Several behaviours in one answer: which sets of tasks can be called up by activating their planes (paper, section 4.3).

    road-interp study composition                                 # all conditions: days on two cores
    road-interp study composition --only planes_coact-0.5         # one condition
    road-interp study composition-rates                           # the learning rate of every method, on validation reviews

Every set of tasks is activated; an answer is right if it has ended and shows exactly the tasks of the set. A seed draws the
order of the examples, the division of the reviews into training, validation and test, and the initial values of LoRA and LoReFT;
RoAd starts at the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.pyplot import figure
from matplotlib.style import context

from road_interp import plots
from road_interp.adapters.joined_names import BASE
from road_interp.cli.app import main_of
from road_interp.measure.composition import CompositionReport
from road_interp.measure.intervals import mean_over_seeds
from road_interp.plots import export
from road_interp.results import Result
from road_interp.sources import is_here, readable_name
from road_interp.training.composition_baselines import (
    adapter_per_set,
    divided_by_seed,
    instruction,
    low_rank,
    multiplied,
    planes,
    trained,
    undivided,
)
from road_interp.training.study import Condition, Described, Piece, Pieces, Study, best_rate, with_interval

MAIN = "planes_coact-0.5"
TASKS = {2: ("label", "closing"), 3: ("greeting", "label", "closing"), 4: ("greeting", "label", "german", "closing")}
GEMMA = (
    "model.id=models://gemma-3-270m",
    "adapter.layers=6-17",
    r'template="<bos>Review of a film: {{ prompt }}\nAnswer:\n"',  # it is no chat model
)
RATES = {"LoRA": 1e-3, "LoReFT": 2e-3}
GRID = (3e-4, 1e-3, 3e-3, 1e-2)
TUNED = {"planes": "planes", "undivided_own-loss": "undivided, loss of own tokens", "lora": "LoRA", "loreft": "LoReFT"}
FASTER = "_rate-0.01"  # the best rate of planes and of undivided adapters in composition-rates
RIVALS = ("adapter-per-set", "lora_coact-0.5", "loreft_coact-0.5")  # which have one rate, and are compared with both of planes
MIDDLE = 15  # the block that the paper rotates

Measure = Callable[[Piece], CompositionReport]


def tasks(*names: str) -> tuple[str, ...]:
    """Overrides for these tasks: 3,600 examples of the label, 1,200 of every other task, and steps for all of them."""
    examples = {name: 3600 if name == "label" else 1200 for name in names}
    given = ", ".join(f"{name}: {{behaviour: {name}, examples: {count}}}" for name, count in examples.items())
    return f"tasks={{{given}}}", f"training.max_steps={sum(examples.values()) // 8}"


def coact(probability: float) -> str:
    return f"co_activation={probability:g}"


def conditions() -> dict[str, Condition]:
    """All conditions by slug, the most important first."""
    found = {
        f"planes_coact-{p:g}": Condition(f"planes, co-activation {p:g}", (coact(p),), seeds=None if p == 0.5 else 1)
        for p in (0.5, 0)
    }
    name = "planes, co-activation 0, tokens of the other task left out"
    found["planes_coact-0_others-left-out"] = Condition(name, (coact(0),), partial(planes, others_left_out=True), seeds=1)
    found["undivided"] = Condition("undivided", (), undivided)
    own = partial(undivided, left_out="drawn")
    found["undivided_own-loss"] = Condition("undivided, loss of own tokens", (), own, seeds=3)
    faster = ("training.learning_rate=0.01",)
    found[f"{MAIN}{FASTER}"] = Condition("planes, co-activation 0.5, rate 0.01", (coact(0.5), *faster))
    found[f"undivided_own-loss{FASTER}"] = Condition("undivided, loss of own tokens, rate 0.01", faster, own, seeds=3)
    found["adapter-per-set"] = Condition("an adapter per set, composite examples", (), adapter_per_set)
    found["multiplied"] = Condition("trained apart and multiplied", (), multiplied, seeds=1)
    for rule, name in (("distilled", "distilled tokens"), ("all", "all tokens")):
        found[f"planes_{rule}"] = Condition(f"planes, loss of {name}", (f"co_activation_loss={rule}",), seeds=1)
    found["planes_shared-end"] = Condition("planes, shared end", (*tasks(*TASKS[2], "plain"), "shared=plain"), seeds=1)
    for method, layers in (("LoRA", None), ("LoReFT", None), ("LoReFT", MIDDLE)):
        place = "" if layers is None else f" at block {layers}"
        for p in (0.5, 0):
            changes = (coact(p), f"training.learning_rate={RATES[method]}")
            slug = f"{method.lower()}{place.replace(' at ', '_').replace(' ', '-')}_coact-{p:g}"
            low: Measure = partial(low_rank, method=method, layers=layers)
            found[slug] = Condition(f"{method}{place}, co-activation {p:g}", changes, low, seeds=1)
    found["instruction"] = Condition("instruction in the prompt", (), instruction, seeds=1)
    found |= {f"planes_coact-{p:g}": Condition(f"planes, co-activation {p:g}", (coact(p),), seeds=1) for p in (0.25, 1)}
    compared: dict[str, Measure] = {MAIN: trained, "undivided": undivided, "undivided_own-loss": own}
    for count in (3, 4):
        for slug, of in {**compared, "adapter-per-set": adapter_per_set}.items():
            name = f"{count} tasks: {found[slug].name}"
            found[f"{count}-tasks_{slug}"] = Condition(name, (*found[slug].overrides, *tasks(*TASKS[count])), of, seeds=3)
        name, of = f"{count} tasks: undivided, tokens of all other tasks left out", partial(undivided, left_out="all")
        found[f"{count}-tasks_undivided_others-left-out"] = Condition(name, tasks(*TASKS[count]), of, seeds=3)
    for count, seeds in ((3, None), (4, 1)):
        changes = (*found[MAIN].overrides, *tasks(*TASKS[count]), *faster)
        found[f"{count}-tasks_{MAIN}{FASTER}"] = Condition(
            f"{count} tasks: planes, co-activation 0.5, rate 0.01", changes, seeds=seeds
        )
    for count, seeds in ((3, 3), (4, 1)):
        slug = f"{count}-tasks_{MAIN}{FASTER}"
        rising = (*found[slug].overrides, "co_activation_warmup=0.5")
        found[f"{slug}_rising"] = Condition(f"{found[slug].name}, co-activation rising from 0", rising, seeds=seeds)
    slug = "3-tasks_undivided_others-left-out"
    slow = found[slug]
    found[f"{slug}{FASTER}"] = replace(slow, name=f"{slow.name}, rate 0.01", overrides=(*slow.overrides, *faster))
    for slug, of in compared.items():
        changes = (*found[slug].overrides, *GEMMA)
        found[f"gemma-3-270m_{slug}"] = Condition(f"Gemma-3-270M: {found[slug].name}", changes, of, seeds=3)
    three = found[f"3-tasks_{MAIN}"]
    found[f"gemma-3-270m_3-tasks_{MAIN}"] = Condition(f"Gemma-3-270M: {three.name}", (*three.overrides, *GEMMA), seeds=1)
    return found


def measure(piece: Piece) -> CompositionReport:
    return trained(piece)


def with_division(of: Measure) -> Measure:
    """The measurement on the division of the reviews that belongs to the seed."""

    def measured(piece: Piece) -> CompositionReport:
        return of(divided_by_seed(piece)).compact()

    return measured


@dataclass(frozen=True)
class CompositionStudy(Result):
    """The scores of every condition, over its seeds."""

    reports: Mapping[str, CompositionReport]


def report(pieces: Pieces) -> CompositionStudy:
    named = STUDY.conditions
    return CompositionStudy(
        {slug: replace(CompositionReport.over_seeds(found), method=named[slug].name) for slug, found in pieces.items()}
    )


def draw(found: CompositionStudy, folder: Path) -> list[Path]:
    first = next((slug for slug in (MAIN + FASTER, MAIN) if slug in found.reports), next(iter(found.reports)))
    shown = found.reports[first]
    with context(plots.STYLE):
        size = (7, 0.35 * len(found.reports) + 0.9)
        rows = figure(figsize=size, layout="constrained").add_subplot()
    plots.composition_control(list(found.reports.values()), rows)
    return [
        export.save_figure(plots.composition(shown), shown.compact(), folder, "composition"),
        export.save_figure(rows, found, folder, "composition-control"),
    ]


def bank(found: CompositionStudy) -> CompositionReport | None:
    """Three undivided adapters that a row chooses by name, on the divisions where all are measured.

    Those of "trained apart and multiplied" show their task alone, and "undivided, loss of own tokens" shows both; no training
    answer shows both.
    """
    apart, both = (found.reports.get(slug) for slug in ("multiplied", "undivided_own-loss"))
    seeds = [seed for seed in apart.seeds if seed in both.seeds] if apart and both else []
    if not (apart and both and seeds):
        return None
    together = "+".join(apart.tasks)
    scores = [(both if score.active == together else apart).on_seeds(seeds).of(score.active) for score in apart.scores]
    return replace(apart, method="three adapters by name", seeds=tuple(seeds), scores=tuple(scores))


def describe(found: CompositionStudy) -> Described:
    rows = []
    divided, faster = (
        {(each.model, each.tasks): each for slug, each in found.reports.items() if slug.endswith(end)}
        for end in (MAIN, MAIN + FASTER)
    )
    for slug, each in found.reports.items():
        name = name_of(each)
        rows += values_of(name, each)
        rows += differences_of(f"{name} minus planes", each, divided.get((each.model, each.tasks), each))
        if FASTER in slug:
            rows += differences_of(f"{name} minus planes at that rate", each, faster.get((each.model, each.tasks), each))
        if slug in RIVALS:
            rows += differences_of(f"{name} minus planes at rate 0.01", each, faster.get((each.model, each.tasks), each))
    always, own = (found.reports.get(slug) for slug in ("planes_coact-1", "undivided_own-loss"))
    if always and own:  # whose examples all leave out the other task's tokens
        rows += differences_of(f"{name_of(own)} minus planes, co-activation 1", own, always)
    one_block, all_blocks = (found.reports.get(f"loreft{place}_coact-0.5") for place in (f"_block-{MIDDLE}", ""))
    if one_block and all_blocks:
        rows += differences_of(f"{name_of(one_block)} minus that at 20 blocks", one_block, all_blocks)
    rows += adapters_by_name(found)
    first = next(iter(found.reports.values()))
    sentence = (
        "Fractions of answers that have ended and show exactly the active tasks, with 95% intervals over seeds and prompts, "
        f"{len(first.scores[0].finished) // len(first.seeds)} per seed; with instructions in the prompt the answers may have any "
        "form. Differences from the planes with co-activation 0.5 are of the same seeds and prompts. "
        '"A task that is not active is tried" is the fraction of prompts whose answer with any set but the empty one has a trace '
        'of another task. "Right or wrong" counts answers with all active parts and an end; "closing right" those whose closing '
        "is right and in its place; the more frequent label is the fraction right if every answer had that label. Three adapters "
        'by name are those of "trained apart and multiplied" for one task, and "undivided, loss of own tokens" for both. "Over '
        'reviews" is an interval for these divisions alone.'
    )
    return sentence, rows


def name_of(found: CompositionReport) -> str:
    """The model and the method of a report."""
    model = readable_name(found.model)
    return found.method if found.method.startswith(model) else f"{model}, {found.method}"


def named_sets(found: CompositionReport) -> list[tuple[str, str]]:
    """The name of every set of active tasks, and the set."""
    return [("no task" if score.active == BASE else score.active, score.active) for score in found.scores]


def values_of(name: str, found: CompositionReport) -> list[tuple[str, str]]:
    """Control of all sets, and what is right in the answers with all tasks active and with the set that is called up worst."""
    least, value = found.least_control()
    rows = [(f"{name}: mean over sets", with_interval(found.mean_control())), (f"{name}: least, {least}", with_interval(value))]
    rows += [(f"{name}: {words}", with_interval(found.control(active))) for words, active in named_sets(found)]
    if len(found.seeds) > 1:
        each = [found.on_seeds([seed]) for seed in found.seeds]
        worst = [division.least_control() for division in each]
        rows.append((f"{name}: least, by division", ", ".join(f"{active} {value:.3f}" for active, (value, *_) in worst)))
        for words, active in named_sets(found)[1:]:
            values = ", ".join(f"{division.control(active)[0]:.3f}" for division in each)
            rows.append((f"{name}: {words}, by division", values))
    rows.append((f"{name}: a task that is not active is tried", with_interval(found.shows_inactive())))
    together = found.of("+".join(found.tasks))
    rows.append((f"{name}: {together.active}, right or wrong", f"{together.attempted().mean():.3f}"))
    for active in dict.fromkeys((together.active, least)):
        rows.append((f"{name}: {active}, ended", f"{np.mean(found.of(active).finished):.3f}"))
        parts = active.split("+") if "+" in active else []
        rows += [(f"{name}: {active}, {task} right", f"{found.of(active).joint([task]).mean():.3f}") for task in parts]
    return [*rows, (f"{name}: the more frequent label", f"{found.majority:.3f}")]


def differences_of(name: str, found: CompositionReport, other: CompositionReport) -> list[tuple[str, str]]:
    """Control less that of another report, where both have a seed."""
    if other is found or not {*other.seeds} & {*found.seeds}:
        return []
    rows = []
    for which, active in (("mean over sets", None), *named_sets(found)[1:]):
        rows.append((f"{name}: {which}", with_interval(found.difference(other, active))))
        rows += by_division(f"{name}: {which}", found.paired(other, active))
    return rows


def adapters_by_name(found: CompositionStudy) -> list[tuple[str, str]]:
    """Control of the adapters of `bank` beside that of planes at both rates, on the same divisions."""
    by_name, rows = bank(found), []
    rates = {"planes": MAIN, "planes at rate 0.01": MAIN + FASTER}
    beside = {name: found.reports[slug] for name, slug in rates.items() if slug in found.reports}
    if by_name is None or any(not {*by_name.seeds} <= {*each.seeds} for each in beside.values()):
        return []
    model = readable_name(by_name.model)
    for name, each in ((by_name.method, by_name), *beside.items()):
        of_divisions = each.on_seeds(by_name.seeds)
        same = f"{model}, {name}, division {', '.join(map(str, by_name.seeds))}"
        rows.append((f"{same}: mean over sets", with_interval(of_divisions.mean_control())))
        rows += [(f"{same}: {score.active}", with_interval(of_divisions.control(score.active))) for score in by_name.scores[1:]]
    for name, each in beside.items():
        rows.append((f"{model}, {by_name.method} minus {name}: mean over sets", with_interval(by_name.difference(each))))
    return rows


def by_division(name: str, differences: Float[np.ndarray, "divisions prompts"]) -> list[tuple[str, str]]:
    """The differences of several divisions: their number and values, and the mean over these reviews, as of one division."""
    means = differences.mean(1)
    if len(means) < 2:
        return []
    above = f"above in {(means > 0).sum()} of {len(means)} divisions ({', '.join(f'{value:.3f}' for value in means)})"
    return [
        (f"{name}, by division", above),
        (f"{name}, over reviews", with_interval(mean_over_seeds(differences.ravel(), 1, True))),
    ]


def rate_conditions() -> dict[str, Condition]:
    """Every method at every learning rate of the grid, scored on the validation reviews."""
    methods: dict[str, Measure] = {
        "planes": partial(planes, split="validation"),
        "undivided_own-loss": partial(undivided, left_out="drawn", split="validation"),
        "lora": partial(low_rank, method="LoRA", split="validation"),
        "loreft": partial(low_rank, method="LoReFT", split="validation"),
    }
    return {
        f"{method}_{rate:g}": Condition(
            f"{TUNED[method]}, rate {rate:g}", (coact(0.5), f"training.learning_rate={rate:g}"), of, seeds=1
        )
        for method, of in methods.items()
        for rate in GRID
    }


@dataclass(frozen=True)
class CompositionRates(Result):
    """Scores on the validation reviews, by condition."""

    reports: Mapping[str, CompositionReport]

    @property
    def scores(self) -> dict[str, dict[float, float]]:
        """By method and learning rate, the mean control; of the undivided adapter, which cannot show one task alone, the fraction
        of answers that show all tasks."""
        found: dict[str, dict[float, float]] = {}
        for slug, each in self.reports.items():
            method, _, rate = slug.rpartition("_")
            score = each.control("+".join(each.tasks)) if "undivided" in method else each.mean_control()
            found.setdefault(method, {})[float(rate)] = score[0]
        return found

    @property
    def best(self) -> dict[str, float]:
        """The learning rate with the highest score, of equal ones the smallest, by method whose whole grid is measured."""
        return {method: best_rate(scores) for method, scores in self.scores.items() if len(scores) == len(GRID)}


def rates_report(pieces: Pieces) -> CompositionRates:
    return CompositionRates({slug: only for slug, (only,) in pieces.items()})


def draw_rates(found: CompositionRates, folder: Path) -> list[Path]:
    named = {method: f"{TUNED[method]}{' (both tasks)' if 'undivided' in method else ''}" for method in found.scores}
    scores = {named[method]: of_method for method, of_method in found.scores.items()}
    best = {named[method]: rate for method, rate in found.best.items()}
    ax = plots.learning_rates(scores, best=best, label="answers with exactly the active tasks (fraction)")
    return [export.save_figure(ax, found, folder, "composition-rates")]


def describe_rates(found: CompositionRates) -> Described:
    rows = []
    for slug, each in found.reports.items():
        name = RATES_STUDY.conditions[slug].name
        rows.append((f"{name}: mean over sets", with_interval(each.mean_control())))
        rows += [(f"{name}: {one.active}", with_interval(each.control(one.active))) for one in each.scores if one.active != BASE]
    best = ", ".join(f"{method} {rate:g}" for method, rate in found.best.items()) or "no grid is complete yet"
    sentence = (
        "Fractions of answers that show exactly the active tasks, on validation reviews. A rate is judged by the mean over the "
        "sets of tasks; of the undivided adapter, which cannot show one task alone, by the fraction that shows both tasks, which "
        f"is not comparable with such a mean. The best rates: {best}."
    )
    return sentence, rows


STUDY = Study(
    name="composition",
    title="Several behaviours in one answer",
    question=(
        "Can the tasks of one adapter be called up in any combination by activating their planes, without training on an answer "
        "that shows two of them?"
    ),
    caveat=(
        "The tasks are artificial parts of answers to film reviews, and most controls have one division of the reviews. "
        "Rotations had more rounds of learning rates than LoRA and LoReFT had, and far fewer trained values. On Gemma-3-270M "
        "and with three or four tasks planes and undivided adapters alone were trained."
    ),
    recipe="composition-smollm2",
    conditions={slug: replace(each, measure=with_division(each.measure or measure)) for slug, each in conditions().items()},
    measure=measure,
    report=report,
    result=CompositionReport,
    draw=draw,
    describe=describe,
    minutes=1500,
    seeds=(0, 1, 2, 3, 4),
    applies=lambda recipe: is_here(recipe.model.id),
    quick=("training.max_steps=4", "scoring.test=4", "scoring.validation=4", "scoring.max_new_tokens=4"),
    quick_conditions=1,
)

RATES_STUDY = Study(
    name="composition-rates",
    title="Learning rates of the methods of composition",
    question="Which learning rate does each method need to show any set of two tasks in one answer?",
    caveat="One division and 64 reviews: neighbouring rates within the intervals are not told apart. Two tasks only.",
    recipe="composition-smollm2",
    conditions={slug: replace(each, measure=with_division(each.measure or measure)) for slug, each in rate_conditions().items()},
    measure=measure,
    report=rates_report,
    result=CompositionReport,
    draw=draw_rates,
    describe=describe_rates,
    minutes=200,
    applies=STUDY.applies,
    quick=STUDY.quick,
    quick_conditions=1,
)

if __name__ == "__main__":
    main_of(STUDY)
