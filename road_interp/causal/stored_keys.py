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

from road_interp.models.open_contexts import is_rotated

SAME = 1e-4  # difference of logits, as a fraction of the largest, that is rounding


class StoredKeys:
    """Keys and values of all tokens of texts, at the transformer blocks from one on.

    An exchange at one token leaves all tokens before it as they were, so that later runs can read them from a cache.

    Args:
        states: `(texts, blocks, 2, heads, longest, size)`: keys and values.
        first: number of the first of these blocks.
    """

    def __init__(self, states: Float[Tensor, "texts blocks 2 heads longest size"], first: int) -> None:
        self._states, self._first = states, first

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


def supports_stored_keys(model: PreTrainedModel, text: Sequence[int]) -> bool:
    """Whether tokens of a text can be run behind stored keys.

    The attention reads a mask and is causal, every block is one of attention, and no rotations are attached, whose tokens may
    depend on the cache, nor hooks of other code, which may count tokens. Flash attention takes no padding on both sides.

    Args:
        text: token ids, on which it is tested that tokens do not depend on later ones.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    reads_mask = config._attn_implementation in ("eager", "sdpa")
    attends = reads_mask and kinds <= {"full_attention", "sliding_attention"}
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return attends and not is_rotated(model) and not hooked and fills_cache(model, text) and is_causal(model, text)


@torch.no_grad()
def fills_cache(model: PreTrainedModel, text: Sequence[int]) -> bool:
    """Whether a pass stores every token of a text in a cache: models without keys ignore or refuse it, and PEFT's prefix tuning
    puts keys of its own in its place."""
    cache = DynamicCache()
    ids = torch.tensor([list(text)], device=model.device)
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, **{cache_argument(model): cache})
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return False
    return cache.get_seq_length() == len(text)


@torch.no_grad()
def is_causal(model: PreTrainedModel, text: Sequence[int]) -> bool:
    """Whether another last token leaves the logits of all tokens before it as they are; rounding of half precision may hide it.

    A text of one token shows nothing, and counts as causal.
    """
    if len(text) < 2:
        return True
    other = text[0] if text[0] != text[-1] else (text[-1] + 1) % model.config.get_text_config().vocab_size
    ids = torch.tensor([[*text], [*text[:-1], other]], device=model.device)
    first, second = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, :-1]
    return bool(((first - second).abs() <= SAME * first.abs().max()).all())


def states_of(cache: DynamicCache, first: int, longest: int) -> Float[Tensor, "texts blocks 2 heads longest size"] | None:
    """Keys and values in a cache from block `first` on, padded on the right, or None where they do not have one shape."""
    layers: list[Any] = cache.layers[first:]
    shapes = {getattr(getattr(layer, name, None), "shape", ()) for layer in layers for name in ("keys", "values")}
    if len(shapes) != 1 or len(shapes.pop()) != 4:
        return None
    states = torch.stack([torch.stack((layer.keys, layer.values), 1) for layer in layers], 1)
    return functional.pad(states, (0, 0, 0, longest - states.shape[4]))
