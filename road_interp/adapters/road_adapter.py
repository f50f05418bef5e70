"""RoadAdapter: the angles and scales of a set of sites, as a value with arithmetic, saving and loading."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from road_interp.adapters import storage
from road_interp.adapters.base_model import BaseModelSignature
from road_interp.adapters.storage import AdapterValues
from road_interp.arguments import check_argument, checked_list
from road_interp.errors import InputError
from road_interp.files import check_folder
from road_interp.rotation import plane_maps
from road_interp.rotation.plane_maps import PlaneMaps, Polar, Variant
from road_interp.sites.positions import parse_positions
from road_interp.sites.site import Site
from road_interp.sources import local_folder

NO_SUM = "adapters are not added: `a @ b` applies b, then a; `a.inverse()` undoes a"


class HasAdapter(Protocol):
    """A value with an adapter, such as a Run or a RoadModel."""

    @property
    def adapter(self) -> RoadAdapter: ...


@dataclass(frozen=True, eq=False)
class RoadAdapter:
    """Angles `theta` (radians) and scales `alpha` (factors) of every site, as floating tensors.

    `theta[name]` and `alpha[name]` have `plane_maps.num_parameters(site.width, variant)` entries in PEFT's layout. Adapters can
    be combined only if their sites (in any order), group_size and positions are equal. An adapter taken from a model records the
    signature of that model in `base`; a RoadModel with another base model raises InputError. `positions` are the tokens at which
    it was trained ("all", "first", "last", "prompt" or "f3+l2"); a RoadModel rotates these unless it is given others.
    `modules_to_save` is the sha256 of the weights that were trained beside it, such as a classification head; None for none.

    >>> site = Site("layers.0", width=4)
    >>> quarter = RoadAdapter((site,), {site.name: torch.tensor([torch.pi / 2, 0.0])}, {site.name: torch.tensor([1.0, 3.0])})
    >>> (quarter @ quarter).magnitudes(site)
    tensor([1., 9.])
    >>> torch.rad2deg((quarter**0.5).angles(site))
    tensor([45.,  0.])
    >>> (quarter @ quarter.inverse()).distance(RoadAdapter.identity([site]))
    0.0
    """

    sites: tuple[Site, ...]
    theta: Mapping[str, Float[Tensor, " n"]]
    alpha: Mapping[str, Float[Tensor, " n"]]
    variant: Variant = "road_1"
    group_size: int = 2
    base: BaseModelSignature | None = None
    positions: str = "all"
    modules_to_save: str | None = None

    def __post_init__(self) -> None:
        parse_positions(self.positions)
        plane_maps.check_variant(self.variant)
        base = (BaseModelSignature, type(None))
        check_argument("RoadAdapter, base", self.base, base, "BaseModelSignature.of(model), or None")
        check_argument("RoadAdapter, modules_to_save", self.modules_to_save, (str, type(None)), "a sha256, or None")
        sites = checked_list("RoadAdapter", self.sites, Site, "the sites of find_sites(model, ...)")
        object.__setattr__(self, "sites", tuple(sites))
        if not sites:
            raise InputError("an adapter needs at least one site")
        names = [site.name for site in self.sites]
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"site '{name}' is listed twice")
        for kind, tensors in (("theta", self.theta), ("alpha", self.alpha)):
            check_argument(f"RoadAdapter, {kind}", tensors, Mapping, "a tensor per site, as in {site.name: tensor}")
            if unknown := sorted(map(str, set(tensors) - set(names))):
                raise InputError(f"{kind} has values for '{unknown[0]}', which is not a site of this adapter")
            for site in self.sites:
                self._check(kind, site, tensors.get(site.name))

    def __repr__(self) -> str:
        size = f"{len(self.sites)} sites, {self.num_parameters} parameters"
        return f"RoadAdapter({self.variant} at {size}, positions {self.positions})"

    def _check(self, kind: str, site: Site, values: Tensor | None) -> None:
        site.check_group_size(self.group_size)
        expected = plane_maps.num_parameters(site.width, self.variant)
        if values is None:
            raise InputError(f"site '{site.name}': its {kind} is missing")
        if not isinstance(values, Tensor):
            raise InputError(f"site '{site.name}': {kind} must be a tensor, not {type(values).__name__}")
        if tuple(values.shape) != (expected,):
            raise InputError(
                f"site '{site.name}': {kind} has shape {tuple(values.shape)}, but {self.variant} on width {site.width} "
                f"needs ({expected},)"
            )
        if not values.is_floating_point():
            raise InputError(f"site '{site.name}': {kind} has dtype {values.dtype}; it must be floating point")
        if not values.isfinite().all():
            first = int((~values.isfinite()).nonzero()[0])
            raise InputError(f"site '{site.name}': {kind}[{first}] is {values[first].item()}; all values must be finite")

    @classmethod
    def identity(cls, sites: Iterable[Site], variant: Variant = "road_1", group_size: int = 2) -> RoadAdapter:
        """The identity adapter: every angle is 0, every scale 1."""
        sites = tuple(checked_list("RoadAdapter.identity", sites, Site, "the sites of find_sites(model, 'mlp')"))
        plane_maps.check_variant(variant)
        sizes = {site.name: plane_maps.num_parameters(site.width, variant) for site in sites}
        theta = {name: torch.zeros(size, dtype=torch.float32) for name, size in sizes.items()}
        alpha = {name: torch.ones(size, dtype=torch.float32) for name, size in sizes.items()}
        return cls(sites, theta, alpha, variant, group_size)

    def identity_like(self) -> RoadAdapter:
        """The identity adapter with the same sites, variant, group_size, base, positions and modules_to_save."""
        identity = RoadAdapter.identity(self.sites, self.variant, self.group_size)
        return replace(identity, base=self.base, positions=self.positions, modules_to_save=self.modules_to_save)

    @property
    def num_parameters(self) -> int:
        """Number of trainable parameters: theta and alpha of all sites."""
        return sum(self.theta[site.name].numel() + self.alpha[site.name].numel() for site in self.sites)

    def site(self, site: Site | str) -> Site:
        """The site of that name. Raises InputError for a name the adapter does not have."""
        if not isinstance(site, str | Site):
            raise InputError(f"{site!r} is not a site: give a Site or its name, such as '{self.sites[0].name}'")
        name = site if isinstance(site, str) else site.name
        for known in self.sites:
            if known.name == name:
                return known
        raise InputError(f"'{name}' is not a site of this adapter; its sites are {', '.join(s.name for s in self.sites)}")

    def plane_maps(self, site: Site | str) -> PlaneMaps:
        """The plane maps of one site, of angles and scales in half precision in fp32."""
        name = self.site(site).name
        given = self.theta[name], self.alpha[name]
        theta, alpha = (values if values.dtype.itemsize >= 4 else values.float() for values in given)
        return plane_maps.maps_from_parameters(theta, alpha, self.variant, self.group_size)

    def polar(self, site: Site | str) -> Polar:
        """Angle, stretches and reflection flag of every plane of one site, for any variant."""
        return plane_maps.polar(self.plane_maps(site))

    def angles(self, site: Site | str) -> Float[Tensor, " planes"]:
        """The angle of every plane: radians in (-pi, pi]."""
        return self.polar(site).angle

    def magnitudes(self, site: Site | str) -> Float[Tensor, " planes"]:
        """The magnitude of every plane: a factor, the geometric mean of the two stretches (`|alpha|` for road_1)."""
        polar = self.polar(site)
        return polar.major if self.variant == "road_1" else polar.major.sqrt() * polar.minor.sqrt()

    def matrix(self, site: Site | str) -> Float[Tensor, "width width"]:
        """The dense matrix `R` of one site."""
        return plane_maps.matrix(self.plane_maps(site), self.group_size)

    def __matmul__(self, inner: Source) -> RoadAdapter:
        """The composition: `(a @ b)(h) == a(b(h))`. Two road_1 adapters give road_1, all other combinations road_2.

        The other adapter, here and in all combinations, is given as `RoadAdapter.of` takes it. The result has the first one's
        `modules_to_save`.
        """
        inner = RoadAdapter.of(inner)
        self._check_joins(inner, "compose")
        product = {site.name: plane_maps.compose(self.plane_maps(site), inner.plane_maps(site)) for site in self.sites}
        return replace(self, base=self.base or inner.base)._with_maps(product)

    def __pow__(self, exponent: float) -> RoadAdapter:
        """A real power of a road_1 adapter: angles times `exponent`, scales to the power of `exponent`.

        Angles are taken between -pi and pi, so `(a**2) ** 0.5` is `a` only where no angle of `a` exceeds pi / 2.
        """
        if not isinstance(exponent, Real):
            raise InputError(f"a power of an adapter needs a number, such as 0.5, not {type(exponent).__name__}")
        if self.variant != "road_1":
            raise InputError(f"real powers exist for road_1 only; this adapter is {self.variant}")
        self._check_nonzero("raise to a power")
        return self._with_maps({site.name: plane_maps.power(self.plane_maps(site), float(exponent)) for site in self.sites})

    def __mul__(self, factor: Any) -> RoadAdapter:
        """Not defined: raises InputError that names the power and the composition."""
        raise InputError("an adapter has no multiples: `adapter ** 0.5` turns half as far, and `a @ b` applies b, then a")

    __rmul__ = __truediv__ = __mul__

    def __add__(self, other: Any) -> RoadAdapter:
        """Not defined: raises InputError that names the composition and the inverse."""
        raise InputError(NO_SUM)

    def __neg__(self) -> RoadAdapter:
        """Not defined, as `__add__`."""
        raise InputError(NO_SUM)

    __radd__ = __sub__ = __rsub__ = __add__

    def inverse(self) -> RoadAdapter:
        """The inverse of every plane map. Raises InputError that names site and plane of a singular map."""
        inverses = {}
        for site in self.sites:
            try:
                inverses[site.name] = plane_maps.inverse(self.plane_maps(site))
            except InputError as error:
                raise InputError(f"site '{site.name}': {error}") from None
        return self._with_maps(inverses)

    def difference(self, other: Source) -> RoadAdapter:
        """`self @ other.inverse()`, so that `a.difference(b) @ b` equals `a`. Raises InputError if `other` is singular."""
        other = RoadAdapter.of(other)
        self._check_joins(other, "subtract")
        return self @ other.inverse()

    @classmethod
    def mean(cls, adapters: Iterable[Source], weights: Sequence[float] | None = None) -> RoadAdapter:
        """The mean of road_1 adapters: the circular mean of the angles and the geometric mean of the magnitudes.

        Args:
            adapters: each as `RoadAdapter.of` takes it.
            weights: one per adapter, not negative; equal by default.

        Raises:
            InputError: no adapters, weights that do not fit them, a variant other than road_1, a scale of 0, angles of a plane
                that cancel, so that their circular mean is undefined, or adapters that differ in sites, group_size, positions
                or base model.
        """
        if isinstance(adapters, str | Mapping) or not isinstance(adapters, Iterable):
            raise InputError(f"the mean is of a list of adapters, not {type(adapters).__name__}; for a bank, give bank.values()")
        averaged = [cls.of(adapter) for adapter in adapters]
        if not averaged:
            raise InputError("the mean needs at least one adapter")
        if weights is not None and (isinstance(weights, str) or not isinstance(weights, Iterable)):
            raise InputError(f"the mean needs a list of weights, one per adapter, not {weights!r}")
        weights = [1.0] * len(averaged) if weights is None else list(weights)
        is_numbers = all(isinstance(weight, Real) and math.isfinite(weight) for weight in weights)
        if not is_numbers or len(weights) != len(averaged) or min(weights) < 0 or sum(weights) == 0:
            raise InputError(
                f"the mean of {len(averaged)} adapters needs as many finite weights, none negative, not all zero, not {weights}"
            )
        first = replace(averaged[0], base=next((adapter.base for adapter in averaged if adapter.base), None))
        for adapter in averaged:
            first._check_joins(adapter, "take the mean of")
            if adapter.variant != "road_1":
                raise InputError(f"the mean exists for road_1 only, not for {adapter.variant}")
            adapter._check_nonzero("take the mean of")
        shares = [float(weight / sum(weights)) for weight in weights]
        means = {}
        for site in first.sites:
            maps = [adapter.plane_maps(site).a for adapter in averaged]
            direction = torch.stack([w * a / a.abs() for w, a in zip(shares, maps, strict=True)]).sum(0)
            if (cancelled := direction.abs() < 1e-6).any():
                raise InputError(f"site '{site.name}', plane {int(cancelled.nonzero()[0])}: the angles cancel and have no mean")
            size = torch.stack([w * a.abs().log() for w, a in zip(shares, maps, strict=True)]).sum(0).exp()
            means[site.name] = PlaneMaps(torch.polar(size, direction.angle()))
        return first._with_maps(means)

    def restrict(self, planes: Mapping[str, Any] | Callable[[Site], Any] | Any) -> RoadAdapter:
        """This adapter on the selected planes, the identity on all others.

        Args:
            planes: plane indices or a boolean mask of shape `(planes,)`, the same for all sites; or a mapping from site names to
                indices or masks, in which a missing site becomes the identity; or a function from sites to indices or masks.

        Raises:
            InputError: an unknown site, a plane that does not exist or is listed twice, a mask of another shape, or numbers that
                are not whole.
        """
        restricted = {}
        for site in self.sites:
            restricted[site.name] = self.plane_maps(site).masked(_plane_mask(site, _planes_for(site, planes)))
        if isinstance(planes, Mapping) and (unknown := set(planes) - {site.name for site in self.sites}):
            raise InputError(f"'{min(map(str, unknown))}' is not a site of this adapter")
        return self._with_maps(restricted)

    def by_layer(self) -> dict[int, RoadAdapter]:
        """For every layer, this adapter restricted to the sites of that layer."""
        layers = sorted({site.layer for site in self.sites if site.layer is not None})
        identity = self.identity_like()
        return {layer: identity.with_sites_of(self, lambda site, layer=layer: site.layer == layer) for layer in layers}

    def angles_only(self) -> RoadAdapter:
        """The same angles with all magnitudes 1: the orthogonal polar factor of every plane map, which may be a reflection."""
        return self._with_maps({site.name: plane_maps.polar_factors(self.plane_maps(site))[0] for site in self.sites})

    def magnitudes_only(self) -> RoadAdapter:
        """The same stretches with all angles 0: `a.angles_only() @ a.magnitudes_only()` equals `a`."""
        return self._with_maps({site.name: plane_maps.polar_factors(self.plane_maps(site))[1] for site in self.sites})

    def with_sites_of(self, other: Source, selected: Callable[[Site], bool]) -> RoadAdapter:
        """This adapter with the plane maps of `other` at the sites for which `selected` is true."""
        other = RoadAdapter.of(other)
        self._check_joins(other, "mix")
        maps = {site.name: (other if selected(site) else self).plane_maps(site) for site in self.sites}
        return replace(self, base=self.base or other.base)._with_maps(maps)

    def distance(self, other: Source) -> float:
        """The geodesic distance of two road_1 adapters in angle and log magnitude over all planes.

        The square root of the sum of squared wrapped angle differences (radians) and squared log ratios of magnitudes. It is a
        metric, and zero only between equal plane maps.
        """
        other = RoadAdapter.of(other)
        self._check_combines(other, "measure the distance of")
        if {self.variant, other.variant} != {"road_1"}:
            raise InputError("the distance is defined for road_1 adapters only")
        self._check_nonzero("measure the distance of")
        other._check_nonzero("measure the distance of")
        total = 0.0
        for site in self.sites:
            mine, theirs = (adapter.plane_maps(site).a.to(torch.complex128) for adapter in (self, other))
            angle = (mine.angle() - theirs.angle() + torch.pi).remainder(2 * torch.pi) - torch.pi
            total += (angle.square() + (mine.abs().log() - theirs.abs().log()).square()).sum().item()
        return total**0.5

    def _with_maps(self, maps: Mapping[str, PlaneMaps]) -> RoadAdapter:
        variant: Variant = "road_1" if all(site_maps.b is None for site_maps in maps.values()) else "road_2"
        pairs = {name: plane_maps.parameters_from_maps(site_maps, variant, self.group_size) for name, site_maps in maps.items()}
        theta = {name: pair[0] for name, pair in pairs.items()}
        alpha = {name: pair[1] for name, pair in pairs.items()}
        return replace(self, theta=theta, alpha=alpha, variant=variant)

    def _check_joins(self, other: RoadAdapter, action: str) -> None:
        """The checks of a combination whose result is an adapter, which has positions."""
        self._check_combines(other, action)
        if self.positions != other.positions:
            raise InputError(f"cannot {action} adapters of the positions '{self.positions}' and '{other.positions}'")

    def _check_combines(self, other: RoadAdapter, action: str) -> None:
        mine, theirs = ({site.name: site for site in adapter.sites} for adapter in (self, other))
        if different := [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]:
            raise InputError(f"cannot {action} adapters of different sites: they differ at '{different[0]}'")
        if self.group_size != other.group_size:
            raise InputError(f"cannot {action} adapters of group_size {self.group_size} and {other.group_size}")
        if self.base is not None and other.base is not None and (difference := self.base.difference(other.base)):
            raise InputError(f"cannot {action} adapters of different models: {difference}")

    def _check_nonzero(self, action: str) -> None:
        for site in self.sites:
            zero = self.plane_maps(site).a == 0
            if zero.any():
                raise InputError(f"site '{site.name}': cannot {action} this adapter, plane {int(zero.nonzero()[0])} has alpha 0")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write adapter.json and the safetensors file that it names into `folder`.

        The tensor file is named after the hash of its content, and adapter.json is replaced last and atomically, so that an
        interrupted save leaves the previous adapter intact. Processes that save into one folder wait for each other. Raises
        InputError where the folder, or one above it, is a file, and for the folder of a run.
        """
        check_argument("save", folder, (str, os.PathLike), "a folder")
        check_folder(Path(folder))
        storage.save(self._values, Path(folder))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], base: Any = None) -> RoadAdapter:
        """Read the adapter of a folder that `save` wrote, of a run folder, or of a PEFT RoAd folder.

        A head that was trained beside it is not part of an adapter: `Run.load_model` and `RoadModel.from_peft` load it too.

        Args:
            folder: a path, or `package://NAME/path` for one inside an installed package.
            base: for a PEFT folder, the base model, as in `from_peft`.

        Raises:
            InputError: no adapter in the folder, or an invalid one; the message names file, site or value and the reason.
        """
        folder = storage.adapter_folder(local_folder(folder))
        try:
            if storage.is_peft_folder(folder):
                return cls.from_peft(folder, base=base)
            return cls(*storage.load(folder))
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None

    @classmethod
    def of(cls, source: Source, base: Any = None) -> RoadAdapter:
        """The adapter that is meant by a RoadAdapter, by a folder as in `load`, or by what has one as `adapter`, such as a Run.

        Raises InputError for anything else.
        """
        if isinstance(source, str | os.PathLike):
            return cls.load(source, base)
        adapter = source if isinstance(source, cls) else getattr(source, "adapter", None)
        if not isinstance(adapter, cls):
            raise InputError(
                f"an object of type {type(source).__name__} is not an adapter: give a RoadAdapter, its folder, a Run or a "
                "RoadModel; several together are a RoadBank"
            )
        return adapter

    @classmethod
    def from_peft(cls, source: Any, adapter_name: str | None = None, base: Any = None) -> RoadAdapter:
        """The rotations of a PEFT RoAd folder or PeftModel: see `road_interp.adapters.peft_format.read_rotations`.

        Warns of a PeftModel with other trained weights, such as a head, which are not part of an adapter.
        """
        from road_interp.adapters.peft_format import other_weights, read_rotations

        if not isinstance(source, str | os.PathLike) and (others := other_weights(source, adapter_name)):
            warnings.warn(
                f"the PeftModel has other trained weights ({', '.join(sorted(others))}), which are not part of an adapter: "
                "RoadModel.from_peft(another_copy_of_the_model, peft_model) loads both",
                stacklevel=2,
            )
        return cls(*read_rotations(source, adapter_name, base))

    def to_peft(self, folder: str | os.PathLike[str], base: Any = None, modules_to_save: Sequence[str] = ()) -> None:
        """Write a folder that `PeftModel.from_pretrained` loads: see `road_interp.adapters.peft_format.write_rotations`."""
        from road_interp.adapters.peft_format import write_rotations

        write_rotations(self._values, folder, base, modules_to_save)

    @property
    def _values(self) -> AdapterValues:
        return AdapterValues(*(getattr(self, name) for name in AdapterValues._fields))


