"""Training several adapters in one pass over one base model, beside one pass for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from road_interp.adapters.bank import RoadBank
from road_interp.adapters.base_model import model_name
from road_interp.arguments import check_argument, check_count, checked_list
from road_interp.errors import InputError
from road_interp.measure.call_cost import device_name, peak_bytes, seconds_by_round
from road_interp.measure.intervals import quartiles
from road_interp.measure.throughput_methods import draw_ids, random_adapter
from road_interp.models.road_model import RoadModel
from road_interp.models.seeding import seeded
from road_interp.progress import Progress, silent
from road_interp.results import Result, columns
from road_interp.sites.find import find_sites
from road_interp.sites.module_tree import frozen


@dataclass(frozen=True)
class JointTraining:
    """Training steps of a number of adapters.

    Attributes:
        adapters: their number.
        together, apart: seconds of one step of all adapters, in one pass or one after the other; one per round.
        together_bytes, apart_bytes: peak memory of such a step in addition to the memory allocated before it.
    """

    adapters: int
    together: tuple[float, ...]
    apart: tuple[float, ...]
    together_bytes: int
    apart_bytes: int

    @property
    def ratio(self) -> tuple[float, float, float]:
        """The time together over the time apart in the same round: median, first and third quartile."""
        return quartiles(np.array(self.together) / np.array(self.apart))


@dataclass(frozen=True)
class JointTrainingReport(Result):
    """Training together and apart, by number of adapters.

    Attributes:
        model: name of the base model.
        device: name of the GPU, or "cpu".
        threads: of torch.
        batch, length: rows per adapter and step, and tokens per row.
        steps: one per number of adapters.
    """

    model: str
    device: str
    threads: int
    batch: int
    length: int
    steps: tuple[JointTraining, ...]

    def records(self) -> list[dict[str, Any]]:
        """A row per number of adapters, with the median seconds."""
        return [
            columns(each) | {"together": float(np.median(each.together)), "apart": float(np.median(each.apart))}
            for each in self.steps
        ]


def joint_training(
    base: PreTrainedModel,
    counts: Sequence[int] = (1, 2, 4, 8),
    batch: int = 8,
    length: int = 64,
    rounds: int = 3,
    seed: int = 0,
    progress: Progress = silent,
) -> JointTrainingReport:
    """Time training steps of adapters at all linear layers, together and apart in every round.

    A step is the forward pass, the backward pass, gradient clipping per adapter and Adam, on random tokens.

    Args:
        base: a causal language model, which is as before when it ends.
        counts: numbers of adapters.
        batch, length: rows per adapter and step, and tokens per row.
        rounds: timings of each.
        seed: of the tokens.
        progress: called before each number of adapters.

    Raises:
        InputError: something that is no transformers model, or no list of whole numbers.
    """
    check_argument("measure.joint_training", base, PreTrainedModel, "a causal language model, load_model(id, 'causal-lm')[0]")
    counts = checked_list("measure.joint_training", counts, int, "the numbers of adapters, as in [1, 2, 4]")
    for name, value in (("batch", batch), ("length", length), ("rounds", rounds)):
        check_count("measure.joint_training", name, value)
    if length < 2:
        raise InputError("measure.joint_training: length must be at least 2: one token has no next one to learn")
    steps = []
    with seeded(seed), frozen(base):
        sites = find_sites(base, "all-linear")
        for done, count in enumerate(counts):
            progress(f"{count} adapters", done, len(counts))
            names = [f"a{number}" for number in range(count)]
            bank = RoadBank({name: random_adapter(sites, number) for number, name in enumerate(names)})
            step = make_step(RoadModel(base, bank), bank, draw_ids(base, batch * count, length), names)
            calls = {
                "together": lambda step=step, names=names: step(names),
                "apart": lambda step=step, names=names: [step([name]) for name in names],
            }
            together, apart = (tuple(each) for each in seconds_by_round(calls, rounds, base).values())
            steps.append(JointTraining(count, together, apart, *(peak_bytes(call, base.device) for call in calls.values())))
    return JointTrainingReport(model_name(base), device_name(base), torch.get_num_threads(), batch, length, tuple(steps))


def make_step(model: RoadModel, bank: RoadBank, ids: torch.Tensor, names: Sequence[str]) -> Callable[[Sequence[str]], None]:
    """A function that trains the given adapters for one step, each on its own rows of `ids`."""
    parameters = bank.trainable()
    optimizers = {name: torch.optim.Adam(parameters[name], lr=1e-3) for name in names}
    rows = dict(zip(names, ids.chunk(len(names)), strict=True))

    def step(trained: Sequence[str]) -> None:
        tokens = torch.cat([rows[name] for name in trained])
        of_rows = [name for name in trained for _ in rows[name]]
        inputs: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
        logits = model(base=inputs, adapter_names=of_rows)[1].logits
        losses = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        (losses.sum() * len(trained) / losses.numel()).backward()  # the sum of the adapters' mean losses
        for name in trained:
            clip_grad_norm_(parameters[name], 1.0)
            optimizers[name].step()
            optimizers[name].zero_grad()

    return step
