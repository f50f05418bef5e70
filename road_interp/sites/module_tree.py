"""The module tree of a model: block stacks, linear layers and the widths of outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from road_interp.errors import InputError

Hooks = list[tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]]  # register function, hook, its keyword arguments


def layer_stacks(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
    """The outermost module lists of `model` whose length is a number of layers in its configuration, by path."""
    config = model.config
    lengths = {
        getattr(section, key, None)
        for section in (config, text_config(model), *vars(config).values())
        for key in ("num_hidden_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
    }
    stacks: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer in stacks)
        if isinstance(module, nn.ModuleList) and len(module) in lengths and not inside and len(set(map(type, module))) == 1:
            stacks[name] = module
    return stacks


def text_config(model: PreTrainedModel) -> Any:
    """The section of the configuration about texts; the whole one where there is no such section, or where there are several."""
    try:
        return model.config.get_text_config()
    except ValueError:
        return model.config


def hidden_of(output: Any) -> Any:
    """The hidden states in a module's output: the output itself, or its first element if it is a tuple."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """A module's output with its hidden states replaced by `hidden`."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def is_called(module: nn.Module) -> bool:
    """Whether the forward of a linear layer is called: torch's MultiheadAttention reads the weight of its `out_proj` instead."""
    return not isinstance(module, NonDynamicallyQuantizableLinear)


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is a linear layer: nn.Linear or a subclass, Conv1D, or a PEFT layer that wraps one of these."""
    return (is_called(module) and isinstance(module, nn.Linear | Conv1D)) or isinstance(
        getattr(module, "base_layer", None), nn.Linear | Conv1D
    )


def output_width(module: nn.Module) -> int:
    """Width of the output of a linear layer."""
    linear: Any = getattr(module, "base_layer", module)
    return int(linear.nf if isinstance(linear, Conv1D) else linear.out_features)


def linears_of(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The linears inside `module` with their paths. Linears inside a linear (the matrices of a PEFT layer) are left out."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if is_linear(child):
            yield path, child
        else:
            yield from linears_of(child, path)


def is_in_attention(kind: str) -> bool:
    """Whether a path inside a block contains "attn" or "attention"."""
    return re.search("att(entio)?n", kind, re.IGNORECASE) is not None


def layer_and_kind(path: str, stacks: Iterable[str]) -> tuple[int | None, str]:
    """Layer and kind of the module at `path`, given the paths of the block stacks; the layer is None outside of them."""
    for stack in stacks:
        if found := re.fullmatch(rf"{re.escape(stack)}\.(\d{{1,6}})(?:\.(.*))?", path, re.DOTALL):
            return int(found[1]), found[2] or "block-output"
    return None, path


def check_no_convolution(path: str, module: nn.Module) -> None:
    """Raise InputError for a convolution, whose channels are not the last axis."""
    if isinstance(module, _ConvNd):
        raise InputError(f"'{path}' is a convolution, whose output has no axis of states at its end: choose another module")


def output_widths(model: PreTrainedModel, paths: list[str]) -> dict[str, int]:
    """Width of the output of the modules at `paths`, from one forward pass on dummy inputs.

    Raises InputError for a module that is not called or returns no hidden states, and for a convolution, whose last axis is not
    that of its channels.
    """
    for path in paths:
        check_no_convolution(path, model.get_submodule(path))
    widths: dict[str, int] = {}

    def record(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            output = hidden_of(output)
            if isinstance(output, Tensor) and output.ndim >= 2:
                widths[path] = output.shape[-1]

        return hook

    hooks: Hooks = [(model.get_submodule(path).register_forward_hook, record(path), {}) for path in paths]
    with hooked(hooks), torch.no_grad(), evaluating(model):
        model(**dummy_inputs(model))
    for path in paths:
        if path not in widths:
            raise InputError(f"'{path}' returns no hidden states (its output is not a tensor, or the module is not called)")
    return widths


def dummy_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """A minimal batch for one forward pass: four tokens, or one blank image."""
    config = model.config
    if model.main_input_name == "pixel_values":
        size = config.image_size if isinstance(config.image_size, Sequence) else (config.image_size, config.image_size)
        return {"pixel_values": torch.zeros(1, config.num_channels, *size, device=model.device, dtype=model.dtype)}
    ids = torch.arange(1, 5, device=model.device).remainder(text_config(model).vocab_size).unsqueeze(0)
    inputs = {"input_ids": ids}
    if model.device.type != "meta":  # transformers reads the values of a mask
        inputs["attention_mask"] = torch.ones_like(ids)
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    return inputs


@contextmanager
def hooked(hooks: Hooks) -> Iterator[None]:
    """Register hooks for the duration of the `with` statement; they are removed also after an error."""
    handles = [register(hook, **options) for register, hook, options in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode for the duration of the `with` statement; every module then gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
