"""Interchange intervention accuracy: the fraction of pairs whose answer changes with the exchanged state, by layer and span."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from road_interp.arguments import check_argument, check_callable, checked_list
from road_interp.causal.arguments import check_interchange, check_model
from road_interp.causal.counterfactuals import Splits, check_splits
from road_interp.causal.interchange_runs import Interchange, InterchangeRuns
from road_interp.causal.training import train_interchange
from road_interp.errors import InputError, did_you_mean
from road_interp.measure.intervals import mean_interval, value_interval
from road_interp.progress import Progress, prefixed, silent
from road_interp.results import Result

ROUNDING = 1e-9  # gradients up to it are rounding: those of random values are near 1


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
            base's under the interchange.
        interval: its 95% bootstrap interval. The words of `CounterfactualPairs.clusters` are drawn, because pairs that share a
            word are not independent.
        flipped: fraction of pairs for which the base's answer is more likely without the interchange and the source's with it.
        log_odds: log odds ratio of CausalGym (nats), mean over pairs: change in the log odds of the source's answer against the
            base's under the interchange.
        log_odds_interval: its 95% bootstrap interval over words; infinite for fewer than three words.
        outcomes: for every pair whether the source's answer is more likely; empty in results of 0.1.0.
        effective: number of trained values that change the result, as in `effective_parameters`; None in results of 0.1.0.
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


def interchange_accuracy(runs: InterchangeRuns, interchange: Interchange, method: str) -> InterchangeReport:
    """Measure the effect of an interchange, trained or not, on all pairs of `runs`. `method` is its name in the report.

    Raises InputError for an interchange that cannot be applied to the states of `runs`.
    """
    check_argument("causal.interchange_accuracy", runs, InterchangeRuns, "InterchangeRuns(model, pairs, layer, span)")
    check_interchange("causal.interchange_accuracy", interchange, runs.bases[:1], runs.sources[:1])
    after, before = runs.odds(interchange).cpu().numpy(), runs.base_odds.cpu().numpy()
    swapped = after > 0
    gain = after + before  # `before` is for the base's answer, `after` for the source's
    words = runs.pairs.clusters(runs.span)
    trained = count_parameters(interchange)
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
    )


def _check_scan(make: Callable[[int], Interchange], training: Mapping[str, Any]) -> None:
    """Raise InputError for an interchange where a function that makes one belongs, and for unknown arguments of the training."""
    try:
        inspect.signature(make).bind(1)
    except TypeError:
        raise InputError(
            "causal.scan: make is called with a width and returns an interchange; for one that exists, give lambda width: it"
        ) from None
    known = list(inspect.signature(train_interchange).parameters)[2:]
    if unknown := [name for name in training if name not in known]:
        hint = did_you_mean(unknown[0], known, "it has")
        raise InputError(f"causal.scan: train_interchange has no argument '{unknown[0]}'; {hint}")


def count_parameters(interchange: Interchange) -> int:
    """Number of trained values of an interchange; 0 for a function."""
    parameters = interchange.parameters() if isinstance(interchange, nn.Module) else ()
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)


def effective_parameters(interchange: nn.Module, width: int) -> int:
    """Number of trained values that can change the result: those with a gradient at random values, on random states, in fp64.

    A coordinate of a full-depth stack of plane rotations reads few angles of the last levels: one of width 576 reads 799 of
    2,880. A swap of all coordinates gives the source whatever the rotation, so that none of its angles has an effect.
    """
    with torch.inference_mode(False), torch.enable_grad():
        draws = [_gradients_at_random_values(interchange, width, seed) for seed in range(3)]  # one may be near 0 by chance
    return sum(int((torch.stack(of_each).amax(0) > ROUNDING).sum()) for of_each in zip(*draws, strict=True))


def _gradients_at_random_values(interchange: nn.Module, width: int, seed: int) -> list[Tensor]:
    """Sizes of the gradients of the trained values."""
    device = next(interchange.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    of_random_values = copy.deepcopy(interchange).double()
    for parameter in of_random_values.parameters():  # some classes keep theirs in fp32
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = parameter.data.double() + noise.to(device)
    trained = [parameter for parameter in of_random_values.parameters() if parameter.requires_grad]
    base, source = (torch.randn(8, width, generator=generator, dtype=torch.float64).to(device) for _ in range(2))
    result = of_random_values(base, source).square().sum()
    gradients = torch.autograd.grad(result, trained, allow_unused=True, materialize_grads=True)
    return [gradient.abs() for gradient in gradients]


@dataclass(frozen=True)
class ScanReport(Result):
    """Interchange accuracy and log odds ratio (nats); `accuracy[i][j]` and `log_odds[i][j]` are of `layers[i]` and `spans[j]`."""

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
        splits: as `load_pairs` returns them, or `Splits(train, validation, test)` of pairs that share no words.
        layers: block numbers.
        make: returns a new interchange for a width; a module with parameters is trained on the training split first.
        method: name of the interchange in the report.
        training: further arguments of `train_interchange`.

    Raises:
        InputError: pairs that are not divided into `Splits`, or another argument of a wrong type.
    """
    check_model("causal.scan", model)
    check_splits("causal.scan", splits)
    layers = checked_list("causal.scan", layers, int, "the numbers of blocks, as in [0, 1]")
    spans = checked_list("causal.scan", spans, str, f"spans of the pairs, as in {list(splits.test.positions)}")
    check_callable("causal.scan", "make", make, "a function of the width that returns an interchange")
    _check_scan(make, training)
    reports: list[list[InterchangeReport]] = []
    for layer in layers:
        reports.append([])
        in_block = prefixed(progress, f"block {layer}")
        train, test = None, InterchangeRuns(model, splits.test, layer, spans[0], progress=in_block)
        for span in spans:
            in_block(span)
            interchange = make(test.site.width)
            if isinstance(interchange, nn.Module) and count_parameters(interchange):
                train = train or InterchangeRuns(model, splits.train, layer, spans[0], progress=in_block)
                train_interchange(train.at(span), interchange.to(model.device), **training)
            reports[-1].append(interchange_accuracy(test.at(span), interchange, method))
    accuracy, log_odds = (
        tuple(tuple(getattr(report, key) for report in row) for row in reports) for key in ("accuracy", "log_odds")
    )
    return ScanReport(splits.test.name, method, tuple(layers), tuple(spans), accuracy, log_odds)
