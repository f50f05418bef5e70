"""The log odds ratio and the selectivity of every method at its best layer: CausalGym's metrics (Arora et al. 2024, section 4).

Its table is another statistic: the maximum over token positions, averaged over layers, on pairs that the model answers rightly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from road_interp.arguments import checked_list
from road_interp.causal.accuracy import InterchangeReport, interchange_accuracy
from road_interp.causal.arguments import check_model
from road_interp.causal.bases import principal_components
from road_interp.causal.counterfactuals import CounterfactualPairs, Splits, check_splits
from road_interp.causal.directions import (
    all_states,
    cluster_direction,
    discriminant_direction,
    mean_difference,
    probe_direction,
    swap_along,
)
from road_interp.causal.interchange_runs import Interchange, InterchangeRuns, full_swap
from road_interp.causal.methods import DAS, STACKED, learning_rates, methods, train_method
from road_interp.errors import InputError
from road_interp.models.seeding import generator_of
from road_interp.progress import Progress, prefixed, silent
from road_interp.results import Result, entry


@dataclass(frozen=True)
class MethodScore:
    """One method on one task.

    Attributes:
        layer: number of the block at whose output the validation log odds ratio is highest.
        validation: log odds ratio on validation pairs, by layer (nats).
        test: the test pairs at that layer.
        arbitrary: log odds ratio for arbitrary answers at that layer, with an interchange found for them (nats).
        arbitrary_by_pair: the same for every test pair (to four decimals); empty in older results.
    """

    layer: int
    validation: tuple[float, ...]
    test: InterchangeReport
    arbitrary: float
    arbitrary_by_pair: tuple[float, ...] = ()

    @property
    def selectivity(self) -> float:
        """Log odds ratio minus that for arbitrary answers (nats; Hewitt & Liang 2019)."""
        return self.test.log_odds - self.arbitrary


@dataclass(frozen=True)
class TaskScores(Result):
    """All methods on one task.

    Attributes:
        task: its name.
        span: states are exchanged at its last token.
        layers: numbers of the blocks that were tried.
        steps: of every training.
        seed: of trainings, words and pairs.
        pairs: numbers of training, validation and test pairs.
        scores: one per method.
        words: words of base and source of every test pair, as in `CounterfactualPairs.clusters`; empty in older results.
        learning_rates: of the first step, by method that is trained on the answers; empty in older results.
    """

    task: str
    span: str
    layers: tuple[int, ...]
    steps: int
    seed: int
    pairs: tuple[int, int, int]
    scores: tuple[MethodScore, ...]
    words: tuple[tuple[str, str], ...] = ()
    learning_rates: Mapping[str, float] = field(default_factory=dict)

    def of(self, method: str) -> MethodScore:
        """The score of a method. Raises InputError for an unknown method."""
        return entry({score.test.method: score for score in self.scores}, method, "score of")


class _Found(NamedTuple):
    """An interchange of a layer, its log odds ratio on validation pairs, and the interchange found for arbitrary answers."""

    layer: int
    swap: Interchange
    validation: float
    control: Interchange


def score_methods(
    model: PreTrainedModel,
    splits: Splits,
    layers: Sequence[int],
    span: str,
    *,
    steps: int = 100,
    seed: int = 0,
    progress: Progress = silent,
) -> TaskScores:
    """Find every method's interchange at every layer, choose the layer on validation pairs, and test there.

    The methods: the full swap of the state; swaps along a random direction, the first principal component, the difference of
    two k-means centroids, the difference of class means, and the normals of linear discriminant analysis and of a linear probe;
    DAS of rank 1; one row of a stacked rotation. All but the last are CausalGym's. The random direction is the one from which DAS
    starts.

    Args:
        model: a causal language model; it is frozen and set to evaluation mode, and stays so.
        layers: numbers of blocks.
        span: of the word that decides the answer.
        steps: of every training.

    Raises:
        InputError: pairs that are not divided into `Splits`.
    """
    check_model("causal.score_methods", model)
    check_splits("causal.score_methods", splits, chooses=True)
    layers = checked_list("causal.score_methods", layers, int, "the numbers of blocks, as in [0, 1]")
    if not layers:
        raise InputError("causal.score_methods needs the number of one block at least")
    vocabulary = model.config.get_text_config().vocab_size
    found: dict[str, list[_Found]] = {}
    for layer in layers:
        train, validation = (
            InterchangeRuns(model, pairs, layer, span, progress=prefixed(progress, f"block {layer}"))
            for pairs in (splits.train, splits.validation)
        )
        arbitrary = train.relabelled(splits.train.with_arbitrary_labels(vocabulary, seed))
        swaps = _swaps(train, seed, steps, f"block {layer}", progress)
        controls = swaps | _trained(arbitrary, seed, steps, f"block {layer}, arbitrary answers", progress)
        for name, swap in swaps.items():
            score = interchange_accuracy(validation, swap, name).log_odds
            found.setdefault(name, []).append(_Found(layer, swap, score, controls[name]))
    best = {_best(tried).layer for tried in found.values()}
    test = {layer: InterchangeRuns(model, splits.test, layer, span, progress=progress) for layer in best}
    other = splits.test.with_arbitrary_labels(vocabulary, seed)
    scores = [_score(name, tried, test, other) for name, tried in found.items()]
    sizes = (len(splits.train), len(splits.validation), len(splits.test))
    rates, words = learning_rates(DAS, STACKED), splits.test.clusters(span)
    return TaskScores(splits.test.name, span, tuple(layers), steps, seed, sizes, tuple(scores), words, rates)


def _best(tried: Sequence[_Found]) -> _Found:
    return max(tried, key=lambda each: each.validation)


def _score(name: str, tried: Sequence[_Found], test: dict[int, InterchangeRuns], arbitrary: CounterfactualPairs) -> MethodScore:
    best = _best(tried)
    runs = test[best.layer]
    control = interchange_accuracy(runs.relabelled(arbitrary), best.control, name)
    return MethodScore(
        best.layer,
        tuple(each.validation for each in tried),
        interchange_accuracy(runs, best.swap, name),
        control.log_odds,
        control.log_odds_by_pair,
    )


def _swaps(train: InterchangeRuns, seed: int, steps: int, where: str, progress: Progress) -> dict[str, Interchange]:
    """The interchange of every method."""
    width, device = train.site.width, train.bases.device
    random = torch.randn(width, 1, generator=generator_of(seed)).to(device)
    directions = {
        "random direction": nn.functional.normalize(random, dim=0),
        "first principal component": principal_components(all_states(train))[:, :1],
        "k-means": cluster_direction(train, seed),
        "difference of means": mean_difference(train),
        "linear discriminant analysis": discriminant_direction(train),
        "linear probe": probe_direction(train),
    }
    swaps: dict[str, Interchange] = {"full swap": full_swap}
    swaps |= {name: swap_along(direction) for name, direction in directions.items()}
    return swaps | _trained(train, seed, steps, where, progress)


def _trained(train: InterchangeRuns, seed: int, steps: int, where: str, progress: Progress) -> dict[str, Interchange]:
    """The interchanges that depend on the answers; the others are fitted to states."""
    return {
        name: train_method(train, f"{where}, {name}", methods(seed)[name], seed=seed, steps=steps, progress=progress)
        for name in (DAS, STACKED)
    }
