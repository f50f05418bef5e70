"""RoadBank: many adapters over one set of sites, so that every row of a batch can use its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.storage import DESCRIPTION
from road_interp.errors import InputError
from road_interp.rotation import plane_maps

BASE = "__base__"  # PEFT's name for "no adapter"

Vectors = tuple[Tensor, Tensor]


class RoadBank(Mapping[str, RoadAdapter]):
    """Named adapters of one family: the same sites, variant and group_size.

    An adapter is kept as one flat fp32 vector of angles and one of scales, all sites side by side: as many values as it has
    parameters. Adding, removing and replacing is immediate while a model uses the bank, and the cost of a batch depends on its
    rows, not on how many adapters there are or how many differ. An adapter given as a folder is read at its first use.
    """

    def __init__(self, adapters: Mapping[str, RoadAdapter | str | Path]) -> None:
        if not adapters:
            raise InputError("a bank needs at least one adapter")
        self._entries: dict[str, Vectors | Path] = {}
        self._template: RoadAdapter | None = None
        self.version = 0  # grows with every change
        for name, adapter in adapters.items():
            self.add(name, adapter)

    @classmethod
    def from_folder(cls, folder: str | Path) -> RoadBank:
        """A bank of every adapter folder directly inside `folder`, by name. Nothing is read until it is used."""
        found = {path.parent.name: path.parent for path in sorted(Path(folder).glob(f"*/{DESCRIPTION}"))}
        if not found:
            raise InputError(f"{folder} holds no adapter folders")
        return cls(found)

    def add(self, name: str, adapter: RoadAdapter | str | Path) -> None:
        """Add an adapter under a new name."""
        if name in self._entries:
            raise InputError(f"the bank already has an adapter '{name}'; use replace")
        self._put(name, adapter)

    def replace(self, name: str, adapter: RoadAdapter | str | Path) -> None:
        """Put another adapter under a known name."""
        self._check_known([name])
        self._put(name, adapter)

    def remove(self, name: str) -> None:
        """Forget an adapter. The last one stays: a bank is never empty."""
        self._check_known([name])
        if len(self._entries) == 1:
            raise InputError(f"'{name}' is the bank's only adapter and cannot be removed")
        del self._entries[name]
        self.version += 1

    def _put(self, name: str, adapter: RoadAdapter | str | Path) -> None:
        if name == BASE:
            raise InputError(f"'{BASE}' stands for no adapter and cannot be given to one")
        self._entries[name] = self._flatten(name, adapter) if isinstance(adapter, RoadAdapter) else Path(adapter)
        self.version += 1

    @property
    def template(self) -> RoadAdapter:
        """The identity of the bank's family: sites, variant and group_size that all members share."""
        if self._template is None:
            self._vectors(next(iter(self._entries)))
        assert self._template is not None
        return self._template

    @property
    def num_bytes(self) -> int:
        """Memory of all values that have been read."""
        return sum(vector.nbytes for entry in self._entries.values() if isinstance(entry, tuple) for vector in entry)

    def rows(self, names: Sequence[str]) -> tuple[Float[Tensor, "rows n"], Float[Tensor, "rows n"]]:
        """Angles (radians) and scales of the named adapters, one row each, all sites side by side; `__base__` is the identity.

        Raises InputError for unknown names, listing the known ones.
        """
        self._check_known([name for name in names if name != BASE])
        read = {name: self._vectors(name) for name in names if name != BASE}
        size = self.template.num_parameters // 2
        pairs = [read.get(name, (torch.zeros(size), torch.ones(size))) for name in names]
        return torch.stack([theta for theta, _ in pairs]), torch.stack([alpha for _, alpha in pairs])

    def __getitem__(self, name: str) -> RoadAdapter:
        self._check_known([name])
        theta, alpha = self._vectors(name)
        names = [site.name for site in self.template.sites]
        sizes = [plane_maps.num_parameters(site.width, self.template.variant) for site in self.template.sites]
        return replace(
            self.template,
            theta=dict(zip(names, theta.split(sizes), strict=True)),
            alpha=dict(zip(names, alpha.split(sizes), strict=True)),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _vectors(self, name: str) -> Vectors:
        entry = self._entries[name]
        if isinstance(entry, Path):
            entry = self._entries[name] = self._flatten(name, RoadAdapter.load(entry))
        return entry

    def _flatten(self, name: str, adapter: RoadAdapter) -> Vectors:
        if self._template is None:
            self._template = adapter.identity_like()
        for what in ("variant", "group_size", "sites"):
            if (mine := getattr(self._template, what)) != (theirs := getattr(adapter, what)):
                detail = "" if what == "sites" else f" ({theirs}, not {mine})"
                raise InputError(f"adapter '{name}' does not fit this bank: its {what} differ{detail}")
        if self._template.base is None:
            self._template = replace(self._template, base=adapter.base)
        mine, theirs = self._template.base, adapter.base
        if mine is not None and theirs is not None and (odd := mine.difference(theirs)):
            raise InputError(f"adapter '{name}' does not fit this bank: it was made for another model, {odd}")
        theta = torch.cat([adapter.theta[site.name].detach().cpu().float() for site in adapter.sites])
        alpha = torch.cat([adapter.alpha[site.name].detach().cpu().float() for site in adapter.sites])
        return theta, alpha

    def _check_known(self, names: Sequence[str]) -> None:
        if unknown := sorted(set(names) - set(self._entries)):
            raise InputError(f"unknown adapter {', '.join(unknown)}; the bank holds {', '.join(self._entries)} and {BASE}")
