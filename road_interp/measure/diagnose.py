"""Checks of three failures of rotation adapters, each with a verdict and the measured numbers.

The failures are: an adapter that relies on its magnitudes, an adapter that lowers the accuracy of other tasks, and tasks that do
not compose. A verdict needs an interval of 95% that lies above the margin ("yes") or below it ("no"): few examples allow neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from road_interp.adapters.joined_names import join_names
from road_interp.arguments import check_argument
from road_interp.errors import InputError
from road_interp.measure.ablation import ANGLES, MAGNITUDES, NEITHER, AblationReport
from road_interp.measure.composition import CompositionReport
from road_interp.measure.interference import NOTHING, InterferenceReport
from road_interp.measure.multitask_accuracy import MultiTaskAccuracyReport
from road_interp.results import Result, entry

MARGIN = 0.01  # of accuracy
SHOWS = 0.1  # a verdict on composition needs a higher rate of every task with its own planes active

Verdict = Literal["yes", "no", "cannot tell"]
Numbers = Mapping[str, tuple[float, float, float]]  # values with their 95% intervals


@dataclass(frozen=True)
class Check:
    """One question about an adapter.

    Attributes:
        question: a question for which "yes" is the failure.
        verdict: "cannot tell" if an interval contains the margin.
        reason: the quantity and the margin that decide.
        numbers: the quantities of the verdict, and related ones.
    """

    question: str
    verdict: Verdict
    reason: str
    numbers: Numbers


@dataclass(frozen=True)
class Diagnosis(Result):
    """The results of the checks."""

    checks: tuple[Check, ...]

    def records(self) -> list[dict[str, object]]:
        """A row per number of a check."""
        return [
            {"question": check.question, "verdict": check.verdict, "quantity": name, "value": value}
            for check in self.checks
            for name, value in check.numbers.items()
        ]


def needs_magnitudes(ablation: AblationReport, margin: float = MARGIN) -> Check:
    """Whether a trained adapter loses accuracy (or its behaviours) when its magnitudes are set to 1 and its angles are kept.

    The verdict is about this adapter with its head. Whether the task needs magnitudes is measured by training with
    `adapter.trainable=angles`. There is no verdict if the accuracy without the adapter is not lower by more than the margin.
    """
    check_argument("measure.needs_magnitudes", ablation, AblationReport, "measure.ablation(adapter, scorer, ...)")
    losses = {name: ablation.loss(ablation.of("components", "all planes", name)) for name in (ANGLES, MAGNITUDES)}
    numbers = {f"{ablation.metric} lost with {name}": loss for name, loss in losses.items()}
    reason = f"{ablation.metric} lost with {ANGLES}, against a margin of {margin:g}"
    gained = ablation.loss(ablation.of("components", "all planes", NEITHER))
    verdict: Verdict = _above(losses[ANGLES], margin) if _above(gained, margin) == "yes" else "cannot tell"
    return Check("Does the adapter rely on its magnitudes?", verdict, reason, numbers)


def hurts_others(
    interference: InterferenceReport, control: str, adapter: str, margin: float = MARGIN, undone: str | None = None
) -> Check:
    """Whether a control task loses accuracy (or its behaviours) when an adapter is composed on the control's own adapter.

    Args:
        interference: outcomes of the control task with the adapter, and optionally with restrictions of it to some planes. The
            restrictions are reported but do not enter the verdict: of many, some would exceed any margin by chance.
        control, adapter: names in `interference`.
        undone: the name of an adapter that undoes the control's own, such as its inverse. With it the verdict is "cannot tell"
            where the control task gains no more than the margin by its own adapter, and so has nothing to lose.

    Raises:
        InputError: the control was not scored with one of the adapters.
    """
    check_argument("measure.hurts_others", interference, InterferenceReport, "measure.interference(adapters, scores, ...)")
    scored = entry(interference.correct, control, "scored task")
    numbers = {other: interference.cost(control, other) for other in scored if other not in (NOTHING, undone)}
    verdict = _above(entry(numbers, adapter, f"adapter with which '{control}' was scored:"), margin)
    if undone is not None:
        gain = interference.cost(control, undone)
        verdict = verdict if _above(gain, margin) == "yes" else "cannot tell"
        numbers[f"what '{control}' gains by its own adapter"] = gain
    reason = f"what '{control}' loses with '{adapter}', against a margin of {margin:g}"
    return Check("Do the rotated planes hurt other features?", verdict, reason, numbers)


def fails_to_compose(report: CompositionReport | MultiTaskAccuracyReport, margin: float = MARGIN) -> Check:
    """Whether tasks that share a hidden state lose accuracy (or their behaviours) when all planes are active.

    The measure is each task's paired difference between its own planes and all planes active. There is no verdict where a task
    cannot be called up alone: a behaviour that is rare (`SHOWS`) with its own planes active, or that shows together with another
    there, or a head that gains no more than the margin over no planes. One task that loses more than the margin decides; the
    intervals are not corrected for the number of tasks.
    """
    check_argument(
        "measure.fails_to_compose",
        report,
        (CompositionReport, MultiTaskAccuracyReport),
        "run.composition of a run with several tasks",
    )
    if len(report.tasks) < 2:
        raise InputError(f"measure.fails_to_compose needs a report of two tasks at least, not of '{report.tasks[0]}' alone")
    costs = {f"what '{task}' loses": report.cost(task) for task in report.tasks}
    verdicts = {_above(cost, margin) for cost in costs.values()}
    verdict: Verdict = "yes" if "yes" in verdicts else "no" if verdicts == {"no"} else "cannot tell"
    numbers = dict(costs)
    if isinstance(report, CompositionReport):
        has_traces = all(score.finished for score in report.scores)  # not in reports of 0.1.0
        alone = {task: report.control(task) if has_traces else report.rate(task, [task]) for task in report.tasks}
        verdict = verdict if all(low > SHOWS for _, low, _ in alone.values()) else "cannot tell"
        together = join_names(report.tasks)
        numbers |= {f"'{task}' alone": rate for task, rate in alone.items()}
        numbers["all in one answer"] = report.rate(together, report.tasks)
    else:
        gains = {task: report.gain(task) for task in report.tasks}
        verdict = verdict if all(_above(gain, margin) == "yes" for gain in gains.values()) else "cannot tell"
        numbers |= {f"what '{task}' gains by its own planes": gain for task, gain in gains.items()}
    reason = f"lost with all planes active, against a margin of {margin:g}; one task decides"
    return Check("Do the tasks fail to compose?", verdict, reason, numbers)


def _above(value: tuple[float, float, float], margin: float) -> Verdict:
    """Whether the whole interval of a value lies above a margin ("yes"), below it ("no"), or neither ("cannot tell")."""
    _, low, high = value
    return "yes" if low > margin else "no" if high < margin else "cannot tell"
