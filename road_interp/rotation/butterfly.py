"""Stacked plane rotations: RoAd, which rotates each plane independently, extended to a rotation that mixes all dimensions.

Every level rotates the `width / 2` planes of the state, each by its own angle. A riffle permutes the dimensions between two
levels, so that each level pairs dimensions that the previous level did not pair. One level is RoAd with adjacent planes and all
scales 1. `depth` levels have `depth * width / 2` angles and take `O(depth * width)` time; a dense rotation takes `O(width^2)`.

The riffle sends the two dimensions of plane `p` to the planes `2p` and `2p + 1` modulo the number of planes (a generalised
de Bruijn graph: Imase & Itoh 1981). After `k` riffles a dimension influences `2^k` consecutive planes at any width. A stack of
`full_depth(width)` levels is the shortest in which every dimension influences every other, also where the width is not a power
of two, such as 576.

Products of sparse rotations that reach all dimensions in about log2(width) levels are known from fine-tuning: BOFT (Liu et al.
2024, butterflies of Cayley blocks, in PEFT) and GOFT (Ma et al. 2024, Givens rotations) multiply weights by them. The number of
BOFT's factors can be chosen as the depth can here. What differs is that the stack acts on states, that any even width will do,
and that chosen coordinates are swapped. A stack of `depth` levels has no more than `depth * width / 2` degrees of freedom, so
that its rows are arbitrary directions only while they are few.

Notation: `theta` has shape `(depth, planes)`, in radians; `R` is the whole stack, an orthogonal matrix.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor


def full_depth(width: int) -> int:
    """The smallest number of levels in which every dimension influences every other: `1 + ceil(log2(planes))`."""
    return 1 + (width // 2 - 1).bit_length()


def rotate(theta: Float[Tensor, "depth planes"], hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """`R h` for every state, in the dtype of `hidden`. Half precision is computed in fp32. Differentiable in both arguments."""
    factors = _factors(theta, hidden.dtype)
    states = hidden.to(factors.real.dtype)
    first, second = states[..., 0::2], states[..., 1::2]
    for factor in factors:
        states = torch.view_as_real(torch.complex(first, second) * factor).flatten(-2)
        first, second = states.chunk(2, -1)
    return states.to(hidden.dtype)


def inverse(theta: Float[Tensor, "depth planes"], rotated: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
    """`R^-1 z`: the levels in reverse order, each with negated angles. No matrix is formed."""
    factors = _factors(-theta, rotated.dtype)
    states = rotated.to(factors.real.dtype)
    for factor in factors.flip(0):
        planes = torch.complex(states[..., 0::2], states[..., 1::2]) * factor
        states = torch.cat((planes.real, planes.imag), -1)
    return _riffle(states).to(rotated.dtype)


def matrix(theta: Float[Tensor, "depth planes"]) -> Float[Tensor, "width width"]:
    """The dense matrix `R`."""
    return rotate(theta, torch.eye(2 * theta.shape[1], dtype=theta.dtype, device=theta.device)).T


def columns(theta: Float[Tensor, "depth planes"], rows: Int[Tensor, " k"]) -> Float[Tensor, "width k"]:
    """The selected rows of `R` as orthonormal columns: the directions onto which the rotated coordinates `rows` project."""
    selected = torch.zeros(len(rows), 2 * theta.shape[1], dtype=theta.dtype, device=theta.device)
    return inverse(theta, selected.scatter(1, rows.unsqueeze(1), 1.0)).T


def _riffle(states: Tensor) -> Tensor:
    """Interleave the two halves of the last axis."""
    return states.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def _factors(theta: Tensor, dtype: torch.dtype) -> Complex[Tensor, "depth planes"]:
    """`e^{i theta}` in the wider of the dtypes of `theta` and of the states, at least fp32."""
    angles = theta.to(torch.promote_types(torch.promote_types(theta.dtype, dtype), torch.float32))
    return torch.complex(angles.cos(), angles.sin())
