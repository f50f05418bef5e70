"""The in-place road_1 rotation for training: one pass over the states and no additional saved activations.

A rotation is invertible, so the backward pass needs only its output: with `z = c h` the gradient of `c` is
`sum grad conj(h) = sum grad conj(z) / conj(c)`. The states can therefore be overwritten, and autograd saves only the output,
which the next operation saves too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from jaxtyping import Complex, Float
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from road_interp.errors import InputError, first_line
from road_interp.rotation.plane_maps import PlaneMaps, check_width, lies_in_pairs

SMALLEST_INVERTIBLE = 1e-3  # the backward pass divides by the scales; smaller scales use `plane_maps.apply` instead
COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def has_complex_form(maps: PlaneMaps, hidden: Tensor, group_size: int) -> bool:
    """Whether `rotate_in_place` rotates states by these maps: road_1 planes of adjacent dimensions, which lie together.

    Not inside torch.func's transforms and forward-mode differentiation, whose tangents `Tensor.view(dtype)` drops.
    """
    is_plain = maps.b is None and group_size == 2 and hidden.is_contiguous() and lies_in_pairs(hidden)
    return is_plain and not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


def rotate_in_place(
    hidden: Float[Tensor, "*batch width"], factors: Complex[Tensor, "*#batch planes"], in_place: bool
) -> Float[Tensor, "*batch width"]:
    """Multiply adjacent planes of `hidden` by complex `factors` `alpha e^{i theta}`, overwriting `hidden` if `in_place`.

    The factors broadcast over the leading axes. The states keep their floating dtype; states in half precision are multiplied in
    fp32. Where a gradient is needed, the magnitude of every factor must be at least `SMALLEST_INVERTIBLE`.
    """
    check_width(hidden, factors.shape[-1])
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
        try:
            output, factors = ctx.saved_tensors
        except CheckpointError:
            raise
        except RuntimeError as error:
            raise InputError(
                "the model changed a rotated state in place before its gradient was computed; there, train with group_size=4 or "
                f"another variant than road_1 ({first_line(error)})"
            ) from None
        grad_hidden = grad_factors = None
        conjugate = factors.conj().resolve_conj()
        planes = _differentiable_planes(gradient)
        if ctx.needs_input_grad[1]:
            correlation = (planes.conj() * _differentiable_planes(output)).sum_to_size(factors.shape)
            grad_factors = correlation.conj().resolve_conj() / conjugate
        if ctx.needs_input_grad[0]:
            grad_hidden = torch.view_as_real(planes * conjugate).flatten(-2).to(gradient.dtype)
        return grad_hidden, grad_factors, None


def _multiply(hidden: Tensor, factors: Tensor, in_place: bool) -> Tensor:
    if in_place and COMPLEX.get(hidden.dtype) is factors.dtype:
        hidden.view(factors.dtype).mul_(factors)
        return hidden
    product = _planes(hidden) * factors
    rotated = product.view(product.real.dtype)
    return hidden.copy_(rotated) if in_place else rotated.to(hidden.dtype)


def _planes(hidden: Tensor) -> Tensor:
    """Adjacent dimensions as complex numbers: a view for fp32 and fp64, an fp32 copy for other dtypes."""
    hidden = hidden if hidden.dtype in COMPLEX else hidden.float()
    return hidden.view(COMPLEX[hidden.dtype])


def _differentiable_planes(values: Tensor) -> Tensor:
    """`_planes` with a gradient of its own, which `Tensor.view(dtype)` does not have: for second derivatives."""
    values = values if values.dtype in COMPLEX else values.float()
    return torch.view_as_complex(values.unflatten(-1, (-1, 2)).contiguous())
