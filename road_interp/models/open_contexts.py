"""What runs on a base model at one time: calls, interchanges, attached rotations, and what must have the model to itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal
from weakref import WeakKeyDictionary

from torch import nn

from road_interp.errors import InputError
from road_interp.models.call_stack import calls_of_other_threads
from road_interp.rotation.plane_maps import PlaneMaps

Kind = Literal["call", "interchange", "attached", "merged", "alone", "merge"]
_OPEN: WeakKeyDictionary[nn.Module, list[OpenContext]] = WeakKeyDictionary()  # of every model
_LOCK = threading.RLock()  # garbage collection inside it may close a generator that holds a context


class OpenContext:
    """Something that runs on a model.

    Attributes:
        name: in errors: what it is, and in which thread it began.
        kind: a "call" concerns its own thread. An "interchange" would change the calls beside it. "attached" rotations concern
            the calls of every thread; where they are merged, the statement only keeps the weights ("merged"). A "merge" changes
            the weights; pyvene's loop and the engine have the model "alone".
        owner: the RoadModel that opened it.
        rotates: of a call, whether it has rotations of its own.
        compiles: of a call, whether it runs compiled code, which cannot tell the rotations of several calls apart.
        is_ready: False while attached rotations are put in place or removed.
        maps: returns the maps of attached rotations; None for anything else.
        by_row: whether attached rotations have maps or tokens of their own for every row of a call.
        own_call: returns a context for a call of the owner inside its attached rotations.
    """

    def __init__(self, name: str, kind: Kind, owner: Any, rotates: bool, compiles: bool) -> None:
        self.name, self.kind, self.owner, self.rotates, self.compiles = name, kind, owner, rotates, compiles
        self.is_ready = kind != "attached"
        self.maps: Callable[[], Sequence[PlaneMaps]] | None = None
        self.by_row = False
        self.own_call: Callable[[], AbstractContextManager[None]] = nullcontext

    def admits(self, new: OpenContext) -> bool:
        """Whether another context may be opened beside this one."""
        if "merged" in (self.kind, new.kind):
            return "merge" not in (self.kind, new.kind)
        if self.kind == "attached":
            return self.is_ready and new.kind in ("call", "interchange")
        if self.kind == new.kind == "call":
            return not ((self.compiles and new.rotates) or (new.compiles and self.rotates))
        return False


@contextmanager
def opened(
    model: nn.Module, what: str, kind: Kind, owner: Any = None, rotates: bool = False, compiles: bool = False
) -> Iterator[OpenContext]:
    """Register what runs on a model. Raises InputError, which names both, beside a context that does not admit it, and for what
    changes the calls of every thread while another thread calls the model.

    A context of a model is one of the models that contain it, and of its parts, too.

    Args:
        what: the first part of its name, such as "a call".
    """
    context = OpenContext(f"{what} in {threading.current_thread().name}", kind, owner, rotates, compiles)
    with _LOCK:
        other = next((each.name for each in _contexts(model) if not each.admits(context)), None)
        if other is None and kind not in ("call", "merged"):
            other = _plain_call(model)
        if other is not None:
            raise InputError(
                f"{context.name} overlaps with {other}: one of them changes the model for every thread. End the first, or "
                "use forward and generate alone, whose rotations belong to their caller"
            )
        own = _OPEN.setdefault(model, [])
        own.append(context)
    try:
        yield context
    finally:
        with _LOCK:
            own.remove(context)


def is_rotated(model: nn.Module) -> bool:
    """Whether a call of a model may be rotated by an open context."""
    return any(each.kind != "merged" for each in _contexts(model))


def shared_context(model: nn.Module) -> OpenContext | None:
    """The context that changes the calls of every thread; None if there is none. There is one at most."""
    return next((each for each in _contexts(model) if each.kind in ("attached", "alone", "merge")), None)


def _plain_call(model: nn.Module) -> str | None:
    """A call of the model, or of one that contains it, that another thread runs without a context, and that would be rotated
    from its middle on."""
    calls = calls_of_other_threads()
    return next((f"a call of the base model in {thread}" for thread, called in calls if _contains(called, model)), None)


def _contexts(model: nn.Module) -> list[OpenContext]:
    """The open contexts of a model, of its parts and of the models that contain it."""
    with _LOCK:
        others = [(other, contexts) for other, contexts in _OPEN.items() if contexts and other is not model]
        related = [contexts for other, contexts in others if _contains(model, other) or _contains(other, model)]
        return [each for contexts in (_OPEN.get(model, ()), *related) for each in contexts]


def _contains(model: nn.Module, part: nn.Module) -> bool:
    return any(module is part for module in model.modules())
