"""Throughput of rotations compared with other methods, all timed in one process in alternating order.

The methods are the bare model; the merged model; RoadModel; the same rotations in pyvene's own loop; PEFT's RoAd, LoRA and OFT;
and LoRA as two batched matrix products per layer, as in section 4.2 of the paper. In every round each method is timed once, and
its ratio is to the bare model of that round, so that a machine that slows down slows all methods alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from road_interp.adapters.base_model import model_name
from road_interp.arguments import check_argument
from road_interp.errors import InputError
from road_interp.measure.call_cost import Call, device_name, peak_bytes, saved_bytes, seconds_by_round
from road_interp.measure.intervals import quartiles
from road_interp.measure.throughput_methods import METHODS, RANK, ThroughputMethods, draw_ids
from road_interp.models.head_inputs import contiguous_head_inputs
from road_interp.models.loading import find_device, load_model, on_device
from road_interp.models.seeding import seeded
from road_interp.progress import Progress, silent
from road_interp.recipes.schema import ThroughputRecipe
from road_interp.results import Result
from road_interp.sites.module_tree import frozen


@dataclass(frozen=True)
class Timing:
    """Timings of one method in one setting.

    Attributes:
        task: as in `ThroughputRecipe.tasks`; or "length", generation with a different adapter in every row, and "rank", with one
            LoRA for all rows.
        method: name of the method.
        rows: batch size.
        new_tokens: generated per row; 0 without generation.
        rank: of LoRA.
        seconds: one per round.
        ratios: to the bare model in the same round.
        tokens: number of tokens that one call computes or generates.
        peak_bytes: peak memory of one call in addition to the memory allocated before it, from torch's allocator on CUDA and
            from torch's profiler on the CPU. 0 for generation on the CPU, whose trace is too large.
        saved_bytes: memory that autograd saves for the backward pass of a training step, without parameters; 0 otherwise.
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
        """First and third quartile of the ratios."""
        return quartiles(np.array(self.ratios))[1:]

    @property
    def tokens_per_second(self) -> float:
        """Throughput at the median time."""
        return self.tokens / float(np.median(self.seconds))


@dataclass(frozen=True)
class ThroughputReport(Result):
    """All timings of one run on one machine.

    Attributes:
        model: name of the base model.
        sites: number of rotated sites.
        device: name of the GPU, or "cpu".
        dtype: of the base model.
        threads: of torch.
        rounds: number of timings per method and setting.
        timings: one per method and setting.
    """

    model: str
    sites: int
    device: str
    dtype: str
    threads: int
    rounds: int
    timings: tuple[Timing, ...]

    def of(self, task: str, method: str, rows: int | None = None) -> Timing:
        """The timing of a method at a task. Raises InputError unless exactly one fits."""
        fitting = [each for each in self.timings if (each.task, each.method) == (task, method) and rows in (None, each.rows)]
        if len(fitting) != 1:
            raise InputError(f"{len(fitting)} timings of {method} at {task}" + ("" if rows is None else f" with {rows} rows"))
        return fitting[0]

    def quotient(self, task: str, method: str, other: str, rows: int | None = None) -> tuple[float, float, float]:
        """The time of a method over that of another in the same round: median, first and third quartile."""
        pair = [np.array(self.of(task, each, rows).seconds) for each in (method, other)]
        return quartiles(pair[0] / pair[1])


def run_throughput_recipe(
    recipe: ThroughputRecipe,
    device: str | None = None,
    progress: Progress = silent,
    keep: Callable[[ThroughputReport], None] = lambda report: None,
) -> ThroughputReport:
    """Load the model of a recipe and call `throughput`.

    Args:
        device: as in `road_interp.train`.
        progress, keep: as in `throughput`.
    """
    check_methods(recipe.methods)
    place = find_device(device)
    base = on_device(load_model(recipe.model, "causal-lm")[0], place)
    return throughput(base, recipe, progress, keep)


def throughput(
    base: PreTrainedModel,
    recipe: ThroughputRecipe,
    progress: Progress = silent,
    keep: Callable[[ThroughputReport], None] = lambda report: None,
) -> ThroughputReport:
    """Time forward passes, training steps and generation of every method.

    Args:
        base: a causal language model, which is as before when it ends.
        recipe: rounds, batch sizes and methods; its model is not used.
        progress: called before each setting.
        keep: called after each setting with the report of all settings so far.

    Raises:
        InputError: something that is no model or recipe, an unknown method, or settings that time none of the methods.
    """
    check_argument("measure.throughput", base, PreTrainedModel, "a causal language model, load_model(id, 'causal-lm')[0]")
    check_argument("measure.throughput", recipe, ThroughputRecipe, "a recipe of kind throughput, such as load_recipe(name)")
    check_methods(recipe.methods)
    # RoadModel.generate has contiguous head inputs by itself; here all methods have them, whose copies of `base` keep the hook.
    with seeded(recipe.seed), frozen(base), contiguous_head_inputs(base):
        methods = ThroughputMethods(base, max(8, *recipe.requests))
        report = _empty_report(methods, recipe.rounds)
        for setting, all_calls in _settings(methods, recipe):
            if len(calls := _chosen(all_calls, recipe.methods)) == 1 < len(recipe.methods):
                continue  # only the bare model is left
            progress(
                f"{setting.task}: {setting.rows} rows" + (f", {setting.new_tokens} new tokens" if setting.new_tokens else "")
            )
            if setting.task == "training step":
                timings = list(_train_timings(setting, calls, recipe.rounds, base))
            else:
                with torch.no_grad():
                    timings = list(_timed(setting, recipe.rounds, calls, base))
            keep(report := replace(report, timings=(*report.timings, *timings)))
    if not report.timings:
        raise InputError(
            f"nothing is timed: of the methods {', '.join(recipe.methods or METHODS)}, only the bare model is part of the tasks "
            f"{', '.join(recipe.tasks) or '(none)'}"
        )
    return report


