"""Wrap the `forward` of a module, so that its output passes through transforms such as rotations.

A wrapper is used instead of a hook for two reasons. PyTorch calls modules with hooks through a slower path, which is noticeable
at one token per row. And hooks on the module, including those of transformers' `output_hidden_states`, then receive the
transformed output, which is also the input of the next layer.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from road_interp.errors import InputError

# From a module's output, and whether torch.compile is tracing, to the output that the next layer gets.
OutputTransform = Callable[[Any, bool], Any]
_ACTIVE: ContextVar[tuple[CallScope, ...]] = ContextVar("active scopes", default=())
_LOCK = threading.RLock()  # garbage collection inside it may close a generator that holds a context


def is_backward() -> bool:
    """Whether autograd's backward pass runs in this thread, where gradient checkpointing calls modules again."""
    return torch._C._current_graph_task_id() != -1


class CallScope:
    """The set of calls to which transforms apply.

    Those of a call's scope apply to the calls of the thread that entered it, or of an asyncio task in it, until it enters another
    one, as a call inside a call does: a thread that runs with a copy of the context, as in `asyncio.to_thread`, is not included.
    Those of a shared scope apply to the calls of every thread, those of another thread's scope to the calls of that thread.
    Scopes may be exited in any order.

    Args:
        shared: whether the transforms apply to all threads.
        of: returns the thread to whose calls the transforms apply, if it is not the one that enters the scope.
    """

    def __init__(self, shared: bool = False, of: Callable[[], threading.Thread | None] | None = None) -> None:
        self.shared, self._of = shared, of

    def __enter__(self) -> CallScope:
        self._thread = threading.current_thread()
        if not self.shared and self._of is None:
            _ACTIVE.set((*_ACTIVE.get(), self))
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.shared and self._of is None:
            _ACTIVE.set(tuple(scope for scope in _ACTIVE.get() if scope is not self))

    @property
    def is_active(self) -> bool:
        """Whether the transforms apply to the calls of the running thread or asyncio task."""
        if self.shared or self._of is not None:
            return self._of is None or self._of() is threading.current_thread()
        return self in _ACTIVE.get()[-1:] and self._thread is threading.current_thread()


class Registered(NamedTuple):
    """A transform, and the scope to which it applies."""

    scope: CallScope
    transform: OutputTransform


class ForwardWrapper:
    """A module's forward, followed by the transforms of the active scopes.

    When gradient checkpointing runs forward again in autograd's own thread, as on a GPU, those of shared scopes apply.
    torch.compile cannot trace scopes: all transforms apply, but those of several calls raise InputError, which ends the tracing.
    """

    def __init__(self, module: nn.Module) -> None:
        self.replaced: Any = module.__dict__.get("forward")
        self._forward, self._module = module.forward, module
        self._registered: tuple[Registered, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, transformed."""
        output = self._forward(*args, **kwargs)
        tracing, registered = torch.compiler.is_compiling(), self._registered
        if len(registered) == 1 and not tracing and not torch.is_grad_enabled():
            scope, transform = registered[0]  # a shortcut with the same result: at one token per row, lists take time
            return transform(output, False) if scope.is_active else output
        if tracing:
            self._check_one_call()
        transforms = [each.transform for each in registered if tracing or each.scope.is_active]
        for transform in transforms:
            output = transform(output, tracing)
            if torch.is_grad_enabled() and (len(transforms) > 1 or self._module._forward_hooks):
                output = _copied(output)
        return output

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Copies of the module get the original forward, because no `restore` would remove a wrapper from them."""
        return copy.deepcopy(self._forward, memo)

    def fits(self, module: nn.Module) -> bool:
        """Whether this wraps the module's current forward, which may also have been changed in its class."""
        if self._module is not module or self.replaced is not module.__dict__.get("forward"):
            return False
        return self.replaced is not None or getattr(self._forward, "__func__", self._forward) is type(module).forward

    def _check_one_call(self) -> None:
        calls = [each.scope for each in self._registered if not each.scope.shared]
        if any(scope is not calls[0] for scope in calls):
            raise InputError("compiled code cannot tell the rotations of several calls apart: call one after the other")

    def add(self, entry: Registered) -> None:
        """Register a transform; it applies after those registered before."""
        self._registered = (*self._registered, entry)

    def remove(self, entry: Registered) -> bool:
        """Unregister a transform. Returns whether no transform is left."""
        position = next(number for number, each in enumerate(self._registered) if each is entry)
        self._registered = self._registered[:position] + self._registered[position + 1 :]
        return not self._registered


def original_forward(module: nn.Module) -> Any:
    """Another library's replacement of the module's forward, such as accelerate's; None if forward is not replaced."""
    forward = module.__dict__.get("forward")
    return forward.replaced if isinstance(forward, ForwardWrapper) else forward


class Wrappers(dict[str, "ForwardWrapper"]):
    """The wrappers that a model's sites had last, by module path: a compiled model stays valid while it finds the same ones."""

    def of(self, name: str, module: nn.Module) -> ForwardWrapper:
        """The wrapper of a module that has none now, for its current forward."""
        last = self.get(name)
        if not isinstance(last, ForwardWrapper) or not last.fits(module):
            last = self[name] = ForwardWrapper(module)
        return last

    def __deepcopy__(self, memo: dict[int, Any]) -> Wrappers:
        return Wrappers()

    def __reduce__(self) -> tuple[type[Wrappers], tuple[()]]:
        return Wrappers, ()


def wrap_forward(
    module: nn.Module, transform: OutputTransform, scope: CallScope, make: Callable[[nn.Module], ForwardWrapper] = ForwardWrapper
) -> Callable[[], None]:
    """Apply `transform` to the output of `module` for calls in `scope`. Returns a function that undoes it, in any order.

    Args:
        make: returns a wrapper for a module that has none.
    """
    entry = Registered(scope, transform)
    with _LOCK:
        forward = module.__dict__.get("forward")
        wrapper = forward if isinstance(forward, ForwardWrapper) else make(module)
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
    """A copy, so that in-place writes into a transform's output do not change the tensors that autograd saved for it."""
    return output.clone() if isinstance(output, Tensor) else output


def overwritable(module: nn.Module) -> bool:
    """Whether the module's output may be overwritten: that of a linear layer is a new tensor without other references, unless a
    library other than accelerate replaced its forward."""
    return type(module) in (nn.Linear, Conv1D) and (original_forward(module) is None or hasattr(module, "_hf_hook"))
