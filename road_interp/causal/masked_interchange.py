"""MaskedInterchange: variables whose coordinates are chosen by learned masks, in a fixed or a trained basis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class MaskedInterchange(nn.Module):
    """Interchange of coordinates in an orthonormal basis, each in proportion to learned masks, one per variable.

    In the basis of the neurons this is desiderata-based masking (DBM; De Cao et al. 2020, Davies et al. 2023); in a trained one
    boundless DAS (Wu et al. 2023); in the principal components of the states, DBM of those (Mueller et al. 2025). Masks of
    several variables share a softmax with the choice of no variable, so that a coordinate has one owner at most.

    Args:
        basis: `(width, k)`, orthonormal columns; None for the neurons, without a product.
        variables: number of variables.
        width: of the states, where there is no basis.
        trained: whether the basis is trained, as the Q of a QR decomposition of itself.
    """

    temperature: Tensor
    owners: Tensor

    def __init__(self, variables: int, width: int, basis: Float[Tensor, "width k"] | None = None, trained: bool = False) -> None:
        super().__init__()
        self.trained = trained
        self.basis = None if basis is None else nn.Parameter(basis.clone(), requires_grad=trained)
        count = width if basis is None else basis.shape[1]
        self.logits = nn.Parameter(torch.zeros(variables + 1, count))  # the last row is for no variable
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("owners", torch.full((count,), -1))  # after `harden`
        self.is_hard = False

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature of the masks; lower values bring their proportions closer to 0 and 1."""
        self.temperature.fill_(temperature)

    def harden(self, coordinates: int) -> None:
        """Give every variable the coordinates that it claims most, as many as said; none gets one that another claims more."""
        claims = (self.logits / self.temperature).softmax(0)[:-1].detach()
        self.owners.fill_(-1)
        for index, own in enumerate(claims):
            free = (self.owners < 0) & (claims.argmax(0) == index)
            order = own.masked_fill(~free, -1).argsort(descending=True)[: min(coordinates, int(free.sum()))]
            self.owners[order] = index
        self.is_hard = True

    def forward(
        self, base: Float[Tensor, "batch width"], source: Float[Tensor, "batch width"], subspaces: Sequence[Sequence[int]]
    ) -> Float[Tensor, "batch width"]:
        """`base` with the coordinates of the variables in `subspaces`, one list per row, from `source`."""
        dtype = torch.promote_types(base.dtype, self.logits.dtype)
        difference = source.to(dtype) - base.to(dtype)
        if self.is_hard:
            shares = torch.stack([self.owners == index for index in range(len(self.logits) - 1)]).to(dtype)
        else:
            shares = (self.logits / self.temperature).softmax(0)[:-1].to(dtype)
        proportions = torch.stack([shares[list(chosen)].sum(0) for chosen in subspaces])
        if self.basis is None:
            return (base + difference * proportions).to(base.dtype)
        basis = (torch.linalg.qr(self.basis).Q if self.trained else self.basis).to(dtype)
        return (base + ((difference @ basis) * proportions) @ basis.T).to(base.dtype)
