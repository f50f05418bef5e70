"""TaskPlanes: named tasks that own disjoint sets of planes of the same states (paper, sections 3.2 and 4.3).

Different planes are orthogonal subspaces: rotating the planes of one task does not change those of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from road_interp.adapters.joined_names import check_name, known_names
from road_interp.arguments import check_argument, checked_list
from road_interp.errors import InputError
from road_interp.rotation import plane_maps
from road_interp.sites.site import Site

Split = Literal["shares", "alternating", "sites", "layers"]


@dataclass(frozen=True, eq=False)
class TaskPlanes:
    """Which planes of which sites each task owns.

    Attributes:
        sites: the rotated sites.
        owned: for every task and site name, a boolean mask of shape `(planes,)`; a task owns no plane of a site left out.

    Raises:
        InputError: no task, an invalid task name or mask, or a plane that two tasks own.
    """

    sites: tuple[Site, ...]
    owned: Mapping[str, Mapping[str, Bool[Tensor, " planes"]]]

    def __post_init__(self) -> None:
        sites = checked_list("TaskPlanes", self.sites, Site, "the sites of an adapter, adapter.sites")
        object.__setattr__(self, "sites", tuple(sites))
        check_argument("TaskPlanes", self.owned, Mapping, "a mask per task and site; for lists of planes, TaskPlanes.from_json")
        if not self.owned:
            raise InputError("TaskPlanes needs at least one task")
        if not sites:
            raise InputError("TaskPlanes needs at least one site")
        for task in self.owned:
            check_argument("TaskPlanes", task, str, "names of tasks, as in {'label': masks}")
            check_name(task, "a task")
        known = {site.name: site for site in self.sites}
        for task, masks in self.owned.items():
            lists = "a mask per site; for lists of planes, TaskPlanes.from_json"
            check_argument(f"TaskPlanes, task '{task}',", masks, Mapping, lists)
            for name, mask in masks.items():
                if name not in known:
                    raise InputError(f"task '{task}' owns planes of '{name}', which is not a site")
                check_argument(f"TaskPlanes, task '{task}', site '{name}',", mask, Tensor, "a boolean mask of its planes")
                if mask.dtype != torch.bool or mask.shape != (known[name].width // 2,):
                    raise InputError(
                        f"task '{task}', site '{name}': needs a boolean mask of shape ({known[name].width // 2},), "
                        f"not {mask.dtype} of shape {tuple(mask.shape)}"
                    )
        for site in self.sites:
            owner_count = torch.stack([self._mask(task, site) for task in self.owned]).sum(0)
            if owner_count.max() > 1:
                first = int((owner_count > 1).nonzero()[0])
                owners = [task for task in self.owned if self._mask(task, site)[first]]
                raise InputError(f"site '{site.name}': plane {first} belongs to {' and '.join(owners)}; tasks must be disjoint")

    @classmethod
    def split(cls, tasks: Sequence[str], sites: Sequence[Site], how: Split = "shares") -> TaskPlanes:
        """Assign every plane to one of the tasks.

        Args:
            how: "shares" (each task owns a contiguous share of every site's planes, in the order of the tasks, as in section
                4.3), "alternating" (plane `i` of every site belongs to task `i % n`), "sites" (site `i` belongs to task
                `i % n`), "layers" (the `i`-th of the layers that have sites belongs to task `i % n`).

        Raises:
            InputError: no list of different task names, no list of sites, an unknown split, a split by layer of sites outside the
                block stack, or a task without a plane.

        >>> planes = TaskPlanes.split(["german", "instruct"], [Site("layers.0", width=8)])
        >>> planes.to_json()
        {'german': {'layers.0': [0, 1]}, 'instruct': {'layers.0': [2, 3]}}
        """
        if isinstance(tasks, Mapping):
            raise InputError("TaskPlanes.split gives equal shares: give a list of tasks; for others, TaskPlanes(sites, masks)")
        tasks = checked_list("TaskPlanes.split", tasks, str, "the names of the tasks, as in ['label', 'closing']")
        sites = checked_list(
            "TaskPlanes.split", sites, Site, "the sites of an adapter, adapter.sites, or find_sites(model, 'mlp')"
        )
        if not tasks:
            raise InputError("TaskPlanes needs at least one task")
        if repeated := [task for task in tasks if tasks.count(task) > 1]:
            raise InputError(f"task '{repeated[0]}' is listed twice; give every task a name of its own")
        if how not in get_args(Split):
            raise InputError(f"unknown split '{how}'; use {', '.join(get_args(Split))}")
        if how == "layers" and any(site.layer is None for site in sites):
            raise InputError("planes cannot be split by layer: a site is outside the block stack")
        layers = sorted({site.layer for site in sites if site.layer is not None})
        owned: dict[str, dict[str, Tensor]] = {task: {} for task in tasks}
        for number, site in enumerate(sites):
            plane = torch.arange(site.width // 2)
            owner = {
                "shares": plane * len(tasks) // (site.width // 2),
                "alternating": plane % len(tasks),
                "sites": torch.full_like(plane, number % len(tasks)),
                "layers": torch.full_like(plane, layers.index(site.layer) % len(tasks) if site.layer in layers else 0),
            }[how]
            for index, task in enumerate(tasks):
                owned[task][site.name] = owner == index
        if without := [task for task, masks in owned.items() if not any(mask.any() for mask in masks.values())]:
            raise InputError(
                f"task '{without[0]}' would own no plane: split by '{how}', these sites do not suffice for all tasks"
            )
        return cls(tuple(sites), owned)

    def __repr__(self) -> str:
        return f"TaskPlanes({', '.join(self.owned)} at {len(self.sites)} sites)"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(self.owned)

    def named(self, active: str) -> tuple[str, ...]:
        """The tasks in a text such as "german+instruct"; none for "__base__". Raises InputError that lists the known tasks."""
        return known_names(active, self.owned, "task")

    def of(self, active: str) -> dict[str, Bool[Tensor, " planes"]]:
        """The planes of the active tasks, by site name, as an argument for `RoadAdapter.restrict`."""
        names = self.named(active)
        return {site.name: self._union(names, site) for site in self.sites}

    def rows(self, active: Sequence[str]) -> list[Bool[Tensor, "rows planes"]]:
        """For every site, the planes of the active tasks of each row."""
        unique = list(dict.fromkeys(active))
        index = torch.tensor([unique.index(text) for text in active])
        named = [self.named(text) for text in unique]
        return [torch.stack([self._union(names, site) for names in named])[index] for site in self.sites]

    def strengths(self, rows: Sequence[Mapping[str, float]]) -> list[Float[Tensor, "rows planes"]]:
        """For every site, the strengths of the planes of each row: that of the owner, 1 for planes without one.

        Args:
            rows: strengths by task; tasks that are left out have strength 1.

        Raises:
            InputError: an unknown task.
        """
        for task in {task for row in rows for task in row}:
            if task not in self.owned:
                raise InputError(f"unknown task '{task}' in strengths; the tasks are {', '.join(self.owned)}")
        exponents = []
        for site in self.sites:
            exponents.append(torch.ones(len(rows), site.width // 2, dtype=torch.float32))
            for number, row in enumerate(rows):
                for task, strength in row.items():
                    exponents[-1][number, self._mask(task, site)] = strength
        return exponents

    def dimensions(self, site: Site, group_size: int) -> list[list[int]]:
        """The dimensions of every task at one site, as pyvene's `subspace_partition`.

        A task with one plane has its last dimension twice, because pyvene takes two numbers for a range.
        """
        first, second = plane_maps.plane_dimensions(site.width, group_size)
        masks = [self._mask(task, site) for task in self.owned]
        listed = [sorted([*first[mask].tolist(), *second[mask].tolist()]) for mask in masks]
        return [[*each, each[-1]] if len(each) == 2 else each for each in listed]

    def to_json(self) -> dict[str, Any]:
        """Plane indices by task and site."""
        return {
            task: {name: mask.nonzero().flatten().tolist() for name, mask in masks.items()} for task, masks in self.owned.items()
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Mapping[str, Sequence[int]]], sites: Sequence[Site]) -> TaskPlanes:
        """Tasks from lists of plane indices, as in `to_json`. Raises InputError for anything else."""
        if not isinstance(content, Mapping):
            raise InputError(f"planes of tasks must be a mapping of tasks to sites and planes, not {content!r}")
        sites = checked_list("TaskPlanes.from_json", sites, Site, "the sites of an adapter, adapter.sites")
        plane_counts = {site.name: site.width // 2 for site in sites}
        owned: dict[str, dict[str, Tensor]] = {}
        for task, lists in content.items():
            owned[task] = {}
            if not isinstance(lists, Mapping):
                raise InputError(f"task '{task}' must own a mapping of sites to planes, not {lists!r}")
            for name, planes in lists.items():
                if name not in plane_counts:
                    raise InputError(f"task '{task}' owns planes of '{name}', which is not a site")
                if not isinstance(planes, Sequence) or not all(type(plane) is int for plane in planes):
                    raise InputError(f"task '{task}': site '{name}' must have a list of whole numbers, not {planes!r}")
                if any(not 0 <= plane < plane_counts[name] for plane in planes):
                    raise InputError(f"task '{task}': site '{name}' has planes 0 to {plane_counts[name] - 1}")
                owned[task][name] = torch.zeros(plane_counts[name], dtype=torch.bool)
                owned[task][name][torch.tensor(list(planes), dtype=torch.long)] = True
        return cls(tuple(sites), owned)

    def _mask(self, task: str, site: Site) -> Tensor:
        masks = self.owned[task]
        return masks[site.name] if site.name in masks else torch.zeros(site.width // 2, dtype=torch.bool)

    def _union(self, names: Sequence[str], site: Site) -> Tensor:
        none = torch.zeros(site.width // 2, dtype=torch.bool)
        return torch.stack([none, *(self._mask(name, site) for name in names)]).any(0)
