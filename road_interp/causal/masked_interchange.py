"""MaskedInterchange: variables whose coordinates are chosen by learned masks, in a fixed or a trained basis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from road_interp.causal.bases import Basis, Neurons


class MaskedInterchange(nn.Module):
    """Interchange of coordinates in an orthonormal basis, each in proportion to learned masks, one per variable.

    In the basis of the neurons this is desiderata-based masking (DBM; De Cao et al. 2020, Davies et al. 2023); in a trained one
    boundless DAS (Wu et al. 2023); in the principal components of the states, DBM of those (Mueller et al. 2025); in rotated
    planes, learned masks over their coordinates. Masks of several variables share a softmax with the choice of no variable, so
    that a coordinate has one owner at most.

    Training adds `penalty`, which is 0 where no variable claims more than its number of coordinates.

    Args:
        variables: number of variables.
        width: of the states.
        coordinates: number per variable.
        basis: one of `road_interp.causal.bases`; by default the neurons.
    """

    temperature: Tensor
    owners: Tensor

    def __init__(self, variables: int, width: int, coordinates: int, basis: Basis | None = None) -> None:
        super().__init__()
        self.coordinates = coordinates
        self.basis = Neurons(width) if basis is None else basis
        count: int = self.basis.count
        self.logits = nn.Parameter(torch.zeros(variables + 1, count))  # the last row is for no variable
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("owners", torch.full((count,), -2))  # -2 before `harden`, then -1 for no variable

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature of the masks; lower values bring their proportions closer to 0 and 1."""
        self.temperature.fill_(temperature)

    def penalty(self) -> Tensor:
        """How many coordinates the variables claim more than their number, in fractions of it: a mean over the variables."""
        claimed = self._shares().sum(1)
        return (claimed / self.coordinates - 1).clamp(min=0).mean()

    def harden(self) -> int:
        """Give every variable the coordinates that it claims most, no more than its number and none that another row of the
        masks claims more. Returns the number of owned coordinates."""
        winners = self.logits.argmax(0)
        self.owners.fill_(-1)
        for index in range(len(self.logits) - 1):
            others = torch.cat((self.logits[:index], self.logits[index + 1 :]))
            lead = (self.logits[index] - others.logsumexp(0)).detach()
            own = (winners == index).nonzero().flatten()
            self.owners[own[lead[own].argsort(descending=True)[: self.coordinates]]] = index
        return int((self.owners >= 0).sum())

    def forward(
        self, base: Float[Tensor, "batch width"], source: Float[Tensor, "batch width"], subspaces: Sequence[Sequence[int]]
    ) -> Float[Tensor, "batch width"]:
        """`base` with the coordinates of the variables in `subspaces`, one list per row, from `source`."""
        dtype = torch.promote_types(base.dtype, self.logits.dtype)
        difference, shares = source.to(dtype) - base.to(dtype), self._shares().to(dtype)
        proportions = torch.stack([shares[list(chosen)].sum(0) for chosen in subspaces])
        into, back = self.basis(dtype)
        return (base + back(into(difference) * proportions)).to(base.dtype)

    def _shares(self) -> Tensor:
        """The proportion of every coordinate that each variable claims, or owns after `harden`."""
        if bool((self.owners > -2).any()):
            return torch.stack([self.owners == index for index in range(len(self.logits) - 1)]).float()
        return (self.logits / self.temperature).softmax(0)[:-1]
