"""What stands in for a module's own `forward` while rotations are attached, so that its output passes through them.

Not a hook, for two reasons. PyTorch calls a module with hooks on a slower way, which one token per row would feel. And whoever
hooks the module, transformers' own `output_hidden_states` among them, gets the state that the next layer gets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Change = Callable[[Any, bool], Any]  # from a module's output, and whether torch.compile is tracing, to what the next layer gets
_LOCK = threading.Lock()


class Detour:
    """The forward of a module, followed by what each thread has put on the way of its own calls.

    torch.compile knows no threads: there every change is made, whichever thread asked for it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.before: Any = module.__dict__.get("forward")  # somebody's own replacement, as of accelerate
        self._forward = module.forward
        self._changes: dict[int, tuple[Change, ...]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, changed."""
        output = self._forward(*args, **kwargs)
        if tracing := torch.compiler.is_compiling():
            changes = tuple(change for each in self._changes.values() for change in each)
        else:
            changes = self._changes.get(threading.get_ident(), ())
        for change in changes:
            output = change(output, tracing)
        return output

    def add(self, thread: int, change: Change) -> None:
        """Put `change` behind those of that thread."""
        self._changes[thread] = (*self._changes.get(thread, ()), change)

    def remove(self, thread: int, change: Change) -> bool:
        """Take `change` away; whether nobody has one left."""
        mine = self._changes[thread]
        place = mine.index(change)
        if left := mine[:place] + mine[place + 1 :]:
            self._changes[thread] = left
        else:
            del self._changes[thread]
        return not self._changes


def divert(module: nn.Module, change: Change) -> Callable[[], None]:
    """From now on the calling thread gets `change(output)` from `module`. Returns what takes it back, in any order."""
    thread = threading.get_ident()
    with _LOCK:
        found = module.__dict__.get("forward")
        detour = found if isinstance(found, Detour) else Detour(module)
        module.forward = detour
        detour.add(thread, change)

    def restore() -> None:
        with _LOCK:
            if not detour.remove(thread, change) or module.__dict__.get("forward") is not detour:
                return
            if detour.before is None:
                del module.forward
            else:
                module.forward = detour.before

    return restore
