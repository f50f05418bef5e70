"""RoadBank: several adapters with the same sites, from which every row of a batch can use a different one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from road_interp.adapters.file_names import RUN_RECIPE
from road_interp.adapters.joined_names import BASE, check_name
from road_interp.adapters.road_adapter import RoadAdapter, Source
from road_interp.adapters.storage import adapter_folder, holds_adapter
from road_interp.arguments import check_argument
from road_interp.errors import InputError
from road_interp.files import is_dir, is_file
from road_interp.rotation import plane_maps
from road_interp.sources import local_folder

Vectors = tuple[Tensor, Tensor]
CHANGING = threading.RLock()  # of all banks, which are copied and pickled with their adapters


class RoadBank(Mapping[str, RoadAdapter]):
    """Named adapters of one family, that is, with the same sites (in any order), variant, group_size and positions, and without
    heads of their own: rows share the base model's head, so that adapters trained beside different heads cannot share a bank.

    The bank stores an adapter as one flat fp32 vector of angles and one of scales, with all sites concatenated: as many values as
    the adapter has parameters. Adapters may be added, removed and replaced while a model uses the bank; its next call uses the
    change. The cost of a batch depends on its number of rows, not on the number of adapters. An adapter is given as what
    `RoadAdapter.of` takes; one given as a folder is read at its first use. In `adapter_names`, "a+b" is the product of a and
    b.
    """

    def __init__(self, adapters: Mapping[str, Source]) -> None:
        if not isinstance(adapters, Mapping):
            raise InputError("give the adapters of a bank by name, as in RoadBank({'a': first, 'b': second})")
        if not adapters:
            raise InputError("a bank needs at least one adapter")
        self._entries: dict[str, Vectors | Path] = {}
        self._template: RoadAdapter | None = None
        self.folder: str | os.PathLike[str] | None = None  # of one adapter; all were trained beside the same head
        self._revisions: dict[str, int] = {}
        self.version = 0  # increases with every change
        for name, adapter in adapters.items():
            self.add(name, adapter)

    def __repr__(self) -> str:
        if (family := self._template) is None:  # all are folders that have not been read
            return f"RoadBank({len(self)} adapters, not read yet)"
        shape = f"{family.variant} at {len(family.sites)} sites, {family.num_parameters} parameters each"
        return f"RoadBank({len(self)} adapters, {shape}, positions {family.positions})"

    @classmethod
    def from_folder(cls, folder: str | Path) -> RoadBank:
        """A bank of the adapter folders, run folders and PEFT folders directly inside `folder`, under their folder names.

        `folder` is a path, or `package://NAME/path`. Each is read at its first use. Raises InputError if there is none.
        """
        inside = sorted(path.iterdir()) if is_dir(path := local_folder(folder)) else []
        folders = {path.name: path for path in inside if holds_adapter(adapter_folder(path))}
        if holds_adapter(path) or is_file(path / RUN_RECIPE):
            around = path.resolve().parent
            raise InputError(
                f"{folder} is the folder of one adapter: give that around it, {around}, or RoadBank({{name: folder}})"
            )
        if not folders:
            raise InputError(f"{folder} contains no adapter folders, run folders or PEFT folders")
        return cls(folders)

    @classmethod
    def from_peft(cls, source: Any, base: Any = None) -> RoadBank:
        """A bank of PEFT's RoAd adapters: all of a PeftModel under their names, or folders by name.

        Args:
            source: a PeftModel in memory, or a mapping from names to PEFT folders.
            base: for folders, the base model, whose modules determine the order and the layers of the sites.

        Raises:
            InputError: an adapter of another type or that cannot be read, or adapters that do not fit together.
        """
        if isinstance(source, Mapping):
            bank = cls({name: RoadAdapter.from_peft(folder, base=base) for name, folder in source.items()})
            bank.folder = next(iter(source.values()))
            return bank
        names = list(getattr(source, "peft_config", {}))
        if not names:
            raise InputError("the model has no PEFT adapters: give a PeftModel, or folders by name")
        return cls({name: RoadAdapter.from_peft(source, name, base) for name in names})

    def add(self, name: str, adapter: Source) -> None:
        """Add an adapter under a new name. Raises InputError for a name that the bank has."""
        if isinstance(name, str) and name in self._entries:
            raise InputError(f"the bank already has an adapter '{name}'; use replace")
        self._put(name, adapter)

    def replace(self, name: str, adapter: Source) -> None:
        """Replace the adapter of a name. Raises InputError for an unknown name."""
        self._check_known([name])
        self._put(name, adapter)

    def remove(self, name: str) -> None:
        """Remove an adapter. Raises InputError for an unknown name and for the only adapter: a bank is never empty."""
        with CHANGING:
            self._check_known([name])
            if len(self._entries) == 1:
                raise InputError(f"'{name}' is the bank's only adapter and cannot be removed")
            del self._entries[name]
            self.version += 1

    def _put(self, name: str, adapter: Source) -> None:
        if not isinstance(name, str) or not name or name != name.strip():
            raise InputError(f"{name!r} cannot be the name of an adapter: it must be text, without spaces around it")
        check_name(name, "an adapter")
        entry: Vectors | Path
        if isinstance(adapter, str | os.PathLike):
            entry = local_folder(adapter)
            if not holds_adapter(adapter_folder(entry)):
                raise InputError(f"adapter '{name}': '{adapter}' contains no adapter, run or PEFT adapter")
        else:
            others = [other for other in self._entries if other != name]
            if self._template is None and others:
                self._vectors(others[0])  # the family is that of the bank, and not of a new adapter that may not fit
            entry = self._flatten(name, RoadAdapter.of(adapter), getattr(adapter, "folder", None))
        with CHANGING:
            self._entries[name] = entry
            self.version += 1
            self._revisions[name] = self.version

    def revision(self, name: str) -> int:
        """A number that changes when the adapter of a name is replaced. Raises InputError for an unknown name."""
        self._check_known([name])
        return self._revisions[name]

    def trainable(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """Make every adapter trainable, and return its angles and scales, two flat vectors in fp32, by name.

        In a batch with `adapter_names`, each row's loss then has gradients for its own adapter only. A sum of the losses of
        several adapters trains each as if alone, with an optimizer's parameter group, learning rate and gradient clipping of its
        own. Adapters that are added or replaced later are not trainable until the next call, which keeps the parameters of the
        others.
        """
        with CHANGING:
            for name, entry in list(self._entries.items()):
                if not _is_trainable(entry):
                    theta, alpha = self._vectors(name)
                    self._entries[name] = (nn.Parameter(theta.detach().clone()), nn.Parameter(alpha.detach().clone()))
            self.version += 1
            return {name: entry for name, entry in self._entries.items() if _is_trainable(entry)}

    @property
    def is_trainable(self) -> bool:
        """Whether an adapter may change between two passes of a model without a change of `version`."""
        return any(map(_is_trainable, list(self._entries.values())))

    @property
    def template(self) -> RoadAdapter:
        """The identity adapter of the bank's family, with the sites, variant, group_size and positions of all."""
        if self._template is None:
            self._vectors(next(iter(self._entries)))
        assert self._template is not None
        return self._template

    @property
    def num_bytes(self) -> int:
        """Memory of the values of all adapters that have been read, in bytes."""
        return sum(vector.nbytes for entry in list(self._entries.values()) if isinstance(entry, tuple) for vector in entry)

    def rows(self, names: Sequence[str]) -> tuple[Float[Tensor, "rows n"], Float[Tensor, "rows n"]]:
        """Angles (radians) and scales (factors) of the named adapters, one row each, with all sites concatenated.

        `"__base__"` is the identity. Raises InputError for unknown names and lists the known ones.
        """
        self._check_known([name for name in names if name != BASE])
        read = {name: self._vectors(name) for name in names if name != BASE}
        size = self.template.num_parameters // 2
        identity = torch.zeros(size, dtype=torch.float32), torch.ones(size, dtype=torch.float32)
        pairs = [read.get(name, identity) for name in names]
        return torch.stack([theta for theta, _ in pairs]), torch.stack([alpha for _, alpha in pairs])

    def __getitem__(self, name: str) -> RoadAdapter:
        self._check_known([name])
        theta, alpha = (vector.detach().clone() for vector in self._vectors(name))
        names = [site.name for site in self.template.sites]
        sizes = [plane_maps.num_parameters(site.width, self.template.variant) for site in self.template.sites]
        return replace(
            self.template,
            theta=dict(zip(names, theta.split(sizes), strict=True)),
            alpha=dict(zip(names, alpha.split(sizes), strict=True)),
        )

    __eq__, __hash__ = object.__eq__, object.__hash__  # adapters are not compared, which would read every folder

    def get(self, name: str, default: Any = None) -> Any:
        """The adapter of a name, or `default` where the bank has none."""
        return self[name] if name in self else default  # noqa: SIM401

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _vectors(self, name: str) -> Vectors:
        """Those of an adapter, which are read at first. One that is replaced meanwhile is looked up again."""
        self._check_known([name])
        entry = self._entries[name]
        if not isinstance(entry, Path):
            return entry
        read = self._flatten(name, RoadAdapter.load(entry), entry)
        with CHANGING:
            if self._entries.get(name) is entry:
                self._entries[name] = read
                return read
        return self._vectors(name)

    def _flatten(self, name: str, adapter: RoadAdapter, folder: Path | None) -> Vectors:
        if self._template is None:
            self._template = adapter.identity_like()
        if difference := difference_of(self._template, adapter):
            raise InputError(f"adapter '{name}' does not fit this bank: {difference}")
        if self._template.base is None:
            self._template = replace(self._template, base=adapter.base)
        self.folder = self.folder or folder
        theta = torch.cat([adapter.theta[site.name].detach().cpu().float() for site in self._template.sites])
        alpha = torch.cat([adapter.alpha[site.name].detach().cpu().float() for site in self._template.sites])
        return theta, alpha

    def _check_known(self, names: Sequence[str]) -> None:
        for name in names:
            check_argument("a bank", name, str, "the name of an adapter")
        if unknown := sorted(set(names) - set(self._entries)):
            raise InputError(
                f"unknown adapter {', '.join(map(repr, unknown))}; the bank holds {', '.join(self._entries)} and {BASE}"
            )


def difference_of(family: RoadAdapter, adapter: RoadAdapter) -> str:
    """In what an adapter differs from those of its family; empty if it fits."""
    for field in ("variant", "group_size", "positions"):
        if (given := getattr(adapter, field)) != (expected := getattr(family, field)):
            return f"its {field} is {given}, not {expected}"
    if set(adapter.sites) != set(family.sites):
        return "its sites differ"
    if adapter.modules_to_save != family.modules_to_save:
        return "its modules_to_save differ, such as its head: all rows use those of the base model"
    if family.base is not None and adapter.base is not None and (difference := family.base.difference(adapter.base)):
        return f"it was made for another model, {difference}"
    return ""


def _is_trainable(entry: Vectors | Path) -> bool:
    return isinstance(entry, tuple) and isinstance(entry[0], nn.Parameter)
