"""RoadIntervention: RoAd as a pyvene intervention."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import Any

with contextlib.redirect_stdout(io.StringIO()):  # pyvene prints that an optional backend is missing
    import pyvene
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from road_interp.arguments import check_count, is_whole
from road_interp.errors import InputError, did_you_mean
from road_interp.models.subspaces import entries_of_rows, expanded_parts
from road_interp.rotation import plane_maps
from road_interp.rotation.plane_maps import PlaneMaps, Variant
from road_interp.sites.site import OutputSlice, Site, on_slice


class RoadIntervention(
    # SourcelessIntervention is the first base: pyvene skips interventions without it when a call has no sources.
    pyvene.SourcelessIntervention,
    pyvene.TrainableIntervention,
    pyvene.DistributedRepresentationIntervention,
):
    """The rotation `z = R h` of one hidden state (paper, equation 3), for any `pyvene.IntervenableConfig`.

    As an instance it works on every model; as a type, with the default arguments, where pyvene knows the width of the component.
    `theta` (radians) and `alpha` (factors) stay in fp32 for every dtype of the model; the states keep their dtype.

    pyvene does not save constructor arguments. The state dict therefore contains variant, group_size and output slice in the
    buffer `form`, and the planes of subspaces in `subspace_planes`, from which loading restores the same rotation.

    Args:
        embed_dim: width of the hidden state, as pyvene names it.
        variant, group_size: as in PEFT's RoadConfig; `group_size=2` is the paper's pairing.
        output_slice: the rotated dimensions of a fused output; None for all dimensions.
        max_number_of_units: pyvene's; the state is as wide as `embed_dim` divided by it.
        subspace_partition: as in pyvene: lists of dimensions, or `[start, end]` ranges, to which the indices in `subspaces`
            refer. Each must consist of whole planes, and they must be disjoint. Without it, `subspaces` are indices of planes.
        latent_dim: the width as well, for a config in JSON: the only number there that pyvene does not set itself.
    """

    __module__ = "road_interp"  # the dotted path that pyvene writes into its folders
    subspace_planes: Tensor | None

    def __init__(
        self,
        embed_dim: int | None = None,
        variant: Variant = "road_1",
        group_size: int = 2,
        output_slice: OutputSlice | None = None,
        max_number_of_units: int = 1,
        subspace_partition: Sequence[Sequence[int]] | None = None,
        latent_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        if "part" in kwargs:
            raise InputError("RoadIntervention takes output_slice; 'part' was its name in 0.1.0")
        check_keywords(RoadIntervention, kwargs)
        embed_dim = latent_dim if embed_dim is None else embed_dim
        if embed_dim is None:
            raise InputError(
                "RoadIntervention needs embed_dim, the width of the hidden state: pyvene does not know it for this component. "
                "Pass an instance, as in {'component': 'encoder.layer[0].output.output', 'intervention': RoadIntervention(768)}, "
                "or latent_dim in a config of types"
            )
        whole = state_width("RoadIntervention", embed_dim, max_number_of_units)
        plane_maps.check_variant(variant)
        parts = expanded_parts(subspace_partition)
        super().__init__(embed_dim=embed_dim, keep_last_dim=True, **kwargs)
        self.subspace_partition = parts
        self._made_by_pyvene = "component" in kwargs  # from a config of types, which cannot contain a variant
        self._whole = whole
        self._take_form(variant, group_size, output_slice)
        self.row_maps: PlaneMaps | None = None

    def _take_form(self, variant: Variant, group_size: int, output_slice: OutputSlice | None) -> None:
        """Reset to the identity with this variant, pairing and output slice."""
        width = self._whole if output_slice is None else output_slice.width_in(self._whole)
        Site("intervention", width).check_group_size(group_size)
        size = plane_maps.num_parameters(width, variant)
        self.variant, self.group_size, self.output_slice = variant, group_size, output_slice
        with torch.inference_mode(False):  # parameters that are made in inference mode can never be trained
            self.theta = nn.Parameter(torch.zeros(size, dtype=torch.float32))
            self.alpha = nn.Parameter(torch.ones(size, dtype=torch.float32))
        self._planes = width // 2
        self.register_buffer("subspace_planes", self._subspace_planes())
        form = [
            plane_maps.VARIANTS.index(variant),
            group_size,
            *((0, 0, 0) if output_slice is None else astuple(output_slice)),
        ]
        self.register_buffer("form", torch.tensor(form))

    def set_subspaces(self, partition: Sequence[Sequence[int]] | None) -> None:
        """Another partition, as `subspace_partition`. Raises InputError for one that splits planes."""
        self.subspace_partition = expanded_parts(partition)
        planes = self._subspace_planes()
        self.subspace_planes = None if planes is None else planes.to(self.theta.device)

    def _subspace_planes(self) -> Bool[Tensor, "subspaces planes"] | None:
        """The planes of every subspace. One that splits planes is an error, unless a saved state may still bring other pairs."""
        if self.subspace_partition is None:
            return None
        try:
            return subspace_planes(self.subspace_partition, 2 * self._planes, self.group_size)
        except InputError:
            if not self._made_by_pyvene:
                raise
            return None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Adopt the saved form and subspaces if pyvene made this intervention from its type; otherwise they must be equal."""
        *_, missing, _, errors = args
        saved = state_dict.get(f"{prefix}form")
        if saved is not None and saved.tolist() != self.form.tolist():
            if not self._made_by_pyvene:
                errors.append(f"'{prefix}form' is not this intervention's variant, group_size and output slice")
                return
            device = self.theta.device
            self._take_form(*read_form(saved))
            self.to(device)
        planes, own = state_dict.get(f"{prefix}subspace_planes"), self.subspace_planes
        if planes is not None and self._made_by_pyvene:
            self.subspace_planes = torch.empty_like(planes, device=self.theta.device)
        elif planes is not None and (own is None or not torch.equal(planes.cpu(), own.cpu())):
            errors.append(f"'{prefix}subspace_planes' are not the subspaces of this intervention")
            return
        keep_float32(state_dict, prefix, self)
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name in ("form", "subspace_planes"):  # of a version that did not save them
            if f"{prefix}{name}" in missing:
                missing.remove(f"{prefix}{name}")

    def set_interchange_dim(self, interchange_dim: Any) -> None:
        """pyvene's number of leading dimensions: all of them. Raises InputError for fewer."""
        check_all_dimensions(interchange_dim, self._whole, "give subspaces, the planes to rotate")
        super().set_interchange_dim(interchange_dim)

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Any = None, **kwargs: Any) -> Tensor:
        """`base` of shape `(batch, positions, width)` or `(batch, width)`, rotated, in its dtype.

        `subspaces`: one list of subspaces per row of the batch; only their planes are rotated there.
        """
        maps = self.row_maps
        if maps is None:
            maps = plane_maps.maps_from_parameters(self.theta, self.alpha, self.variant, self.group_size)
        elif maps.a.ndim > 1:
            maps = maps.repeat_rows(len(base))
        if subspaces is not None:
            maps = maps.masked(self._active(subspaces, len(base)))
        return apply_to_slice(maps, base, self.group_size, self.output_slice)

    def _active(self, subspaces: Sequence[Sequence[int]], rows: int) -> Bool[Tensor, "rows planes"]:
        owners = self.subspace_planes
        if owners is None and self.subspace_partition is not None:
            subspace_planes(self.subspace_partition, 2 * self._planes, self.group_size)  # raises InputError
        known = self._planes if owners is None else len(owners)
        active = torch.zeros(rows, self._planes, dtype=torch.bool, device=self.theta.device)
        for row, entries in enumerate(entries_of_rows(subspaces, None, known, rows)):
            active[row, entries if owners is None else owners[entries].any(0)] = True
        return active

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RoadIntervention:
        """Move with the model to its device, but keep the dtype: rotations stay in fp32."""
        return super()._apply(move_only(fn), recurse)

    def __str__(self) -> str:
        return f"RoadIntervention(variant={self.variant}, group_size={self.group_size})"


