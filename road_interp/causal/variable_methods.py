"""The interchanges of several variables that are compared: rotations, low-rank subspaces, masks and untrained swaps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from road_interp.arguments import check_count
from road_interp.causal.bases import Basis, Columns, InBasis, PlaneRotations, principal_components, whitening
from road_interp.causal.boundless_interchange import BoundlessInterchange
from road_interp.causal.masked_interchange import MaskedInterchange
from road_interp.errors import InputError
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.models.low_rank_interchange import LowRankInterchangeIntervention
from road_interp.models.seeding import generator_of
from road_interp.models.subspaces import selected_entries
from road_interp.models.variable_coordinates import VariableCoordinates
from road_interp.rotation import butterfly


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
    """One low-rank interchange per variable, each in a subspace of its own; the subspaces need not be orthogonal.

    With `train_variables` it is RAVEL's MDAS (Huang et al. 2024).

    Args:
        variables: their number.
        width: of the states.
        rank: number of directions of each variable.
        seed: of the initial directions.
    """

    def __init__(self, variables: int, width: int, rank: int, seed: int = 0) -> None:
        super().__init__()
        for given, what in ((variables, "variables"), (width, "width"), (rank, "rank")):
            check_count("causal.SeparateInterchanges", what, given)
        self.num_subspaces = variables
        self.variables: tuple[str, ...] | None = None
        self.each = nn.ModuleList(LowRankInterchangeIntervention(width, rank, seed=seed + index) for index in range(variables))

    def get_extra_state(self) -> dict[str, Any]:
        """The names of the variables, which `train_variables` sets."""
        return {"variables": self.variables}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the names of the variables."""
        self.variables = state["variables"]

    def forward(self, base: Tensor, source: Tensor, subspaces: Sequence[Sequence[int]]) -> Tensor:
        """`base` with the subspaces of every row's variables from `source`."""
        dtype = torch.promote_types(base.dtype, torch.float32)
        wide, other = base.to(dtype), source.to(dtype)
        chosen = selected_entries(subspaces, None, len(self.each), wide)
        changes = [(each(wide, other) - wide) * chosen[:, [index]] for index, each in enumerate(self.each)]
        return (wide + torch.stack(changes).sum(0)).to(base.dtype)


def road_from_components(of: MethodInputs, depth: int) -> InBasis:
    """A stack of plane rotations in the basis of principal components.

    At angle 0 the coordinates that the variables own are the leading components, which the variables get in turn. The angles
    start close to 0.
    """
    components = principal_components(of.states.cpu())
    count = components.shape[1] // 2 * 2
    if count < of.owned.total:
        raise InputError(
            f"the variables own {of.owned.total} coordinates, but the {len(of.states)} training states have only "
            f"{components.shape[1]} principal components: give more pairs, or fewer coordinates"
        )
    road = of.owned.road(count, depth=depth, seed=of.seed)
    reads = butterfly.matrix(torch.zeros_like(road.theta)).argmax(1)  # the component that each coordinate reads at angle 0
    rows = of.owned.rows(count)
    in_turn = [rows[start] for entry in range(of.coordinates) for start in range(entry, len(rows), of.coordinates)]
    others = sorted(set(range(count)) - set(in_turn))
    columns = torch.empty_like(components[:, :count])
    columns[:, reads[[*in_turn, *others]]] = components[:, :count]
    return InBasis(road, columns)


def _random_basis(of: MethodInputs, count: int) -> Columns:
    """A trained basis of `count` directions, random at the start, by QR decomposition."""
    weight = torch.randn(of.width, count, generator=generator_of(of.seed)) / of.width**0.5
    return Columns(weight, trained=True)


def _wider_basis(of: MethodInputs) -> Columns:
    """A trained basis with four times as many directions as the variables may own."""
    return _random_basis(of, min(of.width, 4 * of.coordinates * len(of.variables)))


