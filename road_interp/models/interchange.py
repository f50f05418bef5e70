"""Interchange of single coordinates of a rotated state, as a pyvene intervention with a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from road_interp.errors import InputError
from road_interp.models.intervention import pyvene
from road_interp.rotation import butterfly
from road_interp.sites.site import Site

Rows = Literal["first", "mask"] | Sequence[int]
Featurizer = tuple[Callable[[Tensor], tuple[Tensor, None]], Callable[[Tensor, None], Tensor], list[int]]


class RoadInterchangeIntervention(pyvene.TrainableIntervention, pyvene.DistributedRepresentationIntervention):
    """`R^-1 (R b with some coordinates from R s)`: a distributed interchange (paper, section 3.2) whose rotation is RoAd.

    `R` is a stack of plane rotations (`road_interp.rotation.butterfly`): RoAd itself at depth 1; the deeper the stack, the nearer
    it comes to any rotation. Its coordinates are swapped one by one and never as whole planes of a single level, since a swapped
    plane is the same at every angle. Scales are left out: those of one level cancel in any interchange. Computed as
    `b + R^-1 S R (s - b)`, where `S` keeps the swapped coordinates, so that an equal source changes no bit.

    For any `pyvene.IntervenableConfig`: as an instance everywhere, as a type where pyvene knows the width of the component. The
    angles stay fp32 whatever dtype the model takes; the states keep theirs.

    Args:
        embed_dim: width of the hidden state (pyvene's word).
        depth: number of levels, `butterfly.full_depth(width)` for the deepest that is of use.
        rows: the coordinates to swap: "first" (the first of every plane), a list of them, or "mask": all, each by a learned
            share `sigmoid(mask / temperature)` until `harden` makes a list of those above one half.
        seed, spread: of the angles at the start, which are normal with a deviation of `spread` radians; a spread of a half turn
            makes a random rotation, for controls.
        subspace_partition: pyvene's, as in its LowRankRotatedSpaceIntervention: `subspaces` then name parts of `rows`, else
            single entries of it.
    """

    __module__ = "road_interp"  # the dotted path that pyvene writes into its folders

    def __init__(
        self,
        embed_dim: int | None = None,
        depth: int = 1,
        rows: Rows = "first",
        seed: int = 0,
        spread: float = 0.1,
        max_number_of_units: int = 1,
        **kwargs: Any,
    ) -> None:
        if embed_dim is None:
            raise InputError(
                "RoadInterchangeIntervention needs embed_dim, the width of the hidden state: pyvene does not know it for this "
                "component. Pass an instance, as in {'component': 'encoder.layer[0].output', 'intervention': "
                "RoadInterchangeIntervention(768)}"
            )
        super().__init__(embed_dim=embed_dim, keep_last_dim=True, **kwargs)
        self.width = Site("intervention", embed_dim // max_number_of_units).width
        if depth < 1:
            raise InputError(f"depth must be at least 1, not {depth}")
        self.depth = depth
        self.theta = nn.Parameter(spread * torch.randn(depth, self.width // 2, generator=torch.Generator().manual_seed(seed)))
        self.mask = nn.Parameter(torch.zeros(self.width)) if rows == "mask" else None
        self.register_buffer("temperature", torch.tensor(1.0))
        self.rows = None if rows == "mask" else _checked(rows, self.width)

    def forward(
        self,
        base: Float[Tensor, "batch *positions width"],
        source: Float[Tensor, "batch *positions width"],
        subspaces: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "batch *positions width"]:
        """`base` with the swapped coordinates of `source`, in the dtype of `base`.

        Args:
            subspaces: for every row of the batch, the entries of `rows` to swap; all of them where None.
        """
        dtype = torch.promote_types(base.dtype, self.theta.dtype)
        difference = butterfly.rotate(self.theta, source.to(dtype) - base.to(dtype))
        change = butterfly.inverse(self.theta, difference * self._shares(subspaces, difference))
        return (base + change).to(base.dtype)

    def set_temperature(self, temperature: float) -> None:
        """Temperature of the learned mask: the lower, the nearer its shares to 0 and 1."""
        self.temperature.fill_(temperature)

    def harden(self) -> tuple[int, ...]:
        """Make the learned mask a list, those with a share above one half, and return it."""
        if self.mask is None:
            raise InputError('there is no mask to harden: rows is a list already (rows="mask" learns one)')
        self.rows, self.mask = tuple((self.mask > 0).nonzero().flatten().tolist()), None
        return self.rows

    def basis(self) -> Float[Tensor, "width k"]:
        """Orthonormal columns: the directions along which base and source are swapped, in the order of `rows`."""
        return butterfly.columns(self.theta, torch.tensor(self._hard_rows(), device=self.theta.device)).detach()

    def featurizer(self) -> Featurizer:
        """The rotation as the causal-variable track of MIB (Mueller et al. 2025) takes it.

        Returns `featurize`, from states `(..., width)` to features and a reconstruction error (None: a rotation loses nothing);
        its inverse, from features and error to states; and the indices of the swapped features.
        """
        theta = self.theta.detach().clone()

        def featurize(states: Tensor) -> tuple[Tensor, None]:
            return butterfly.rotate(theta, states), None

        def invert(features: Tensor, error: None) -> Tensor:
            return butterfly.inverse(theta, features)

        return featurize, invert, list(self._hard_rows())

    def _hard_rows(self) -> tuple[int, ...]:
        if self.rows is None:
            raise InputError("the mask is not hardened yet: call harden() first")
        return self.rows

    def _shares(self, subspaces: Sequence[Sequence[int]] | None, states: Tensor) -> Tensor:
        """How much of every coordinate is swapped, 0 to 1: shape `(width,)`, or `(batch, ..., width)` with subspaces."""
        rows = tuple(range(self.width)) if self.rows is None else self.rows
        if subspaces is None:
            chosen = states.new_zeros(self.width)
            chosen[list(rows)] = 1
        else:
            if len(subspaces) != len(states):
                raise InputError(f"subspaces list {len(subspaces)} rows, but the batch has {len(states)}")
            chosen = states.new_zeros(len(states), *[1] * (states.ndim - 2), self.width)
            for number, wanted in enumerate(subspaces):
                chosen[number, ..., [rows[entry] for entry in self._entries(wanted, len(rows))]] = 1
        return chosen if self.mask is None else chosen * (self.mask / self.temperature).sigmoid()

    def _entries(self, wanted: Sequence[int], count: int) -> list[int]:
        """Indices into `rows` of one row's subspaces."""
        known = count if self.subspace_partition is None else len(self.subspace_partition)
        for subspace in wanted:
            if not 0 <= subspace < known:
                raise InputError(f"subspace {subspace} does not exist: there are {known}, counted from 0")
        if self.subspace_partition is None:
            return list(wanted)
        return [entry for subspace in wanted for entry in self.subspace_partition[subspace]]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RoadInterchangeIntervention:
        """Follow the model to its device, but keep the dtype: rotations stay in fp32."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor.new_empty(0)).device) if tensor.is_floating_point() else fn(tensor)

        return super()._apply(move, recurse)

    def __str__(self) -> str:
        return f"RoadInterchangeIntervention(depth={self.depth}, rows={'mask' if self.rows is None else len(self.rows)})"


def _checked(rows: Rows, width: int) -> tuple[int, ...]:
    if rows == "first":
        return tuple(range(0, width, 2))
    if isinstance(rows, str):
        raise InputError(f'rows is "{rows}"; it must be "first", "mask" or a list of coordinates')
    chosen = tuple(rows)
    for row in chosen:
        if not 0 <= row < width:
            raise InputError(f"row {row} does not exist: the rotated state has rows 0 to {width - 1}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError("rows must name at least one coordinate, and none of them twice")
    return chosen
