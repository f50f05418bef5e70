"""The tokens that a pass of a model rotates, from its positions and its inputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from road_interp.errors import InputError
from road_interp.rotation import plane_maps
from road_interp.sites.positions import Positions, position_mask

TOKEN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values")  # the inputs whose first two axes are rows and tokens


class Selection(NamedTuple):
    """The tokens that a pass rotates.

    Attributes:
        rotates: whether it rotates any token.
        mask: True at the tokens to rotate; None for all.
    """

    rotates: bool
    mask: Bool[Tensor, "batch length"] | None


EVERY_TOKEN, NO_TOKEN = Selection(True, None), Selection(False, None)


class CheckpointedSelections:
    """The different selections since the last backward pass, which gradient checkpointing computes again in the next one.

    Args:
        positions: the tokens to rotate, for errors.
    """

    def __init__(self, positions: Positions) -> None:
        self._positions = positions
        self._selections: list[Selection] = []
        self._is_used = False

    def add(self, selection: Selection) -> None:
        """Add the selection of a pass; the first one after a backward pass replaces all others."""
        if self._is_used:
            self._selections, self._is_used = [], False
        if not any(_are_equal(selection, other) for other in self._selections):
            self._selections = [*self._selections[-1:], selection]

    def in_backward(self) -> Selection | None:
        """The selection of the passes that a backward pass computes again; None if there was no such pass.

        Raises InputError if they selected different tokens, because it cannot be told which pass is computed.
        """
        if len(self._selections) > 1:
            raise InputError(
                f"gradient checkpointing computes several passes again, and positions {self._positions!r} are different tokens "
                "in them: call backward after every pass"
            )
        self._is_used = True
        return self._selections[0] if self._selections else None


def _are_equal(one: Selection, other: Selection) -> bool:
    if one.mask is None or other.mask is None:
        return one is other
    return one.mask.shape == other.mask.shape and torch.equal(one.mask, other.mask)


def select_tokens(
    model: PreTrainedModel,
    positions: Positions,
    prompt: Int[Tensor, "batch length"] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Selection:
    """The tokens of the prompt that `positions` name, restricted to those that the pass computes.

    Args:
        model: for errors.
        prompt: attention mask of the prompt; without it, a pass that starts with an empty cache is one.
        args, kwargs: inputs of the pass.

    Raises:
        InputError: inputs whose rows, tokens or cached tokens are not known.
    """
    states = args[0] if args else next((kwargs[name] for name in TOKEN_INPUTS if kwargs.get(name) is not None), None)
    if states is None:
        raise InputError(f"positions {positions!r} need an input that has tokens: {', '.join(TOKEN_INPUTS)}")
    if kwargs.get("cu_seq_lens_q") is not None:
        raise InputError(f"positions {positions!r} cannot be found in packed sequences, whose rows are joined")
    batch, length = states.shape[:2]
    done = _cached_tokens(model, positions, kwargs)
    if prompt is None:
        rotates = done == 0
        if not rotates and length > 1:
            raise InputError(
                f"positions {positions!r}: the cache holds {done} tokens and the call {length} more, of which those of "
                "the prompt are not known; give the whole prompt with an empty cache"
            )
        prompt = kwargs.get("attention_mask")
        if rotates and prompt is not None and tuple(prompt.shape) != (batch, length):
            raise InputError(
                f"attention_mask has shape {tuple(prompt.shape)}; positions {positions!r} need ({batch}, {length}), "
                "one entry per token of every row"
            )
        prompt = torch.ones((batch, length), device=states.device) if prompt is None else prompt
    else:
        rotates = done < prompt.shape[1]
    if not rotates:
        return NO_TOKEN
    mask = plane_maps.repeat_rows(position_mask(positions, prompt), batch)[:, done : done + length]
    return Selection(True, nn.functional.pad(mask, (0, length - mask.shape[1])) if mask.shape[1] < length else mask)


def _cached_tokens(model: PreTrainedModel, positions: Positions, kwargs: dict[str, Any]) -> int:
    """The number of tokens in the cache of a call. Raises InputError for a cache that does not count them."""
    cache = next((value for value in kwargs.values() if isinstance(value, Cache)), None)
    try:
        return 0 if cache is None else int(cache.get_seq_length())
    except ValueError as error:  # of recurrent layers
        raise InputError(
            f"positions {positions!r}: the cache of {type(model).__name__} does not count its tokens; "
            "generate with use_cache=False, or rotate with positions='all'"
        ) from error
