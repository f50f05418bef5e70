"""Several interchanges of the same variables, trained and tested on the same pairs, and their comparison over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import nan
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from road_interp.arguments import check_argument, checked_list
from road_interp.causal.proportional_interchange import ProportionalInterchange
from road_interp.causal.variable_methods import (
    KNOWN_METHODS,
    METHODS,
    NO_SWAP,
    RANDOM,
    MethodInputs,
    no_variable,
    whole_state,
)
from road_interp.causal.variables import VariableRuns, VariablesReport, cell_weights, measure_variables, train_variables
from road_interp.errors import InputError, did_you_mean
from road_interp.measure.intervals import joined_seeds, mean_interval
from road_interp.models.variable_coordinates import VariableCoordinates
from road_interp.progress import Progress, prefixed, silent
from road_interp.results import Result, entry


@dataclass(frozen=True)
class Trial:
    """One training: its learning rate, the mean loss of its last tenth of steps (nats), and disentangle on validation pairs."""

    method: str
    rate: float
    loss: float
    validation: float


@dataclass(frozen=True)
class VariablesComparison(Result):
    """Several interchanges of the same variables, trained and tested on the same pairs.

    Attributes:
        model: id of the model.
        task: type of the entities.
        variables: their names.
        layer: number of the block at whose output states are exchanged.
        coordinates: per variable.
        steps: of every training.
        seed: of the trainings and of the pairs.
        answered: numbers of entities and of questions that the model answers rightly, and of questions that it was asked.
        pairs: numbers of training, validation and test pairs.
        cell_sizes: cell (as in VariablePairs) and number of each run of test pairs of one cell, in the order of the pairs.
        cluster_names: of the clusters of entities.
        cluster_numbers: of every test pair the places of its two clusters in `cluster_names`.
        trials: every training.
        reports: the controls, and the best training of every method by validation.
    """

    model: str
    task: str
    variables: tuple[str, ...]
    layer: int
    coordinates: int
    steps: int
    seed: int
    answered: tuple[int, int, int]
    pairs: tuple[int, int, int]
    cell_sizes: tuple[tuple[str, int], ...]
    cluster_names: tuple[str, ...]
    cluster_numbers: tuple[tuple[int, int], ...]
    trials: tuple[Trial, ...]
    reports: tuple[VariablesReport, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """The cell of every test pair."""
        return tuple(cell for cell, count in self.cell_sizes for _ in range(count))

    @property
    def clusters(self) -> tuple[tuple[str, str], ...]:
        """The clusters of the entities of every test pair, as in VariablePairs."""
        return tuple((self.cluster_names[first], self.cluster_names[second]) for first, second in self.cluster_numbers)

    def records(self) -> Sequence[Any]:
        """A row per method and control; where none was tested, a row per training."""
        return self.reports or self.trials

    def of(self, method: str) -> VariablesReport:
        """The report of a method. Raises InputError if there is none."""
        return entry({report.method: report for report in self.reports}, method, "report of")

    def without(self, cluster: str) -> VariablesComparison:
        """The outcomes on the test pairs that have no entity of a cluster, and the disentangle of each method on them.

        Disentangle and its interval are NaN where a cell has no other pair. Scores by variable and numbers of entities are left
        out. Raises InputError for a cluster that no pair has.
        """
        all_clusters, all_cells = self.clusters, self.cells
        rows = [row for row, both in enumerate(all_clusters) if cluster not in both]
        if len(rows) == len(all_clusters):
            raise InputError(f"no test pair has an entity of the cluster '{cluster}'")
        cells, clusters = [all_cells[row] for row in rows], [all_clusters[row] for row in rows]
        weights = cell_weights(self.variables)
        reports = []
        for report in self.reports:
            outcomes = np.array(report.outcomes)[rows]
            left = replace(report, entities=0, scores=(), outcomes=tuple(outcomes.tolist()), disentangle=nan, interval=(nan, nan))
            if weights.keys() <= set(cells):
                of_cells = {cell: outcomes[[each == cell for each in cells]].mean() for cell in weights}
                disentangle = float(sum(weight * of_cells[cell] for cell, weight in weights.items()))
                left = replace(left, disentangle=disentangle, interval=mean_interval(outcomes, clusters, cells, weights))
            reports.append(left)
        names, numbers = number_clusters(clusters)
        runs = count_runs(cells)
        return replace(self, cell_sizes=runs, cluster_names=names, cluster_numbers=numbers, reports=tuple(reports))


def count_runs(cells: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Every run of equal cells: the cell and the length."""
    return tuple((cell, len(list(run))) for cell, run in groupby(cells))


