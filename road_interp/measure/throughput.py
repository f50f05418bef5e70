"""How fast rotations run beside other methods: everything timed in one process, one after the other, round by round.

The methods are the bare model; the merged one; RoadModel; the same rotations inside pyvene's own loop; PEFT's RoAd, LoRA and OFT;
and LoRA as two stacked batched products per layer, as in section 4.2 of the paper. In every round each method is timed once, and
its ratio is to the bare model of that round, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from road_interp.errors import InputError
from road_interp.measure.throughput_methods import METHODS, RANK, Call, ThroughputMethods, draw_ids
from road_interp.models.loading import find_device, load_model, on_device
from road_interp.progress import Progress, silent
from road_interp.recipes.schema import ThroughputRecipe
from road_interp.results import Result


@dataclass(frozen=True)
class Timing:
    """One method at one task.

    Attributes:
        task: "forward" (8 x 64 tokens), "training step" (4 x 128), or generation: "requests" and "length" with another adapter
            in every row, "rank" with one LoRA for all rows, "distinct" with one adapter or many.
        method: who was timed.
        rows: rows of the batch.
        new_tokens: generated per row; 0 where nothing is generated.
        rank: of LoRA.
        seconds: one per round.
        ratios: to the bare model in the same round.
        tokens: tokens that one call computes or generates.
        peak_bytes: the most that one call held beyond what was there before it: by torch's allocator on CUDA, by torch's profiler
            on the CPU, where generation is left out (0): its trace grows too large.
        saved_bytes: kept by autograd for the backward pass of a training step, parameters not counted; 0 elsewhere.
    """

    task: str
    method: str
    rows: int
    new_tokens: int
    rank: int
    seconds: tuple[float, ...]
    ratios: tuple[float, ...]
    tokens: int
    peak_bytes: int = 0
    saved_bytes: int = 0

    @property
    def ratio(self) -> float:
        """Median ratio to the bare model."""
        return float(np.median(self.ratios))

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile of the ratio."""
        low, high = np.quantile(self.ratios, (0.25, 0.75))
        return float(low), float(high)

    @property
    def tokens_per_second(self) -> float:
        """From the median time."""
        return self.tokens / float(np.median(self.seconds))


@dataclass(frozen=True)
class ThroughputReport(Result):
    """All timings of one run on one machine."""

    model: str
    sites: int
    device: str
    dtype: str
    threads: int
    rounds: int
    timings: tuple[Timing, ...]

    def of(self, task: str, method: str, rows: int | None = None) -> Timing:
        """The one timing that fits."""
        fitting = [each for each in self.timings if (each.task, each.method) == (task, method) and rows in (None, each.rows)]
        if len(fitting) != 1:
            raise InputError(f"{len(fitting)} timings of {method} at {task}" + ("" if rows is None else f" with {rows} rows"))
        return fitting[0]


def run_throughput_recipe(
    recipe: ThroughputRecipe,
    device: str | None = None,
    progress: Progress = silent,
    keep: Callable[[ThroughputReport], None] = lambda report: None,
) -> ThroughputReport:
    """Load the model of a recipe and time what the recipe says: see `throughput`.

    Args:
        device: as in `road_interp.train`.
    """
    check_methods(recipe.methods)
    base = on_device(load_model(recipe.model, "causal-lm")[0], find_device(device))
    return throughput(base, recipe, progress, keep)


def throughput(
    base: PreTrainedModel,
    recipe: ThroughputRecipe,
    progress: Progress = silent,
    keep: Callable[[ThroughputReport], None] = lambda report: None,
) -> ThroughputReport:
    """Time forward passes, training steps and generation of every method.

    Args:
        base: a causal language model.
        recipe: rounds, batch sizes and methods; its model is not loaded.
        progress: told each task before it is timed.
        keep: given the report so far, after every task.

    Raises:
        InputError: an unknown method, before any model is built.
    """
    check_methods(recipe.methods)
    torch.manual_seed(recipe.seed)
    methods = ThroughputMethods(base.eval(), max(8, *recipe.requests))
    report = _empty_report(methods, recipe.rounds)
    ids = draw_ids(base, 8, 64)
    progress("forward")
    with torch.no_grad():
        setting = Setting("forward", 8, 0, 0, ids.numel())
        timings = list(_timed(setting, recipe.rounds, _chosen(methods.forward(ids), recipe.methods), base))
    keep(report := replace(report, timings=tuple(timings)))
    progress("training step")
    timings += _train_timings(methods, draw_ids(base, 4, 128), recipe.rounds, recipe.methods)
    keep(report := replace(report, timings=tuple(timings)))
    for setting, all_calls in _generations(methods, recipe):
        if len(calls := _chosen(all_calls, recipe.methods)) == 1 < len(recipe.methods):
            continue  # nothing beside the bare model
        progress(f"generation, {setting.task}: {setting.rows} rows, {setting.new_tokens} tokens")
        with torch.no_grad():
            timings += _timed(setting, recipe.rounds, calls, base)
        keep(report := replace(report, timings=tuple(timings)))
    return report


