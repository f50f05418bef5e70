"""BoundlessInterchange: several variables that own consecutive coordinates of a basis, up to learned borders."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from road_interp.arguments import check_argument, check_count
from road_interp.causal.bases import Basis, Columns, Neurons, PlaneRotations
from road_interp.causal.proportional_interchange import ProportionalInterchange
from road_interp.errors import InputError

RATE_OF_BORDERS = 10  # times that of the basis, as in pyvene's tutorial of boundless DAS


class BoundlessInterchange(ProportionalInterchange):
    """Interchange of consecutive coordinates in an orthonormal basis, whose number per variable is learned.

    In a trained basis of all directions this is a form of boundless DAS (Wu et al. 2023): the first variable owns the
    coordinates up to the first border, the second those from there to the second, no variable those behind the last. Every
    border is a sigmoid of the position, which sharpens with the temperature. The proportions of a coordinate add up to 1 over
    the variables and "no variable". All begin with equal parts. No penalty bounds the parts: the loss of isolation does.

    Args:
        variables: number of variables.
        basis: Columns, Neurons or PlaneRotations of `ri.causal`, with at least as many coordinates as variables.

    Raises:
        InputError: no number, no basis, or more variables than coordinates.
    """

    temperatures = (0.1, 2e-4)  # of the first and the last step; at width 576 about 50 and .1 coordinates, as in pyvene

    borders: Tensor

    def __init__(self, variables: int, basis: Basis) -> None:
        super().__init__()
        check_count("causal.BoundlessInterchange", "the number of variables", variables)
        kinds = (Neurons, Columns, PlaneRotations)
        check_argument("causal.BoundlessInterchange", basis, kinds, "causal.Columns, Neurons or PlaneRotations")
        if variables > basis.count:
            raise InputError(f"{variables} variables do not fit into the {basis.count} coordinates of the basis")
        self.num_subspaces, self.basis = variables, basis
        self.logits = nn.Parameter(torch.zeros(variables + 1))  # of the parts; the last is for no variable
        self.register_buffer("temperature", torch.tensor(self.temperatures[0]))
        self.register_buffer("borders", torch.full((variables,), -1))  # -1 before `harden`

    @property
    def has_soft_mask(self) -> bool:
        """Whether coordinates near a border are swapped in proportion, as before `harden`."""
        return bool((self.borders < 0).any())

    @property
    def owned(self) -> tuple[int, ...]:
        """Number of coordinates of every variable; empty before `harden`."""
        return () if self.has_soft_mask else tuple(self.borders.diff(prepend=self.borders.new_zeros(1)).tolist())

    def harden(self) -> None:
        """Move every border between two coordinates, to the nearest such place."""
        self.borders.copy_((self._borders() * self.basis.count).detach().round())

    def _borders(self) -> Tensor:
        """The upper border of every variable, a fraction of the coordinates."""
        return (RATE_OF_BORDERS * self.logits).softmax(0).cumsum(0)[:-1]

    def _shares(self) -> Tensor:
        """The proportion of every coordinate that each variable owns."""
        places = torch.arange(self.basis.count, device=self.logits.device) + 0.5
        if self.has_soft_mask:
            below = ((self._borders()[:, None] - places / self.basis.count) / self.temperature).sigmoid()
        else:
            below = (self.borders[:, None] > places).float()
        return below.diff(dim=0, prepend=torch.zeros_like(below[:1]))