def state_width(intervention: str, embed_dim: object, max_number_of_units: object) -> int:
    """The width of the states of an intervention. Raises InputError for an `embed_dim` that its units do not divide."""
    if not is_whole(embed_dim):
        raise InputError(f"{intervention}: embed_dim is the width of the hidden state, a whole number, not {embed_dim!r}")
    check_count(intervention, "max_number_of_units", max_number_of_units)
    if embed_dim % (units := int(max_number_of_units)):  # type: ignore[call-overload]
        raise InputError(f"{intervention}: embed_dim {embed_dim} cannot be divided into max_number_of_units={units} equal states")
    return embed_dim // units


def check_keywords(intervention: type[nn.Module], keywords: Mapping[str, Any]) -> None:
    """Raise InputError for keywords that neither an intervention's constructor names nor pyvene passes to every one."""
    named = [name for name in inspect.signature(intervention).parameters if name != "kwargs"]
    if unknown := [name for name in keywords if name not in (*pyvene.RepresentationConfig._fields, "use_fast")]:
        raise InputError(f"{intervention.__name__} has no argument '{unknown[0]}'; {did_you_mean(unknown[0], named, 'it has')}")


def check_all_dimensions(interchange_dim: Any, width: int, instead: str) -> None:
    """Raise InputError for an `interchange_dim` of pyvene that is not the whole state: it would have no effect."""
    if (torch.as_tensor(interchange_dim) < width).any():
        raise InputError(f"an interchange_dim of {interchange_dim} has no effect on a rotation of {width} dimensions: {instead}")


