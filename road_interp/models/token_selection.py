"""The tokens that a pass of a model rotates, from its positions and its inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from road_interp.errors import InputError
from road_interp.models.generate_arguments import generation_setting
from road_interp.rotation import plane_maps
from road_interp.sites.module_tree import text_config
from road_interp.sites.positions import Positions, position_mask

TOKEN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values")  # the inputs whose first two axes are rows and tokens
ROW_INPUTS = (*TOKEN_INPUTS, "decoder_input_ids", "decoder_inputs_embeds", "input_values", "input_features", "attention_mask")
STATES = ("state", "cache_params", "past_key_values", "past_buckets_states")  # inputs with what earlier passes computed


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
    inputs: Mapping[str, Any],
) -> Selection:
    """The tokens of the prompt that `positions` name, restricted to those that the pass computes.

    Args:
        model: for errors.
        prompt: attention mask of the prompt; without it, a pass that starts with an empty cache is one.
        inputs: of the pass, by name.

    Raises:
        InputError: inputs whose rows, tokens or cached tokens are not known, or that are not those of the prompt.
    """
    states = tokens_of(inputs)
    if states is None:
        raise InputError(f"positions {positions!r} need an input that has tokens: {', '.join(TOKEN_INPUTS)}")
    if inputs.get("cu_seq_lens_q") is not None or (prompt is None and _is_packed(model, inputs)):
        raise InputError(f"positions {positions!r} cannot be found in packed sequences, whose rows are joined")
    batch, length = states.shape[:2]
    done = _cached_tokens(model, positions, inputs)
    if prompt is None:
        rotates = done == 0
        if not rotates and length > 1:
            raise InputError(
                f"positions {positions!r}: the cache holds {done} tokens and the call {length} more, of which those of "
                "the prompt are not known; give the whole prompt with an empty cache"
            )
        prompt = inputs.get("attention_mask")
        if rotates and prompt is None:
            _check_no_padding(model, positions, states)
        elif rotates:
            _check_mask(positions, prompt, batch, length)
        prompt = torch.ones((batch, length), device=states.device) if prompt is None else prompt
    else:
        rotates = done < prompt.shape[1]
        if rotates:
            _check_prompt(positions, prompt, states, inputs.get("attention_mask"))
    if not rotates:
        return NO_TOKEN
    mask = plane_maps.repeat_rows(position_mask(positions, prompt), batch)[:, done : done + length]
    return Selection(True, nn.functional.pad(mask, (0, length - mask.shape[1])) if mask.shape[1] < length else mask)


def _check_mask(positions: Positions, mask: Any, batch: int, length: int) -> None:
    """Raise InputError unless a mask has an entry for every token; Gemma's may be a mapping, with one per kind of attention."""
    if not isinstance(mask, Tensor) or mask.shape != (batch, length):
        given = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"the type {type(mask).__name__}"
        raise InputError(
            f"attention_mask has {given}; positions {positions!r} need ({batch}, {length}), one entry per token of every row"
        )


def _check_no_padding(model: PreTrainedModel, positions: Positions, tokens: Tensor) -> None:
    """Raise InputError for token ids without a mask that hold the padding token: positions would count it."""
    padding = getattr(text_config(model), "pad_token_id", None)
    if padding is not None and not tokens.is_floating_point() and bool((tokens == padding).any()):
        raise InputError(
            f"positions {positions!r} do not count padding, and the inputs hold the padding token {padding} without an "
            "attention_mask that tells it from text: give the attention_mask"
        )


def _check_prompt(positions: Positions, prompt: Int[Tensor, "rows length"], states: Tensor, mask: Any) -> None:
    """Raise InputError if the rows of a pass, or its mask, show that it is not one of the prompt, but of other texts."""
    is_other = len(states) % len(prompt) != 0
    if not is_other and isinstance(mask, Tensor) and mask.ndim == 2 and len(mask) == len(states):
        known = min(mask.shape[1], prompt.shape[1])
        expected = plane_maps.repeat_rows(prompt, len(mask))[:, :known].bool()
        is_other = not torch.equal(mask[:, :known].bool(), expected.to(mask.device))
    if is_other:
        raise InputError(
            f"positions {positions!r} are those of the prompts of generate, and the base model was called inside it with other "
            "rows or another attention_mask: call the RoadModel, whose calls have prompts of their own"
        )


