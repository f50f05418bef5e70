"""FactorTable: the plane maps of the requests of a continuous batch, in one buffer per device."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from road_interp.adapters.joined_names import BASE
from road_interp.models.request_adapter import RequestAdapter
from road_interp.models.row_selection import RowSelection, strength_key
from road_interp.rotation.plane_maps import PlaneMaps

IDENTITY = 0  # the row without a rotation
ROWS = 64  # of a new table


class FactorTable:
    """The plane maps of every distinct request, one row each, with the planes of all sites side by side; row 0 is the identity.

    A row stays after its last request, for the next one of its kind, until another kind needs its place. The buffers are static:
    they are replaced by longer ones only if more kinds than rows are in use at once.

    Args:
        selection: the model's adapters.
    """

    def __init__(self, selection: RowSelection) -> None:
        self._selection = selection
        self._rows: dict[Hashable, int] = {}  # the row of every kind of request
        self._kinds: list[Hashable] = [None]
        self._uses = [1]  # the number of requests of every row
        self._unused: dict[int, None] = {}  # rows without a request, the one that was used last at the end
        self._devices = devices = selection.rotations.devices
        maps = selection.rotations.coefficients().maps()
        self._columns: list[slice] = []
        ends = dict.fromkeys(devices, 0)
        for device, site_maps in zip(devices, maps, strict=True):
            start, ends[device] = ends[device], ends[device] + site_maps.a.shape[-1]
            self._columns.append(slice(start, ends[device]))
        values = dict(zip(devices, maps, strict=True))
        self._buffers = {device: _identity(values[device], ROWS, width) for device, width in ends.items()}

    def acquire(self, adapter: RequestAdapter) -> int:
        """The row of a request's maps, computed at the first request of its kind. Raises InputError for an unknown name."""
        adapter.as_rows().check(1)
        if adapter.adapter_name == BASE:
            self._computed(adapter)  # checks the names
            return IDENTITY
        kind = self._kind(adapter)
        row = self._rows.get(kind)
        if row is None or (self._may_change and self._has_changed(row, adapter)):
            maps = self._computed(adapter)
            row = self._rows[kind] = self._free_row(kind)
            self._write(row, maps)
            self._synchronize()
        self._uses[row] += 1
        self._unused.pop(row, None)
        return row

    def release(self, row: int) -> None:
        """End one use of a row."""
        if row != IDENTITY:
            self._uses[row] -= 1
            if not self._uses[row]:
                self._unused[row] = None

    def of(self, site: int, rows: Tensor, axes: int) -> PlaneMaps:
        """The maps of one site for states with that many axes, the last but one of which has one entry of `rows` per token."""
        a, b = self._buffers[self._devices[site]]
        shape, columns = (*[1] * (axes - 2), len(rows), -1), self._columns[site]
        return PlaneMaps(a[:, columns][rows].view(shape), None if b is None else b[:, columns][rows].view(shape))

    def _kind(self, adapter: RequestAdapter) -> Hashable:
        bank = self._selection.bank
        revisions: tuple[int, ...] = ()
        if bank is not None:
            name = self._selection.only_name() if adapter.adapter_name is None else adapter.adapter_name
            revisions = tuple(bank.revision(each) for each in self._selection.members(name) if each != BASE)
        return (*adapter[:2], revisions, strength_key(adapter.strength))

    @property
    def _may_change(self) -> bool:
        """Whether an optimizer may have changed the parameters since their row was written."""
        return self._selection.bank is None or self._selection.bank.is_trainable

    @torch.no_grad()
    def _computed(self, adapter: RequestAdapter) -> list[PlaneMaps]:
        """The maps of a request, one row per site."""
        maps = self._selection.coefficients(adapter.as_rows(), {}).maps()
        return [each if each.a.ndim == 1 else PlaneMaps(each.a[0], None if each.b is None else each.b[0]) for each in maps]

    def _free_row(self, kind: Hashable) -> int:
        """A row without a request: a new one, the one that has been without for longest, or one of a longer buffer."""
        capacity = len(next(iter(self._buffers.values())).a)
        if len(self._kinds) == capacity and self._unused:
            row = next(iter(self._unused))
            del self._unused[row]
            if self._rows.get(self._kinds[row]) == row:
                del self._rows[self._kinds[row]]
            self._kinds[row] = kind
            return row
        if len(self._kinds) == capacity:
            longer = {device: _doubled(buffer) for device, buffer in self._buffers.items()}
            self._synchronize()
            self._replaced, self._buffers = self._buffers, longer  # a pass on a GPU may still read those before
        self._kinds.append(kind)
        self._uses.append(0)
        return len(self._kinds) - 1

    def _synchronize(self) -> None:
        """Wait for what this thread has written: the engine reads on a stream of its own."""
        for device in self._buffers:
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()

    def _stored(self, site: int, row: int) -> PlaneMaps:
        """Views of one site's maps in a row."""
        a, b = self._buffers[self._devices[site]]
        return PlaneMaps(a[row, self._columns[site]], None if b is None else b[row, self._columns[site]])

    def _has_changed(self, row: int, adapter: RequestAdapter) -> bool:
        pairs = ((self._stored(site, row), maps) for site, maps in enumerate(self._computed(adapter)))
        return any(
            not torch.equal(stored.a, computed.a)
            or (stored.b is not None and computed.b is not None and not torch.equal(stored.b, computed.b))
            for stored, computed in pairs
        )

    def _write(self, row: int, maps: list[PlaneMaps]) -> None:
        for site, new in enumerate(maps):
            a, b = self._stored(site, row)
            a.copy_(new.a)
            if b is not None and new.b is not None:
                b.copy_(new.b)


def _identity(maps: PlaneMaps, capacity: int, width: int) -> PlaneMaps:
    """Identity maps of that many rows and planes, with the dtypes of `maps`."""
    a = maps.a.new_ones((capacity, width))
    return PlaneMaps(a, None if maps.b is None else maps.b.new_zeros((capacity, width)))


def _doubled(maps: PlaneMaps) -> PlaneMaps:
    """The same rows, followed by as many of the identity."""
    more = _identity(maps, *maps.a.shape)
    b = None if maps.b is None or more.b is None else torch.cat([maps.b, more.b])
    return PlaneMaps(torch.cat([maps.a, more.a]), b)
