"""What calls cost on the machine at hand: their time in rounds, and their memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Call = Callable[[], Any]


def seconds_by_round(calls: Mapping[str, Call], rounds: int, base: PreTrainedModel) -> dict[str, list[float]]:
    """Seconds of every call in every round, after one warm-up call each; the first call of a round changes cyclically."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    with gc_paused():
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                gc.collect()
                synchronize(base)
                started = time.perf_counter()
                calls[name]()
                synchronize(base)
                seconds[name].append(time.perf_counter() - started)
    return seconds


def peak_bytes(call: Call, device: torch.device) -> int:
    """Peak memory of a call in addition to the memory allocated before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as trace:
        call()
    events = trace.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(max(accumulate(change for _, change in changes), default=0))


def saved_bytes(loss: Callable[[], Tensor], base: nn.Module) -> int:
    """Bytes that autograd saves for the backward pass: every storage once, without parameters, be they trained or of `base`."""
    sizes: dict[int, int] = {}
    alive = []  # keeps the storages, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = loss()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in (*base.parameters(), *_trained(found))}
    return sum(size for address, size in sizes.items() if address not in parameters)


def _trained(loss: Tensor) -> list[nn.Parameter]:
    """The parameters that the backward pass of a loss computes gradients of."""
    found, seen, nodes = [], set(), [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
            if isinstance(variable := getattr(node, "variable", None), nn.Parameter):
                found.append(variable)
    return found


def device_name(model: PreTrainedModel) -> str:
    """Name of the model's GPU, or "cpu"."""
    return torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu"


def synchronize(model: PreTrainedModel) -> None:
    """Wait for the work of a GPU."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def gc_paused() -> Iterator[None]:
    """Disable automatic garbage collection during measurements, and exclude existing objects from explicit collections.

    A collection that the caller has disabled stays so, and so do objects that the caller has frozen.
    """
    was_enabled, had_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        if not had_frozen:
            gc.unfreeze()
