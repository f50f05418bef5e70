"""RoadInterchangeIntervention: interchange of coordinates in a rotated basis, as a pyvene intervention with a source."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from road_interp.arguments import check_count, check_not_negative, check_positive, is_whole
from road_interp.errors import InputError
from road_interp.models import mib_format
from road_interp.models.intervention import keep_float32, state_width
from road_interp.models.seeding import generator_of
from road_interp.models.subspace_interchange import SubspaceInterchange
from road_interp.models.subspaces import as_lists, check_partition, entries_of, same_form, selected_entries
from road_interp.rotation import butterfly
from road_interp.sites.site import Site

Rows = Literal["first", "mask"] | Sequence[int]
Featurizer = tuple[Callable[[Tensor], tuple[Tensor, None]], Callable[[Tensor, None], Tensor], list[int]]


class RoadInterchangeIntervention(SubspaceInterchange):
    """Distributed interchange intervention (paper, section 3.2) with a RoAd rotation: `R^-1 (R b with coordinates from R s)`.

    `b` is the base state and `s` the source state. `R` is a stack of plane rotations (`road_interp.rotation.butterfly`): RoAd at
    depth 1, and closer to an arbitrary rotation with more levels, as the products of BOFT and GOFT, which multiply weights.
    Coordinates are swapped individually, not as whole planes of a single level, because swapping a whole plane gives the same
    result at every angle. There are no scales, because the scales of one level cancel in any interchange. The result is computed
    as `b + R^-1 S R (s - b)`, where `S` selects the swapped coordinates, so that a source equal to the base leaves the state
    bitwise unchanged.

    Usable in any `pyvene.IntervenableConfig`: as an instance everywhere, as a type where pyvene knows the width of the component.
    The angles stay in fp32 for every dtype of the model; the states keep their dtype.

    Args:
        embed_dim: width of the hidden state, as pyvene names it.
        depth: number of levels; more than `butterfly.full_depth(width)` is not needed to mix all dimensions.
        rows: the coordinates to swap: "first" (the first of every plane), a list of indices, or "mask": all, each in proportion
            `sigmoid(mask / temperature)` with a learned mask, until `harden` replaces it by the list of those above one half.
        seed, spread: the initial angles are drawn with this seed from a normal distribution with standard deviation `spread`
            (radians); a spread of pi gives a random rotation, for controls.
        max_number_of_units: pyvene's; the state is as wide as `embed_dim` divided by it.
        subspace_partition: as in pyvene's LowRankRotatedSpaceIntervention: `subspaces` select ranges of `rows`; without it,
            `subspaces` select single entries of `rows`.
    """

    __module__ = "road_interp"  # the dotted path that pyvene writes into its folders
    instead = "give rows, the coordinates to swap"

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
        if kwargs.get("low_rank_dimension") is not None:
            raise InputError(
                "RoadInterchangeIntervention swaps rows, not trained directions: give rows, the coordinates to swap, or use "
                "LowRankInterchangeIntervention"
            )
        width = Site("intervention", state_width("RoadInterchangeIntervention", embed_dim, max_number_of_units)).width
        check_count("RoadInterchangeIntervention", "depth", depth)
        check_not_negative("RoadInterchangeIntervention", "spread", spread)
        super().__init__(embed_dim, **kwargs)
        self.width = width
        self.depth = depth
        generator = generator_of(seed)
        self.theta = nn.Parameter(spread * torch.randn(depth, self.width // 2, generator=generator, dtype=torch.float32))
        is_masked = isinstance(rows, str) and rows == "mask"  # an array is compared entry by entry
        self.mask = nn.Parameter(torch.zeros(self.width, dtype=torch.float32)) if is_masked else None
        self.register_buffer("temperature", torch.tensor(1.0, dtype=torch.float32))
        self.rows = None if is_masked else _check_rows(rows, self.width)
        if not self._made_by_pyvene:  # else a saved state may bring other rows
            self._check_partition()

    def get_extra_state(self) -> dict[str, Any]:
        """What a state dict needs besides tensors: the swapped coordinates (None while a mask is learned), their partition, and
        the names of its parts."""
        rows = None if self.rows is None else list(self.rows)
        return {"rows": rows, "partition": as_lists(self.subspace_partition), "variables": self.variables}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Adopt the saved depth, rows, mask and partition if pyvene made this from its type; otherwise they must be equal."""
        *_, missing, _, errors = args
        theta, extra = state_dict.get(f"{prefix}theta"), state_dict.get(f"{prefix}_extra_state")
        if theta is not None and self._made_by_pyvene and theta.shape != self.theta.shape:  # an optimizer keeps the parameters
            self.depth = len(theta)
            self.theta = nn.Parameter(self.theta.new_empty(theta.shape))
        if extra is not None and self._made_by_pyvene:
            rows = extra["rows"]
            self.rows = None if rows is None else _check_rows(rows, self.width)
            if (rows is None) != (self.mask is not None):
                self.mask = nn.Parameter(self.theta.new_zeros(self.width, dtype=torch.float32)) if rows is None else None
            self.subspace_partition = extra["partition"]
        elif extra is not None and not same_form(extra, self.get_extra_state()):
            errors.append(f"'{prefix}rows', their partition or its names are other than those of this intervention")
            return
        if extra is not None:
            self.variables = extra.get("variables") or self.variables
        keep_float32(state_dict, prefix, self)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if f"{prefix}_extra_state" in missing:
            missing.remove(f"{prefix}_extra_state")
            warnings.warn("a state of 0.1.0 does not hold the swapped rows: those of this intervention are kept", stacklevel=2)

    def forward(
        self,
        base: Float[Tensor, "batch *positions width"],
        source: Float[Tensor, "batch *positions width"],
        subspaces: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "batch *positions width"]:
        """`base` with the swapped coordinates of `source`, in the dtype of `base`.

        Args:
            subspaces: for every row of the batch, the entries of `rows` to swap; None for all of them.

        Raises InputError for states of another width, a source of other axes than the base, and wrong subspaces.
        """
        self._check_states(base, source)
        dtype = torch.promote_types(base.dtype, self.theta.dtype)
        difference = butterfly.rotate(self.theta, source.to(dtype) - base.to(dtype))
        change = butterfly.inverse(self.theta, difference * self._proportions(subspaces, difference))
        return (base + change).to(base.dtype)

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature of the learned mask; lower values bring its proportions closer to 0 and 1."""
        check_positive("RoadInterchangeIntervention", "the temperature of a mask", temperature)
        self.temperature.fill_(temperature)

    @property
    def has_soft_mask(self) -> bool:
        """Whether coordinates are swapped in proportion to a learned mask, as before `harden`."""
        return self.mask is not None

    def harden(self) -> tuple[int, ...]:
        """Replace the learned mask by the list of coordinates with a proportion above one half, and return the list."""
        if self.mask is None:
            raise InputError('there is no mask to harden: rows is already a list (rows="mask" learns a mask)')
        rows = tuple((self.mask > 0).nonzero().flatten().tolist())
        if not rows:
            raise InputError("the mask selects no coordinate: no proportion is above one half")
        if (parts := as_lists(self.subspace_partition)) is not None:  # of all coordinates before, of the listed rows from now on
            kept = [[rows.index(row) for row in part if row in rows] for part in parts]
            if [] in kept:
                raise InputError(f"the mask selects no coordinate of subspace {kept.index([])}: no proportion is above one half")
            self.subspace_partition = kept
        self.rows, self.mask = rows, None
        return self.rows

    def basis(self) -> Float[Tensor, "width k"]:
        """Orthonormal columns: the directions in which base and source are swapped, in the order of `rows`."""
        return butterfly.columns(self.theta, torch.tensor(self._hard_rows(), device=self.theta.device)).detach()

    def featurizer(self) -> Featurizer:
        """The rotation as a featurizer for the causal-variable track of MIB (Mueller et al. 2025).

        Returns `featurize`, from states `(..., width)` to features and a reconstruction error (None, because a rotation is
        invertible); its inverse, from features and error to states; and the indices of the swapped features.
        """
        theta = self.theta.detach().clone()

        def featurize(states: Tensor) -> tuple[Tensor, None]:
            return butterfly.rotate(theta, states), None

        def invert(features: Tensor, error: None) -> Tensor:
            return butterfly.inverse(theta, features)

        return featurize, invert, list(self._hard_rows())

    def save_mib(self, folder: str | os.PathLike[str], unit: str, subspaces: Sequence[int] | None = None) -> None:
        """Write the files that the loader of MIB's causal-variable track reads: see `mib_format.save_mib`.

        Args:
            unit: the name of the model unit in the track's experiments.
            subspaces: as in `forward`, such as those of one variable; None for all swapped coordinates.
        """
        features = None if subspaces is None else entries_of(subspaces, self.subspace_partition, len(self._hard_rows()))
        mib_format.save_mib(self.basis(), folder, unit, features)

    @property
    def num_subspaces(self) -> int:
        """How many subspaces a call can name: parts of the partition, or single coordinates without one."""
        parts = self.subspace_partition
        return len(parts) if parts is not None else self.width if self.rows is None else len(self.rows)

    def _hard_rows(self) -> tuple[int, ...]:
        if self.rows is None:
            raise InputError("the mask is not hardened yet: call harden() first")
        return self.rows

    def _check_partition(self) -> None:
        check_partition(self.subspace_partition, self.width if self.rows is None else len(self.rows))

    def _proportions(self, subspaces: Sequence[Sequence[int]] | None, states: Tensor) -> Tensor:
        """The swapped proportion of every coordinate, 0 to 1: shape `(width,)`, or `(batch, ..., width)` with subspaces."""
        rows = list(range(self.width)) if self.rows is None else list(self.rows)
        if subspaces is None:
            selected = states.new_zeros(self.width)
            selected[rows] = 1
        else:
            self._check_partition()
            entries = selected_entries(subspaces, self.subspace_partition, len(rows), states)
            selected = states.new_zeros(*entries.shape[:-1], self.width)
            selected[..., rows] = entries
        return selected if self.mask is None else selected * (self.mask / self.temperature).sigmoid()

    def __str__(self) -> str:
        return f"RoadInterchangeIntervention(depth={self.depth}, rows={'mask' if self.rows is None else len(self.rows)})"


def _check_rows(rows: Rows, width: int) -> tuple[int, ...]:
    if isinstance(rows, str) and rows == "first":
        return tuple(range(0, width, 2))
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        shown = f'"{rows}"' if isinstance(rows, str) else rows
        raise InputError(f'rows is {shown}; it must be "first", "mask" or a list of coordinates, as in [0]')
    selected = tuple(rows.tolist() if isinstance(rows, Tensor) else rows)
    for row in selected:
        if not is_whole(row) or not 0 <= row < width:
            raise InputError(f"row {row} does not exist: the rotated state has rows 0 to {width - 1}")
    if not selected or len(set(selected)) < len(selected):
        raise InputError("rows must contain at least one coordinate, and none of them twice")
    return tuple(map(int, selected))
