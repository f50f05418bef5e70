"""Interchange of several variables in one rotation: training on cause and isolation, and RAVEL's score (Huang et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from numbers import Real

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from road_interp.arguments import check_argument, checked_list
from road_interp.causal.arguments import check_interchange, check_model, check_numbers, warn_of_soft_mask
from road_interp.causal.entity_task import VariablePairs
from road_interp.causal.interchange_runs import InterchangeRuns, in_evaluation
from road_interp.causal.trained_values import count_trained_values
from road_interp.causal.training import run_steps
from road_interp.errors import InputError
from road_interp.measure.intervals import mean_interval
from road_interp.progress import Progress, silent
from road_interp.results import Result
from road_interp.sites.site import Site

# Maps the states of base and source, and for every row the variables to swap, to the state that replaces the base's.
VariableInterchange = Callable[..., Tensor]


class VariableRuns:
    """Runs of pairs in which one variable each is swapped.

    Args:
        model: a causal language model; it is frozen and set to evaluation mode, and stays so.
        pairs: the pairs.
        site: a site, or a block number for its output.
        variables: the order of the variables, as in VariableCoordinates.
        span: the token whose state is exchanged.
        progress: called before every pass without gradient.

    Raises:
        InputError: an argument of a wrong type, or a pair that swaps another variable.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pairs: VariablePairs,
        site: Site | int,
        variables: Sequence[str],
        span: str = "entity",
        progress: Progress = silent,
    ) -> None:
        check_model("causal.VariableRuns", model)
        check_argument(
            "causal.VariableRuns", pairs, VariablePairs, "draw_variable_pairs(task, answered, tokenizer, split, count)"
        )
        variables = checked_list("causal.VariableRuns", variables, str, f"the variables, as in {sorted(set(pairs.swapped))}")
        if repeated := [name for index, name in enumerate(variables) if name in variables[:index]]:
            raise InputError(f"the variable '{repeated[0]}' is named twice")
        if unknown := set(pairs.swapped) - set(variables):
            raise InputError(f"pairs swap '{min(unknown)}', which is not among the variables {', '.join(variables)}")
        self.pairs, self.runs = pairs, InterchangeRuns(model, pairs.pairs, site, span, progress=progress)
        self.targets: Int[Tensor, " pairs"] = self.runs.tensor(pairs.targets)
        self.variables = tuple(variables)
        self._subspaces = [[variables.index(name)] for name in pairs.swapped]

    def __repr__(self) -> str:
        return f"VariableRuns({self.pairs!r} at {self.runs.site.name}, span {self.runs.span})"

    def logits(self, rows: Int[Tensor, " n"], interchange: VariableInterchange) -> Float[Tensor, "n vocabulary"]:
        """Logits after the base texts, with every row's variable swapped. Gradients flow to the interchange's parameters."""
        subspaces = [self._subspaces[row] for row in rows.tolist()]
        return self.runs.logits(rows, lambda base, source: interchange(base, source, subspaces=subspaces))

    def check(self, function: str, interchange: VariableInterchange) -> None:
        """Raise InputError unless the interchange can be applied to the states of these runs, and names the same variables.

        `function` is called with it.
        """
        named = getattr(interchange, "variables", None)  # of VariableCoordinates
        if named is not None and tuple(named) != self.variables:
            raise InputError(
                f"{function}: the interchange has coordinates of {', '.join(named)}, the runs have the variables "
                f"{', '.join(self.variables)}: give both the same, in the same order"
            )
        parts = getattr(interchange, "num_subspaces", None)  # a function has none
        if parts not in (None, len(self.variables)):
            raise InputError(
                f"{function}: the interchange has {parts} subspaces, the runs have {len(self.variables)} variables: give one of "
                "VariableCoordinates, whose variables own as many coordinates as you like"
            )
        for index in range(len(self.variables)):
            check_interchange(function, interchange, self.runs.bases[:1], self.runs.sources[:1], subspaces=[[index]])

    @torch.no_grad()
    def hits(self, interchange: VariableInterchange) -> Bool[Tensor, " pairs"]:
        """Whether the most likely next token of all tokens is the target's, for every pair.

        The interchange is in evaluation mode. Raises InputError for logits that are NaN or infinite.
        """
        found = []
        with in_evaluation(interchange):
            for rows in self.runs.batches("interchanges"):
                logits = self.logits(rows, interchange)
                check_numbers(logits, "with this interchange the model's logits")
                found.append(logits.argmax(-1) == self.targets[rows])
        return torch.cat(found)


def train_variables(
    runs: VariableRuns,
    interchange: nn.Module,
    steps: int = 200,
    learning_rate: float = 0.02,
    *,
    isolation: float = 1.0,
    seed: int = 0,
    temperatures: tuple[float, float] | None = None,
    progress: Progress = silent,
) -> tuple[float, ...]:
    """Train an interchange of several variables, in place: the multi-task loss of RAVEL.

    The loss is the cross entropy of the target among all tokens: the source's answer where the swapped variable is asked for,
    the base's where another is. The optimizer is Adam, with a learning rate that decays linearly to zero.

    Args:
        interchange: called with the states of base and source, and `subspaces`.
        steps: number of steps of BATCH_SIZE pairs.
        learning_rate: that of the first step.
        isolation: weight of all pairs whose answer should stay beside those whose answer should change, as if there were as many
            of both; 0 trains for cause only.
        seed: of the order of the pairs.
        temperatures: of a learned mask (`set_temperature`), at the first and the last step; interpolated geometrically.

    Returns:
        The loss of every step (nats).

    Raises:
        InputError: an interchange that cannot be applied to the states of `runs` or has nothing to train, no steps, or no pair
            that asks for the swapped variable.
    """
    check_argument("causal.train_variables", runs, VariableRuns, "VariableRuns(model, pairs, layer, variables)")
    runs.check("causal.train_variables", interchange)
    if isinstance(isolation, bool) or not isinstance(isolation, Real) or not 0 <= isolation < math.inf:
        raise InputError(f"isolation must be a finite weight of at least 0, not {isolation!r}")
    runs.runs.check_model()
    is_cause = torch.tensor(runs.pairs.is_cause, device=runs.targets.device)
    if not is_cause.any():
        raise InputError("no pair asks for the variable that is swapped: there is nothing to train the cause on")
    share = isolation * float(is_cause.sum()) / max(1, int((~is_cause).sum()))
    weights = torch.where(is_cause, 1.0, share)

    def loss(rows: Tensor) -> Tensor:
        each = functional.cross_entropy(runs.logits(rows, interchange).float(), runs.targets[rows], reduction="none")
        return (each * weights[rows]).sum() / len(rows)

    losses = run_steps(
        interchange,
        loss,
        len(runs.targets),
        runs.targets.device,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        temperatures=temperatures,
        progress=progress,
    )
    interchange.variables = runs.variables  # which `check` compares
    return losses


