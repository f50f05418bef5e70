"""Which output dimensions of attention linears are queries and keys, found by gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from road_interp.errors import InputError
from road_interp.sites.module_tree import Hooks, dummy_inputs, evaluating, hidden_of, hooked, is_in_attention, linears_of
from road_interp.sites.site import OutputSlice


def slice_of_role(roles: str, letter: str, path: str) -> OutputSlice:
    """Where the dimensions of one role lie, from one letter per dimension ("qqkkvvqqkkvv" has period 6)."""
    period = next(p for p in range(1, len(roles) + 1) if len(roles) % p == 0 and roles[:p] * (len(roles) // p) == roles)
    start, stop = roles[:period].index(letter), roles[:period].rindex(letter) + 1
    if set(roles[start:stop]) != {letter}:
        raise InputError(f"'{path}' mixes query, key and value dimensions without a pattern: name the module itself instead")
    return OutputSlice(period, start, stop)


def attention_roles(model: PreTrainedModel, blocks: nn.ModuleList) -> Iterator[dict[str, str]]:
    """For each block and each of its attention linears, one letter per output dimension: q, k, or v for all that carries content.

    With the same state at every position, whom attention looks at makes no difference: the gradient of the block's output
    vanishes at queries and keys, and only there. With different states, a key at the first position reaches the output of the
    last, a query does not. Asked of a copy of the block in fp64, along several random directions, so that "vanishes" is clear
    also where weights are trained and some dimensions weigh a million times as much as others.
    """
    generator = torch.Generator().manual_seed(0)
    for block, (args, kwargs) in zip(blocks, _block_calls(model, blocks), strict=True):
        probe = _probe(block)
        same = _gradients(probe, args, kwargs, lambda states: states[:, :1].expand_as(states))
        different = _gradients(probe, args, kwargs, lambda states: torch.randn(states.shape, generator=generator).to(states))
        largest = max((gradient.sum(0).max().item() for gradient in same.values()), default=0.0)
        roles: dict[str, str] = {}
        for kind, gradient in same.items():
            content = gradient.sum(0) > 1e-4 * largest
            reaches = different[kind][0] > 0
            letters = ("v" if c else "k" if r else "q" for c, r in zip(content.tolist(), reaches.tolist(), strict=True))
            roles[kind] = "".join(letters)
        yield roles


def _block_calls(model: PreTrainedModel, blocks: nn.ModuleList) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What every block is called with in one forward pass on dummy inputs, without its cache."""
    calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[module] = _without_cache(args), _without_cache(kwargs)

    hooks: Hooks = [(block.register_forward_pre_hook, before, {"with_kwargs": True}) for block in blocks]
    with hooked(hooks), torch.no_grad(), evaluating(model):
        model(**dummy_inputs(model))
    return [calls[block] for block in blocks]


def _without_cache(value: Any) -> Any:
    """Arguments with every key-value cache taken out and every floating tensor in fp64."""
    if isinstance(value, tuple | list):
        return type(value)(map(_without_cache, value))
    if isinstance(value, dict):
        return {key: _without_cache(each) for key, each in value.items()}
    if isinstance(value, Cache):
        return None
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _probe(block: nn.Module) -> nn.Module:
    """A copy of a block in fp64 and evaluation mode, without anybody's hooks."""
    probe = copy.deepcopy(block).double().eval().requires_grad_(False)
    for module in probe.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return probe


def _gradients(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], replace_states: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Summed |gradient| of random projections of the block's last output position at its attention linears: `(positions, width)`.

    The block is given `replace_states(states)` for all hidden states that reach it.
    """
    captured: dict[str, Tensor] = {}

    def replaced(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point():
            return replace_states(value).clone().requires_grad_()
        return value

    def keep(kind: str) -> Callable[..., None]:
        return lambda module, args, output: captured.update({kind: output})

    linears = [(kind, module) for kind, module in linears_of(block) if is_in_attention(kind)]
    with hooked([(module.register_forward_hook, keep(kind), {}) for kind, module in linears]), torch.enable_grad():
        output = block(*map(replaced, args), **{key: replaced(value) for key, value in kwargs.items()})
        output = hidden_of(output)
        weights = torch.randn(4, output.shape[-1], generator=torch.Generator().manual_seed(1)).to(output)
        total = {kind: torch.zeros_like(each[0]) for kind, each in captured.items()}
        for projection in (output[:, -1] @ weights.T).sum(0) if captured else ():
            found = torch.autograd.grad(projection, list(captured.values()), retain_graph=True, materialize_grads=True)
            for kind, gradient in zip(captured, found, strict=True):
                total[kind] += gradient.abs().sum(0)
    return {kind: each.detach() for kind, each in total.items()}
