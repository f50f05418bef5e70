"""RoAd as a pyvene intervention."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

with contextlib.redirect_stdout(io.StringIO()):  # pyvene prints that an optional backend is missing
    import pyvene
import torch
from torch import Tensor, nn

from road_interp import rotation
from road_interp.errors import InputError
from road_interp.rotation import Blocks, Variant
from road_interp.site import Part, Site


class RoadIntervention(
    # Sourceless comes first: pyvene skips an intervention without it when a call has no sources.
    pyvene.SourcelessIntervention,
    pyvene.TrainableIntervention,
    pyvene.DistributedRepresentationIntervention,
):
    """`z = R h` at one place of a model (paper, equation 3), for any `pyvene.IntervenableConfig`.

    As an instance it works on every model; as a type where pyvene knows the width of the component, with the defaults. `theta`
    (radians) and `alpha` (factors) stay fp32 whatever dtype the model takes; the states keep theirs.

    Args:
        embed_dim: width of the hidden state (pyvene's word).
        variant, group_size: as in PEFT's RoadConfig; `group_size=2` is the paper's pairing.
        part: the rotated dimensions of a fused output, if not all.
    """

    def __init__(
        self,
        embed_dim: int | None = None,
        variant: Variant = "road_1",
        group_size: int = 2,
        part: Part | None = None,
        max_number_of_units: int = 1,
        **kwargs: Any,
    ) -> None:
        if embed_dim is None:
            raise InputError(
                "RoadIntervention needs embed_dim, the width of the hidden state: pyvene does not know it for this component. "
                "Pass an instance, as in {'component': 'encoder.layer[0].output.output', 'intervention': RoadIntervention(768)}"
            )
        super().__init__(embed_dim=embed_dim, keep_last_dim=True, **kwargs)
        width = embed_dim // max_number_of_units
        if part is not None:
            width = width // part.period * (part.stop - part.start)
        Site("intervention", width).check_group_size(group_size)
        size = rotation.num_parameters(width, variant)
        self.variant, self.group_size, self.part = variant, group_size, part
        self.theta = nn.Parameter(torch.zeros(size))
        self.alpha = nn.Parameter(torch.ones(size))
        self.row_blocks: Blocks | None = None

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Any = None, **kwargs: Any) -> Tensor:
        """`base` of shape `(batch, positions, width)` or `(batch, width)`, rotated, in its dtype."""
        maps = self.row_blocks
        if maps is None:
            maps = rotation.blocks(self.theta, self.alpha, self.variant, self.group_size)
        return apply_to_part(maps, base, self.group_size, self.part)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RoadIntervention:
        """Follow the model to its device, but keep the dtype: rotations stay in fp32."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor.new_empty(0)).device) if tensor.is_floating_point() else fn(tensor)

        return super()._apply(move, recurse)

    def __str__(self) -> str:
        return f"RoadIntervention(variant={self.variant}, group_size={self.group_size})"


def apply_to_part(maps: Blocks, hidden: Tensor, group_size: int, part: Part | None) -> Tensor:
    """`hidden` with the rotation applied to all of it, or to the part of a fused output."""
    if part is None:
        return rotation.apply(maps, hidden, group_size)
    return part.replace(hidden, rotation.apply(maps, part.select(hidden), group_size))
