"""How fast rotations run beside their peers: everything timed in one process, one after the other, round by round.

The peers are the bare model; the merged one; RoadModel; the same rotations inside pyvene's own loop; PEFT's RoAd; PEFT's LoRA;
and LoRA as two stacked batched products per layer, as in section 4.2 of the paper. In every round each peer is timed once, and
its ratio is to the bare model of that round, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import copy
import gc
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from road_interp.adapter import RoadAdapter
from road_interp.bank import RoadBank
from road_interp.errors import InputError
from road_interp.intervention import pyvene
from road_interp.locate import find_sites, output_width
from road_interp.model import RoadModel
from road_interp.site import Site

RANK = 8
Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """One peer at one task.

    Attributes:
        task: "forward", "training step" or "generate".
        peer: who was timed.
        rows: requests in the batch.
        adapters: distinct adapters among them.
        seconds: one per round.
        ratios: to the bare model in the same round.
        tokens: tokens that one call computes or generates.
        saved_bytes: kept by autograd for the backward pass of a training step, parameters not counted; 0 elsewhere.
    """

    task: str
    peer: str
    rows: int
    adapters: int
    seconds: tuple[float, ...]
    ratios: tuple[float, ...]
    tokens: int
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

    def of(self, task: str, peer: str, rows: int | None = None, adapters: int | None = None) -> Timing:
        """The one timing that fits."""
        fitting = [
            timing
            for timing in self.timings
            if (timing.task, timing.peer) == (task, peer) and rows in (None, timing.rows) and adapters in (None, timing.adapters)
        ]
        if len(fitting) != 1:
            raise InputError(f"{len(fitting)} timings of {peer} at {task} with rows {rows}, adapters {adapters}")
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


def bench(
    base: PreTrainedModel,
    rounds: int = 7,
    requests: Sequence[int] = (1, 2, 4, 8, 16),
    new_tokens: int = 16,
    progress: Callable[[str], None] = lambda task: None,
    seed: int = 0,
) -> BenchReport:
    """Time forward passes (8 x 64 tokens), training steps (4 x 128) and generation with `requests` heterogeneous requests.

    Args:
        base: a causal language model.
        rounds: how often every peer is timed at every task.
        requests: batch sizes of the generation task; each row has its own adapter.
        new_tokens: generated for every row.
        progress: told before each task.
    """
    torch.manual_seed(seed)
    base = base.eval()
    ids = _ids(base, 8, 64)
    peers = _Peers(base, max(len(ids), *requests))
    timings: list[Timing] = []
    with torch.no_grad():
        progress("forward")
        timings += _timed("forward", 8, 1, ids.numel(), rounds, peers.forward(ids), base)
    progress("training step")
    timings += _train_timings(peers, _ids(base, 4, 128), rounds)
    with torch.no_grad():
        for rows in requests:
            progress(f"generate, {rows} requests")
            calls = peers.generate(_ids(base, rows, 8), new_tokens)
            timings += _timed("generate", rows, rows, rows * new_tokens, rounds, calls, base)
        largest = max(requests)
        progress(f"generate, {largest} rows of one adapter and of {largest}")
        calls = peers.few_and_many(_ids(base, largest, 8), new_tokens)
        timings += _timed("few and many", largest, largest, largest * new_tokens, rounds, calls, base)
    name = base.config.name_or_path or type(base).__name__
    return BenchReport(
        name.rsplit("/", 1)[-1],
        len(peers.sites),
        torch.cuda.get_device_name() if base.device.type == "cuda" else "cpu",
        str(base.dtype).removeprefix("torch."),
        torch.get_num_threads(),
        rounds,
        tuple(timings),
    )


class _Peers:
    """Every peer on the same frozen weights; copies share the tensors they do not change."""

    def __init__(self, base: PreTrainedModel, most: int) -> None:
        try:
            from peft import LoraConfig, RoadConfig, get_peft_model
        except ImportError:
            raise InputError("the benchmark compares with PEFT: pip install 'road-interp[peft]'") from None
        self.base: Any = base
        self.sites = find_sites(base, "all-linear")
        self.adapters = {f"a{n}": _drawn(self.sites, n) for n in range(most)}
        self.road = RoadModel(_shared_copy(base), self.adapters["a0"])
        self.banked = RoadModel(_shared_copy(base), RoadBank(self.adapters))
        self.pyvene = RoadModel(_shared_copy(base), self.adapters["a0"])
        self.merged: Any = RoadModel(copy.deepcopy(base), self.adapters["a0"]).merge()
        kinds = sorted({site.name.rpartition(".")[2] for site in self.sites})
        road = RoadConfig(target_modules=kinds, variant="road_1", group_size=2, init_weights=False)
        lora = LoraConfig(target_modules=kinds, r=RANK, lora_alpha=RANK, init_lora_weights=False)
        self.peft_road: Any = get_peft_model(_shared_copy(base), road, adapter_name="a0")
        self.peft_lora: Any = get_peft_model(_shared_copy(base), lora, adapter_name="a0")
        for name in list(self.adapters)[1:]:
            self.peft_road.add_adapter(name, road)
            self.peft_lora.add_adapter(name, lora)
        for model in (self.peft_road, self.peft_lora):
            model.eval()
        self.stacked = _StackedLora(base, self.sites, most)

    def forward(self, ids: Tensor) -> dict[str, Call]:
        inputs = {"input_ids": ids, "use_cache": False}
        return {
            "bare": lambda: self.base(**inputs),
            "merged": lambda: self.merged(**inputs),
            "RoadModel": lambda: self.road(base=inputs),
            "pyvene loop": lambda: pyvene.IntervenableModel.forward(self.pyvene, inputs),
            "PEFT RoAd": lambda: self.peft_road(**inputs),
            "PEFT LoRA": lambda: self.peft_lora(**inputs),
            "stacked LoRA": lambda: self.stacked.call(ids.shape[0], lambda: self.stacked.model(**inputs)),
        }

    def training(self, ids: Tensor) -> dict[str, Call]:
        """A loss to go back from; the frozen model's gradient flows to its embeddings' output."""
        inputs = {"input_ids": ids, "labels": ids, "use_cache": False}
        embed = self.base.get_input_embeddings()

        def frozen() -> Tensor:
            states = embed(ids).detach().requires_grad_()
            return self.base(inputs_embeds=states, labels=ids, use_cache=False).loss

        return {
            "bare": frozen,
            "RoadModel": lambda: self.road(base=inputs)[1].loss,
            "pyvene loop": lambda: pyvene.IntervenableModel.forward(self.pyvene, inputs)[1].loss,
            "PEFT RoAd": lambda: self.peft_road(**inputs).loss,
            "PEFT LoRA": lambda: self.peft_lora(**inputs).loss,
        }

    def generate(self, ids: Tensor, new_tokens: int) -> dict[str, Call]:
        names = list(self.adapters)[: len(ids)]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        options = _greedy(self.base, new_tokens)
        return {
            "bare": lambda: self.base.generate(**inputs, **options),
            "merged": lambda: self.merged.generate(**inputs, **options),
            "RoadModel": lambda: self.banked.generate(inputs, adapter_names=names, **options),
            "PEFT RoAd": lambda: self.peft_road.generate(**inputs, adapter_names=names, **options),
            "PEFT LoRA": lambda: self.peft_lora.generate(**inputs, adapter_names=names, **options),
            "stacked LoRA": lambda: self.stacked.call(len(ids), lambda: self.stacked.model.generate(**inputs, **options)),
        }

    def few_and_many(self, ids: Tensor, new_tokens: int) -> dict[str, Call]:
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        options = _greedy(self.base, new_tokens)
        many = list(self.adapters)[: len(ids)]
        return {
            "bare": lambda: self.base.generate(**inputs, **options),
            "RoadModel, one adapter": lambda: self.banked.generate(inputs, adapter_names=[many[0]] * len(ids), **options),
            "RoadModel, all different": lambda: self.banked.generate(inputs, adapter_names=many, **options),
        }


class _StackedLora:
    """LoRA with every row its own A and B: two batched products per layer on the bare model (section 4.2)."""

    def __init__(self, base: PreTrainedModel, sites: Sequence[Site], most: int) -> None:
        self.model: Any = _shared_copy(base)
        self.modules: list[Any] = [self.model.get_submodule(site.module) for site in sites]
        self.pairs = []
        for module in self.modules:
            inside = module.weight.shape[1]
            down = torch.randn(most, inside, RANK, device=base.device, dtype=base.dtype) / inside**0.5
            up = torch.randn(most, RANK, output_width(module), device=base.device, dtype=base.dtype) / 10
            self.pairs.append((down, up))

    def call(self, rows: int, run: Call) -> Any:
        def add(pair: tuple[Tensor, Tensor]) -> Callable[..., Tensor]:
            down, up = (matrix[:rows] for matrix in pair)
            return lambda module, args, output: output.add_(torch.bmm(torch.bmm(args[0], down), up))

        handles = [module.register_forward_hook(add(pair)) for module, pair in zip(self.modules, self.pairs, strict=True)]
        try:
            return run()
        finally:
            for handle in handles:
                handle.remove()


def _timed(
    task: str, rows: int, adapters: int, tokens: int, rounds: int, calls: Mapping[str, Call], base: PreTrainedModel
) -> Iterator[Timing]:
    """Every call once to warm up, then all of them in every round, in an order that turns from round to round."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {peer: [] for peer in calls}
    names = list(calls)
    for number in range(rounds):
        for peer in names[number % len(names) :] + names[: number % len(names)]:
            with _still():
                _wait(base)
                started = time.perf_counter()
                calls[peer]()
                _wait(base)
                seconds[peer].append(time.perf_counter() - started)
    for peer in names:
        ratios = [mine / bare for mine, bare in zip(seconds[peer], seconds["bare"], strict=True)]
        yield Timing(task, peer, rows, adapters, tuple(seconds[peer]), tuple(ratios), tokens)