def check_methods(names: Sequence[str]) -> None:
    """Raise InputError for a method that is not in METHODS; a recipe checks that the bare model is among them."""
    if unknown := set(names) - set(METHODS):
        raise InputError(f"unknown method '{min(unknown)}'; the methods are {', '.join(METHODS)}")


def _empty_report(methods: ThroughputMethods, rounds: int) -> ThroughputReport:
    base = methods.base
    return ThroughputReport(
        model_name(base),
        len(methods.sites),
        device_name(base),
        str(base.dtype).removeprefix("torch."),
        torch.get_num_threads(),
        rounds,
        (),
    )


def _chosen(calls: dict[str, Call], only: Sequence[str]) -> dict[str, Call]:
    """The calls of the methods in `only`, or all if it is empty. "RoadModel, one adapter" is selected by "RoadModel"."""
    return {method: call for method, call in calls.items() if not only or method.partition(",")[0] in only}


class Setting(NamedTuple):
    """Settings shared by all methods of one comparison; fields as in Timing."""

    task: str
    rows: int
    new_tokens: int
    rank: int
    tokens: int


def _settings(methods: ThroughputMethods, recipe: ThroughputRecipe) -> Iterator[tuple[Setting, dict[str, Call]]]:
    """Everything that a recipe times, with the calls of the methods. The calls are made when their turn comes."""

    def prompt(rows: int, length: int = 8) -> Tensor:
        return draw_ids(methods.base, rows, length)

    new_tokens, largest, tasks = recipe.new_tokens, max(recipe.requests), recipe.tasks
    of_all = largest, new_tokens, 0, largest * new_tokens  # the rest of a setting of the largest batch
    if "forward" in tasks:
        yield Setting("forward", 8, 0, 0, 8 * 64), methods.forward(prompt(8, 64))
    if "training step" in tasks:
        yield Setting("training step", 4, 0, RANK, 4 * 128), methods.training(prompt(4, 128))
    for rows in recipe.requests if "requests" in tasks else ():
        yield Setting("requests", rows, new_tokens, RANK, rows * new_tokens), methods.generate(prompt(rows), new_tokens)
    if "distinct" in tasks:
        yield Setting("distinct", *of_all), methods.few_and_many(prompt(largest), new_tokens)
    if "strengths" in tasks:
        yield Setting("strengths", *of_all), methods.strengths(prompt(largest), new_tokens)
    if "continuous batching" in tasks:
        yield Setting("continuous batching", *of_all), methods.continuous(largest, new_tokens)
    if "compiled forward" in tasks:
        yield Setting("compiled forward", 8, 0, 0, 8 * 64), methods.compiled_forward(prompt(8, 64))
    if "compiled decoding" in tasks:
        yield Setting("compiled decoding", 8, new_tokens, 0, 8 * new_tokens), methods.compiled_decoding(prompt(8), new_tokens)
    for length in recipe.lengths:
        yield Setting("length", 8, length, RANK, 8 * length), methods.generate(prompt(8), length)
    for rank in recipe.ranks:
        yield Setting("rank", 8, new_tokens, rank, 8 * new_tokens), methods.one_lora(prompt(8), new_tokens, rank)


def _timed(setting: Setting, rounds: int, calls: Mapping[str, Call], base: PreTrainedModel) -> Iterator[Timing]:
    """The timings of a setting: those of `seconds_by_round`, their ratios to the bare model, and peaks of memory."""
    measured = setting.new_tokens == 0 or base.device.type == "cuda"
    seconds = seconds_by_round(calls, rounds, base)
    peaks = {method: peak_bytes(call, base.device) if measured else 0 for method, call in calls.items()}
    for method in calls:
        ratios = [own / bare for own, bare in zip(seconds[method], seconds["bare"], strict=True)]
        task, rows, new_tokens, rank, tokens = setting
        yield Timing(task, method, rows, new_tokens, rank, tuple(seconds[method]), tuple(ratios), tokens, peaks[method])


def _train_timings(setting: Setting, losses: Mapping[str, Call], rounds: int, base: PreTrainedModel) -> Iterator[Timing]:
    saved = {method: saved_bytes(loss, base) for method, loss in losses.items()}
    steps = {method: lambda loss=loss: loss().backward() for method, loss in losses.items()}
    for timing in _timed(setting, rounds, steps, base):
        yield replace(timing, saved_bytes=saved[timing.method])
