"""Random numbers of torch that do not depend on those drawn before, and leave those drawn afterwards as they would be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator of the CPU inside the `with` statement; it is then as before. Those of the GPUs are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and not, as torch.manual_seed does, those of the GPUs
        yield
