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

SMALLEST_INVERTIBLE = 1e-3  # scales below this are not divided by: the general form is used instead


COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def rotate_in_place(
    hidden: Float[Tensor, "*batch width"], factors: Complex[Tensor, "*#batch planes"], in_place: bool
) -> Float[Tensor, "*batch width"]:
    """Multiply adjacent planes of `hidden` by complex `factors` `alpha e^{i theta}`, overwriting `hidden` if `in_place`.

    The factors broadcast over the leading axes. The states may have any floating dtype and keep it; the product is taken in
    fp32. No factor may be smaller than `SMALLEST_INVERTIBLE` where a gradient is needed.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or factors.requires_grad):
        return _RotateInPlace.apply(hidden, factors, in_place)
    return _multiply(hidden, factors, in_place)


class _RotateInPlace(torch.autograd.Function):
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
            agreement = (planes.conj() * _planes(output)).sum_to_size(factors.shape)
            grad_factors = agreement.conj().resolve_conj() / conjugate
        if ctx.needs_input_grad[0]:
            product = planes * conjugate
            grad_hidden = product.view(product.real.dtype).to(gradient.dtype)
        return grad_hidden, grad_factors, None


def _multiply(hidden: Tensor, factors: Tensor, in_place: bool) -> Tensor:
    if in_place and COMPLEX.get(hidden.dtype) is factors.dtype:
        hidden.view(factors.dtype).mul_(factors)
        return hidden
    product = _planes(hidden) * factors
    turned = product.view(product.real.dtype)
    return hidden.copy_(turned) if in_place else turned.to(hidden.dtype)


def _planes(hidden: Tensor) -> Tensor:
    """Adjacent dimensions as complex numbers: a view in fp32 and fp64, a copy in fp32 otherwise."""
    hidden = hidden if hidden.dtype in COMPLEX else hidden.float()
    return hidden.view(COMPLEX[hidden.dtype])