def _train_timings(peers: _Peers, ids: Tensor, rounds: int) -> Iterator[Timing]:
    losses = peers.training(ids)
    saved = {peer: saved_bytes(loss, peers.base) for peer, loss in losses.items()}
    steps = {peer: lambda loss=loss: loss().backward() for peer, loss in losses.items()}
    for timing in _timed("training step", len(ids), 1, ids.numel(), rounds, steps, peers.base):
        yield Timing(**{**asdict(timing), "saved_bytes": saved[timing.peer]})


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


def _drawn(sites: Sequence[Site], seed: int) -> RoadAdapter:
    """A small random road_1 adapter: what is rotated makes no difference to the time."""
    generator = torch.Generator().manual_seed(seed)
    theta = {site.name: 0.05 * torch.randn(site.width // 2, generator=generator) for site in sites}
    alpha = {site.name: 1 + 0.05 * torch.randn(site.width // 2, generator=generator) for site in sites}
    return RoadAdapter(tuple(sites), theta, alpha)


def _shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The same modules anew over the same tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def _ids(model: PreTrainedModel, rows: int, length: int) -> Tensor:
    return torch.randint(10, model.config.vocab_size, (rows, length), device=model.device)


def _greedy(model: PreTrainedModel, new_tokens: int) -> dict[str, Any]:
    return {"do_sample": False, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "pad_token_id": 0}


def _wait(model: PreTrainedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def _still() -> Iterator[None]:
    """No garbage collection in the middle of a measurement."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
