"""The training form of a road_1 rotation: one pass over the states, and nothing kept that the next layer does not keep anyway.

A rotation is invertible, so the backward pass needs only its output: with `z = c h` the gradient of `c` is
`sum grad conj(h) = sum grad conj(z) / conj(c)`. The states can be overwritten, and what autograd saves is the tensor that the
next operation saves as well.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

SMALLEST = 1e-3  # scales below this are not divided by: the general form is used instead


def turn(
    hidden: Float[Tensor, "batch *positions width"], factors: Complex[Tensor, "*rows planes"], in_place: bool
) -> Float[Tensor, "batch *positions width"]:
    """Multiply adjacent planes of `hidden` by complex `factors` `alpha e^{i theta}`, overwriting `hidden` if `in_place`.

    The states may have any floating dtype and keep it; the product is taken in fp32. No factor may be smaller than `SMALLEST`
    where a gradient is needed.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or factors.requires_grad):
        return _Turn.apply(hidden, factors, in_place)
    return _multiply(hidden, factors, in_place)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, factors: Tensor, in_place: bool) -> Tensor:
        output = _multiply(hidden, factors, in_place)
        if in_place:
            ctx.mark_dirty(hidden)
        ctx.save_for_backward(output, factors)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        output, factors = ctx.saved_tensors
        grad_hidden = grad_factors = None
        conjugate = factors.conj().resolve_conj()
        planes = _planes(gradient.contiguous())
        if ctx.needs_input_grad[1]:
            rows = factors.ndim - 1
            agreement = planes.conj() * _planes(output)
            agreement = agreement.flatten(rows, -2).sum(rows) if agreement.ndim > rows + 1 else agreement
            grad_factors = agreement.conj().resolve_conj() / conjugate
        if ctx.needs_input_grad[0]:
            grad_hidden = torch.view_as_real(planes * _place(conjugate, planes)).flatten(-2).to(gradient.dtype)
        return grad_hidden, grad_factors, None


def _multiply(hidden: Tensor, factors: Tensor, in_place: bool) -> Tensor:
    if in_place and hidden.dtype == factors.real.dtype:
        planes = _planes(hidden)
        planes.mul_(_place(factors, planes))
        return hidden
    planes = _planes(hidden)
    product = torch.view_as_real(planes * _place(factors, planes)).flatten(-2)
    return hidden.copy_(product) if in_place else product.to(hidden.dtype)


def _planes(hidden: Tensor) -> Tensor:
    """Adjacent dimensions as complex numbers: a view in fp32 and fp64, a copy in fp32 otherwise."""
    hidden = hidden if hidden.dtype in (torch.float32, torch.float64) else hidden.float()
    return torch.view_as_complex(hidden.unflatten(-1, (-1, 2)))


def _place(factors: Tensor, planes: Tensor) -> Tensor:
    """`(rows, planes)` becomes `(rows, 1, ..., planes)`."""
    if factors.ndim == 1:
        return factors
    return factors.view(factors.shape[0], *[1] * (planes.ndim - 2), factors.shape[-1])