def check_methods(names: Sequence[str]) -> None:
    """Raise InputError for a method that is not among METHODS, and for a list without the bare model."""
    if unknown := set(names) - set(METHODS):
        raise InputError(f"unknown method '{min(unknown)}'; the methods are {', '.join(METHODS)}")
    if names and "bare" not in names:
        raise InputError("ratios are to the bare model: 'bare' must be among the methods")


def _empty_report(methods: ThroughputMethods, rounds: int) -> ThroughputReport:
    base = methods.base
    return ThroughputReport(
        (base.config.name_or_path or type(base).__name__).rsplit("/", 1)[-1],
        len(methods.sites),
        torch.cuda.get_device_name() if base.device.type == "cuda" else "cpu",
        str(base.dtype).removeprefix("torch."),
        torch.get_num_threads(),
        rounds,
        (),
    )


def _chosen(calls: dict[str, Call], only: Sequence[str]) -> dict[str, Call]:
    """The methods that are wanted; "RoadModel, one adapter" is a RoadModel."""
    return {method: call for method, call in calls.items() if not only or method.partition(",")[0] in only}


class Setting(NamedTuple):
    """What the methods of one comparison have in common."""

    task: str
    rows: int
    new_tokens: int
    rank: int
    tokens: int


def _generations(methods: ThroughputMethods, recipe: ThroughputRecipe) -> Iterator[tuple[Setting, dict[str, Call]]]:
    def prompt(rows: int) -> Tensor:
        return draw_ids(methods.base, rows, 8)

    new_tokens, largest = recipe.new_tokens, max(recipe.requests)
    for rows in recipe.requests:
        yield Setting("requests", rows, new_tokens, RANK, rows * new_tokens), methods.generate(prompt(rows), new_tokens)
    yield Setting("distinct", largest, new_tokens, 0, largest * new_tokens), methods.few_and_many(prompt(largest), new_tokens)
    for length in recipe.lengths:
        yield Setting("length", 8, length, RANK, 8 * length), methods.generate(prompt(8), length)
    for rank in recipe.ranks:
        yield Setting("rank", 8, new_tokens, rank, 8 * new_tokens), methods.one_lora(prompt(8), new_tokens, rank)


def _timed(setting: Setting, rounds: int, calls: Mapping[str, Call], base: PreTrainedModel) -> Iterator[Timing]:
    """Every call once to warm up, then all of them in every round, in an order that turns from round to round."""
    measured = setting.new_tokens == 0 or base.device.type == "cuda"
    for call in calls.values():
        call()
    peaks = {method: peak_bytes(call, base.device) if measured else 0 for method, call in calls.items()}
    seconds: dict[str, list[float]] = {method: [] for method in calls}
    names = list(calls)
    with gc_paused():
        for number in range(rounds):
            for method in names[number % len(names) :] + names[: number % len(names)]:
                gc.collect()
                _wait(base)
                started = time.perf_counter()
                calls[method]()
                _wait(base)
                seconds[method].append(time.perf_counter() - started)
    for method in names:
        ratios = [mine / bare for mine, bare in zip(seconds[method], seconds["bare"], strict=True)]
        task, rows, new_tokens, rank, tokens = setting
        yield Timing(task, method, rows, new_tokens, rank, tuple(seconds[method]), tuple(ratios), tokens, peaks[method])


def _train_timings(methods: ThroughputMethods, ids: Tensor, rounds: int, only: Sequence[str]) -> Iterator[Timing]:
    losses = _chosen(methods.training(ids), only)
    saved = {method: saved_bytes(loss, methods.base) for method, loss in losses.items()}
    steps = {method: lambda loss=loss: loss().backward() for method, loss in losses.items()}
    for timing in _timed(Setting("training step", len(ids), 0, RANK, ids.numel()), rounds, steps, methods.base):
        yield replace(timing, saved_bytes=saved[timing.method])


def peak_bytes(call: Call, device: torch.device) -> int:
    """The most memory that `call` holds at one time beyond what was held before."""
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
    """Bytes that autograd keeps for the backward pass, each storage once, the model's weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in base.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(kept.values())


def _wait(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def gc_paused() -> Iterator[None]:
    """No garbage collection in the middle of a measurement; what is old is not looked through each time."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