def number_clusters(clusters: Sequence[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """`cluster_names` and `cluster_numbers` of pairs whose clusters are given by name."""
    places = {name: place for place, name in enumerate(dict.fromkeys(name for both in clusters for name in both))}
    return tuple(places), tuple((places[first], places[second]) for first, second in clusters)


def disentangle_over_seeds(
    comparisons: Sequence[VariablesComparison], method: str, other: str | None = None
) -> tuple[float, float, float]:
    """Mean over seeds of a method's disentangle, or of its paired difference from `other`, with its 95% interval.

    Clusters of entities are left out one after another, in all seeds at once, whose test entities may be the same. The interval
    is that of these trainings: other seeds are not part of it. All are NaN where a cell of a seed has no pairs, as `without` can
    leave them.

    Raises InputError for no comparisons, comparisons that differ in more than the seed, and a duplicate seed.
    """
    if not comparisons:
        raise InputError("a mean over seeds needs one comparison at least")
    joined_seeds([(each.seed,) for each in comparisons])
    if len({(each.model, each.task, each.variables, each.layer, each.coordinates, each.steps) for each in comparisons}) > 1:
        raise InputError("only comparisons of one model, task, layer, number of coordinates and of steps can be combined")
    outcomes: list[float] = []
    clusters: list[tuple[str, str]] = []
    cells: list[str] = []
    weights: dict[str, float] = {}
    for number, each in enumerate(comparisons):
        found = np.array(each.of(method).outcomes, float)
        outcomes += (found if other is None else found - np.array(each.of(other).outcomes, float)).tolist()
        clusters += each.clusters
        cells += [f"{number}: {cell}" for cell in each.cells]
        of_seed = cell_weights(each.variables).items()
        weights |= {f"{number}: {cell}": weight / len(comparisons) for cell, weight in of_seed}
    if not weights.keys() <= set(cells):
        return nan, nan, nan
    low, high = mean_interval(np.array(outcomes), clusters, cells, weights, paired=other is not None)
    values = [each.of(method).disentangle - (0 if other is None else each.of(other).disentangle) for each in comparisons]
    return float(np.mean(values)), low, high


class TrainedInterchange(NamedTuple):
    """A trained interchange, and how it was trained."""

    trial: Trial
    interchange: nn.Module


def try_methods(
    train: VariableRuns,
    validation: VariableRuns,
    coordinates: int,
    methods: Sequence[str] = tuple(METHODS),
    rates: Mapping[str, Sequence[float]] | None = None,
    steps: int = 200,
    seed: int = 0,
    progress: Progress = silent,
) -> Iterator[TrainedInterchange]:
    """Train every method at every learning rate, and score it on the validation pairs.

    Args:
        train, validation: runs of pairs with disjoint entities.
        coordinates: per variable.
        methods: names of KNOWN_METHODS.
        rates: learning rates by method; by default the one that KNOWN_METHODS gives each.

    Raises:
        InputError: an unknown method, no learning rate, or runs of another model, site, span or order of the variables.
    """
    for runs in (train, validation):
        check_argument("causal.try_methods", runs, VariableRuns, "VariableRuns(model, pairs, layer, variables)")
    _check_same_place(train, validation)
    _check_rates(methods, rates or {})
    states = torch.cat((train.runs.bases, train.runs.sources)).float()
    inputs = MethodInputs(train.runs.site.width, train.variables, coordinates, states, seed)
    return (
        _trained(train, validation, inputs, name, rate, steps, progress)
        for name in methods
        for rate in (rates or {}).get(name, (KNOWN_METHODS[name].learning_rate,))
    )


def compare_variables(
    train: VariableRuns,
    validation: VariableRuns,
    test: VariableRuns,
    coordinates: int,
    controls: bool = True,
    *,
    methods: Sequence[str] = tuple(METHODS),
    rates: Mapping[str, Sequence[float]] | None = None,
    steps: int = 200,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[list[Trial], list[VariablesReport]]:
    """Test the training of every method that separates the validation pairs best; of equal ones that of the smallest rate.

    Args:
        train, validation, test: runs of pairs with disjoint entities.
        controls: whether untrained interchanges are tested first: no swap, the swap of the whole state, and a random subspace.
        methods, rates, steps, seed, progress: as in `try_methods`, as are the others.

    Raises:
        InputError: a group of entities of one split in another, an argument of a wrong type, or one that `try_methods` refuses.
    """
    for runs in (train, validation, test):
        check_argument("causal.compare_variables", runs, VariableRuns, "VariableRuns(model, pairs, layer, variables)")
    _check_same_place(train, validation, test)
    _check_disjoint(train, validation, test)
    tried_methods = try_methods(train, validation, coordinates, methods, rates, steps, seed, progress)
    reports = _untrained(test, coordinates, seed) if controls else []
    trials: list[Trial] = []
    for name, tried in groupby(tried_methods, lambda each: each.trial.method):
        of_method = list(tried)
        best, interchange = min(of_method, key=lambda each: (-round(each.trial.validation, 9), each.trial.rate))
        trials.extend(each.trial for each in of_method)
        reports.append(measure_variables(test, interchange, name, coordinates, seed, best.rate, best.validation))
    return trials, reports


def _untrained(test: VariableRuns, coordinates: int, seed: int) -> list[VariablesReport]:
    """The reports of no swap, of the swap of the whole state, and of a random subspace."""
    swaps = ((NO_SWAP, no_variable), ("whole state", whole_state))
    owned = VariableCoordinates(dict.fromkeys(test.variables, coordinates))
    random = owned.low_rank(test.runs.site.width, seed=seed).requires_grad_(False).to(test.targets.device)
    return [
        *(measure_variables(test, swap, name, seed=seed) for name, swap in swaps),
        measure_variables(test, random, RANDOM, coordinates, seed),
    ]


def _trained(
    train: VariableRuns,
    validation: VariableRuns,
    inputs: MethodInputs,
    name: str,
    rate: float,
    steps: int,
    progress: Progress,
) -> TrainedInterchange:
    """Train one interchange; its loss is the mean of the last tenth of the steps."""
    interchange = KNOWN_METHODS[name].make(inputs).to(train.targets.device)
    learned = interchange if isinstance(interchange, ProportionalInterchange) else None
    temperatures, told = None if learned is None else learned.temperatures, prefixed(progress, f"{name}, rate {rate:g}")
    losses = train_variables(train, interchange, steps, rate, seed=inputs.seed, temperatures=temperatures, progress=told)
    if learned is not None:
        learned.harden()
    loss = float(np.mean(losses[-max(1, steps // 10) :]))
    validated = measure_variables(validation, interchange, name).disentangle
    return TrainedInterchange(Trial(name, rate, loss, validated), interchange)


def _check_rates(methods: Sequence[str], rates: Mapping[str, Sequence[float]]) -> None:
    """Raise InputError for unknown methods, and for learning rates that are no list or of another method."""
    for name in (*checked_list("causal.compare_variables", methods, str, "names of methods, as in ['multi-task DAS']"), *rates):
        if name not in KNOWN_METHODS:
            raise InputError(f"unknown method '{name}'; {did_you_mean(name, KNOWN_METHODS)}")
    for name, tried in rates.items():
        if name not in methods:
            raise InputError(f"learning rates of '{name}', which is not among the methods {', '.join(methods)}")
        is_list = isinstance(tried, Sequence | np.ndarray) and not isinstance(tried, str) and len(tried) > 0
        if not is_list or not all(isinstance(rate, Real) for rate in tried):
            raise InputError(f"the learning rates of '{name}' must be numbers, one at least, as in [0.1], not {tried!r}")


def _check_same_place(first: VariableRuns, *others: VariableRuns) -> None:
    """Raise InputError for runs of another model, site, span or order of the variables, which an interchange is trained for."""
    for other in others:
        for what, one, its in (
            ("model", first.runs.model, other.runs.model),
            ("site", first.runs.site, other.runs.site),
            ("span", first.runs.span, other.runs.span),
            ("variables", first.variables, other.variables),
        ):
            if one is not its and (what == "model" or one != its):
                raise InputError(f"the runs of one split have another {what} than those of another: make all of them alike")


def _check_disjoint(*splits: VariableRuns) -> None:
    groups = [{group for both in runs.pairs.groups for group in both} for runs in splits]
    for number, one in enumerate(groups):
        for other in groups[number + 1 :]:
            if shared := one & other:
                raise InputError(f"the entity or group '{min(shared)}' is in two splits")
