"""Interchange intervention accuracy: the fraction of pairs whose answer changes with the exchanged state."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from road_interp.arguments import check_argument
from road_interp.causal.arguments import check_interchange, warn_of_soft_mask
from road_interp.causal.interchange_runs import Interchange, InterchangeRuns
from road_interp.causal.trained_values import count_trained_values, effective_parameters
from road_interp.measure.intervals import mean_interval, value_interval
from road_interp.results import Result


@dataclass(frozen=True)
class InterchangeReport(Result):
    """The effect of one interchange on pairs that it was not trained on.

    Attributes:
        task: name of the pairs.
        site, span: where the state was exchanged.
        method: name of the interchange.
        parameters: number of trained values; 0 for an untrained interchange.
        examples: number of pairs, the denominator of all fractions.
        accuracy: interchange intervention accuracy: fraction of pairs for which the source's answer is more likely than the
            base's under the interchange. In a model of bf16 or fp16 both may be equally likely, which does not count.
        interval: its 95% interval over the words of `CounterfactualPairs.clusters`, because pairs that share a word are not
            independent.
        flipped: fraction of pairs for which the base's answer is more likely without the interchange and the source's with it.
        log_odds: log odds ratio of CausalGym (nats), mean over pairs: change in the log odds of the source's answer against the
            base's under the interchange.
        log_odds_interval: its 95% interval over words; infinite for fewer than three words, and for values that do not vary.
        outcomes: for every pair whether the source's answer is more likely; empty in results of 0.1.0.
        effective: number of trained values that change the result, as in `effective_parameters`; None where it is not known.
        log_odds_by_pair: the log odds ratio of every pair (nats, to four decimals); empty in older results.
    """

    task: str
    site: str
    span: str
    method: str
    parameters: int
    examples: int
    accuracy: float
    interval: tuple[float, float]
    flipped: float
    log_odds: float
    log_odds_interval: tuple[float, float]
    outcomes: tuple[bool, ...] = ()
    effective: int | None = None
    log_odds_by_pair: tuple[float, ...] = ()


def interchange_accuracy(runs: InterchangeRuns, interchange: Interchange, method: str) -> InterchangeReport:
    """Measure the effect of an interchange, trained or not, on all pairs of `runs`. `method` is its name in the report.

    Raises InputError for an interchange that cannot be applied to the states of `runs`. Warns of a mask that is not hardened.
    """
    check_argument("causal.interchange_accuracy", runs, InterchangeRuns, "InterchangeRuns(model, pairs, layer, span)")
    check_interchange("causal.interchange_accuracy", interchange, runs.bases[:1], runs.sources[:1])
    warn_of_soft_mask("causal.interchange_accuracy", interchange)
    after, before = runs.odds(interchange).cpu().numpy(), runs.base_odds.cpu().numpy()
    swapped = after > 0
    gain = after + before  # `before` is for the base's answer, `after` for the source's
    words = runs.pairs.clusters(runs.span)
    trained = count_trained_values(interchange)
    return InterchangeReport(
        runs.pairs.name,
        runs.site.name,
        runs.span,
        method,
        trained,
        len(swapped),
        float(swapped.mean()),
        mean_interval(swapped, words),
        float((swapped & (before > 0)).mean()),
        float(gain.mean()),
        value_interval(gain, words),
        tuple(swapped.tolist()),
        effective_parameters(interchange, runs.site.width) if isinstance(interchange, nn.Module) and trained else 0,
        tuple(round(each, 4) for each in gain.tolist()),
    )
