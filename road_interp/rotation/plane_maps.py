"""Scaled plane rotations: the mathematics of RoAd (Liao & Monz 2024, section 3.2, equations 2 to 4).

A state of `d` dimensions consists of `d / 2` planes. In groups of `group_size` dimensions, dimension `j` of a group's first half
pairs with dimension `j + group_size / 2`: `group_size=2` pairs adjacent dimensions as in the paper, 64 is PEFT's default. A plane
map is a real 2 x 2 matrix that acts on one plane. With the plane as one complex number `z = x1 + i x2`, any plane map is

    z  ->  a z + b conj(z)

where `a` rotates and scales, and `b` is zero for road_1. `PlaneMaps` holds `a` and `b` for all planes; the functions below
apply, invert, compose and decompose plane maps. Parameters have the layout of PEFT's RoadLayer, so its tensors need no
conversion.
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
    """Plane maps `z -> a z + b conj(z)`, one per plane; `b` is None where every map is a scaled rotation (road_1).

    A leading axis, if present, is the row of a batch: each example has its own plane maps.
    """

    a: Complex[Tensor, "*rows planes"]
    b: Complex[Tensor, "*rows planes"] | None = None

    def repeat_rows(self, batch: int) -> PlaneMaps:
        """Plane maps of `batch` rows: the copies of a row are adjacent, as in beam search."""
        return PlaneMaps(repeat_rows(self.a, batch), None if self.b is None else repeat_rows(self.b, batch))

    def broadcast_to(self, axes: int) -> PlaneMaps:
        """Reshape maps with a row axis to `(rows, 1, ..., planes)`, so that they broadcast over states with that many axes."""
        return PlaneMaps(_align(self.a, axes), None if self.b is None else _align(self.b, axes))

    def masked(self, active: Bool[Tensor, "*rows planes"]) -> PlaneMaps:
        """The same maps on the active planes, the identity on all others."""
        a, b = self
        return PlaneMaps(
            torch.where(active, a, torch.ones_like(a)), None if b is None else torch.where(active, b, torch.zeros_like(b))
        )

    def detach_outside(self, planes: Bool[Tensor, "*rows planes"]) -> PlaneMaps:
        """The same maps, with a gradient on the given planes only."""
        a, b = self
        return PlaneMaps(torch.where(planes, a, a.detach()), None if b is None else torch.where(planes, b, b.detach()))

    def to(self, device: torch.device) -> PlaneMaps:
        """The same maps on another device."""
        return PlaneMaps(self.a.to(device), None if self.b is None else self.b.to(device))


class Entries(NamedTuple):
    """Plane maps as real 2 x 2 matrices `[[d0, o0], [o1, d1]]`."""

    d0: Float[Tensor, "*rows planes"]
    o0: Float[Tensor, "*rows planes"]
    o1: Float[Tensor, "*rows planes"]
    d1: Float[Tensor, "*rows planes"]

    def repeat_rows(self, batch: int) -> Entries:
        """See `PlaneMaps.repeat_rows`."""
        return Entries(*(repeat_rows(entry, batch) for entry in self))

    def masked(self, active: Bool[Tensor, "*rows planes"]) -> Entries:
        """See `PlaneMaps.masked`."""
        one, zero = torch.ones_like(self.d0), torch.zeros_like(self.d0)
        identity = (one, zero, zero, one)
        return Entries(*(torch.where(active, entry, default) for entry, default in zip(self, identity, strict=True)))

    def detach_outside(self, planes: Bool[Tensor, "*rows planes"]) -> Entries:
        """See `PlaneMaps.detach_outside`."""
        return Entries(*(torch.where(planes, entry, entry.detach()) for entry in self))


class Polar(NamedTuple):
    """The polar decomposition of plane maps: `map = rotation(angle) @ symmetric stretch`.

    `major >= minor >= 0` are the two stretches (singular values, factors). Where `reflection` is True, the determinant is
    negative: the orthogonal factor is a reflection, and `angle` is twice the angle of its axis.
    """

    angle: Float[Tensor, "*rows planes"]  # radians in (-pi, pi]
    major: Float[Tensor, "*rows planes"]
    minor: Float[Tensor, "*rows planes"]
    reflection: Bool[Tensor, "*rows planes"]


def check_variant(variant: object) -> None:
    """Raise InputError unless `variant` is one of VARIANTS."""
    if variant not in VARIANTS:
        raise InputError(f"unknown variant '{variant}'; the variants are {', '.join(VARIANTS)}")


def num_parameters(width: int, variant: Variant) -> int:
    """Length of theta, and of alpha, for a state of `width` dimensions; together they have twice as many (paper, table 1)."""
    return {"road_1": width // 2, "road_2": width, "road_4": 2 * width}[variant]


def parameter_mask(planes: Bool[Tensor, " planes"], variant: Variant, group_size: int) -> Bool[Tensor, " n"]:
    """Which values of theta, and of alpha, belong to the given planes."""
    per_plane = num_parameters(2, variant)
    return planes.view(-1, 1, group_size // 2).repeat(1, per_plane, 1).flatten()


def maps_from_parameters(
    theta: Float[Tensor, "*rows n"], alpha: Float[Tensor, "*rows n"], variant: Variant, group_size: int
) -> PlaneMaps:
    """The plane maps of equation 2 from angles `theta` (radians) and scales `alpha` (factors).

    Shapes: `n` is `num_parameters(width, variant)`. Gradients flow to `theta` and `alpha`.
    """
    d0, o0, o1, d1 = entries_from_parameters(theta, alpha, variant, group_size)
    if variant == "road_1":
        return PlaneMaps(torch.complex(d0, o1))
    return PlaneMaps(torch.complex((d0 + d1) / 2, (o1 - o0) / 2), torch.complex((d0 - d1) / 2, (o0 + o1) / 2))


def entries_from_parameters(
    theta: Float[Tensor, "*rows n"], alpha: Float[Tensor, "*rows n"], variant: Variant, group_size: int
) -> Entries:
    """The real entries of `maps_from_parameters(...)`."""
    rows, half = theta.shape[:-1], group_size // 2
    diagonal, off_diagonal = alpha * theta.cos(), alpha * theta.sin()
    if variant == "road_1":
        return Entries(diagonal, -off_diagonal, off_diagonal, diagonal)
    if variant == "road_2":  # axes: group, row of the 2 x 2 matrix, plane of the group
        diagonal, off_diagonal = diagonal.view(*rows, -1, 2, half), off_diagonal.view(*rows, -1, 2, half)
    else:  # axes: group, diagonal or off-diagonal, row of the 2 x 2 matrix, plane of the group
        diagonal, off_diagonal = diagonal.view(*rows, -1, 2, 2, half), off_diagonal.view(*rows, -1, 2, 2, half)
        diagonal, off_diagonal = diagonal[..., 0, :, :], off_diagonal[..., 1, :, :]
    (d0, d1), (o0, o1) = ((entry.flatten(-2) for entry in both.unbind(-2)) for both in (diagonal, off_diagonal))
    return Entries(d0, -o0, o1, d1)


def entries_from_maps(maps: PlaneMaps) -> Entries:
    """The real entries of plane maps in complex form."""
    return entries_from_views(torch.view_as_real(maps.a), None if maps.b is None else torch.view_as_real(maps.b))


def entries_from_views(a: Float[Tensor, "*rows planes 2"], b: Float[Tensor, "*rows planes 2"] | None) -> Entries:
    """The real entries of maps from `torch.view_as_real` of both: a compiler does not fuse operations on complex numbers."""
    real, imaginary = a.unbind(-1)
    if b is None:
        return Entries(real, -imaginary, imaginary, real)
    b_real, b_imaginary = b.unbind(-1)
    return Entries(real + b_real, b_imaginary - imaginary, imaginary + b_imaginary, real - b_real)


def parameters_from_maps(maps: PlaneMaps, variant: Variant, group_size: int) -> tuple[Tensor, Tensor]:
    """The inverse of `maps_from_parameters`: angles (radians) and scales (factors).

    Shapes: both `(*rows, num_parameters(width, variant))`.

    Raises InputError for maps with `b` in road_1, which has scaled rotations only, and for road_4, whose parameters are not
    unique; road_2 has any map.
    """
    if variant == "road_1":
        if maps.b is not None:
            raise InputError("road_1 expresses scaled rotations only, not a general plane map; use road_2")
        return _wrap(maps.a.angle()), maps.a.abs()
    if variant == "road_4":
        raise InputError("road_4 has eight parameters for the four entries of a plane map; use road_2, which has any plane map")
    half = group_size // 2
    d0, o0, o1, d1 = entries_from_maps(maps)
    diagonal, off_diagonal = torch.stack((d0, d1), -1), torch.stack((-o0, o1), -1)
    theta, alpha = torch.atan2(off_diagonal, diagonal), torch.hypot(off_diagonal, diagonal)
    theta, alpha = (x.unflatten(-2, (-1, half)).transpose(-1, -2).flatten(-3) for x in (_wrap(theta), alpha))
    return theta, alpha


def apply(maps: PlaneMaps, hidden: Float[Tensor, "*batch width"], group_size: int) -> Float[Tensor, "*batch width"]:
    """`R h` for every state of `hidden`, in its dtype.

    Maps with a row axis act on `hidden` of shape `(rows, ..., width)`. Adjacent planes in fp32 or fp64 take one complex
    multiplication, which reads and writes each state once. All other cases take the equivalent real form, computed in the wider
    of the two dtypes.

    >>> maps = maps_from_parameters(torch.tensor([0.0, torch.pi]), torch.tensor([2.0, 1.0]), "road_1", group_size=2)
    >>> apply(maps, torch.tensor([1.0, 1.0, 3.0, 4.0]), group_size=2).round()
    tensor([ 2.,  2., -3., -4.])
    """
    if _is_complex_view(maps, hidden, group_size):
        check_width(hidden, maps.a.shape[-1])
        z = torch.view_as_complex(hidden.unflatten(-1, (-1, 2)))
        rotated = z * _align(maps.a, z.ndim)
        if maps.b is not None:
            rotated = rotated + z.conj() * _align(maps.b, z.ndim)
        return torch.view_as_real(rotated).flatten(-2)
    return apply_entries(entries_from_maps(maps), hidden, group_size)


def apply_entries(entries: Entries, hidden: Float[Tensor, "*batch width"], group_size: int) -> Float[Tensor, "*batch width"]:
    """`R h` in the real form, for any dtype and group_size. torch.compile fuses this form."""
    check_width(hidden, entries[0].shape[-1])
    d0, o0, o1, d1 = (_align(entry, hidden.ndim).unflatten(-1, (-1, group_size // 2)) for entry in entries)
    first, second = hidden.unflatten(-1, (-1, 2, group_size // 2)).unbind(-2)
    rotated = torch.stack((d0 * first + o0 * second, o1 * first + d1 * second), dim=-2)
    return rotated.flatten(-3).to(hidden.dtype)


def check_width(hidden: Tensor, planes: int) -> None:
    """Raise InputError unless states have two dimensions for every plane: one plane, or one group, would be repeated."""
    if hidden.shape[-1] != 2 * planes:
        raise InputError(f"states of width {hidden.shape[-1]} cannot be rotated in {planes} planes")


def matrix(maps: PlaneMaps, group_size: int) -> Float[Tensor, "*rows width width"]:
    """The dense matrix `R` with `R @ h == apply(maps, h, group_size)`."""
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
    """Determinant of every plane map: the factor by which areas change, negative for a reflection."""
    squared = _squared(maps.a)
    return squared if maps.b is None else squared - _squared(maps.b)


def singular(maps: PlaneMaps) -> Bool[Tensor, "*rows planes"]:
    """True where a plane map has no inverse: its smaller stretch is zero, or below the precision of the larger one."""
    stretches = polar(maps)
    return ~(stretches.minor > torch.finfo(stretches.major.dtype).eps * stretches.major)


def inverse(maps: PlaneMaps) -> PlaneMaps:
    """The exact inverse of every plane map. Raises InputError that names the plane of a singular map."""
    if (no_inverse := singular(maps)).any():
        *row, plane = no_inverse.nonzero()[0].tolist()
        name = f"plane {plane}" + (f" of row {row[0]}" if row else "")
        stretches = polar(maps)
        raise InputError(
            f"{name} cannot be inverted: its map is singular (stretches {stretches.major[no_inverse][0]:.3g} and "
            f"{stretches.minor[no_inverse][0]:.3g}; {int(no_inverse.sum())} such planes)"
        )
    if maps.b is None:
        return PlaneMaps(maps.a.reciprocal())
    a, b = maps.a.to(torch.complex128), maps.b.to(torch.complex128)  # squares of large and small scales leave the range of fp32
    scale = determinant(PlaneMaps(a, b)).reciprocal()
    return PlaneMaps((a.conj().resolve_conj() * scale).to(maps.a.dtype), (-b * scale).to(maps.b.dtype))


def compose(outer: PlaneMaps, inner: PlaneMaps) -> PlaneMaps:
    """The plane maps of `h -> outer(inner(h))`. Scaled rotations commute; general plane maps do not."""
    if outer.b is None and inner.b is None:
        return PlaneMaps(outer.a * inner.a)
    zero = torch.zeros_like(outer.a)
    outer_b, inner_b = (zero if b is None else b for b in (outer.b, inner.b))
    return PlaneMaps(
        outer.a * inner.a + outer_b * inner_b.conj(),
        outer.a * inner_b + outer_b * inner.a.conj(),
    )


def power(maps: PlaneMaps, exponent: float | Float[Tensor, "*rows #planes"]) -> PlaneMaps:
    """Real powers of scaled rotations: the wrapped angles times `exponent`, the scales to the power of `exponent`.

    Raises InputError for maps with `b`, which have no unique real power.
    """
    if maps.b is not None:
        raise InputError("real powers exist for road_1 only: a general plane map has no unique real power")
    return PlaneMaps(torch.polar(maps.a.abs() ** exponent, _wrap(maps.a.angle()) * exponent))


def polar(maps: PlaneMaps) -> Polar:
    """Angle, stretches and reflection flag of every plane map.

    `|a| + |b|` and `||a| - |b||` are the singular values. The orthogonal factor rotates by `arg a`; where `|b| > |a|` it is a
    reflection with angle `arg b`.
    """
    size = maps.a.abs()
    if maps.b is None:
        return Polar(_wrap(maps.a.angle()), size, size, torch.zeros_like(size, dtype=torch.bool))
    other = maps.b.abs()
    reflection = other > size
    angle = torch.where(reflection, maps.b.angle(), maps.a.angle())
    return Polar(_wrap(angle), size + other, (size - other).abs(), reflection)


def polar_factors(maps: PlaneMaps) -> tuple[PlaneMaps, PlaneMaps]:
    """`(orthogonal, stretch)` with `compose(orthogonal, stretch) == maps`: rotations or reflections, and symmetric stretches."""
    a, b = maps
    if b is None:
        return PlaneMaps(_direction(a)), PlaneMaps(a.abs().to(a.dtype))
    reflected, zero = b.abs() > a.abs(), torch.zeros_like(a)
    rotation, reflection = _direction(a), _direction(b)
    orthogonal = PlaneMaps(torch.where(reflected, zero, rotation), torch.where(reflected, reflection, zero))
    stretch_a = torch.where(reflected, b.abs(), a.abs()).to(a.dtype)
    stretch_b = torch.where(reflected, reflection * a.conj(), rotation.conj() * b)
    return orthogonal, PlaneMaps(stretch_a, stretch_b)


def repeat_rows(values: Tensor, batch: int) -> Tensor:
    """Repeat `(rows, ...)` to `(batch, ...)`; the copies of a row are adjacent."""
    return values if values.shape[0] == batch else values.repeat_interleave(batch // values.shape[0], dim=0)


def _align(values: Tensor, axes: int) -> Tensor:
    """Reshape `(rows, planes)` to `(rows, 1, ..., planes)`, so that it broadcasts over states with more axes."""
    if values.ndim in (1, axes):
        return values
    return values.view(values.shape[0], *[1] * (axes - 2), values.shape[-1])


def _is_complex_view(maps: PlaneMaps, hidden: Tensor, group_size: int) -> bool:
    """Whether `hidden` can be viewed as complex planes in the precision of the maps without a copy."""
    return (
        group_size == 2
        and not torch.compiler.is_compiling()
        and hidden.dtype in (torch.float32, torch.float64)
        and hidden.dtype == maps.a.real.dtype
        and hidden.stride(-1) == 1
        and lies_in_pairs(hidden)
    )


def lies_in_pairs(hidden: Tensor) -> bool:
    """Whether every adjacent pair of dimensions begins at an even place in memory, as `torch.view_as_complex` asks.

    A contiguous tensor may not: the stride of an axis of size 1 counts for this, and not for `is_contiguous`.
    """
    return hidden.storage_offset() % 2 == 0 and all(stride % 2 == 0 for stride in hidden.stride()[:-1])


def _direction(z: Tensor) -> Tensor:
    """`z / |z|`; 1 where `z` is 0."""
    return torch.polar(torch.ones_like(z.real), z.angle())


def _squared(z: Tensor) -> Tensor:
    return z.real.square() + z.imag.square()


def _wrap(angle: Tensor) -> Tensor:
    """Map angles in [-pi, pi] to (-pi, pi]."""
    return torch.where(angle <= -torch.pi, angle.new_tensor(torch.pi), angle)
