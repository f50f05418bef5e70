"""MaskedInterchange: variables whose coordinates are chosen by learned masks, in a fixed or a trained basis."""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from road_interp.arguments import check_argument, check_count
from road_interp.causal.bases import Basis, Columns, Neurons, PlaneRotations
from road_interp.causal.proportional_interchange import ProportionalInterchange
from road_interp.errors import InputError

SCALINGS = 40  # of the rows of the masks, per forward pass


class MaskedInterchange(ProportionalInterchange):
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

    temperatures = (1.0, 0.05)  # of the first and the last step of a training

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
        """What a state dict needs besides tensors: names, the number per variable, and whether QR makes the columns."""
        by_qr = isinstance(self.basis, Columns) and self.basis.trained
        return {**super().get_extra_state(), "coordinates": self.coordinates, "by_qr": by_qr}

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
