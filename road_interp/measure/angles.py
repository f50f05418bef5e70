"""Angles and magnitudes of the planes of an adapter, by site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from road_interp.adapters.road_adapter import RoadAdapter, Source
from road_interp.arguments import check_count
from road_interp.errors import InputError
from road_interp.results import Result
from road_interp.sites.site import Site


@dataclass(frozen=True)
class SiteAngles:
    """The planes of one site.

    Attributes:
        name, layer, kind: of the site; a kind that several block stacks have is preceded by the name of the stack.
        angle: radians in (-pi, pi], one per plane.
        stretches: of the plane maps (singular values, factors), each with a value per plane: the larger and the smaller, or one
            list where they are equal in every plane, as for road_1.
        reflection: whether the orthogonal factor of the plane map is a reflection; `angle` is then twice the angle of its axis.
    """

    name: str
    layer: int | None
    kind: str
    angle: tuple[float, ...]
    stretches: tuple[tuple[float, ...], ...]
    reflection: tuple[bool, ...]

    @property
    def major(self) -> tuple[float, ...]:
        """The larger stretch of each plane map, a factor."""
        return self.stretches[0]

    @property
    def minor(self) -> tuple[float, ...]:
        """The smaller stretch of each plane map, a factor."""
        return self.stretches[-1]

    @property
    def shares(self) -> dict[str, float]:
        """Fractions of the map that are rotation, uniform scale and anisotropic stretch. They sum to 1, or are all 0.

        The fractions are of the squared logarithms of the polar components, summed over the planes: the angle (radians), the mean
        of the two log stretches, and half of their difference. Reflections and singular plane maps have no logarithm and are left
        out. All are 0 for the identity, and where no plane is left.
        """
        with np.errstate(divide="ignore"):
            stretches = np.log([self.major, self.minor])
        kept = np.isfinite(stretches).all(0) & ~np.asarray(self.reflection)
        angle, (major, minor) = np.asarray(self.angle)[kept], stretches[:, kept]
        components = {"rotation": angle, "uniform scale": (major + minor) / 2, "anisotropic stretch": (major - minor) / 2}
        squares = {name: float(np.square(component).sum()) for name, component in components.items()}
        return {name: each / (sum(squares.values()) or 1) for name, each in squares.items()}

    @property
    def magnitude(self) -> np.ndarray:
        """Magnitude of each plane: geometric mean of its two stretches, a factor."""
        return np.sqrt(np.multiply(self.major, self.minor))

    def summary(self) -> dict[str, float]:
        """Statistics over the planes: angles in degrees, magnitudes as factors, circular mean and standard deviation (scipy)."""
        angle, magnitude = np.asarray(self.angle), self.magnitude
        return {
            "planes": len(angle),
            "mean |angle|": float(np.degrees(np.abs(angle).mean())),
            "max |angle|": float(np.degrees(np.abs(angle).max())),
            "circular mean": float(np.degrees(stats.circmean(angle, high=np.pi, low=-np.pi))),
            "circular std": float(np.degrees(stats.circstd(angle, high=np.pi, low=-np.pi))),
            "mean magnitude": float(magnitude.mean()),
            "min magnitude": float(magnitude.min()),
            "max magnitude": float(magnitude.max()),
            "reflections": int(np.sum(self.reflection)),
            **{f"share of {name}": share for name, share in self.shares.items()},
        }


@dataclass(frozen=True)
class AngleReport(Result):
    """The planes of every site of an adapter.

    Attributes:
        variant, group_size: of the adapter.
        sites: in the order of the adapter's.
    """

    variant: str
    group_size: int
    sites: tuple[SiteAngles, ...]

    @property
    def layers(self) -> list[int]:
        """The layers that have a site, sorted."""
        return sorted({site.layer for site in self.sites if site.layer is not None})

    @property
    def kinds(self) -> list[str]:
        """The module kinds that have a site, in the model's order."""
        return list(dict.fromkeys(site.kind for site in self.sites))

    def records(self) -> list[dict[str, Any]]:
        """A row per site, with the statistics over its planes."""
        return [{"name": site.name, "layer": site.layer, "kind": site.kind, **site.summary()} for site in self.sites]

    def most_rotated(self, count: int) -> list[tuple[SiteAngles, int, float, float]]:
        """The planes with the largest |angle|, reflections among them: site, plane, angle (radians), magnitude (factor).

        Raises InputError for a count that is no whole number of at least 1.
        """
        check_count("AngleReport.most_rotated", "count", count)
        planes = [
            (site, plane, angle, magnitude)
            for site in self.sites
            for plane, (angle, magnitude) in enumerate(zip(site.angle, site.magnitude.tolist(), strict=True))
        ]
        return sorted(planes, key=lambda entry: -abs(entry[2]))[:count]


def angles(adapter: Source) -> AngleReport:
    """Angle, stretches and reflection flag of every plane of an adapter of any variant, given as `RoadAdapter.of` takes it.

    Numbers of fp32 have the fewest digits that determine them, so that their JSON is short.

    Raises InputError for a value without an adapter.
    """
    adapter = RoadAdapter.of(adapter)
    kinds = kinds_by_stack(adapter.sites)
    sites = []
    for site in adapter.sites:
        *numbers, reflection = adapter.polar(site)
        dtype = np.float32 if numbers[0].dtype == torch.float32 else np.float64
        angle, major, minor = (tuple(float(str(dtype(value))) for value in each.tolist()) for each in numbers)
        stretches = (major,) if major == minor else (major, minor)
        sites.append(SiteAngles(site.name, site.layer, kinds[site.name], angle, stretches, tuple(reflection.tolist())))
    return AngleReport(adapter.variant, adapter.group_size, tuple(sites))


def check_magnitudes(sites: Iterable[SiteAngles]) -> None:
    """Raise InputError for a plane of magnitude 0, where logarithms of magnitudes are compared."""
    for site in sites:
        if (zero := site.magnitude == 0).any():
            raise InputError(f"site '{site.name}': plane {zero.argmax()} has magnitude 0, whose logarithm is not finite")


def kinds_by_stack(sites: Sequence[Site]) -> dict[str, str]:
    """The kind of every site, by its name; a kind that several block stacks have is preceded by the name of the stack."""
    stacks = Counter(kind for kind, _ in {(site.kind, _stack(site)) for site in sites})
    return {
        site.name: f"{_stack(site)}: {site.kind}".removesuffix(": ") if stacks[site.kind] > 1 else site.kind for site in sites
    }


def layers_by_stack(sites: Sequence[Site]) -> dict[str, str]:
    """The layer of every site in one, by its name, preceded by the name of the stack where several block stacks have sites."""
    inside = [site for site in sites if site.layer is not None]
    stacks = list(dict.fromkeys(map(_stack, inside)))
    ordered = sorted(inside, key=lambda site: (stacks.index(_stack(site)), site.layer or 0))
    return {site.name: f"{_stack(site)} {site.layer}" if len(stacks) > 1 else str(site.layer) for site in ordered}


def _stack(site: Site) -> str:
    """The dotted path of the list of blocks that a site is in."""
    return site.name.removesuffix(f".{site.kind}").removesuffix(f".{site.layer}")  # of a block's output, the name has no kind
