"""Interchange accuracy by layer and span."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from road_interp.arguments import check_callable, checked_list
from road_interp.causal.accuracy import InterchangeReport, interchange_accuracy
from road_interp.causal.arguments import check_model
from road_interp.causal.counterfactuals import Splits, check_splits
from road_interp.causal.interchange_runs import Interchange, InterchangeRuns
from road_interp.causal.trained_values import count_trained_values
from road_interp.causal.training import train_interchange
from road_interp.errors import InputError, did_you_mean
from road_interp.progress import Progress, prefixed, silent
from road_interp.results import Result

FIXED = "for one that exists and is not to be trained, give lambda width: it.requires_grad_(False)"


@dataclass(frozen=True)
class ScanReport(Result):
    """Interchange accuracy and log odds ratio by layer and span, on test pairs.

    Attributes:
        task: name of the pairs.
        method: name of the interchange.
        layers: block numbers.
        spans: where states were exchanged, at their last tokens.
        accuracy, log_odds: `accuracy[i][j]` (fraction) and `log_odds[i][j]` (nats) are of `layers[i]` and `spans[j]`.
    """

    task: str
    method: str
    layers: tuple[int, ...]
    spans: tuple[str, ...]
    accuracy: tuple[tuple[float, ...], ...]
    log_odds: tuple[tuple[float, ...], ...]

    def records(self) -> list[dict[str, Any]]:
        """A row per layer and span."""
        return [
            {"layer": layer, "span": span, "accuracy": self.accuracy[i][j], "log_odds": self.log_odds[i][j]}
            for i, layer in enumerate(self.layers)
            for j, span in enumerate(self.spans)
        ]


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
    """Measure interchange accuracy on the test split at the output of every layer and at every span.

    Args:
        model: a causal language model; it is frozen and set to evaluation mode, and stays so.
        splits: as `load_pairs` returns them, or `Splits(train, validation, test)` of pairs that share no words.
        layers: block numbers.
        make: returns a new interchange for a width; a module with trainable parameters is trained on the training split first,
            and its mask is hardened, if it has one.
        method: name of the interchange in the report.
        training: further arguments of `train_interchange`.

    Raises:
        InputError: pairs that are not divided into `Splits`, one interchange that would be trained at several places, or another
            argument of a wrong type.
    """
    check_model("causal.scan", model)
    check_splits("causal.scan", splits)
    layers = checked_list("causal.scan", layers, int, "the numbers of blocks, as in [0, 1]")
    spans = checked_list("causal.scan", spans, str, f"spans of the pairs, as in {list(splits.test.positions)}")
    if not layers or not spans:
        raise InputError("causal.scan needs one block and one span at least")
    check_callable("causal.scan", "make", make, "a function of the width that returns an interchange")
    _check_scan(make, training)
    reports: list[list[InterchangeReport]] = []
    trained: list[nn.Module] = []
    for layer in layers:
        reports.append([])
        in_block = prefixed(progress, f"block {layer}")
        train, test = None, InterchangeRuns(model, splits.test, layer, spans[0], progress=in_block)
        for span in spans:
            in_block(span)
            interchange = make(test.site.width)
            if isinstance(interchange, nn.Module):
                interchange.to(model.device)
                if count_trained_values(interchange):
                    _check_new(interchange, trained)
                    trained.append(interchange)
                    train = train or InterchangeRuns(model, splits.train, layer, spans[0], progress=in_block)
                    _train(train.at(span), interchange, training)
            reports[-1].append(interchange_accuracy(test.at(span), interchange, method))
    accuracy, log_odds = (
        tuple(tuple(getattr(report, key) for report in row) for row in reports) for key in ("accuracy", "log_odds")
    )
    return ScanReport(splits.test.name, method, tuple(layers), tuple(spans), accuracy, log_odds)


def _check_new(interchange: nn.Module, trained: list[nn.Module]) -> None:
    """Raise InputError for one of the interchanges that were trained, which would go on from there."""
    if any(interchange is each for each in trained):
        raise InputError(f"causal.scan: make returned an interchange that was trained at another place; {FIXED}")


def _train(runs: InterchangeRuns, interchange: Any, training: Mapping[str, Any]) -> None:
    """Train an interchange, and harden its mask, if it has one."""
    train_interchange(runs, interchange, **training)
    if getattr(interchange, "has_soft_mask", False):
        interchange.harden()


def _check_scan(make: Callable[[int], Interchange], training: Mapping[str, Any]) -> None:
    """Raise InputError for an interchange where a function that makes one belongs, and for unknown arguments of the training."""
    try:
        inspect.signature(make).bind(1)
    except TypeError:
        raise InputError(f"causal.scan: make is called with a width and returns an interchange; {FIXED}") from None
    known = list(inspect.signature(train_interchange).parameters)[2:]
    if unknown := [name for name in training if name not in known]:
        hint = did_you_mean(unknown[0], known, "it has")
        raise InputError(f"causal.scan: train_interchange has no argument '{unknown[0]}'; {hint}")