def _deep(of: MethodInputs) -> int:
    """The levels of a full-depth stack, and two for every coordinate of the variables."""
    return butterfly.full_depth(of.width) + 2 * of.owned.total


def _road(of: MethodInputs, depth: int) -> RoadInterchangeIntervention:
    return of.owned.road(of.width, depth=depth, seed=of.seed, spread=torch.pi)


def _masked(of: MethodInputs, basis: Basis | None) -> MaskedInterchange:
    return MaskedInterchange(len(of.variables), of.width, of.coordinates, basis)


def _boundless(of: MethodInputs, basis: Basis) -> BoundlessInterchange:
    return BoundlessInterchange(len(of.variables), basis)


class VariableMethod(NamedTuple):
    """A constructor of an interchange, and the learning rate that the study "variable-rates" chose on validation pairs."""

    make: Callable[[MethodInputs], nn.Module]
    learning_rate: float

    def whitened(self) -> VariableMethod:
        """The same interchange of states whose covariance over the training texts is the identity."""

        def make(of: MethodInputs) -> InBasis:
            columns, deviations = whitening(of.states)
            white = of.states.cpu() @ columns / deviations
            return InBasis(self.make(of._replace(states=white)), columns, deviations)

        return VariableMethod(make, self.learning_rate)


NO_SWAP = "no swap"
STACKED, DEEP, PLANES = "stacked RoAd", "deep RoAd", "RoAd planes"
FROM_COMPONENTS = "stacked RoAd from components"
# Low-rank, trained on cause and isolation as RAVEL's MDAS, with one basis that the variables divide; MDAS has one of each.
SHARED = "multi-task DAS"
SEPARATE, MASKED_BASIS = "DAS of each variable", "masked trained basis"
METHODS: dict[str, VariableMethod] = {
    STACKED: VariableMethod(lambda of: _road(of, butterfly.full_depth(of.width)), 1e-1),
    DEEP: VariableMethod(lambda of: _road(of, _deep(of)), 2e-2),
    PLANES: VariableMethod(lambda of: _road(of, 1), 1e-1),
    FROM_COMPONENTS: VariableMethod(lambda of: road_from_components(of, butterfly.full_depth(of.width)), 1e-1),
    SHARED: VariableMethod(lambda of: of.owned.low_rank(of.width, seed=of.seed), 3e-3),
    SEPARATE: VariableMethod(lambda of: SeparateInterchanges(len(of.variables), of.width, of.coordinates, 1000 * of.seed), 2e-2),
    "masked neurons": VariableMethod(lambda of: _masked(of, None), 1e-1),
    "masked components": VariableMethod(lambda of: _masked(of, Columns(principal_components(of.states.cpu()))), 3e-3),
    MASKED_BASIS: VariableMethod(lambda of: _masked(of, _wider_basis(of)), 3e-3),
    "masked RoAd planes": VariableMethod(lambda of: _masked(of, PlaneRotations(of.width, of.seed)), 2e-2),
}
WHITENED = {f"{name}, whitened": METHODS[name].whitened() for name in (STACKED, DEEP, SHARED)}
BOUNDLESS_DAS, BOUNDLESS_DEEP = "boundless DAS", "boundless deep RoAd"
BOUNDLESS = {  # whose numbers of coordinates are learned; the stack is as deep as that of DEEP
    BOUNDLESS_DAS: VariableMethod(lambda of: _boundless(of, _random_basis(of, of.width)), 2e-2),
    BOUNDLESS_DEEP: VariableMethod(lambda of: _boundless(of, PlaneRotations(of.width, of.seed, _deep(of))), 2e-2),
}
KNOWN_METHODS = METHODS | WHITENED | BOUNDLESS
RANDOM = "random subspace"


def no_variable(base: Tensor, source: Tensor, subspaces: Any) -> Tensor:
    """Keep the state of the base."""
    return base


def whole_state(base: Tensor, source: Tensor, subspaces: Any) -> Tensor:
    """Replace the whole state, whichever variable is named."""
    return source
