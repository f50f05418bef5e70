"""What stands in for a module's own `forward` while rotations are attached, so that its output passes through them.

Not a hook, for two reasons. PyTorch calls a module with hooks on a slower way, which one token per row would feel. And whoever
hooks the module, transformers' own `output_hidden_states` among them, gets the state that the next layer gets.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from road_interp.errors import InputError

Change = Callable[[Any, bool], Any]  # from a module's output, and whether torch.compile is tracing, to what the next layer gets
_LOCK = threading.Lock()


class Detour:
    """The forward of a module, followed by what each thread has put on the way of its own calls.

    What autograd calls again for gradient checkpointing, in a thread of its own on a GPU, goes the way of the one thread that has
    changes here. torch.compile knows no threads: there every change is made, whichever thread asked for it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.before: Any = module.__dict__.get("forward")
        self._forward, self._module = module.forward, module
        self._changes: dict[int, tuple[Change, ...]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, changed."""
        output = self._forward(*args, **kwargs)
        tracing = torch.compiler.is_compiling()
        changes = None if tracing else self._changes.get(threading.get_ident())
        if changes is None:
            changes = self._of_other_threads(tracing)
        for change in changes:
            output = change(output, tracing)
            if torch.is_grad_enabled() and (len(changes) > 1 or self._module._forward_hooks):
                output = _apart(output)
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the module gets its own forward: nobody could take a detour off it."""
        return copy.deepcopy(self._forward, memo)

    def _of_other_threads(self, tracing: bool) -> tuple[Change, ...]:
        threads = list(self._changes.values())
        if tracing:
            return tuple(change for each in threads for change in each)
        if not threads or torch._C._current_graph_task_id() == -1:  # not called from a backward pass
            return ()
        if len(threads) > 1:
            raise InputError(
                "gradient checkpointing cannot tell which of several threads' rotations it repeats; train in one thread"
            )
        return threads[0]

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


def own_forward(module: nn.Module) -> Any:
    """Somebody else's replacement of the module's forward, as of accelerate; None where there is none."""
    forward = module.__dict__.get("forward")
    return forward.before if isinstance(forward, Detour) else forward


def _apart(output: Any) -> Any:
    """The same values elsewhere: what a change keeps for its gradient stays whole, whatever is written into its output."""
    return output.clone() if isinstance(output, Tensor) else output


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