def keep_float32(state: dict[str, Any], prefix: str, module: nn.Module) -> None:
    """Convert the parameters of a module in a state to fp32: `load_state_dict(assign=True)` takes those of the state."""
    for name, _ in module.named_parameters(prefix.removesuffix("."), recurse=False):
        if isinstance(values := state.get(name), Tensor):
            state[name] = values.float()


def move_only(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The argument `fn` of `nn.Module._apply`, restricted to the change of device where it changes the dtype."""

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move


def read_form(form: Tensor) -> tuple[Variant, int, OutputSlice | None]:
    """Variant, group_size and output slice from the `form` in an intervention's state. Raises InputError for an invalid form."""
    number, group_size, *output_slice = form.tolist() if form.shape == (5,) and form.dtype == torch.int64 else (-1, 0, 0, 0, 0)
    period, start, stop = output_slice
    if not 0 <= number < len(plane_maps.VARIANTS) or (any(output_slice) and not 0 <= start < stop <= period):
        raise InputError(f"{form.tolist()} is not the form of a RoadIntervention")
    return plane_maps.VARIANTS[number], group_size, OutputSlice(*output_slice) if any(output_slice) else None


def subspace_planes(partition: Sequence[Sequence[int]], width: int, group_size: int) -> Bool[Tensor, "subspaces planes"]:
    """The planes of every subspace, from lists of dimensions. Raises InputError unless they are disjoint sets of whole planes."""
    member = torch.zeros(len(partition), width, dtype=torch.bool)
    for index, dimensions in enumerate(partition):
        if unknown := [dimension for dimension in dimensions if not 0 <= dimension < width]:
            raise InputError(f"subspace {index} contains dimension {unknown[0]}, but the state has dimensions 0 to {width - 1}")
        member[index, torch.tensor(dimensions, dtype=torch.long)] = True
    if (shared := member.sum(0) > 1).any():
        dimension = int(shared.nonzero()[0])
        owners = " and ".join(str(index) for index in member[:, dimension].nonzero().flatten().tolist())
        raise InputError(f"dimension {dimension} belongs to the subspaces {owners}; subspaces must be disjoint")
    first, second = plane_maps.plane_dimensions(width, group_size)
    if (is_split := member[:, first] != member[:, second]).any():
        index, plane = is_split.nonzero()[0].tolist()
        raise InputError(
            f"subspace {index} splits plane {plane}: dimensions {int(first[plane])} and {int(second[plane])} belong together "
            f"(group_size {group_size})"
        )
    return member[:, first]


def apply_to_slice(maps: PlaneMaps, hidden: Tensor, group_size: int, output_slice: OutputSlice | None) -> Tensor:
    """Apply the plane maps to `hidden`, or to the output slice of it."""
    return on_slice(hidden, output_slice, lambda selected: plane_maps.apply(maps, selected, group_size))
