"""Orthonormal bases of a state, in which interchanges with learned masks and other interchanges take place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

from road_interp.arguments import check_argument, check_count
from road_interp.errors import InputError
from road_interp.models.intervention import move_only
from road_interp.models.orthonormal import is_orthonormal
from road_interp.models.seeding import generator_of
from road_interp.rotation import butterfly

# Maps states to coordinates, and coordinates back to states.
Maps = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


class Neurons(nn.Module):
    """The neurons themselves: as many coordinates as the state has dimensions, without a product.

    Args:
        width: of the state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        check_count("causal.Neurons", "the width of the state", width)
        self.count = self.width = width

    def forward(self, dtype: torch.dtype) -> Maps:
        """The maps of states in a dtype."""
        return (lambda states: states), (lambda coordinates: coordinates)


class Columns(nn.Module):
    """Orthonormal columns.

    Args:
        weight: `(width, count)`: orthonormal columns or, if trained, a matrix whose QR decomposition gives them.
        trained: whether `weight` is trained.

    Raises:
        InputError: a weight of another shape or dtype or with NaN, or columns that are not orthonormal.
    """

    def __init__(self, weight: Float[Tensor, "width count"], trained: bool = False) -> None:
        super().__init__()
        check_argument("causal.Columns", weight, Tensor, "a matrix of shape (width, count)")
        if weight.ndim != 2 or weight.shape[1] > weight.shape[0]:
            shape = tuple(weight.shape)
            raise InputError(f"causal.Columns needs a matrix of shape (width, count) with no more columns than rows, not {shape}")
        if not weight.is_floating_point() or not weight.shape[1] or (trained and not weight.isfinite().all()):
            raise InputError("causal.Columns needs finite columns of floating point, one at least")
        if not trained:
            _check_orthonormal("causal.Columns", weight)
        (self.width, self.count), self.trained = weight.shape, trained
        at_least = torch.promote_types(weight.dtype, torch.float32) if trained else weight.dtype  # QR needs fp32
        self.weight = nn.Parameter(weight.clone().to(at_least), requires_grad=trained)

    def get_extra_state(self) -> dict[str, bool]:
        """What a state dict needs besides tensors: whether QR makes the columns."""
        return {"trained": self.trained}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        """Nothing: `_load_from_state_dict` has compared it."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse a matrix for orthonormal columns, and the reverse."""
        *_, missing, _, errors = args
        key = f"{prefix}_extra_state"
        if (given := state_dict.get(key)) not in (None, own := self.get_extra_state()):
            errors.append(f"'{key}' is {given}, not {own}: the columns are of another kind of basis")
            return
        super()._load_from_state_dict(state_dict, prefix, *args)
        if key in missing:  # of a version that did not save it
            missing.remove(key)

    def forward(self, dtype: torch.dtype) -> Maps:
        """The maps of states in a dtype."""
        columns = (torch.linalg.qr(self.weight).Q if self.trained else self.weight).to(dtype)
        return (lambda states: states @ columns), (lambda coordinates: coordinates @ columns.T)


class PlaneRotations(nn.Module):
    """The coordinates of a stack of plane rotations with trained angles (radians, `(depth, width / 2)`), random at the start.

    Args:
        width: of the state; even.
        seed: of the angles at the start.
        depth: number of levels; one level is RoAd's planes.
    """

    def __init__(self, width: int, seed: int, depth: int = 1) -> None:
        super().__init__()
        check_count("causal.PlaneRotations", "the width of the state", width)
        check_count("causal.PlaneRotations", "the depth", depth)
        if width % 2:
            raise InputError(f"causal.PlaneRotations: a state of width {width} cannot be divided into planes")
        self.count = self.width = width
        self.theta = nn.Parameter(torch.pi * torch.randn(depth, width // 2, generator=generator_of(seed)))

    def forward(self, dtype: torch.dtype) -> Maps:
        """The maps of states in a dtype."""
        return (lambda states: butterfly.rotate(self.theta, states)), (lambda found: butterfly.inverse(self.theta, found))


class InBasis(nn.Module):
    """An interchange of several variables among the coordinates of a fixed basis.

    Args:
        interchange: of states as wide as the basis has columns.
        columns: `(width, count)`, orthonormal.
        units: `(count,)`, in which the interchange measures the coordinates; 1 by default.
    """

    columns: Tensor
    units: Tensor

    def __init__(
        self, interchange: nn.Module, columns: Float[Tensor, "width count"], units: Float[Tensor, " count"] | None = None
    ) -> None:
        super().__init__()
        _check_orthonormal("causal.InBasis", columns)
        self.interchange = interchange
        self.register_buffer("columns", columns.clone())
        self.num_subspaces: int | None = getattr(interchange, "num_subspaces", None)
        self.variables: tuple[str, ...] | None = getattr(interchange, "variables", None)
        self.register_buffer("units", columns.new_ones(columns.shape[1]) if units is None else units.clone())

    def forward(
        self, base: Float[Tensor, "batch width"], source: Float[Tensor, "batch width"], subspaces: Sequence[Sequence[int]]
    ) -> Float[Tensor, "batch width"]:
        """`base` with the coordinates of every row's variables from `source`."""
        columns = self.columns.to(torch.promote_types(base.dtype, self.columns.dtype))
        inside, other = (states.to(columns.dtype) @ columns / self.units for states in (base, source))
        change = self.interchange(inside, other, subspaces=subspaces) - inside
        return (base + change * self.units @ columns.T).to(base.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InBasis:
        """Move with the model to its device, but keep the dtype: rounded columns are not orthonormal."""
        return super()._apply(move_only(fn), recurse)


def _check_orthonormal(function: str, columns: Float[Tensor, "width count"]) -> None:
    """Raise InputError unless columns are orthonormal: a swap of their coordinates would put the state elsewhere."""
    if not is_orthonormal(columns):
        raise InputError(f"{function}: the columns are not orthonormal: give torch.linalg.qr(columns).Q")


def principal_components(states: Float[Tensor, "n width"]) -> Float[Tensor, "width k"]:
    """The principal components of states, as orthonormal columns, the largest first."""
    centred = states.double() - states.double().mean(0)
    return torch.linalg.svd(centred, full_matrices=False).Vh.T.float()


def whitening(states: Float[Tensor, "n width"]) -> tuple[Float[Tensor, "width width"], Float[Tensor, " width"]]:
    """Orthonormal columns in which the covariance of states is diagonal, and the standard deviations along them.

    Largest first. The covariance is shrunk as Ledoit & Wolf (2004) do, so that no deviation is 0.
    """
    covariance = torch.as_tensor(LedoitWolf().fit(states.double().cpu().numpy()).covariance_)
    variances, columns = torch.linalg.eigh(covariance)
    return columns.flip(1).float(), variances.flip(0).sqrt().float()


Basis = Neurons | Columns | PlaneRotations
