"""How fast rotations run beside their peers: everything timed in one process, one after the other, round by round.

The peers are the bare model; the merged one; RoadModel; the same rotations inside pyvene's own loop; PEFT's RoAd, LoRA and OFT;
and LoRA as two stacked batched products per layer, as in section 4.2 of the paper. In every round each peer is timed once, and
its ratio is to the bare model of that round, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from road_interp.errors import InputError
from road_interp.measure.throughput_methods import RANK, Call, Peers, draw_ids
from road_interp.models.loading import find_device, load_model, on_device
from road_interp.recipes.schema import BenchRecipe


@dataclass(frozen=True)
class Timing:
    """One peer at one task.

    Attributes:
        task: "forward" (8 x 64 tokens), "training step" (4 x 128), or generation: "requests" and "length" with another adapter
            in every row, "rank" with one LoRA for all rows, "distinct" with one adapter or many.
        peer: who was timed.
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
    peer: str
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
class BenchReport:
    """All timings of one run on one machine."""

    model: str
    sites: int
    device: str
    dtype: str
    threads: int
    rounds: int
    timings: tuple[Timing, ...]

    def of(self, task: str, peer: str, rows: int | None = None) -> Timing:
        """The one timing that fits."""
        fitting = [each for each in self.timings if (each.task, each.peer) == (task, peer) and rows in (None, each.rows)]
        if len(fitting) != 1:
            raise InputError(f"{len(fitting)} timings of {peer} at {task}" + ("" if rows is None else f" with {rows} rows"))
        return fitting[0]

    def to_json(self) -> str:
        """All numbers as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> BenchReport:
        """The report that `to_json` wrote."""
        try:
            content = json.loads(text)
            timings = tuple(
                Timing(**{**each, "seconds": tuple(each["seconds"]), "ratios": tuple(each["ratios"])})
                for each in content["timings"]
            )
            return cls(**{**content, "timings": timings})
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"this is not the JSON of a benchmark ({error})") from None


def bench_recipe(
    recipe: BenchRecipe, device: str | None = None, progress: Callable[[str, BenchReport], None] = lambda task, report: None
) -> BenchReport:
    """Load the model of a recipe and time what the recipe says. Device and progress as in `train` and `bench`."""
    where = find_device(device)
    base = on_device(load_model(recipe.model, "causal-lm")[0], where)
    sizes = (recipe.rounds, recipe.requests, recipe.new_tokens, recipe.lengths, recipe.ranks)
    return bench(base, *sizes, recipe.peers, progress, recipe.seed)


def bench(
    base: PreTrainedModel,
    rounds: int = 7,
    requests: Sequence[int] = (1, 2, 4, 8, 16),
    new_tokens: int = 16,
    lengths: Sequence[int] = (),
    ranks: Sequence[int] = (),
    only: Sequence[str] = (),
    progress: Callable[[str, BenchReport], None] = lambda task, report: None,
    seed: int = 0,
) -> BenchReport:
    """Time forward passes, training steps and generation of every peer.

    Args:
        base: a causal language model.
        rounds: how often every peer is timed at every task.
        requests: batch sizes of generation; each row has its own adapter.
        new_tokens: generated for every row, where the number is not what varies.
        lengths: numbers of tokens to generate for eight requests (paper, figure 4 middle).
        ranks: of one unmerged LoRA for eight rows (paper, figure 4 left).
        only: the peers to time, among them "bare"; all by default.
        progress: told before each task, with the report so far.
    """
    if only and "bare" not in only:
        raise InputError("ratios are to the bare model: 'bare' must be among the peers")
    torch.manual_seed(seed)
    base = base.eval()
    peers = Peers(base, max(8, *requests), ranks)
    report = BenchReport(
        (base.config.name_or_path or type(base).__name__).rsplit("/", 1)[-1],
        len(peers.sites),
        torch.cuda.get_device_name() if base.device.type == "cuda" else "cpu",
        str(base.dtype).removeprefix("torch."),
        torch.get_num_threads(),
        rounds,
        (),
    )
    ids = draw_ids(base, 8, 64)
    if unknown := set(only) - set(peers.forward(ids)):
        raise InputError(f"unknown peer '{min(unknown)}'; the peers are {', '.join(peers.forward(ids))}")
    progress("forward", report)
    with torch.no_grad():
        timings = list(_timed(Setting("forward", 8, 0, 0, ids.numel()), rounds, _chosen(peers.forward(ids), only), base))
    progress("training step", report := replace(report, timings=tuple(timings)))
    timings += _train_timings(peers, draw_ids(base, 4, 128), rounds, only)
    for setting, all_calls in _generations(peers, requests, new_tokens, lengths, ranks):
        if len(calls := _chosen(all_calls, only)) == 1 < len(only):
            continue  # nothing beside the bare model
        report = replace(report, timings=tuple(timings))
        progress(f"generation, {setting.task}: {setting.rows} rows, {setting.new_tokens} tokens", report)
        with torch.no_grad():
            timings += _timed(setting, rounds, calls, base)
    return replace(report, timings=tuple(timings))


def _chosen(calls: dict[str, Call], only: Sequence[str]) -> dict[str, Call]:
    """The peers that are wanted; "RoadModel, one adapter" is a RoadModel."""
    return {peer: call for peer, call in calls.items() if not only or peer.partition(",")[0] in only}


class Setting(NamedTuple):
    """What the peers of one comparison have in common."""

    task: str
    rows: int
    new_tokens: int
    rank: int
    tokens: int


def _generations(
    peers: Peers, requests: Sequence[int], new_tokens: int, lengths: Sequence[int], ranks: Sequence[int]
) -> Iterator[tuple[Setting, dict[str, Call]]]:
    def prompt(rows: int) -> Tensor:
        return draw_ids(peers.base, rows, 8)

    for rows in requests:
        yield Setting("requests", rows, new_tokens, RANK, rows * new_tokens), peers.generate(prompt(rows), new_tokens)
    most = max(requests)
    yield Setting("distinct", most, new_tokens, 0, most * new_tokens), peers.few_and_many(prompt(most), new_tokens)
    for length in lengths:
        yield Setting("length", 8, length, RANK, 8 * length), peers.generate(prompt(8), length)
    for rank in ranks:
        yield Setting("rank", 8, new_tokens, rank, 8 * new_tokens), peers.one_lora(prompt(8), new_tokens, rank)


def _timed(setting: Setting, rounds: int, calls: Mapping[str, Call], base: PreTrainedModel) -> Iterator[Timing]:
    """Every call once to warm up, then all of them in every round, in an order that turns from round to round."""
    measured = setting.new_tokens == 0 or base.device.type == "cuda"
    for call in calls.values():
        call()
    peaks = {peer: peak_bytes(call, base.device) if measured else 0 for peer, call in calls.items()}
    seconds: dict[str, list[float]] = {peer: [] for peer in calls}
    names = list(calls)
    with _still():
        for number in range(rounds):
            for peer in names[number % len(names) :] + names[: number % len(names)]:
                gc.collect()
                _wait(base)
                started = time.perf_counter()
                calls[peer]()
                _wait(base)
                seconds[peer].append(time.perf_counter() - started)
    for peer in names:
        ratios = [mine / bare for mine, bare in zip(seconds[peer], seconds["bare"], strict=True)]
        task, rows, new_tokens, rank, tokens = setting
        yield Timing(task, peer, rows, new_tokens, rank, tuple(seconds[peer]), tuple(ratios), tokens, peaks[peer])


def _train_timings(peers: Peers, ids: Tensor, rounds: int, only: Sequence[str]) -> Iterator[Timing]:
    losses = _chosen(peers.training(ids), only)
    saved = {peer: saved_bytes(loss, peers.base) for peer, loss in losses.items()}
    steps = {peer: lambda loss=loss: loss().backward() for peer, loss in losses.items()}
    for timing in _timed(Setting("training step", len(ids), 0, RANK, ids.numel()), rounds, steps, peers.base):
        yield replace(timing, saved_bytes=saved[timing.peer])


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
def _still() -> Iterator[None]:
    """No garbage collection in the middle of a measurement; what is old is not looked through each time."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