def _planes_for(site: Site, planes: Any) -> Any:
    if isinstance(planes, Mapping):
        return planes.get(site.name, [])
    return planes(site) if callable(planes) else planes


def _plane_mask(site: Site, selected: Any) -> Bool[Tensor, " planes"]:
    planes = site.width // 2
    try:
        index = torch.as_tensor(selected)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"site '{site.name}': {selected!r} are no planes; give their indices or a boolean mask") from None
    if index.dtype == torch.bool:
        if index.shape != (planes,):
            raise InputError(f"site '{site.name}': a mask of shape {tuple(index.shape)} does not fit {planes} planes")
        return index
    mask = torch.zeros(planes, dtype=torch.bool)
    if index.numel() and (index.is_floating_point() or index.is_complex()):
        raise InputError(
            f"site '{site.name}': planes are whole numbers or a boolean mask, not {index.dtype}; "
            "for a mask of 0 and 1, give mask.bool()"
        )
    index = index.flatten().long()
    if index.numel() and (index.min() < 0 or index.max() >= planes):
        raise InputError(f"site '{site.name}' has planes 0 to {planes - 1}; the given indices are {index.tolist()}")
    mask[index] = True
    if mask.sum() < index.numel():
        raise InputError(f"site '{site.name}': a plane is listed twice; for a mask of 0 and 1, give mask.bool()")
    return mask


Source = RoadAdapter | HasAdapter | str | os.PathLike[str]  # what `RoadAdapter.of` takes
