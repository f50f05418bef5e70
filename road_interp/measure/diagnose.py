"""Three ways in which a rotation can be the wrong tool, as checks on what was measured: each a verdict with its numbers.

An adapter that lives on changes of magnitude, rotated planes that other features needed, and tasks that do not compose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from road_interp.errors import InputError
from road_interp.measure.ablation import ANGLES, MAGNITUDES, NEITHER, AblationReport
from road_interp.measure.composition import CompositionReport
from road_interp.measure.interference import NOTHING, InterferenceReport
from road_interp.measure.multitask_accuracy import MultiTaskAccuracyReport
from road_interp.results import Result

MARGIN = 0.01  # of accuracy: what an interval must lie above or below for a verdict
SHOWS = 0.1  # share of answers that a task must show alone before it can lose anything

Verdict = Literal["yes", "no", "cannot tell"]
Numbers = Mapping[str, tuple[float, float, float]]  # values with their 95% intervals


@dataclass(frozen=True)
class Check:
    """One question about an adapter.

    Attributes:
        question: answered with yes or no; "yes" names the failure.
        verdict: "cannot tell" where an interval reaches over the margin.
        reason: the rule that led to it.
        numbers: behind the verdict, and beside it.
    """

    question: str
    verdict: Verdict
    reason: str
    numbers: Numbers


@dataclass(frozen=True)
class Diagnosis(Result):
    """The checks that were made."""

    checks: tuple[Check, ...]


def needs_magnitudes(ablation: AblationReport) -> Check:
    """Whether a trained adapter loses accuracy (or its behaviours) when its angles are kept and its magnitudes set to 1.

    That is said of this adapter with its head: whether the task could do without is seen by training with `adapter.learn=angles`.
    An adapter that does nothing for the task allows no verdict.
    """
    losses = {part: ablation.loss(ablation.of("components", "all planes", part)) for part in (ANGLES, MAGNITUDES)}
    numbers = {f"{ablation.metric} lost with {part}": loss for part, loss in losses.items()}
    reason = f"{ablation.metric} lost with {ANGLES}, against a margin of {MARGIN:g}"
    gained = ablation.loss(ablation.of("components", "all planes", NEITHER))
    verdict: Verdict = _above(losses[ANGLES], MARGIN) if _above(gained, MARGIN) == "yes" else "cannot tell"
    return Check("Does the adapter rely on its magnitudes?", verdict, reason, numbers)


def hurts_others(interference: InterferenceReport, control: str, adapter: str) -> Check:
    """Whether an adapter costs a control task accuracy (or its behaviours) when it is composed on the control's own.

    Args:
        interference: of the adapter and a control task, and perhaps of the adapter restricted to some of its planes. Those stand
            beside the verdict, which is the whole adapter's: of many parts some would cross any margin by chance.
        control, adapter: their names. Raises InputError where the control was not scored with the adapter.
    """
    if adapter not in interference.correct.get(control, {}):
        raise InputError(f"'{control}' was not scored with '{adapter}'; scored were {', '.join(interference.correct)}")
    costs = {other: interference.cost(control, other) for other in interference.correct[control] if other != NOTHING}
    reason = f"what '{control}' loses with '{adapter}', against a margin of {MARGIN:g}"
    return Check("Do the rotated planes hurt other features?", _above(costs[adapter], MARGIN), reason, costs)


def fails_to_compose(report: CompositionReport | MultiTaskAccuracyReport) -> Check:
    """Whether tasks on planes of one state lose what they do alone when all are active.

    Of every task the paired difference on the same examples. A task that hardly shows alone allows no verdict.
    """
    costs = {f"what '{task}' loses": report.cost(task) for task in report.tasks}
    verdicts = {_above(cost, MARGIN) for cost in costs.values()}
    verdict: Verdict = "yes" if "yes" in verdicts else "no" if verdicts == {"no"} else "cannot tell"
    numbers = dict(costs)
    if isinstance(report, CompositionReport):
        alone = {task: (report.rate(task, [task]), *report.interval(task, [task])) for task in report.tasks}
        verdict = verdict if all(low > SHOWS for _, low, _ in alone.values()) else "cannot tell"
        together = "+".join(report.tasks)
        numbers |= {f"'{task}' alone": rate for task, rate in alone.items()}
        numbers["all in one answer"] = (report.rate(together, report.tasks), *report.interval(together, report.tasks))
    return Check("Do the tasks fail to compose?", verdict, f"lost with all planes active, against {MARGIN:g}", numbers)


def _above(value: tuple[float, float, float], margin: float) -> Verdict:
    """Whether a value lies above a margin with its whole interval, below it, or across."""
    _, low, high = value
    return "yes" if low > margin else "no" if high < margin else "cannot tell"
