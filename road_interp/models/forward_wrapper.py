"""The replacement of a module's own `forward` while rotations are on, so that its output passes through them.

It is not a hook, for two reasons. PyTorch calls a module that has hooks through a slower path, which shows at one token per row.
And whoever hooks the module, transformers' own `output_hidden_states` among them, gets the state that the next layer gets.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from road_interp.errors import InputError

OutputTransform = Callable[
    [Any, bool], Any
]  # from a module's output, and whether torch.compile is tracing, to what the next layer gets
_ACTIVE: ContextVar[tuple[CallScope, ...]] = ContextVar("active scopes", default=())
_LOCK = threading.Lock()


class CallScope:
    """The calls that transforms apply to: those made in the execution context that entered the scope.

    A thread, and a task of asyncio, has a context of its own (`contextvars`). Scopes may be left in any order.
    """

    def __enter__(self) -> CallScope:
        entered = _ACTIVE.get()
        self._outermost = entered[0] if entered else self
        _ACTIVE.set((*entered, self))
        return self

    def __exit__(self, *exception: object) -> None:
        _ACTIVE.set(tuple(scope for scope in _ACTIVE.get() if scope is not self))

    @property
    def outermost(self) -> CallScope:
        """The first of the scopes that were active when this one was entered: the same for all of one context."""
        return self._outermost

    @property
    def is_active(self) -> bool:
        """Whether the calling context is in the scope."""
        return self in _ACTIVE.get()


class Registered(NamedTuple):
    """A transform, and the calls that it applies to."""

    scope: CallScope
    transform: OutputTransform


class ForwardWrapper:
    """A module's forward, followed by the transforms of the active scopes.

    When gradient checkpointing re-runs forward in autograd's own thread, as on a GPU, the transforms of the only registered
    context are used; several registered contexts are an error. torch.compile cannot trace contexts: it applies every transform.
    """

    def __init__(self, module: nn.Module) -> None:
        self.replaced: Any = module.__dict__.get("forward")
        self._forward, self._module = module.forward, module
        self._registered: tuple[Registered, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, transformed."""
        output = self._forward(*args, **kwargs)
        tracing = torch.compiler.is_compiling()
        transforms = [each.transform for each in self._registered] if tracing else self._active_transforms()
        for transform in transforms:
            output = transform(output, tracing)
            if torch.is_grad_enabled() and (len(transforms) > 1 or self._module._forward_hooks):
                output = _copied(output)
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the module gets the original forward: nothing could take a wrapper off it."""
        return copy.deepcopy(self._forward, memo)

    def _active_transforms(self) -> list[OutputTransform]:
        active = _ACTIVE.get()
        transforms = [each.transform for each in self._registered if each.scope in active]
        if transforms or not self._registered or torch._C._current_graph_task_id() == -1:  # not called from a backward pass
            return transforms
        if len({id(each.scope.outermost) for each in self._registered}) > 1:
            raise InputError(
                "gradient checkpointing cannot tell which of several threads' rotations it repeats; train in one thread"
            )
        return [each.transform for each in self._registered]

    def add(self, entry: Registered) -> None:
        """Apply a transform after those that are registered."""
        self._registered = (*self._registered, entry)

    def remove(self, entry: Registered) -> bool:
        """Take a transform away; whether none is left."""
        position = next(number for number, each in enumerate(self._registered) if each is entry)
        self._registered = self._registered[:position] + self._registered[position + 1 :]
        return not self._registered


def original_forward(module: nn.Module) -> Any:
    """Another library's replacement of the module's forward, such as accelerate's; None where there is none."""
    forward = module.__dict__.get("forward")
    return forward.replaced if isinstance(forward, ForwardWrapper) else forward


def wrap_forward(module: nn.Module, transform: OutputTransform, scope: CallScope) -> Callable[[], None]:
    """Give calls of `module` in an entered scope `transform(output)`. Returns what undoes it, in any order."""
    entry = Registered(scope, transform)
    with _LOCK:
        found = module.__dict__.get("forward")
        wrapper = found if isinstance(found, ForwardWrapper) else ForwardWrapper(module)
        module.forward = wrapper
        wrapper.add(entry)

    def restore() -> None:
        with _LOCK:
            if not wrapper.remove(entry) or module.__dict__.get("forward") is not wrapper:
                return
            if wrapper.replaced is None:
                del module.forward
            else:
                module.forward = wrapper.replaced

    return restore


def _copied(output: Any) -> Any:
    """A copy: what a transform keeps for its gradient stays whole, whatever is written into its output."""
    return output.clone() if isinstance(output, Tensor) else output
