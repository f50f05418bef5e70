"""A site: the output of a module, or a slice of it, that can be rotated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from road_interp.arguments import is_whole
from road_interp.errors import InputError


@dataclass(frozen=True)
class OutputSlice:
    """The dimensions `j` of an output with `start <= j % period < stop`.

    The output of a fused projection contains query, key and value one after another, either once (one period, as wide as the
    output) or per attention head (one period per head). A slice selects one of them.
    """

    period: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= self.period:
            raise InputError(f"dimensions {self.start} to {self.stop} of every {self.period} are not a valid output slice")

    def width_in(self, module_width: int) -> int:
        """The number of sliced dimensions of a module's output."""
        return module_width // self.period * (self.stop - self.start)

    def select(self, hidden: Tensor) -> Tensor:
        """The sliced dimensions: from shape `(..., width of the module)` to `(..., width of the slice)`."""
        return hidden.unflatten(-1, (-1, self.period))[..., self.start : self.stop].flatten(-2)

    def replace(self, hidden: Tensor, values: Tensor) -> Tensor:
        """A copy of `hidden` with the sliced dimensions set to `values`."""
        copy = hidden.clone()
        periods = copy.unflatten(-1, (-1, self.period))
        periods[..., self.start : self.stop] = values.unflatten(-1, (periods.shape[-2], -1))
        return copy


def on_slice(hidden: Tensor, output_slice: OutputSlice | None, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`change` of all dimensions of `hidden`, or of those of `output_slice` alone."""
    if output_slice is None:
        return change(hidden)
    return output_slice.replace(hidden, change(output_slice.select(hidden)))


@dataclass(frozen=True)
class Site:
    """The output of one module of a model, or a slice of it.

    Attributes:
        name: unique in the model: the module's dotted path, followed by `[query]` or `[key]` for a slice.
        width: number of rotated dimensions; even.
        layer: index of the block, counted from 0; None outside the block stack.
        kind: the path inside the block ("attention.self.query"), or "block-output" for the block itself.
        output_slice: the rotated dimensions; None for the whole output.
    """

    name: str
    width: int
    layer: int | None = None
    kind: str = ""
    output_slice: OutputSlice | None = None

    def __post_init__(self) -> None:
        for field in ("width", "layer"):
            value = getattr(self, field)
            if is_whole(value):
                object.__setattr__(self, field, int(value))  # a number of NumPy cannot be written as JSON
            elif field == "width" or value is not None:
                raise InputError(f"site '{self.name}': {field} must be a whole number, not {value!r}")
        if self.width < 2 or self.width % 2:
            raise InputError(
                f"site '{self.name}': width {self.width} cannot be paired into planes; RoAd needs an even width of at least 2"
            )
        if self.layer is not None and self.layer < 0:
            raise InputError(f"site '{self.name}': layer {self.layer} is negative; layers are counted from 0")
        step = 1 if self.output_slice is None else self.output_slice.stop - self.output_slice.start
        if self.width % step:
            raise InputError(f"site '{self.name}': width {self.width} is not a multiple of the slice's {step} dimensions")

    @property
    def module(self) -> str:
        """Dotted path of the module whose output is rotated."""
        return self.name.partition("[")[0]

    @property
    def module_width(self) -> int:
        """Number of dimensions of the module's whole output."""
        if self.output_slice is None:
            return self.width
        return self.width // (self.output_slice.stop - self.output_slice.start) * self.output_slice.period

    def check_group_size(self, group_size: int) -> None:
        """Raise InputError unless `group_size` is even and divides the width."""
        if not isinstance(group_size, int) or isinstance(group_size, bool) or group_size < 2 or group_size % 2:
            raise InputError(f"group_size must be an even number of at least 2, not {group_size!r}")
        if self.width % group_size:
            raise InputError(
                f"site '{self.name}': its width {self.width} is not divisible by group_size {group_size}; "
                f"use a group_size that divides {self.width} (2 always does)"
            )
