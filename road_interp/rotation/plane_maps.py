"""Scaled plane rotations: the mathematics of RoAd (Liao & Monz 2024, section 3.2, equations 2 to 4).

A state of `d` dimensions is read as `d / 2` planes. In groups of `group_size` dimensions, dimension `j` of a group's first half
pairs with dimension `j + group_size / 2`: `group_size=2` pairs neighbours as in the paper, 64 is PEFT's default. Every map
acts on each plane by a real 2 x 2 block. With the plane read as one complex number `z = x1 + i x2`, any such block is

    z  ->  a z + b conj(z)

where `a` rotates and scales and `b` is zero for road_1. `PlaneMaps` holds `a` and `b` for all planes; the functions below
apply, invert, compose and take them apart. Parameters are laid out as in PEFT's RoadLayer, so that its tensors can be used as
they are.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from road_interp.errors import InputError

Variant = Literal["road_1", "road_2", "road_4"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)


class PlaneMaps(NamedTuple):
    """2 x 2 blocks `z -> a z + b conj(z)`, one per plane; `b` is None where every block is a scaled rotation (road_1).

    A leading axis, if any, is the row of a batch: each example has its own blocks.
    """

    a: Complex[Tensor, "*rows planes"]
    b: Complex[Tensor, "*rows planes"] | None = None

    def repeat_rows(self, batch: int) -> PlaneMaps:
        """Blocks of `batch` rows: each row repeated, its copies side by side as in beam search."""
        return PlaneMaps(repeat_rows(self.a, batch), None if self.b is None else repeat_rows(self.b, batch))

    def broadcast_to(self, axes: int) -> PlaneMaps:
        """Blocks with a row axis, shaped to broadcast over states of that many axes: `(rows, 1, ..., planes)`."""
        return PlaneMaps(_align(self.a, axes), None if self.b is None else _align(self.b, axes))

    def masked(self, active: Bool[Tensor, "*rows planes"]) -> PlaneMaps:
        """The same blocks on the active planes, the identity on all others."""
        a, b = self
        return PlaneMaps(
            torch.where(active, a, torch.ones_like(a)), None if b is None else torch.where(active, b, torch.zeros_like(b))
        )

    def detach_outside(self, planes: Bool[Tensor, "*rows planes"]) -> PlaneMaps:
        """The same blocks, with a gradient on the given planes only."""
        a, b = self
        return PlaneMaps(torch.where(planes, a, a.detach()), None if b is None else torch.where(planes, b, b.detach()))

    def to(self, device: torch.device) -> PlaneMaps:
        """The same blocks on another device."""
        return PlaneMaps(self.a.to(device), None if self.b is None else self.b.to(device))


class Entries(NamedTuple):
    """The same blocks as real numbers `[[d0, o0], [o1, d1]]`."""

    d0: Float[Tensor, "*rows planes"]
    o0: Float[Tensor, "*rows planes"]
    o1: Float[Tensor, "*rows planes"]
    d1: Float[Tensor, "*rows planes"]

    def repeat_rows(self, batch: int) -> Entries:
        """Entries of `batch` rows, as `PlaneMaps.repeat_rows`."""
        return Entries(*(repeat_rows(entry, batch) for entry in self))

    def masked(self, active: Bool[Tensor, "*rows planes"]) -> Entries:
        """As `PlaneMaps.masked`."""
        one, zero = torch.ones_like(self.d0), torch.zeros_like(self.d0)
        kept = (torch.where(active, entry, other) for entry, other in zip(self, (one, zero, zero, one), strict=True))
        return Entries(*kept)

    def detach_outside(self, planes: Bool[Tensor, "*rows planes"]) -> Entries:
        """As `PlaneMaps.detach_outside`."""
        return Entries(*(torch.where(planes, entry, entry.detach()) for entry in self))


class Polar(NamedTuple):
    """The parts of `block = turn(angle) @ symmetric stretch` (polar decomposition of a 2 x 2 block).

    `major >= minor >= 0` are the two stretches (singular values, factors). Where `reflection` is set the determinant is negative:
    the block mirrors, and `angle` is twice the angle of the mirror's axis.
    """

    angle: Float[Tensor, "*rows planes"]  # radians in (-pi, pi]
    major: Float[Tensor, "*rows planes"]
    minor: Float[Tensor, "*rows planes"]
    reflection: Bool[Tensor, "*rows planes"]


def num_parameters(width: int, variant: Variant) -> int:
    """Length of theta, and of alpha, for a state of `width` dimensions (paper, table 1; both together are twice this)."""
    return {"road_1": width // 2, "road_2": width, "road_4": 2 * width}[variant]


def maps_from_parameters(
    theta: Float[Tensor, "*rows n"], alpha: Float[Tensor, "*rows n"], variant: Variant, group_size: int
) -> PlaneMaps:
    """The blocks of equation 2 from angles `theta` (radians) and scales `alpha` (factors).

    Shapes: `n` is `num_parameters(width, variant)`. Gradients flow to both.
    """
    d0, o0, o1, d1 = entries_from_parameters(theta, alpha, variant, group_size)
    if variant == "road_1":
        return PlaneMaps(torch.complex(d0, o1))
    return PlaneMaps(torch.complex((d0 + d1) / 2, (o1 - o0) / 2), torch.complex((d0 - d1) / 2, (o0 + o1) / 2))


def entries_from_parameters(
    theta: Float[Tensor, "*rows n"], alpha: Float[Tensor, "*rows n"], variant: Variant, group_size: int
) -> Entries:
    """The real entries of the same blocks."""
    rows, half = theta.shape[:-1], group_size // 2
    straight, crossed = alpha * theta.cos(), alpha * theta.sin()
    if variant == "road_1":
        return Entries(straight, -crossed, crossed, straight)
    if variant == "road_2":  # (group, row of the block, plane of the group)
        straight, crossed = straight.view(*rows, -1, 2, half), crossed.view(*rows, -1, 2, half)
    else:  # (group, straight or crossed, row of the block, plane of the group)
        straight, crossed = straight.view(*rows, -1, 2, 2, half), crossed.view(*rows, -1, 2, 2, half)
        straight, crossed = straight[..., 0, :, :], crossed[..., 1, :, :]
    (d0, d1), (o0, o1) = ((part.flatten(-2) for part in both.unbind(-2)) for both in (straight, crossed))
    return Entries(d0, -o0, o1, d1)


def entries_from_maps(maps: PlaneMaps) -> Entries:
    """The real entries of blocks in complex form."""
    a, b = maps
    if b is None:
        return Entries(a.real, -a.imag, a.imag, a.real)
    return Entries(a.real + b.real, b.imag - a.imag, a.imag + b.imag, a.real - b.real)


def parameters_from_maps(maps: PlaneMaps, variant: Variant, group_size: int) -> tuple[Tensor, Tensor]:
    """The inverse of `maps_from_parameters`: angles (radians) and scales. road_1 holds scaled rotations only, road_2 any map."""
    if variant == "road_1":
        if maps.b is not None:
            raise InputError("road_1 holds scaled rotations only, not a general block; use road_2")
        return _wrap(maps.a.angle()), maps.a.abs()
    if variant == "road_4":
        raise InputError("road_4 has eight numbers for the four entries of a block; use road_2, which holds any block")
    half = group_size // 2
    d0, o0, o1, d1 = entries_from_maps(maps)
    straight, crossed = torch.stack((d0, d1), -1), torch.stack((-o0, o1), -1)
    theta, alpha = torch.atan2(crossed, straight), torch.hypot(crossed, straight)
    theta, alpha = (x.unflatten(-2, (-1, half)).transpose(-1, -2).flatten(-3) for x in (_wrap(theta), alpha))
    return theta, alpha


def apply(maps: PlaneMaps, hidden: Float[Tensor, "*batch width"], group_size: int) -> Float[Tensor, "*batch width"]:
    """`R h` for every state of `hidden`, in its dtype.

    Blocks with a row axis act on `hidden` of shape `(rows, ..., width)`. Adjacent planes in fp32 or fp64 take one complex
    multiply, which reads and writes each state once; all else takes the equal real form, computed in the wider of the two dtypes.

    >>> maps = maps_from_parameters(torch.tensor([0.0, torch.pi]), torch.tensor([2.0, 1.0]), "road_1", group_size=2)
    >>> apply(maps, torch.tensor([1.0, 1.0, 3.0, 4.0]), group_size=2).round()
    tensor([ 2.,  2., -3., -4.])
    """
    if _is_complex_view(maps, hidden, group_size):
        z = torch.view_as_complex(hidden.unflatten(-1, (-1, 2)))
        turned = z * _align(maps.a, z.ndim)
        if maps.b is not None:
            turned = turned + z.conj() * _align(maps.b, z.ndim)
        return torch.view_as_real(turned).flatten(-2)
    return apply_entries(entries_from_maps(maps), hidden, group_size)


def apply_entries(blocks: Entries, hidden: Float[Tensor, "*batch width"], group_size: int) -> Float[Tensor, "*batch width"]:
    """`R h` in the real form, for any dtype and group_size; the form that torch.compile fuses."""
    d0, o0, o1, d1 = (_align(entry, hidden.ndim).unflatten(-1, (-1, group_size // 2)) for entry in blocks)
    first, second = hidden.unflatten(-1, (-1, 2, group_size // 2)).unbind(-2)
    turned = torch.stack((d0 * first + o0 * second, o1 * first + d1 * second), dim=-2)
    return turned.flatten(-3).to(hidden.dtype)


def matrix(maps: PlaneMaps, group_size: int) -> Float[Tensor, "*rows width width"]:
    """The dense `R` with `R @ h == apply(maps, h, group_size)`."""
    planes = maps.a.shape[-1]
    first, second = plane_dimensions(2 * planes, group_size, maps.a.device)
    d0, o0, o1, d1 = entries_from_maps(maps)
    dense = d0.new_zeros(*d0.shape[:-1], 2 * planes, 2 * planes)
    dense[..., first, first], dense[..., first, second] = d0, o0
    dense[..., second, first], dense[..., second, second] = o1, d1
    return dense


def plane_dimensions(width: int, group_size: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The two dimensions of each plane: integer tensors of shape `(width / 2,)`."""
    first, second = torch.arange(width, device=device).unflatten(0, (-1, 2, group_size // 2)).unbind(1)
    return first.flatten(), second.flatten()


def determinant(maps: PlaneMaps) -> Float[Tensor, "*rows planes"]:
    """Determinant of every block: the factor on areas, negative for a reflection."""
    straight = _squared(maps.a)
    return straight if maps.b is None else straight - _squared(maps.b)


def singular(maps: PlaneMaps) -> Bool[Tensor, "*rows planes"]:
    """The blocks that have no inverse: one stretch is zero, or too small beside the other for the dtype."""
    stretches = polar(maps)
    return ~(stretches.minor > torch.finfo(stretches.major.dtype).eps * stretches.major)


def inverse(maps: PlaneMaps) -> PlaneMaps:
    """The exact inverse, block by block. A singular block raises InputError that names its plane."""
    if (lost := singular(maps)).any():
        *row, plane = lost.nonzero()[0].tolist()
        name = f"plane {plane}" + (f" of row {row[0]}" if row else "")
        stretches = polar(maps)
        raise InputError(
            f"{name} cannot be inverted: its map is singular (stretches {stretches.major[lost][0]:.3g} and "
            f"{stretches.minor[lost][0]:.3g}; {int(lost.sum())} such planes)"
        )
    if maps.b is None:
        return PlaneMaps(maps.a.reciprocal())
    scale = determinant(maps).reciprocal()
    return PlaneMaps(maps.a.conj().resolve_conj() * scale, -maps.b * scale)


def compose(outer: PlaneMaps, inner: PlaneMaps) -> PlaneMaps:
    """The blocks of `h -> outer(inner(h))`. Scaled rotations commute; general blocks do not."""
    if outer.b is None and inner.b is None:
        return PlaneMaps(outer.a * inner.a)
    zero = torch.zeros_like(outer.a)
    outer_b, inner_b = (zero if part is None else part for part in (outer.b, inner.b))
    return PlaneMaps(
        outer.a * inner.a + outer_b * inner_b.conj(),
        outer.a * inner_b + outer_b * inner.a.conj(),
    )


def power(maps: PlaneMaps, strength: float) -> PlaneMaps:
    """Real powers of scaled rotations: angles times `strength` (from the wrapped angle), scales to the power of `strength`."""
    if maps.b is not None:
        raise InputError("real powers exist for road_1 only: a general block has no unique one")
    return PlaneMaps(torch.polar(maps.a.abs() ** strength, _wrap(maps.a.angle()) * strength))


def polar(maps: PlaneMaps) -> Polar:
    """Angle, stretches and reflection flag of every block.

    `|a| + |b|` and `||a| - |b||` are the singular values; the orthogonal factor turns by `arg a`, or mirrors by `arg b` where
    `|b| > |a|`.
    """
    size = maps.a.abs()
    if maps.b is None:
        return Polar(_wrap(maps.a.angle()), size, size, torch.zeros_like(size, dtype=torch.bool))
    other = maps.b.abs()
    reflection = other > size
    angle = torch.where(reflection, maps.b.angle(), maps.a.angle())
    return Polar(_wrap(angle), size + other, (size - other).abs(), reflection)


def polar_factors(maps: PlaneMaps) -> tuple[PlaneMaps, PlaneMaps]:
    """`(turn, stretch)` with `compose(turn, stretch)` equal to the blocks: rotations or mirrors, and symmetric stretches."""
    a, b = maps
    if b is None:
        return PlaneMaps(_direction(a)), PlaneMaps(a.abs().to(a.dtype))
    mirrored, zero = b.abs() > a.abs(), torch.zeros_like(a)
    turn, mirror = _direction(a), _direction(b)
    stretch_a = torch.where(mirrored, b.abs(), a.abs()).to(a.dtype)
    stretch_b = torch.where(mirrored, mirror * a.conj(), turn.conj() * b)
    return PlaneMaps(torch.where(mirrored, zero, turn), torch.where(mirrored, mirror, zero)), PlaneMaps(stretch_a, stretch_b)


def repeat_rows(values: Tensor, batch: int) -> Tensor:
    """`(rows, ...)` repeated to `(batch, ...)`, the copies of a row side by side."""
    return values if values.shape[0] == batch else values.repeat_interleave(batch // values.shape[0], dim=0)


def _align(part: Tensor, axes: int) -> Tensor:
    """Give a row axis its place: `(rows, planes)` becomes `(rows, 1, ..., planes)` for states of more axes."""
    if part.ndim in (1, axes):
        return part
    return part.view(part.shape[0], *[1] * (axes - 2), part.shape[-1])


def _is_complex_view(maps: PlaneMaps, hidden: Tensor, group_size: int) -> bool:
    """Whether `hidden` can be seen as complex planes of the blocks' own precision without a copy."""
    return (
        group_size == 2
        and not torch.compiler.is_compiling()
        and hidden.dtype in (torch.float32, torch.float64)
        and hidden.dtype == maps.a.real.dtype
        and hidden.stride(-1) == 1
        and hidden.storage_offset() % 2 == 0
        and all(stride % 2 == 0 for stride in hidden.stride()[:-1])
    )


def _direction(z: Tensor) -> Tensor:
    """`z / |z|`, and 1 for 0."""
    return torch.polar(torch.ones_like(z.real), z.angle())


def _squared(z: Tensor) -> Tensor:
    return z.real.square() + z.imag.square()


def _wrap(angle: Tensor) -> Tensor:
    """Angles in [-pi, pi] to (-pi, pi]: minus pi and pi are one angle."""
    return torch.where(angle <= -torch.pi, angle.new_tensor(torch.pi), angle)