@dataclass(frozen=True)
class VariableScore:
    """The effect of swapping one variable.

    Attributes:
        variable: its name.
        cause: fraction of pairs that ask for it whose answer becomes that of the source.
        isolation: fraction of pairs that ask for another variable whose answer stays, a mean over the asked variables.
        cause_pairs, isolation_pairs: numbers of pairs.
    """

    variable: str
    cause: float
    isolation: float
    cause_pairs: int
    isolation_pairs: int

    @property
    def disentangle(self) -> float:
        """The mean of cause and isolation."""
        return (self.cause + self.isolation) / 2


@dataclass(frozen=True)
class VariablesReport(Result):
    """RAVEL's score of one interchange on pairs that it was not trained on.

    Attributes:
        task: type of the entities.
        site: where the state was exchanged.
        method: name of the interchange.
        coordinates: number of coordinates per variable; 0 for a swap of the whole state or of none.
        parameters: number of trained values.
        seed: of the training.
        rate: the learning rate that validation chose; 0 without training.
        validation: disentangle on the validation pairs; None without training.
        entities: number of different base entities.
        scores: one per variable.
        disentangle: the mean of the variables' cause and isolation.
        interval: its 95% interval over clusters of entities, because pairs that share one are not independent.
        outcomes: for every pair whether the answer is the one that it should be.
        owned: number of coordinates of every variable where the training chose it; otherwise empty.
    """

    task: str
    site: str
    method: str
    coordinates: int
    parameters: int
    seed: int
    rate: float
    validation: float | None
    entities: int
    scores: tuple[VariableScore, ...]
    disentangle: float
    interval: tuple[float, float]
    outcomes: tuple[bool, ...]
    owned: tuple[int, ...] = ()


def measure_variables(
    runs: VariableRuns,
    interchange: VariableInterchange,
    method: str,
    coordinates: int = 0,
    seed: int = 0,
    rate: float = 0.0,
    validation: float | None = None,
) -> VariablesReport:
    """Score an interchange, trained or not, on all pairs of `runs`. The arguments are fields of the report.

    Raises InputError for pairs of a single variable, which have no isolation, for pairs that lack a combination of swapped and
    asked variable, and for an interchange that cannot be applied. Warns of masks that are not hardened.
    """
    check_argument("causal.measure_variables", runs, VariableRuns, "VariableRuns(model, pairs, layer, variables)")
    runs.check("causal.measure_variables", interchange)
    warn_of_soft_mask("causal.measure_variables", interchange)
    hits = runs.hits(interchange).cpu().numpy()
    pairs = runs.pairs
    names = list(dict.fromkeys(pairs.swapped))
    if len(names) < 2:
        raise InputError("a score of one variable has no isolation; use interchange_accuracy")
    for swapped, asked in product(dict.fromkeys((*names, *pairs.asked)), repeat=2):
        if f"{swapped}, {asked}" not in pairs.cells:
            raise InputError(f"no pair swaps '{swapped}' and asks for '{asked}': cause and isolation need every combination")
    weights = cell_weights(names)
    scores = tuple(_score(name, hits, pairs) for name in names)
    low, high = mean_interval(hits, pairs.clusters, pairs.cells, weights)
    return VariablesReport(
        pairs.pairs.name,
        runs.runs.site.name,
        method,
        coordinates,
        count_trained_values(interchange),
        seed,
        rate,
        validation,
        len({base for base, _ in pairs.entities}),
        scores,
        float(np.mean([score.disentangle for score in scores])),
        (low, high),
        tuple(hits.tolist()),
        getattr(interchange, "owned", ()),
    )


def _score(name: str, hits: Bool[np.ndarray, " pairs"], pairs: VariablePairs) -> VariableScore:
    """The score of swapping the variable `name`."""
    swapped = np.array([each == name for each in pairs.swapped])
    asked = {other: swapped & np.array([each == other for each in pairs.asked]) for other in dict.fromkeys(pairs.asked)}
    cause = asked.pop(name)
    isolation = float(np.mean([hits[rows].mean() for rows in asked.values()]))
    return VariableScore(name, float(hits[cause].mean()), isolation, int(cause.sum()), int((swapped & ~cause).sum()))


def cell_weights(variables: Sequence[str]) -> dict[str, float]:
    """The weight of every swapped and asked variable, as in `VariablePairs.cells`, in the mean of cause and isolation."""
    count = len(variables)
    return {
        f"{one}, {other}": 1 / (2 * count) if one == other else 1 / (2 * count * (count - 1))
        for one in variables
        for other in variables
    }
