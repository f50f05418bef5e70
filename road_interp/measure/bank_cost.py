"""Memory of a bank of many adapters, and the time to add one."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import psutil

from road_interp.adapters.bank import RoadBank
from road_interp.arguments import check_argument
from road_interp.errors import InputError
from road_interp.measure.call_cost import gc_paused
from road_interp.measure.throughput_methods import random_adapter
from road_interp.progress import Progress, silent
from road_interp.results import Result
from road_interp.sites.site import Site


@dataclass(frozen=True)
class BankCostReport(Result):
    """A bank to which adapters were added one by one.

    Attributes:
        adapters: number of adapters.
        values: numbers per adapter.
        resident_bytes: memory of the process that the adapters take.
        first, last: seconds to add one, for the first and the last hundred.
    """

    adapters: int
    values: int
    resident_bytes: int
    first: tuple[float, ...]
    last: tuple[float, ...]

    @property
    def overhead(self) -> float:
        """Resident memory over that of the numbers alone, four bytes each."""
        return self.resident_bytes / (4 * self.values * self.adapters)

    @property
    def slowdown(self) -> float:
        """Median time to add one of the last hundred over that of the first."""
        return float(np.median(self.last) / np.median(self.first))


def bank_cost(adapters: int = 10_000, progress: Progress = silent) -> BankCostReport:
    """Add adapters at the outputs of all 30 blocks of SmolLM2-135M, 576 dimensions wide, to a bank.

    Args:
        adapters: at least 200.
        progress: called before every hundred.

    Raises:
        InputError: something else than a whole number of at least 200.
    """
    check_argument("measure.bank_cost", adapters, int, "the number of adapters")
    if adapters < 200:
        raise InputError(f"measure.bank_cost compares the first and the last hundred of at least 200 adapters, not of {adapters}")
    sites = [Site(f"layers.{layer}", 576, layer, f"layers.{layer}") for layer in range(30)]
    drawn = [random_adapter(sites, number) for number in range(100)]
    bank = RoadBank({"first": drawn[0]})
    seconds = []
    with gc_paused():
        before = psutil.Process().memory_info().rss
        for number in range(adapters):
            if number % 100 == 0:
                progress(f"{number} adapters", number, adapters)
            started = time.perf_counter()
            bank.add(f"adapter {number}", drawn[number % 100])
            seconds.append(time.perf_counter() - started)
        after = psutil.Process().memory_info().rss
    return BankCostReport(adapters, drawn[0].num_parameters, after - before, tuple(seconds[:100]), tuple(seconds[-100:]))
