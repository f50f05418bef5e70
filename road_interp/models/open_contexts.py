"""What runs on a base model at one time: calls with rotations, attached rotations, and what must have the model to itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, Literal
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from road_interp.errors import InputError
from road_interp.rotation.plane_maps import PlaneMaps

Kind = Literal["call", "only call", "attached", "alone"]
_OPEN: WeakKeyDictionary[PreTrainedModel, list[OpenContext]] = WeakKeyDictionary()  # of every model
_LOCK = Lock()


class OpenContext:
    """Something that runs on a model.

    Attributes:
        name: in errors.
        kind: a "call" concerns its own thread. An "only call" would change the calls beside it, as compiled code does.
            "attached" rotations concern the calls of every thread. What changes the model for every thread, such as a merge, has
            it "alone".
        owner: the RoadModel that opened it.
        maps: returns the maps of attached rotations; None for anything else.
        is_ready: False while attached rotations are put in place or removed.
    """

    def __init__(self, name: str, kind: Kind, owner: Any = None, is_ready: bool = True) -> None:
        self.name, self.kind, self.owner, self.is_ready = name, kind, owner, is_ready
        self.maps: Callable[[], Sequence[PlaneMaps]] | None = None

    def admits(self, kind: Kind) -> bool:
        """Whether a context of another kind may be opened beside this one: calls beside attached rotations, and beside calls."""
        if self.kind == "attached":
            return self.is_ready and kind in ("call", "only call")
        return self.kind == kind == "call"


@contextmanager
def opened(model: PreTrainedModel, name: str, kind: Kind, owner: Any = None, is_ready: bool = True) -> Iterator[OpenContext]:
    """Register what runs on a model. Raises InputError, which names both, beside a context that does not admit it."""
    context = OpenContext(name, kind, owner, is_ready)
    with _LOCK:
        others = _OPEN.setdefault(model, [])
        if (other := next((each for each in others if not each.admits(kind)), None)) is not None:
            raise InputError(
                f"{name} overlaps with {other.name}: one of them changes the model for every thread. End the first, or use "
                "forward and generate alone, whose rotations belong to their caller"
            )
        others.append(context)
    try:
        yield context
    finally:
        with _LOCK:
            others.remove(context)


def is_rotated(model: PreTrainedModel) -> bool:
    """Whether a context is open on a model: a call may be rotated."""
    return bool(_OPEN.get(model))


def shared_context(model: PreTrainedModel) -> OpenContext | None:
    """The context that changes the calls of every thread; None if there is none. There is one at most."""
    return next((each for each in _OPEN.get(model, ()) if each.kind in ("attached", "alone")), None)
