"""Attention roles: which output dimensions of attention linears are queries and keys, determined by gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import Cache, PreTrainedModel

from road_interp.errors import InputError, first_line
from road_interp.sites.module_tree import FAILURES, Hooks, hidden_of, hooked, is_in_attention, linears_of, run_on_dummy
from road_interp.sites.site import OutputSlice

ZERO = 1e-7  # of the largest gradient of a block


def slice_of_role(roles: str, letter: str, path: str) -> OutputSlice:
    """The output slice of one role, given one letter per dimension ("qqkkvvqqkkvv" has period 6). Raises InputError."""
    period = next(p for p in range(1, len(roles) + 1) if len(roles) % p == 0 and roles[:p] * (len(roles) // p) == roles)
    start, stop = roles[:period].index(letter), roles[:period].rindex(letter) + 1
    if set(roles[start:stop]) != {letter}:
        raise InputError(f"query, key and value dimensions of '{path}' have no periodic order: select the whole module instead")
    return OutputSlice(period, start, stop)


def attention_roles(model: PreTrainedModel, blocks: list[nn.Module]) -> Iterator[dict[str, str]]:
    """For each block and each of its attention linears, one letter per output dimension: q, k, or v for all other dimensions.

    If all positions have the same state, the attention weights do not affect the block's output, so its gradient vanishes at
    queries and keys and only there; at all positions, because Longformer's values of global attention reach the first one only.
    With different states, the output at the last position depends on the key of the first position, but not on its query.
    Gradients are taken on an fp64 copy of the block along several random directions, so that zero gradients are identified
    reliably even where some trained weights are a million times as large as others. Learned sinks, which take a share of the
    attention that depends on queries and keys, have none on the copy.
    """
    generator = torch.Generator().manual_seed(0)
    for block, (args, kwargs) in zip(blocks, _block_calls(model, blocks), strict=True):
        probe = _probe(block)
        try:
            same = _gradients(probe, args, kwargs, lambda states: states[:, :1].expand_as(states), slice(None))
            different = _gradients(
                probe, args, kwargs, lambda states: torch.randn(states.shape, generator=generator).to(states), slice(-1, None)
            )
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            raise InputError(
                f"queries and keys of {type(model).__name__} cannot be found by gradients ({first_line(error)}): name the linear "
                "layers, such as 'q_proj'"
            ) from error
        largest = max((gradient.sum(0).max().item() for gradient in same.values()), default=0.0)
        roles: dict[str, str] = {}
        for kind, gradient in same.items():
            content = gradient.sum(0) > ZERO * largest
            is_key = different[kind][0] > 0
            letters = ("v" if c else "k" if k else "q" for c, k in zip(content.tolist(), is_key.tolist(), strict=True))
            roles[kind] = "".join(letters)
        yield roles


def _block_calls(model: PreTrainedModel, blocks: list[nn.Module]) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments of every block in one forward pass on dummy inputs, as its copy takes them: see `_as_probed`."""
    calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[module] = _as_probed(args), _as_probed(kwargs)

    hooks: Hooks = [(block.register_forward_pre_hook, record, {"with_kwargs": True}) for block in blocks]
    with hooked(hooks):
        run_on_dummy(model)
    if missing := len(set(blocks) - set(calls)):
        raise InputError(f"{type(model).__name__} does not call {missing} of its {len(blocks)} blocks in a pass over four tokens")
    return [calls[block] for block in blocks]


def _as_probed(value: Any) -> Any:
    """Arguments for `_probe(block)`: every floating-point tensor in fp64, and None in place of every key-value cache."""
    if isinstance(value, tuple | list):
        return type(value)(map(_as_probed, value))
    if isinstance(value, dict):
        return {key: _as_probed(entry) for key, entry in value.items()}
    if isinstance(value, Cache):
        return None
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _probe(block: nn.Module) -> nn.Module:
    """A copy of a block in fp64 and evaluation mode, without hooks."""
    probe = copy.deepcopy(block).double().eval().requires_grad_(False)
    for module in probe.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"  # grouped products of experts have no fp64
        if isinstance(sinks := getattr(module, "sinks", None), Tensor):
            sinks.fill_(-torch.inf)
    return probe


class _SoftmaxInFloat64(TorchFunctionMode):
    """Eager attention asks for a softmax in fp32, whose rounding would be a gradient at queries and keys."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        options = kwargs or {}
        if options.get("dtype") is torch.float32 and getattr(func, "__name__", "") == "softmax":
            options = {**options, "dtype": torch.float64}
        return func(*args, **options)


def _gradients(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], replace_states: Callable[[Tensor], Tensor], positions: slice
) -> dict[str, Tensor]:
    """Summed |gradient| of random projections of the block's output at some positions with respect to its attention linears.

    The block's hidden states are replaced by `replace_states(states)`; embeddings of positions are not. Every gradient has shape
    `(positions, width)`.
    """
    captured: dict[str, Tensor] = {}

    def replaced(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point():
            return replace_states(value).clone().requires_grad_()
        return value

    def capture(kind: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if output.requires_grad and output.ndim != 3:
                raise ValueError(f"'{kind}' returns states of shape {tuple(output.shape)}, not those of rows and tokens")
            if output.requires_grad:  # else of embeddings of distances, which no state reaches
                captured[kind] = output

        return keep

    linears = [(kind, module) for kind, module in linears_of(block) if is_in_attention(block, kind)]
    hooks: Hooks = [(module.register_forward_hook, capture(kind), {}) for kind, module in linears]
    with hooked(hooks), torch.enable_grad(), _SoftmaxInFloat64():
        given = {key: value if "position" in key else replaced(value) for key, value in kwargs.items()}
        output = hidden_of(block(*map(replaced, args), **given))
        weights = torch.randn(4, output.shape[-1], generator=torch.Generator().manual_seed(1)).to(output)
        total = {kind: torch.zeros_like(states[0]) for kind, states in captured.items()}
        for projection in (output[:, positions] @ weights.T).sum((0, 1)) if captured else ():
            gradients = torch.autograd.grad(projection, list(captured.values()), retain_graph=True, materialize_grads=True)
            for kind, gradient in zip(captured, gradients, strict=True):
                total[kind] += gradient.abs().sum(0)
    return {kind: gradient.detach() for kind, gradient in total.items()}
