"""Interchange accuracy: how often the answer follows the exchanged state, and at which layers and spans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from road_interp.causal.counterfactuals import Splits
from road_interp.causal.interchange_runs import Interchange, InterchangeRuns
from road_interp.causal.training import train_interchange
from road_interp.measure.intervals import wilson
from road_interp.progress import Progress, silent
from road_interp.results import Result


@dataclass(frozen=True)
class InterchangeReport(Result):
    """How one interchange does on pairs that it was not trained on.

    Attributes:
        task, site, span: what was exchanged where.
        method: which interchange.
        parameters: trained values; 0 where nothing was learned.
        examples: number of pairs.
        accuracy: share of pairs where the source's answer becomes likelier than the base's (interchange intervention accuracy).
        interval: its 95% interval (Wilson), pairs taken as independent.
        flipped: share of pairs where the model prefers the base's answer without the interchange and the source's with it.
        log_odds: CausalGym's log odds ratio (nats), mean over pairs: what the interchange adds to the log odds of the source's
            answer against the base's.
        log_odds_interval: its 95% interval (bootstrap over pairs).
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


def interchange_accuracy(runs: InterchangeRuns, interchange: Interchange, method: str) -> InterchangeReport:
    """Run every pair with an interchange, trained or not, and count. `method` names it in the report."""
    after, before = runs.odds(interchange).cpu().numpy(), runs.base_odds.cpu().numpy()
    swapped = after > 0
    gain = after + before
    draws = np.random.default_rng(0).integers(len(gain), size=(1000, len(gain)))
    low, high = np.quantile(gain[draws].mean(1), (0.025, 0.975))
    return InterchangeReport(
        runs.pairs.name,
        runs.site.name,
        runs.span,
        method,
        count_parameters(interchange),
        len(swapped),
        float(swapped.mean()),
        wilson(int(swapped.sum()), len(swapped)),
        float((swapped & (before > 0)).mean()),
        float(gain.mean()),
        (float(low), float(high)),
    )


def count_parameters(interchange: Interchange) -> int:
    """Trained values of an interchange."""
    parameters = interchange.parameters() if isinstance(interchange, nn.Module) else ()
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)


@dataclass(frozen=True)
class ScanReport(Result):
    """Interchange accuracy and log odds ratio by layer and span; `accuracy[i][j]` is of `layers[i]` and `spans[j]`."""

    task: str
    method: str
    layers: tuple[int, ...]
    spans: tuple[str, ...]
    accuracy: tuple[tuple[float, ...], ...]
    log_odds: tuple[tuple[float, ...], ...]


def scan(
    model: PreTrainedModel,
    splits: Splits,
    layers: Sequence[int],
    spans: Sequence[str],
    make: Callable[[int], Interchange],
    method: str,
    progress: Progress = silent,
    **training: Any,
) -> ScanReport:
    """Accuracy on the test split for every block output and span, each with an interchange of its own.

    Args:
        make: gives the interchange for a width; a module with parameters is trained on the training split first.
        method: its name in the report.
        training: further arguments of `train_interchange`.
    """
    found: list[list[InterchangeReport]] = []
    for layer in layers:
        found.append([])
        train, test = None, InterchangeRuns(model, splits.test, layer, spans[0])
        for span in spans:
            progress(f"block {layer}, {span}")
            interchange = make(test.site.width)
            if isinstance(interchange, nn.Module) and count_parameters(interchange):
                train = train or InterchangeRuns(model, splits.train, layer, spans[0])
                train_interchange(train.at(span), interchange.to(model.device), **training)
            found[-1].append(interchange_accuracy(test.at(span), interchange, method))
    accuracy, log_odds = (
        tuple(tuple(getattr(report, key) for report in row) for row in found) for key in ("accuracy", "log_odds")
    )
    return ScanReport(splits.test.name, method, tuple(layers), tuple(spans), accuracy, log_odds)
