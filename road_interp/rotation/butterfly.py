"""Stacked plane rotations: from RoAd, which turns each plane by itself, to a rotation that mixes all dimensions.

Every level turns the `width / 2` planes of the state, each by its own angle; between two levels the dimensions are riffled, so
that a level pairs what the one before it left apart. One level is RoAd with adjacent planes and all scales 1. `depth` levels have
`depth * width / 2` angles and take `O(depth * width)` time, where a dense rotation takes `O(width^2)`.

The riffle sends what plane `p` holds to the planes `2p` and `2p + 1` modulo the number of planes (a generalised de Bruijn graph:
Imase & Itoh 1981). After `k` riffles it has reached `2^k` planes in a row, whatever the width: the stack of `full_depth(width)`
levels is the shortest in which every dimension reaches every other, also for widths such as 576 that are no power of two.

Notation: `theta` has shape `(depth, planes)`, radians; `R` is the whole stack. It is orthogonal: its inverse is its transpose.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor


def full_depth(width: int) -> int:
    """The least number of levels in which every dimension reaches every other: `1 + ceil(log2(planes))`."""
    return 1 + (width // 2 - 1).bit_length()


def rotate(theta: Float[Tensor, "depth planes"], hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """`R h` for every state, in the dtype of `hidden`; half precision is computed in fp32. Gradients flow to both."""
    factors = _factors(theta, hidden.dtype)
    states = hidden.to(factors.real.dtype)
    first, second = states[..., 0::2], states[..., 1::2]
    for factor in factors:
        states = torch.view_as_real(torch.complex(first, second) * factor).flatten(-2)
        first, second = states.chunk(2, -1)
    return states.to(hidden.dtype)


def inverse(theta: Float[Tensor, "depth planes"], rotated: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """`R^-1 z`: the same levels backwards, each turned back; no matrix is formed."""
    factors = _factors(-theta, rotated.dtype)
    states = rotated.to(factors.real.dtype)
    for factor in factors.flip(0):
        turned = torch.complex(states[..., 0::2], states[..., 1::2]) * factor
        states = torch.cat((turned.real, turned.imag), -1)
    return _riffle(states).to(rotated.dtype)


def matrix(theta: Float[Tensor, "depth planes"]) -> Float[Tensor, "width width"]:
    """The dense `R`."""
    return rotate(theta, torch.eye(2 * theta.shape[1], dtype=theta.dtype, device=theta.device)).T


def columns(theta: Float[Tensor, "depth planes"], rows: Int[Tensor, " k"]) -> Float[Tensor, "width k"]:
    """The named rows of `R`, as orthonormal columns: the directions that the rotated coordinates `rows` measure."""
    picked = torch.zeros(len(rows), 2 * theta.shape[1], dtype=theta.dtype, device=theta.device)
    return inverse(theta, picked.scatter(1, rows.unsqueeze(1), 1.0)).T


def order(width: int, level: int) -> Int[Tensor, " width"]:
    """The dimensions in the order in which `level` (from 0) pairs neighbours, were all earlier angles 0."""
    dimensions = torch.arange(width)
    for _ in range(level):
        dimensions = _riffle(dimensions)
    return dimensions


def _riffle(states: Tensor) -> Tensor:
    """The two halves of the last axis, interleaved."""
    return states.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def _factors(theta: Tensor, dtype: torch.dtype) -> Complex[Tensor, "depth planes"]:
    """`e^{i theta}` in the precision to compute in: the wider of the two, at least fp32."""
    angles = theta.to(torch.promote_types(torch.promote_types(theta.dtype, dtype), torch.float32))
    return torch.complex(angles.cos(), angles.sin())