def given_rows(inputs: Mapping[str, Any]) -> int | None:
    """The number of rows in the inputs of a model: of a known input, or else of the first tensor; None if there is none."""
    tensors = (row_input(inputs), *inputs.values())
    return next((len(given) for given in tensors if isinstance(given, Tensor) and given.ndim), None)


def row_input(inputs: Mapping[str, Any]) -> Any:
    """The first known input whose first axis is that of the rows; None if there is none."""
    return next((inputs[name] for name in ROW_INPUTS if inputs.get(name) is not None), None)


def named_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inputs of a module by the names of its forward, those given by position too."""
    if not args:
        return kwargs
    kind: Any = type(module)
    names = _positional(kind) or (getattr(module, "main_input_name", TOKEN_INPUTS[0]),)
    return {**dict(zip(names, args, strict=False)), **kwargs}


@cache
def _positional(kind: Any) -> tuple[str, ...]:
    """Names of the arguments that the forward of a class of modules takes by position."""
    _, *parameters = inspect.signature(kind.forward).parameters.values()
    return tuple(each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD)


def tokens_of(inputs: Mapping[str, Any]) -> Tensor | None:
    """The input whose first two axes are rows and tokens; None if there is none, or none with a token."""
    found = (inputs[name] for name in TOKEN_INPUTS if inputs.get(name) is not None)
    return next((states for states in found if states.shape[1]), None)


def prompt_mask(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Int[Tensor, "batch length"] | None:
    """The attention mask of the prompts of `generate`; without one, the mask that transformers infers from its padding token.

    Args:
        inputs: all arguments of `generate`, by name.
    """
    if (mask := inputs.get("attention_mask")) is not None:
        return mask
    if (states := tokens_of(inputs)) is None:
        return None
    padding, end = (generation_setting(model, inputs, name) for name in ("pad_token_id", "eos_token_id"))
    ends = [] if end is None else torch.as_tensor(end).flatten().tolist()
    if states.ndim != 2 or padding is None or int(padding) in ends:
        return torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
    return (states != int(padding)).long()


def check_prompt_and_cache(model: PreTrainedModel, positions: Positions, inputs: Mapping[str, Any]) -> None:
    """Raise InputError where the mask of the prompts of `generate` is neither that of the tokens nor that of cache and tokens.

    transformers drops or lengthens a mask of ones, so that its own output would tell nobody, but positions are those of the mask.

    Args:
        inputs: all arguments of `generate`, by name.
    """
    states, mask = tokens_of(inputs), prompt_mask(model, inputs)
    if positions == "all" or states is None or mask is None or mask.ndim != 2:
        return
    given, known, done = states.shape[1], mask.shape[1], _cached_tokens(model, positions, inputs)
    if known != given + done and not (known == given > done):
        raise InputError(
            f"positions {positions!r} cannot be found: the inputs hold {given} tokens, the cache {done}, and the attention_mask "
            f"has {known}; give the attention_mask of all {given + done} tokens, or the whole prompt with its own"
        )


def _is_packed(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether a row without a mask has positions that are not consecutive: transformers infers that it holds several texts."""
    numbers = inputs.get("position_ids")
    if numbers is None or numbers.ndim != 2 or inputs.get("attention_mask") is not None:
        return False
    is_causal = any(getattr(module, "is_causal", False) for module in model.modules())
    return is_causal and bool((numbers.diff(dim=1) != 1).any())


def _cached_tokens(model: PreTrainedModel, positions: Positions, inputs: Mapping[str, Any]) -> int:
    """The number of tokens in the cache of a call. Raises InputError for a cache that does not count them."""
    stored = next((value for value in inputs.values() if isinstance(value, Cache)), None)
    try:
        if any(inputs.get(name) is not None and not isinstance(inputs[name], Cache) for name in STATES):
            raise ValueError
        return 0 if stored is None else _length_of(stored)
    except ValueError as error:  # of recurrent layers
        raise InputError(
            f"positions {positions!r}: the cache of {type(model).__name__} does not count its tokens; "
            "generate with use_cache=False, or rotate with positions='all'"
        ) from error


def _length_of(cache: Cache) -> int:
    """The number of tokens in a cache, also where its first layer has none, as one of MiniMax that is not of attention."""
    others = (each.get_seq_length() for each in getattr(cache, "layers", ()) if hasattr(each, "get_seq_length"))
    return int(cache.get_seq_length()) or int(max(others, default=0))
