"""LowRankInterchangeIntervention: distributed alignment search in a trained subspace, at the cost of a thin QR decomposition."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from road_interp.arguments import is_whole
from road_interp.errors import InputError
from road_interp.models import mib_format
from road_interp.models.intervention import keep_float32, state_width
from road_interp.models.seeding import generator_of
from road_interp.models.subspace_interchange import SubspaceInterchange
from road_interp.models.subspaces import as_lists, check_partition, entries_of, same_form, selected_entries


class LowRankInterchangeIntervention(SubspaceInterchange):
    """Interchange of the coordinates along `low_rank_dimension` orthonormal directions: `b + Q S Q^T (s - b)`.

    `Q` are the orthonormal columns of the QR decomposition of the trained `weight`, which is recomputed in every call; `S`
    selects directions. pyvene's LowRankRotatedSpaceIntervention computes the same (distributed alignment search, Geiger et al.
    2024), by a parametrisation that makes a square orthogonal matrix. The weight stays in fp32 for every dtype of the model.

    Args:
        embed_dim: width of the hidden state, as pyvene names it.
        low_rank_dimension: number of directions.
        seed: of the initial weight, which is normal with columns of about unit norm.
        max_number_of_units: as in RoadInterchangeIntervention.
        subspace_partition: as in RoadInterchangeIntervention: `subspaces` select ranges of directions; without it, single ones.
    """

    __module__ = "road_interp"  # the dotted path that pyvene writes into its folders
    instead = "give low_rank_dimension, the number of directions"

    def __init__(
        self,
        embed_dim: int | None = None,
        low_rank_dimension: int | None = None,
        seed: int = 0,
        max_number_of_units: int = 1,
        **kwargs: Any,
    ) -> None:
        if embed_dim is None:
            raise InputError(
                "LowRankInterchangeIntervention needs embed_dim, the width of the hidden state: pyvene does not know it for this "
                "component; pass an instance, LowRankInterchangeIntervention(768, 8)"
            )
        if "rows" in kwargs:
            raise InputError(
                "LowRankInterchangeIntervention has trained directions, not rows: give low_rank_dimension, their number"
            )
        width = state_width("LowRankInterchangeIntervention", embed_dim, max_number_of_units)
        super().__init__(embed_dim, **kwargs)
        if low_rank_dimension is None and not self._made_by_pyvene:
            raise InputError("LowRankInterchangeIntervention needs low_rank_dimension, the number of directions")
        self._has_rank = low_rank_dimension is not None
        rank = 1 if low_rank_dimension is None else low_rank_dimension
        if not is_whole(rank) or not 1 <= rank <= width:
            raise InputError(f"low_rank_dimension must be a number of directions from 1 to the width {width}, not {rank!r}")
        generator = generator_of(seed)
        self.weight = nn.Parameter(torch.randn(width, rank, generator=generator, dtype=torch.float32) / width**0.5)
        if low_rank_dimension is not None:
            check_partition(self.subspace_partition, rank)

    def get_extra_state(self) -> dict[str, Any]:
        """What a state dict needs besides tensors: the partition of the directions, and the names of its parts."""
        return {"partition": as_lists(self.subspace_partition), "variables": self.variables}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Adopt the saved rank and partition if pyvene made this from its type; otherwise they must be equal."""
        *_, errors = args
        weight, extra = state_dict.get(f"{prefix}weight"), state_dict.get(f"{prefix}_extra_state")
        if extra is not None and weight is not None:
            if self._made_by_pyvene:
                if weight.shape != self.weight.shape:  # an optimizer keeps the parameter
                    self.weight = nn.Parameter(self.weight.new_empty(weight.shape))
                self.subspace_partition, self._has_rank = extra["partition"], True
            elif not same_form(extra, self.get_extra_state()):
                errors.append(f"'{prefix}partition' or its names are other than those of this intervention")
                return
            self.variables = extra.get("variables") or self.variables
        keep_float32(state_dict, prefix, self)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def width(self) -> int:  # type: ignore[override]
        """The width of the states."""
        return self.weight.shape[0]

    @property
    def num_subspaces(self) -> int:
        """How many subspaces a call can name: parts of the partition, or single directions without one."""
        return self.weight.shape[1] if self.subspace_partition is None else len(self.subspace_partition)

    def basis(self) -> Float[Tensor, "width k"]:
        """Orthonormal columns: the directions in which base and source are swapped; without a gradient."""
        return self._basis().detach()

    def _basis(self) -> Float[Tensor, "width k"]:
        return torch.linalg.qr(self.weight).Q

    def forward(
        self,
        base: Float[Tensor, "batch *positions width"],
        source: Float[Tensor, "batch *positions width"],
        subspaces: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "batch *positions width"]:
        """`base` with the swapped coordinates of `source`, in the dtype of `base`.

        Args:
            subspaces: for every row of the batch, the directions to swap; None for all of them.

        Raises InputError for states of another width, a source of other axes than the base, and wrong subspaces.
        """
        self._check_states(base, source)
        if not self._has_rank:
            raise InputError(
                "a LowRankInterchangeIntervention that is made from its type has no rank: give low_rank_dimension in the config"
            )
        basis = self._basis()
        dtype = torch.promote_types(base.dtype, basis.dtype)
        coordinates = (source.to(dtype) - base.to(dtype)) @ basis.to(dtype)
        if subspaces is not None:
            coordinates = coordinates * selected_entries(subspaces, self.subspace_partition, basis.shape[1], coordinates)
        return (base + coordinates @ basis.to(dtype).T).to(base.dtype)

    def save_mib(self, folder: str | os.PathLike[str], unit: str, subspaces: Sequence[int] | None = None) -> None:
        """Write the files that the loader of MIB's causal-variable track reads; the arguments are those of
        `RoadInterchangeIntervention.save_mib`."""
        features = None if subspaces is None else entries_of(subspaces, self.subspace_partition, self.weight.shape[1])
        mib_format.save_mib(self.basis(), folder, unit, features)

    def __str__(self) -> str:
        return f"LowRankInterchangeIntervention(rank={self.weight.shape[1]})"
