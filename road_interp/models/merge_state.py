"""Which rotations a RoadModel has merged into its base model, and whether the weights are as it left them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
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
        self._adapter: RoadAdapter | None = None
        self._of_bank: tuple[str, int] | None = None  # name and revision of the merged adapter

    @property
    def is_merged(self) -> bool:
        """Whether `merge` has rotated the weights, and `unmerge` has not restored them."""
        return self._weights is not None

    def merge(self, model: PreTrainedModel, adapter: RoadAdapter, of_bank: tuple[str, int] | None) -> None:
        """Rotate the weights. Raises the errors of `MergedWeights`."""
        self._weights, self._adapter = MergedWeights(model, adapter), adapter
        self._of_bank = of_bank

    def unmerge(self) -> None:
        """Restore the weights from before `merge`; does nothing if they are not merged. Raises the errors of `restore`."""
        if self._weights is not None:
            self._weights.restore()
        self._weights = self._adapter = None

    def check(self, model: nn.Module, bank: RoadBank | None, parameters: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Raise InputError if the rotations of the weights are not those of the model.

        Another RoadModel has merged rotations into the model, or restored it, since this was made; the bank has got another
        adapter in place of the merged one; its angles or scales have changed; or the weights were overwritten.

        Args:
            parameters: angles and scales of the model by site; none for a bank.
        """
        if bank is not None and self._of_bank is not None and self.is_merged and (name := self._of_bank[0]) in bank:
            if bank.revision(name) != self._of_bank[1]:
                raise InputError(f"adapter '{name}' was replaced since it was merged: call unmerge, and merge it again")
            if bank.is_trainable:
                adapter = bank[name]
                self._check_values({site: (theta, adapter.alpha[site]) for site, theta in adapter.theta.items()})
        self._check_values(parameters)
        own = [] if self._weights is None else self._weights.names
        if merged_rotations(model) != sorted([*self._before, *own]):
            raise InputError(
                "the weights of the base model have changed: another RoadModel has merged its rotations into them, or unmerged "
                "them, since this one was made. Make this RoadModel again for the weights as they are"
            )

        if self._weights is not None:
            self._weights.check()

    def _check_values(self, parameters: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Raise InputError for other angles and scales than those that are merged."""
        if self._adapter is None:
            return
        for site, values in parameters.items():
            merged = self._adapter.theta[site], self._adapter.alpha[site]
            if not all(torch.equal(value.detach().to(same), same) for value, same in zip(values, merged, strict=True)):
                raise InputError(
                    f"the angles or scales of '{site}' have changed since they were merged, and the weights have not: call "
                    "unmerge, and merge again"
                )
