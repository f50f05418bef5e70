"""The interchanges of several variables that are compared: rotations, low-rank subspaces, masks and untrained swaps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from road_interp.causal.masked_interchange import MaskedInterchange
from road_interp.causal.variables import VariableRuns, VariablesReport, measure_variables, train_variables
from road_interp.errors import InputError
from road_interp.models.low_rank_interchange import LowRankInterchangeIntervention
from road_interp.models.variable_coordinates import VariableCoordinates
from road_interp.progress import Progress, silent
from road_interp.rotation import butterfly

RATES = (1e-3, 1e-2, 5e-2)  # learning rates that every trained method may choose from


class MethodInputs(NamedTuple):
    """What a method is made from.

    Attributes:
        width: of the states.
        variables: their names.
        coordinates: per variable.
        states: `(n, width)`, of the training texts.
        seed: of the initial values.
    """

    width: int
    variables: tuple[str, ...]
    coordinates: int
    states: Float[Tensor, "n width"]
    seed: int

    @property
    def owned(self) -> VariableCoordinates:
        """The same number of coordinates for every variable."""
        return VariableCoordinates(dict.fromkeys(self.variables, self.coordinates))


class SeparateInterchanges(nn.Module):
    """One low-rank interchange per variable, each in a subspace of its own; the subspaces need not be orthogonal."""

    def __init__(self, variables: int, width: int, rank: int, seed: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(LowRankInterchangeIntervention(width, rank, seed=seed + index) for index in range(variables))

    def forward(self, base: Tensor, source: Tensor, subspaces: Sequence[Sequence[int]]) -> Tensor:
        """`base` with the subspaces of every row's variables from `source`."""
        chosen = base.new_zeros(len(base), len(self.each))
        for row, indices in enumerate(subspaces):
            chosen[row, list(indices)] = 1
        wide, other = base.float(), source.float()
        changes = [(each(wide, other) - wide) * chosen[:, [index]] for index, each in enumerate(self.each)]
        return (wide + torch.stack(changes).sum(0)).to(base.dtype)


def principal_components(states: Float[Tensor, "n width"]) -> Float[Tensor, "width k"]:
    """The principal components of states, as orthonormal columns, the largest first."""
    centred = states.double() - states.double().mean(0)
    return torch.linalg.svd(centred, full_matrices=False).Vh.T.float()


def _random_weight(of: MethodInputs) -> Tensor:
    """A weight whose QR decomposition is a random basis with four times as many directions as the variables may own."""
    count = min(of.width, 4 * of.coordinates * len(of.variables))
    return torch.randn(of.width, count, generator=torch.Generator().manual_seed(of.seed))


Make = Callable[[MethodInputs], nn.Module]
STACKED, PLANES = "stacked RoAd", "RoAd planes"
SHARED = "multi-task DAS"  # low-rank, one basis that the variables divide (MDAS of RAVEL)
METHODS: dict[str, Make] = {
    STACKED: lambda of: of.owned.road(of.width, depth=butterfly.full_depth(of.width), seed=of.seed, spread=torch.pi),
    PLANES: lambda of: of.owned.road(of.width, seed=of.seed, spread=torch.pi),
    SHARED: lambda of: of.owned.low_rank(of.width, seed=of.seed),
    "DAS of each variable": lambda of: SeparateInterchanges(len(of.variables), of.width, of.coordinates, 1000 * of.seed),
    "DBM": lambda of: MaskedInterchange(len(of.variables), of.width, of.coordinates),
    "DBM of principal components": lambda of: MaskedInterchange(
        len(of.variables), of.width, of.coordinates, principal_components(of.states.cpu())
    ),
    "DBM in a trained basis": lambda of: MaskedInterchange(
        len(of.variables), of.width, of.coordinates, _random_weight(of), trained=True
    ),
}
RANDOM = "random subspace"


def no_variable(base: Tensor, source: Tensor, subspaces: Any) -> Tensor:
    """Keep the state of the base."""
    return base


def whole_state(base: Tensor, source: Tensor, subspaces: Any) -> Tensor:
    """Replace the whole state, whichever variable is named."""
    return source


def compare_variables(
    train: VariableRuns,
    validation: VariableRuns,
    test: VariableRuns,
    variables: Sequence[str],
    coordinates: int,
    methods: Sequence[str] = tuple(METHODS),
    rates: Sequence[float] = RATES,
    steps: int = 300,
    seed: int = 0,
    progress: Progress = silent,
) -> list[VariablesReport]:
    """Train every method at every learning rate, and test the one that separates the validation pairs best.

    Untrained controls are tested too: no swap, the swap of the whole state, and a random subspace.

    Args:
        train, validation, test: runs of pairs with disjoint entities.
        coordinates: per variable; masks own at most as many.
        rates: the same for every method.

    Raises:
        InputError: an entity of one split in another.
    """
    _check_disjoint(train, validation, test)
    width = test.runs.site.width
    inputs = MethodInputs(width, tuple(variables), coordinates, torch.cat((train.runs.bases, train.runs.sources)).float(), seed)
    untrained = (("no swap", no_variable), ("whole state", whole_state))
    reports = [measure_variables(test, swap, name, seed=seed) for name, swap in untrained]
    random = inputs.owned.low_rank(width, seed=seed).requires_grad_(False).to(test.targets.device)
    reports.append(measure_variables(test, random, RANDOM, coordinates, seed))
    for name in methods:
        best: tuple[float, float, nn.Module] | None = None
        for rate in rates:
            interchange = METHODS[name](inputs).to(test.targets.device)
            _train(train, interchange, name, steps, rate, seed, progress)
            score = measure_variables(validation, interchange, name).disentangle
            if best is None or score > best[0]:
                best = score, rate, interchange
        assert best is not None
        reports.append(measure_variables(test, best[2], name, coordinates, seed, best[1], best[0]))
    return reports


def _train(runs: VariableRuns, interchange: nn.Module, name: str, steps: int, rate: float, seed: int, progress: Progress) -> None:
    def tell(what: str, done: int = 0, total: int | None = None) -> None:
        progress(f"{name}, rate {rate:g}, {what}", done, total)

    temperatures = (1.0, 0.05) if isinstance(interchange, MaskedInterchange) else None
    train_variables(runs, interchange, steps, rate, seed=seed, temperatures=temperatures, progress=tell)
    if isinstance(interchange, MaskedInterchange):
        interchange.harden()


def _check_disjoint(*splits: VariableRuns) -> None:
    entities = [{entity for both in runs.pairs.entities for entity in both} for runs in splits]
    for number, one in enumerate(entities):
        for other in entities[number + 1 :]:
            if shared := one & other:
                raise InputError(f"the entity '{min(shared)}' is in two splits")
