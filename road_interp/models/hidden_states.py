"""Reading hidden states while a model runs: where blocks end, and before the normalisation that a block may end in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel
from road_interp.sites.module_tree import hidden_of, layer_stacks

Token = Literal["first", "last", "mean", "all"]
Batch = Mapping[str, Tensor]  # a model's inputs, with an attention_mask


@dataclass(frozen=True)
class ReadPoint:
    """Where states are read.

    Attributes:
        layer: index of the block, counted from 0.
        before_norm: whether it is what enters the normalisation that the block ends in, instead of the block's output.
        module: dotted path of that normalisation, or of the block.
    """

    layer: int
    before_norm: bool
    module: str

    @property
    def name(self) -> str:
        """As figures name it: "block 3", or "block 3, before its LayerNorm"."""
        return f"block {self.layer}" + (", before its LayerNorm" if self.before_norm else "")


def find_read_points(model: PreTrainedModel, batch: Batch, stack: str | None = None) -> tuple[ReadPoint, ...]:
    """The output of every block; before it, where the block ends in a normalisation, what enters that.

    Such a block gives back what its last normalisation gives: that is seen in one forward pass.

    Args:
        stack: path of the block stack for models that have two.
    """
    stacks = layer_stacks(model)
    if stack not in stacks if stack else len(stacks) != 1:
        raise InputError(f"choose one stack of blocks; {type(model).__name__} has {', '.join(stacks) or 'none'}")
    name = stack or next(iter(stacks))
    blocks = {f"{name}.{layer}": block for layer, block in enumerate(stacks[name])}
    norms = {f"{path}.{inner}": norm for path, block in blocks.items() for inner, norm in block.named_modules() if _is_norm(norm)}
    given = _read(model, {**blocks, **norms}, {}, batch)
    places = []
    for layer, path in enumerate(blocks):
        ending = [norm for norm in norms if norm.startswith(f"{path}.") and torch.equal(given[norm], given[path])]
        places += [ReadPoint(layer, True, norm) for norm in ending[-1:]]
        places.append(ReadPoint(layer, False, path))
    return tuple(places)


def read_states(model: PreTrainedModel, places: Sequence[ReadPoint], batch: Batch) -> list[Float[Tensor, "rows tokens width"]]:
    """The states of one batch at every place, without gradient. Rotations that are attached to the model are in them."""
    leaving = {place.module: model.get_submodule(place.module) for place in places if not place.before_norm}
    entering = {place.module: model.get_submodule(place.module) for place in places if place.before_norm}
    seen = _read(model, leaving, entering, batch)
    return [seen[place.module] for place in places]


def select_tokens(
    states: Float[Tensor, "rows tokens width"], mask: Int[Tensor, "rows tokens"], token: Token
) -> tuple[Float[Tensor, "states width"], Int[Tensor, " states"]]:
    """The states that stand for the texts, and the row of each: each row's first or last token, their mean, or all tokens.

    Tokens are counted inside the mask, for left and right padding alike.
    """
    rows = torch.arange(len(states), device=states.device)
    mask = mask.to(states.device)
    if token == "all":
        chosen = mask.bool()
        return states[chosen], rows.unsqueeze(1).expand_as(chosen)[chosen]
    if token == "mean":
        shares = mask / mask.sum(1, keepdim=True)
        return (states * shares.unsqueeze(-1).to(states.dtype)).sum(1), rows
    return states[rows, token_index(mask, token)], rows


def token_index(mask: Int[Tensor, "rows tokens"], token: Literal["first", "last"]) -> Int[Tensor, " rows"]:
    """Position of each row's first or last token inside the mask."""
    return mask.argmax(1) if token == "first" else mask.shape[1] - 1 - mask.flip(1).argmax(1)


@contextmanager
def evaluation_mode(model: Any) -> Iterator[PreTrainedModel]:
    """The transformers model inside `model`, in evaluation mode and with a RoadModel's rotations on, while the block lasts."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        if isinstance(model, RoadModel):
            with model.attached() as base:
                yield base
        else:
            yield unwrap_model(model)
    finally:
        for module, mode in modes:
            module.training = mode


def unwrap_model(model: Any) -> PreTrainedModel:
    """The transformers model inside a RoadModel or a PEFT model, without rotations."""
    if isinstance(model, RoadModel):
        return model.model
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


@torch.no_grad()
def _read(
    model: PreTrainedModel, leaving: Mapping[str, nn.Module], entering: Mapping[str, nn.Module], batch: Batch
) -> dict[str, Tensor]:
    """What leaves and what enters modules in one forward pass, by path."""
    seen: dict[str, Tensor] = {}

    def after(path: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            seen[path] = hidden_of(output)

        return keep

    def before(path: str) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[path] = args[0] if args else next(iter(kwargs.values()))

        return keep

    with ExitStack() as hooks:
        for path, module in leaving.items():
            hooks.callback(module.register_forward_hook(after(path)).remove)
        for path, module in entering.items():
            hooks.callback(module.register_forward_pre_hook(before(path), with_kwargs=True).remove)
        model(**{key: value for key, value in batch.items() if key != "labels"})
    return {path: states.clone() for path, states in seen.items()}
