"""How far the planes of an adapter turn and stretch, site by site."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.results import Result


@dataclass(frozen=True)
class SiteAngles:
    """The planes of one site.

    Attributes:
        name, layer, kind: of the site.
        angle: radians in (-pi, pi], one per plane.
        major, minor: the two stretches of each plane, factors; equal for road_1.
        reflection: whether the plane is mirrored; its angle is then twice that of the mirror's axis.
    """

    name: str
    layer: int | None
    kind: str
    angle: tuple[float, ...]
    major: tuple[float, ...]
    minor: tuple[float, ...]
    reflection: tuple[bool, ...]

    @property
    def shares(self) -> dict[str, float]:
        """How much of the map is rotation, uniform scale and anisotropic stretch: fractions that add up to 1, or zeros.

        Shares of the squared logarithms of the polar parts, summed over the planes: the angle (radians), the mean of the two log
        stretches, and half their difference. Planes that mirror or flatten have no logarithm and are left out.
        """
        with np.errstate(divide="ignore"):
            stretches = np.log([self.major, self.minor])
        kept = np.isfinite(stretches).all(0) & ~np.asarray(self.reflection)
        angle, (major, minor) = np.asarray(self.angle)[kept], stretches[:, kept]
        parts = {"rotation": angle, "uniform scale": (major + minor) / 2, "anisotropic stretch": (major - minor) / 2}
        energy = {name: float(np.square(part).sum()) for name, part in parts.items()}
        return {name: each / (sum(energy.values()) or 1) for name, each in energy.items()}

    @property
    def magnitude(self) -> np.ndarray:
        """Geometric mean of the two stretches of each plane, a factor."""
        return np.sqrt(np.multiply(self.major, self.minor))

    def summary(self) -> dict[str, float]:
        """Statistics over the planes: angles in degrees, magnitudes as factors; circular mean and deviation (scipy)."""
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
    """The planes of every site of an adapter."""

    variant: str
    group_size: int
    sites: tuple[SiteAngles, ...]

    @property
    def layers(self) -> list[int]:
        """The layers that have a site, in order."""
        return sorted({site.layer for site in self.sites if site.layer is not None})

    @property
    def kinds(self) -> list[str]:
        """The module kinds that have a site, in the model's order."""
        return list(dict.fromkeys(site.kind for site in self.sites))

    def most_rotated(self, count: int) -> list[tuple[SiteAngles, int, float, float]]:
        """The planes with the largest |angle|: site, plane, angle (radians), magnitude (factor)."""
        planes = [
            (site, plane, angle, magnitude)
            for site in self.sites
            for plane, (angle, magnitude) in enumerate(zip(site.angle, site.magnitude.tolist(), strict=True))
        ]
        return sorted(planes, key=lambda entry: -abs(entry[2]))[:count]


def angles(adapter: RoadAdapter) -> AngleReport:
    """Angle, stretches and reflection flag of every plane of `adapter`, for any variant."""
    sites = []
    for site in adapter.sites:
        polar = adapter.polar(site)
        values = [tuple(part.tolist()) for part in polar]
        sites.append(SiteAngles(site.name, site.layer, site.kind, *values))
    return AngleReport(adapter.variant, adapter.group_size, tuple(sites))
