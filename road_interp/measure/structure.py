"""Which structure in learned angles is real: what comes back with another seed, and what query and key share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from road_interp.errors import InputError
from road_interp.measure.angles import AngleReport, SiteAngles
from road_interp.measure.intervals import interval
from road_interp.results import Result

DRAWS = 1000
Correlation = tuple[float, float, float] | None  # with its 95% bootstrap interval; None where a side does not vary


@dataclass(frozen=True)
class SeedStructure(Result):
    """How alike adapters of the same recipe and different seeds are: correlations, means over all pairs of seeds.

    Intervals come from a bootstrap over sites (all planes of a site together).

    Attributes:
        seeds: number of adapters.
        sites: of the mean |angle| by site: the pattern that a heat map shows.
        planes: of |angle|, plane by plane: with the pattern of the sites in it.
        planes_within_sites: the same after every site's mean was taken away: what single planes add to the pattern.
        signed: of the angle itself, plane by plane.
        magnitudes: of log magnitude, plane by plane.
    """

    seeds: int
    sites: Correlation
    planes: Correlation
    planes_within_sites: Correlation
    signed: Correlation
    magnitudes: Correlation


@dataclass(frozen=True)
class QueryKey(Result):
    """How the planes of query and key relate, layer by layer.

    Without a position code between them, attention sees only the product of query and key, which depends on the difference of
    their angles and the product of their magnitudes: one of the two adapters is redundant. Trained from the identity they then
    come out with opposite angles and equal magnitudes.

    Attributes:
        layers: the blocks.
        query, key: kinds of the modules.
        query_angles, key_angles: layer by layer, radians. Where several query heads share a key head, the mean over them.
        query_magnitudes, key_magnitudes: likewise, factors (geometric mean).
    """

    layers: tuple[int, ...]
    query: str
    key: str
    query_angles: tuple[tuple[float, ...], ...]
    key_angles: tuple[tuple[float, ...], ...]
    query_magnitudes: tuple[tuple[float, ...], ...]
    key_magnitudes: tuple[tuple[float, ...], ...]

    def summary(self) -> dict[str, Any]:
        """The correlations."""
        return {"correlations": self.correlations()}

    def correlations(self) -> dict[str, float | None]:
        """Pearson correlation over all planes, of the angles and of the log magnitudes; None where a side does not vary."""
        sides = {
            "angles": (np.concatenate(self.query_angles), np.concatenate(self.key_angles)),
            "log magnitudes": (np.log(np.concatenate(self.query_magnitudes)), np.log(np.concatenate(self.key_magnitudes))),
        }
        found = {name: _pearson(*both) for name, both in sides.items()}
        return {name: None if np.isnan(value) else value for name, value in found.items()}


@dataclass(frozen=True)
class AngleStudy(Result):
    """Adapters of one recipe.

    Attributes:
        first: the planes of the first seed's adapter.
        structure: how alike all seeds are; None for a single one.
    """

    first: AngleReport
    structure: SeedStructure | None


def seed_structure(reports: Sequence[AngleReport]) -> SeedStructure:
    """Compare adapters of one recipe that differ in the seed alone. Raises InputError for fewer than two or different sites."""
    if len(reports) < 2:
        raise InputError(f"structure over seeds needs at least two adapters, not {len(reports)}")
    names = [site.name for site in reports[0].sites]
    if any([site.name for site in report.sites] != names for report in reports):
        raise InputError("the adapters have different sites")

    def by_site(value: Callable[[SiteAngles], np.ndarray]) -> list[list[np.ndarray]]:
        return [[value(site) for site in report.sites] for report in reports]

    size = by_site(lambda site: np.abs(site.angle))
    centred = [[planes - planes.mean() for planes in report] for report in size]
    means = [[np.array([planes.mean()]) for planes in report] for report in size]
    signed = by_site(lambda site: np.asarray(site.angle))
    magnitudes = by_site(lambda site: np.log(site.magnitude))
    return SeedStructure(len(reports), *(_agreement(each) for each in (means, size, centred, signed, magnitudes)))


def _agreement(values: Sequence[Sequence[np.ndarray]]) -> Correlation:
    """Mean correlation over pairs of seeds, and its interval over sites; draws of sites that do not vary are left out."""
    sites = len(values[0])
    generator = np.random.default_rng(0)

    def mean(chosen: np.ndarray) -> float:
        rows = [np.concatenate([report[site] for site in chosen]) for report in values]
        return float(np.mean([_pearson(first, second) for first, second in combinations(rows, 2)]))

    whole = mean(np.arange(sites))
    if np.isnan(whole):
        return None
    samples = np.array([mean(generator.integers(sites, size=sites)) for _ in range(DRAWS)])
    return (whole, *interval(samples[~np.isnan(samples)]))


def _pearson(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float:
    """Pearson correlation of radians or log magnitudes; not a number where a side varies by single precision's rounding alone."""
    if min(np.ptp(first), np.ptp(second)) < 1e-6:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def query_key(report: AngleReport, key_heads: int = 1) -> QueryKey:
    """Pair the planes of query and key in every layer that rotates both.

    Args:
        key_heads: number of key heads of the model, where there are more query heads (num_key_value_heads).

    Raises:
        InputError: no layer rotates both, or their widths do not fit that number of key heads.
    """
    sites = {(site.layer, site.kind): site for site in report.sites if site.layer is not None}
    pairs = [(key, (key[0], _key_of(key[1]))) for key in sites if _key_of(key[1]) != key[1]]
    pairs = [(query, key) for query, key in pairs if key in sites]
    if not pairs:
        raise InputError(f"no layer rotates query and key; the sites are {', '.join(dict.fromkeys(kind for _, kind in sites))}")
    columns = []
    for query, key in pairs:
        q, k = sites[query], sites[key]
        if len(q.angle) % len(k.angle) or len(k.angle) % key_heads:
            raise InputError(f"layer {q.layer}: {len(q.angle)} query and {len(k.angle)} key planes for {key_heads} key heads")
        angle, grown = (
            np.reshape(each, (key_heads, len(q.angle) // len(k.angle), -1)) for each in (q.angle, np.log(q.magnitude))
        )
        turned = stats.circmean(angle, high=np.pi, low=-np.pi, axis=1).ravel()
        columns.append((turned, k.angle, np.exp(grown.mean(1).ravel()), k.magnitude))
    lists = [tuple(tuple(np.asarray(row[place]).tolist()) for row in columns) for place in range(4)]
    return QueryKey(tuple(sites[query].layer or 0 for query, _ in pairs), pairs[0][0][1], pairs[0][1][1], *lists)


def _key_of(kind: str) -> str:
    """The kind of the keys beside queries of this kind; the same kind where it is none of queries."""
    if kind.endswith("[query]"):
        return kind.removesuffix("[query]") + "[key]"
    return kind if "[" in kind else re.sub(r"query|(?<![a-z])q(?=_|$)", lambda found: {"query": "key", "q": "k"}[found[0]], kind)
