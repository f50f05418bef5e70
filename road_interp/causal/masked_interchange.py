"""MaskedInterchange: variables whose coordinates are chosen by learned masks, in a fixed or a trained basis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from road_interp.arguments import check_argument, check_count, check_positive
from road_interp.causal.bases import Basis, Columns, Neurons, PlaneRotations
from road_interp.errors import InputError
from road_interp.models.intervention import move_only
from road_interp.models.subspaces import selected_entries

SCALINGS = 40  # of the rows of the masks, per forward pass


class MaskedInterchange(nn.Module):
    """Interchange of coordinates in an orthonormal basis, each in proportion to learned masks, one per variable.

    In the basis of the neurons this is desiderata-based masking (DBM; De Cao et al. 2020, Davies et al. 2023); in the principal
    components of the states, DBM of those (Mueller et al. 2025); in rotated planes or a trained basis, learned masks over its
    coordinates. Masks of several variables share a softmax with the choice of no variable, so that a coordinate has one owner at
    most.

    Where those methods charge a penalty for every coordinate, here the number per variable is given: the softmax is scaled until
    every variable's proportions add up to it (Sinkhorn 1967), only roughly at low temperatures.

    Args:
        variables: number of variables.
        width: of the states.
        coordinates: number per variable.
        basis: Columns, Neurons or PlaneRotations of `ri.causal`; by default the neurons.

    Raises:
        InputError: no numbers, a basis of another width, or the variables need more coordinates than it has.
    """

    temperatures: ClassVar = (1.0, 0.05)  # of the first and the last step of a training

    temperature: Tensor
    owners: Tensor

    def __init__(self, variables: int, width: int, coordinates: int, basis: Basis | None = None) -> None:
        super().__init__()
        for given, what in (
            (variables, "number of variables"),
            (width, "width of the states"),
            (coordinates, "number per variable"),
        ):
            check_count("causal.MaskedInterchange", f"the {what}", given)
        self.num_subspaces, self.coordinates = variables, coordinates
        if basis is not None:
            kinds = (Neurons, Columns, PlaneRotations)
            check_argument("causal.MaskedInterchange", basis, kinds, "causal.Columns, Neurons or PlaneRotations")
        self.basis = Neurons(width) if basis is None else basis
        if self.basis.width != width:
            raise InputError(f"the basis is of states of width {self.basis.width}, the interchange of {width}")
        count: int = self.basis.count
        if variables * coordinates > count:
            raise InputError(f"{variables} variables of {coordinates} coordinates do not fit into the {count} of the basis")
        self.logits = nn.Parameter(torch.zeros(variables + 1, count))  # the last row is for no variable
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("owners", torch.full((count,), -2))  # -2 before `harden`, then -1 for no variable

    def get_extra_state(self) -> dict[str, Any]:
        """What a state dict needs besides tensors: the number per variable, and whether QR makes the columns of the basis."""
        return {"coordinates": self.coordinates, "by_qr": isinstance(self.basis, Columns) and self.basis.trained}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Nothing: `_load_from_state_dict` has compared it."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse the masks of another number of coordinates or kind of basis, which would mean something else here."""
        *_, missing, _, errors = args
        extra, own = state_dict.get(key := f"{prefix}_extra_state"), self.get_extra_state()
        if extra not in (None, own):
            errors.append(f"'{key}' is {extra}, not {own}: the masks are of another interchange")
            return
        super()._load_from_state_dict(state_dict, prefix, *args)
        if key in missing:  # of a version that did not save it
            missing.remove(key)

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature of the masks; lower values bring their proportions closer to 0 and 1."""
        check_positive("causal.MaskedInterchange", "the temperature of a mask", temperature)
        self.temperature.fill_(temperature)

    @property
    def has_soft_mask(self) -> bool:
        """Whether coordinates are swapped in proportion to the masks, as before `harden`."""
        return not bool((self.owners > -2).any())

    def harden(self) -> None:
        """Give every variable the coordinates that it claims most: exactly its number, with the largest sum of claims."""
        claims = (self.logits[:-1] - self.logits[-1]).detach().repeat_interleave(self.coordinates, dim=0)
        rows, chosen = linear_sum_assignment(claims.double().cpu().numpy(), maximize=True)
        self.owners.fill_(-1)
        self.owners[torch.from_numpy(chosen)] = torch.from_numpy(rows // self.coordinates).to(self.owners.device)

    def forward(
        self, base: Float[Tensor, "batch width"], source: Float[Tensor, "batch width"], subspaces: Sequence[Sequence[int]]
    ) -> Float[Tensor, "batch width"]:
        """`base` with the coordinates of the variables in `subspaces`, one list per row, from `source`."""
        dtype = torch.promote_types(base.dtype, self.logits.dtype)
        difference, shares = source.to(dtype) - base.to(dtype), self._shares().to(dtype)
        proportions = selected_entries(subspaces, None, len(shares), difference) @ shares
        into, back = self.basis(dtype)
        return (base + back(into(difference) * proportions)).to(base.dtype)

    def _shares(self) -> Tensor:
        """The proportion of every coordinate that each variable claims, or owns after `harden`."""
        if not self.has_soft_mask:
            return torch.stack([self.owners == index for index in range(len(self.logits) - 1)]).float()
        claims, none = (self.logits / self.temperature).split([len(self.logits) - 1, 1])
        least = (claims - none).topk(self.coordinates).values[:, -1:]
        claims = claims - least.detach()  # close to the solution also at low temperatures
        for _ in range(SCALINGS):
            sums = torch.cat((claims, none)).log_softmax(0)[:-1].logsumexp(1, keepdim=True)
            claims = claims + math.log(self.coordinates) - sums
        return torch.cat((claims, none)).softmax(0)[:-1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskedInterchange:
        """Move with the model to its device, but keep the dtype of masks and basis."""
        return super()._apply(move_only(fn), recurse)
