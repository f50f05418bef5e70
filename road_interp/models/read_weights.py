"""Layers whose weights the code around them may read in place of calling them, so that nothing would rotate their outputs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from road_interp.errors import InputError
from road_interp.sites.module_tree import Hooks, hooked, read_weights
from road_interp.sites.site import Site


@contextmanager
def read_weights_watched(model: nn.Module, sites: Sequence[Site], is_active: Callable[[], bool]) -> Iterator[None]:
    """Raise InputError in a pass in which a kernel reads the weight of a site's layer, as Mamba's do in training on CUDA.

    Args:
        is_active: whether the running call is rotated.
    """
    called = threading.local()

    def note(path: str) -> Callable[..., None]:
        def hook(*module_and_inputs: Any) -> None:
            if not torch.compiler.is_compiling():
                vars(called)[path] = True

        return hook

    def check(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, *inputs_and_output: Any) -> None:
            if not torch.compiler.is_compiling() and is_active() and not vars(called).pop(path, False):
                raise InputError(
                    f"site '{path}': {type(module).__name__} read the weight of this layer in place of calling it, as kernels "
                    "do in training, so that nothing was rotated: leave this site out, or train without the kernels"
                )

        return hook

    hooks: Hooks = []
    for path in read_weights(model, [site.module for site in sites]):
        hooks.append((model.get_submodule(path).register_forward_pre_hook, note(path), {}))
        hooks.append((model.get_submodule(path.rpartition(".")[0]).register_forward_hook, check(path), {}))
    with hooked(hooks):
        yield


def check_reads_no_weight(model: nn.Module, sites: Sequence[Site], inputs: Mapping[str, Any]) -> None:
    """Raise InputError for a site that Reformer does not call for the states in its cache."""
    if not inputs.get("past_buckets_states"):
        return
    for path, kind in read_weights(model, [site.module for site in sites]).items():
        raise InputError(
            f"site '{path}': for the states in its cache, {kind.__name__} reads the weight of this layer instead of calling "
            "it, so that they would not be rotated: call or generate with use_cache=False, or merge the rotations"
        )
