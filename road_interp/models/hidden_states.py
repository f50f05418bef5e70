"""Read hidden states during a forward pass: block outputs, and the input of a normalisation that ends a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from road_interp.errors import InputError
from road_interp.models.model_families import BLOCKS_TOKENS_FIRST, model_types
from road_interp.models.road_model import RoadModel
from road_interp.sites.module_tree import Hooks, evaluating, hidden_of, hooked, layer_stacks

Token = Literal["first", "last", "mean", "all"]
Batch = Mapping[str, Tensor]  # a model's inputs, with an attention_mask


@dataclass(frozen=True)
class ReadPoint:
    """A point in the model where hidden states are read.

    Attributes:
        layer: index of the block, counted from 0.
        before_norm: True for the input of the normalisation that ends the block, False for the output of the block.
        module: dotted path of that normalisation, or of the block.
        width: number of dimensions of the states.
    """

    layer: int
    before_norm: bool
    module: str
    width: int

    @property
    def name(self) -> str:
        """The name in figures: "block 3", or "block 3, before its LayerNorm"."""
        return f"block {self.layer}" + (", before its LayerNorm" if self.before_norm else "")


def find_read_points(model: PreTrainedModel, batch: Batch, stack: str | None = None) -> tuple[ReadPoint, ...]:
    """The read points of a model: the output of every block, preceded by the input of a normalisation that ends the block.

    A block ends in a normalisation if both have equal outputs in one forward pass on `batch`.

    Args:
        stack: path of the block stack, for models that have two.

    Raises:
        InputError: `stack` is not a block stack, or the model has not exactly one and `stack` is None.
    """
    stacks = layer_stacks(model)
    name = next(iter(stacks)) if stack is None and len(stacks) == 1 else stack
    if name is None or name not in stacks:
        raise InputError(f"choose one block stack; {type(model).__name__} has {', '.join(stacks) or 'none'}")
    blocks = {f"{name}.{layer}": block for layer, block in enumerate(stacks[name])}
    norms = {f"{path}.{inner}": norm for path, block in blocks.items() for inner, norm in block.named_modules() if _is_norm(norm)}
    outputs = _read(model, {**blocks, **norms}, {}, batch)
    read_points = []
    for layer, path in enumerate(blocks):
        final = [
            norm
            for norm in norms
            if norm in outputs and norm.startswith(f"{path}.") and torch.equal(outputs[norm], outputs[path])
        ]
        width = outputs[path].shape[-1]
        read_points += [ReadPoint(layer, True, norm, width) for norm in final[-1:]]
        read_points.append(ReadPoint(layer, False, path, width))
    return tuple(read_points)


def read_states(
    model: PreTrainedModel, read_points: Sequence[ReadPoint], batch: Batch
) -> list[Float[Tensor, "rows tokens width"]]:
    """The states of one batch at every read point, without gradient. They include rotations attached to the model."""
    outputs = {point.module: model.get_submodule(point.module) for point in read_points if not point.before_norm}
    inputs = {point.module: model.get_submodule(point.module) for point in read_points if point.before_norm}
    states = _read(model, outputs, inputs, batch)
    return [states[point.module] for point in read_points]


def token_mask(model: PreTrainedModel, read_points: Sequence[ReadPoint], batch: Batch) -> Int[Tensor, "rows tokens"]:
    """The attention mask of the tokens whose states are read: the decoder's for read points in a decoder beside an encoder.

    Raises InputError for a batch without it.
    """
    if not model.config.is_encoder_decoder or "decoder" not in read_points[0].module.split("."):
        return batch["attention_mask"]
    if "decoder_attention_mask" not in batch:
        raise InputError("states of a decoder beside an encoder need batches with a decoder_attention_mask")
    return batch["decoder_attention_mask"]


def select_states(
    states: Float[Tensor, "rows tokens width"], mask: Int[Tensor, "rows tokens"], token: Token
) -> tuple[Float[Tensor, "states width"], Int[Tensor, " states"]]:
    """The states of the selected tokens, and the row of each: the first or last token of a row, the mean of its tokens, or all.

    Padding is skipped on either side. Raises InputError for states of other rows, or of other tokens where all are read.
    """
    axes = 2 if token in ("mean", "all") else 1  # Longformer pads more tokens on the right
    if states.ndim != 3 or states.shape[:axes] != mask.shape[:axes]:
        raise InputError(
            f"states of shape {tuple(states.shape)} are not those of {mask.shape[0]} rows with {mask.shape[1]} tokens: token "
            f"'{token}' cannot be read"
        )
    rows = torch.arange(len(states), device=states.device)
    mask = mask.to(states.device)
    if token == "all":
        present = mask.bool()
        return states[present], rows.unsqueeze(1).expand_as(present)[present]
    if token == "mean":
        weights = mask.to(states.dtype) / mask.sum(1, keepdim=True)
        return (states * weights.unsqueeze(-1)).sum(1), rows
    return states[rows, token_index(mask, token)], rows


def text_token(tokenizer: PreTrainedTokenizerBase) -> Literal["first", "last"]:
    """The token that is read for a whole text: the first one where the tokeniser puts [CLS] there, or else the last.

    Tokenisers of decoders may have a [CLS] that they add to no text, and XLNet's adds it as the last token.
    """
    if tokenizer.cls_token is None:
        return "last"
    encoded = tokenizer(tokenizer.cls_token, return_special_tokens_mask=True)  # a text of a token that every vocabulary has
    added = encoded["special_tokens_mask"][:1] == [1]
    return "first" if added and encoded["input_ids"][:1] == [tokenizer.cls_token_id] else "last"


def token_index(mask: Int[Tensor, "rows tokens"], token: Literal["first", "last"]) -> Int[Tensor, " rows"]:
    """The index of the first or last token of each row that is not padding."""
    mask = mask.int()  # argmax of booleans is not defined
    return mask.argmax(1) if token == "first" else mask.shape[1] - 1 - mask.flip(1).argmax(1)


@contextmanager
def evaluation_mode(model: Any) -> Iterator[PreTrainedModel]:
    """The transformers model inside `model`, in evaluation mode and with the rotations of a RoadModel attached."""
    with evaluating(model):
        if isinstance(model, RoadModel):
            with model.attached() as base:
                yield base
        else:
            yield unwrap_model(model)


def unwrap_model(model: Any) -> PreTrainedModel:
    """The transformers model inside a RoadModel, which does not rotate it, or a PEFT model, whose adapter stays active.

    Raises InputError for PEFT's prompt learning, which acts in calls of the PEFT model only.
    """
    if isinstance(model, RoadModel):
        return model.model
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise InputError(
            "PEFT's prompt learning acts in calls of the PEFT model only: the states that are read, of the model inside it, have "
            "none of its virtual tokens and keys. Give a model with another kind of adapter"
        )
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


@torch.no_grad()
def _read(
    model: PreTrainedModel, outputs: Mapping[str, nn.Module], inputs: Mapping[str, nn.Module], batch: Batch
) -> dict[str, Tensor]:
    """The hidden states that the modules `outputs` return and the modules `inputs` receive in one forward pass, by path.

    Rows come first, also of blocks that compute with tokens first.
    """
    recorded: dict[str, Tensor] = {}

    def record_output(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            recorded[path] = hidden_of(output)

        return hook

    def record_input(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            recorded[path] = args[0] if args else next(iter(kwargs.values()))

        return hook

    hooks: Hooks = [(module.register_forward_hook, record_output(path), {}) for path, module in outputs.items()]
    hooks += [(module.register_forward_pre_hook, record_input(path), {"with_kwargs": True}) for path, module in inputs.items()]
    with hooked(hooks):
        model(**{key: value for key, value in batch.items() if key != "labels"})
    if not BLOCKS_TOKENS_FIRST.isdisjoint(model_types(model)):
        recorded = {path: states.transpose(0, 1) for path, states in recorded.items()}
    return {path: states.clone() for path, states in recorded.items()}
