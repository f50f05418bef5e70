"""Random numbers of torch that do not depend on those drawn before, and leave those drawn afterwards as they would be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from road_interp.arguments import is_whole
from road_interp.errors import InputError, shown


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator of the CPU inside the `with` statement; it is then as before. Those of the GPUs are left alone.

    Raises InputError as `generator_of`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_checked(seed))  # and not, as torch.manual_seed does, those of the GPUs
        yield


def generator_of(seed: int) -> torch.Generator:
    """A generator of the CPU. Raises InputError for a seed that is no whole number, also of NumPy, of 64 bits."""
    return torch.Generator().manual_seed(_checked(seed))


def _checked(seed: object) -> int:
    if not is_whole(seed) or not -(2**63) <= seed < 2**63:
        raise InputError(f"a seed must be a whole number of 64 bits, not {shown(seed)}")
    return int(seed)
