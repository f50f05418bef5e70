"""What a request of continuous batching is rotated by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from road_interp.models.row_arguments import RowArguments


class RequestAdapter(NamedTuple):
    """The adapter of one request, named as for one row of a call.

    Attributes:
        adapter_name: name in the bank, or several joined by "+"; None for a model with a single adapter.
        tasks: active tasks, such as "label+closing"; None for all planes.
        strength: one number, or numbers by task, or by adapter in a bank; None for 1.
    """

    adapter_name: str | None = None
    tasks: str | None = None
    strength: float | Mapping[str, float] | None = None

    def as_rows(self) -> RowArguments:
        """The arguments of a call with one row."""
        return RowArguments(
            None if self.adapter_name is None else [self.adapter_name],
            None if self.tasks is None else [self.tasks],
            strengths=None if self.strength is None else [self.strength],
        )
