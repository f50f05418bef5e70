"""SiteModules: the modules that `attached` rotates, and whether the model still calls them and what rotates their outputs."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from road_interp.errors import InputError
from road_interp.models.compatibility import check_rotated_once
from road_interp.models.forward_wrapper import CallScope, ForwardWrapper, Registered


class SkippedBlock:
    """The forward of a block that is left out, with its rotations: it passes on its states, which are stored later ones.

    Args:
        returns_tuple: whether the block returns a tuple.
    """

    def __init__(self, returns_tuple: bool) -> None:
        self._returns_tuple = returns_tuple

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The states as they are."""
        return (hidden_states,) if self._returns_tuple else hidden_states


class SiteModules:
    """The modules of the sites of an attached model, whose forward is wrapped now.

    Other libraries and notebooks may replace them, or their forward, while it is attached. A forward that may or may not call the
    one before it is watched from the first check on, until the end of this context.

    Args:
        model: the model.
        paths: of the modules in it.
        during: as which the rotations are attached, for messages.
    """

    def __init__(self, model: nn.Module, paths: Iterable[str], during: str) -> None:
        modules = {path: model.get_submodule(path) for path in paths}
        self._links = _links_to(model, modules)
        self._wrapped: list[tuple[str, nn.Module, Any]] = [(path, each, each.forward) for path, each in modules.items()]
        self._during, self._watched, self._undo = during, set[str](), ExitStack()

    def __enter__(self) -> SiteModules:
        return self

    def __exit__(self, *exception: object) -> None:
        self._undo.close()

    def check(self) -> None:
        """Raise InputError for a replaced module, which nothing rotates, and for one that PEFT rotates, too."""
        for _, name, child in self._links:
            check_rotated_once(name, child)
        if (replaced := self.replaced()) is not None:
            raise InputError(f"{replaced}, and is not rotated: replace modules and their forward before it begins")
        if not torch.compiler.is_compiling():
            for path, module, wrapper in self._wrapped:
                if path not in self._watched and _is_foreign(module, wrapper):
                    self._watch(path, module, wrapper)

    def replaced(self) -> str | None:
        """What was replaced so that it is not rotated: a module on the way to a site, or the forward of a site's module."""
        name = next((name for children, name, child in self._links if children.get(name) is not child), None)
        if name is not None:
            return f"a module '{name}' was replaced by another one during {self._during}, for example by a LoRA"
        if torch.compiler.is_compiling():
            return None
        path = next((path for path, module, wrapper in self._wrapped if _is_put_back(module, wrapper)), None)
        return None if path is None else f"the forward of '{path}' was replaced during {self._during}"

    def _watch(self, path: str, module: nn.Module, wrapper: ForwardWrapper) -> None:
        """From now on, raise InputError in calls of a module whose forward does not call the wrapper."""
        inside = threading.local()

        def begin(*module_and_inputs: Any) -> None:
            inside.was_rotated = False

        def rotated(output: Any, tracing: bool) -> Any:
            if not tracing:
                inside.was_rotated = True
            return output

        def end(*inputs_and_output: Any) -> None:
            was_rotated = torch.compiler.is_compiling() or getattr(inside, "was_rotated", True)
            if not was_rotated and _is_foreign(module, wrapper):
                raise InputError(
                    f"the forward of '{path}' was replaced during {self._during} by one that does not call the one before, "
                    "which rotates: let it call that one, or replace the forward before that begins"
                )

        self._watched.add(path)
        entry = Registered(CallScope(shared=True), rotated)
        wrapper.add(entry)
        self._undo.callback(wrapper.remove, entry)
        self._undo.callback(module.register_forward_pre_hook(begin).remove)
        self._undo.callback(module.register_forward_hook(end).remove)


def _links_to(model: nn.Module, paths: Iterable[str]) -> list[tuple[dict[str, nn.Module | None], str, nn.Module]]:
    """All modules on the way from a model to its submodules: the children of its parent, its name among them, and the module."""
    found: dict[tuple[int, str], tuple[dict[str, nn.Module | None], str, nn.Module]] = {}
    for path in paths:
        module = model
        for name in path.split("."):
            children, module = module._modules, module.get_submodule(name)
            if name in children:  # a compiled or checkpointed part passes its attributes on
                found[id(children), name] = children, name, module
    return list(found.values())


def _outermost(module: nn.Module, wrapper: ForwardWrapper) -> Any:
    """The forward of a module, without the wrappers of other rotations around it."""
    forward = module.__dict__.get("forward")
    while isinstance(forward, ForwardWrapper) and forward is not wrapper:
        forward = forward.replaced
    return forward


def _is_foreign(module: nn.Module, wrapper: ForwardWrapper) -> bool:
    """Whether a module has another forward than the wrapper, for calls that are not left out on purpose."""
    forward = _outermost(module, wrapper)
    return forward is not wrapper and not isinstance(forward, SkippedBlock)


def _is_put_back(module: nn.Module, wrapper: ForwardWrapper) -> bool:
    """Whether a module's forward is one that does not reach the wrapper: the one before it, or that of the class.

    One that another library has put around it may reach it; of accelerate's it is known what it calls.
    """

    def is_known(forward: Any) -> bool:
        return forward is None or forward is wrapper.replaced or getattr(forward, "__func__", None) is type(module).forward

    forward = _outermost(module, wrapper)
    inside = module.__dict__.get("_old_forward") if hasattr(module, "_hf_hook") else wrapper
    return forward is not wrapper and (is_known(forward) or (inside is not wrapper and is_known(inside)))
