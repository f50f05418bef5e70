"""Which rotations a RoadModel has merged into its base model, and whether the weights are as it left them."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from road_interp.adapters.bank import RoadBank
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.models.merging import MergedWeights, merged_rotations


class MergeState:
    """The merged rotations of one RoadModel; others of the same base model may merge theirs, which `check` notices."""

    def __init__(self, model: nn.Module) -> None:
        self._before = merged_rotations(model)
        self._weights: MergedWeights | None = None
        self._of_bank: tuple[str, int] | None = None  # name and revision of the merged adapter

    @property
    def is_merged(self) -> bool:
        """Whether `merge` has rotated the weights, and `unmerge` has not restored them."""
        return self._weights is not None

    def merge(self, model: PreTrainedModel, adapter: RoadAdapter, of_bank: tuple[str, int] | None) -> None:
        """Rotate the weights. Raises the errors of `MergedWeights`."""
        self._weights = MergedWeights(model, adapter)
        self._of_bank = of_bank

    def unmerge(self) -> None:
        """Restore the weights from before `merge`; does nothing if they are not merged. Raises the errors of `restore`."""
        if self._weights is not None:
            self._weights.restore()
        self._weights = None

    def check(self, model: nn.Module, bank: RoadBank | None) -> None:
        """Raise InputError if another RoadModel has merged rotations into the model, or restored it, since this was made, or if
        the bank has got another adapter in place of that which is merged."""
        if bank is not None and self._weights is not None and self._of_bank is not None:
            name, revision = self._of_bank
            if name in bank and bank.revision(name) != revision:
                raise InputError(f"adapter '{name}' was replaced since it was merged: call unmerge, and merge it again")
        own = [] if self._weights is None else self._weights.names
        if merged_rotations(model) != sorted([*self._before, *own]):
            raise InputError(
                "the weights of the base model have changed: another RoadModel has merged its rotations into them, or unmerged "
                "them, since this one was made. Make this RoadModel again for the weights as they are"
            )
