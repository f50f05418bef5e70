"""StoredKeys: keys and values of texts that were run before, so that a run computes only the tokens from the exchanged one on."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel


class StoredKeys:
    """Keys and values of all tokens of texts, at the transformer blocks from one on.

    An exchange at one token leaves all tokens before it as they were, so that later runs can read them from a cache.

    Args:
        states: `(texts, blocks, 2, heads, longest, size)`: keys and values.
        first: number of the first of these blocks.
    """

    def __init__(self, states: Float[Tensor, "texts blocks 2 heads longest size"], first: int) -> None:
        self._states, self._first = states, first

    @classmethod
    def of(cls, caches: Sequence[DynamicCache], first: int | None, longest: int) -> StoredKeys | None:
        """Those of the caches of batches, or None for a model whose blocks do not keep keys and values of one shape.

        Args:
            first: as above; None for 0.
            longest: number of tokens of the longest text.
        """
        batches = []
        for cache in caches:
            layers: list[Any] = cache.layers[first or 0 :]
            shapes = {getattr(getattr(layer, "keys", None), "shape", ()) for layer in layers}
            if len(shapes) != 1 or len(shapes.pop()) != 4:
                return None
            states = torch.stack([torch.stack((layer.keys, layer.values), 1) for layer in layers], 1)
            batches.append(functional.pad(states, (0, 0, 0, longest - states.shape[4])))
        return cls(torch.cat(batches), first or 0)

    def before(self, rows: Int[Tensor, " n"], ends: Int[Tensor, " n"]) -> DynamicCache:
        """A cache of the first `ends` tokens of every row, which are padded on the left.

        Blocks before the first one get zeros, because no run computes them.
        """
        longest = int(ends.max())
        columns = (torch.arange(longest, device=ends.device) - (longest - ends).unsqueeze(1)).clamp(min=0)
        kept = self._states[rows]
        columns = columns.view(len(rows), 1, 1, 1, longest, 1).expand(*kept.shape[:4], longest, kept.shape[5])
        chosen = kept.gather(4, columns)
        cache = DynamicCache()
        for number in range(self._first + chosen.shape[1]):
            block = torch.zeros_like(chosen[:, 0]) if number < self._first else chosen[:, number - self._first]
            cache.update(block[:, 0], block[:, 1], number)
        return cache


def cache_argument(model: PreTrainedModel) -> str:
    """The name of the cache among the arguments of a model, which transformers 5.24 renamed."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def supports_stored_keys(model: PreTrainedModel) -> bool:
    """Whether the attention of a model reads a mask and keys of any cache, as flash attention's right padding does not allow."""
    return model.config.get_text_config()._attn_implementation in ("eager", "sdpa")
