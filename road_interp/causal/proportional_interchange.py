"""ProportionalInterchange: coordinates of a basis that are swapped in proportion to learned shares of the variables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from road_interp.arguments import check_positive
from road_interp.causal.bases import Basis
from road_interp.models.intervention import move_only
from road_interp.models.subspaces import selected_entries


class ProportionalInterchange(nn.Module):
    """What masked and boundless interchanges have in common; subclasses say what each variable owns (`_shares`, `harden`).

    Attributes:
        num_subspaces: number of variables.
        basis: Columns, Neurons or PlaneRotations.
        variables: the names of the variables that it was trained for, in their order; None before.
        temperatures: of the first and the last step of a training.
    """

    temperatures: ClassVar[tuple[float, float]]

    num_subspaces: int
    basis: Basis
    logits: nn.Parameter
    temperature: Tensor
    variables: tuple[str, ...] | None = None

    def get_extra_state(self) -> dict[str, Any]:
        """What a state dict needs besides tensors: the names of the variables."""
        return {"variables": self.variables}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Adopt the names of the variables."""
        self.variables = state.get("variables") or self.variables

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse the tensors of another interchange, such as of another number of coordinates, which would mean others here."""
        *_, missing, _, errors = args
        given, own = state_dict.get(key := f"{prefix}_extra_state"), self.get_extra_state()
        if given is not None and given | {"variables": None} != own | {"variables": None}:
            errors.append(f"'{key}' is {given}, not {own}: it is the state of another interchange")
            return
        super()._load_from_state_dict(state_dict, prefix, *args)
        if key in missing:  # of a version that did not save it
            missing.remove(key)

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature; lower values bring the proportions closer to 0 and 1."""
        check_positive(f"causal.{type(self).__name__}", "the temperature", temperature)
        self.temperature.fill_(temperature)

    def forward(
        self, base: Float[Tensor, "batch width"], source: Float[Tensor, "batch width"], subspaces: Sequence[Sequence[int]]
    ) -> Float[Tensor, "batch width"]:
        """`base` with the coordinates of the variables in `subspaces`, one list per row, from `source`."""
        dtype = torch.promote_types(base.dtype, self.logits.dtype)
        difference, shares = source.to(dtype) - base.to(dtype), self._shares().to(dtype)
        proportions = selected_entries(subspaces, None, self.num_subspaces, difference) @ shares
        into, back = self.basis(dtype)
        return (base + back(into(difference) * proportions)).to(base.dtype)

    def harden(self) -> None:
        """Give every coordinate to one variable or to none."""
        raise NotImplementedError

    def _shares(self) -> Float[Tensor, "variables count"]:
        """The proportion of every coordinate that each variable owns."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ProportionalInterchange:
        """Move with the model to its device, but keep the dtype of shares and basis."""
        return super()._apply(move_only(fn), recurse)
