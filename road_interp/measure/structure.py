"""Structure in learned angles: agreement between seeds, and the relation between query and key."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from road_interp.arguments import check_argument, check_count, checked_list
from road_interp.errors import InputError
from road_interp.measure.angles import AngleReport, SiteAngles, check_magnitudes
from road_interp.measure.intervals import interval
from road_interp.results import Result

DRAWS = 1000  # bootstrap samples
FEWEST = 6  # sites: in simulations the 95% intervals of three held the correlation in half of the cases, of six in .9
Correlation = tuple[float, float, float] | None  # with its 95% bootstrap interval; None if one variable is constant


@dataclass(frozen=True)
class SeedStructure(Result):
    """Correlations between adapters of the same recipe and different seeds, means over all pairs of seeds.

    Intervals are from a bootstrap over sites (all planes of a site together); of fewer than six sites they are -1 to 1.

    Attributes:
        seeds: number of adapters.
        sites: correlation of the mean |angle| of the sites, the pattern that a heat map shows.
        planes: of |angle| of the planes, which includes the pattern of the sites.
        planes_within_sites: of |angle| minus its mean over the site.
        signed: of the signed angle of the planes.
        magnitudes: of the log magnitude of the planes.
    """

    seeds: int
    sites: Correlation
    planes: Correlation
    planes_within_sites: Correlation
    signed: Correlation
    magnitudes: Correlation

    def records(self) -> list[dict[str, Any]]:
        """A row per quantity whose agreement was measured; one that does not vary has no correlation."""
        named = {name: value for name, value in vars(self).items() if name not in ("seeds", "provenance")}
        return [{"quantity": name, "correlation": value or (nan, nan, nan)} for name, value in named.items()]


@dataclass(frozen=True)
class QueryKey(Result):
    """Angles and magnitudes of the planes of query and key, by layer.

    If no position embedding acts between them, attention depends on the product of query and key only, and so on the difference
    of their angles and the product of their magnitudes: one of the two adapters is redundant. Trained from the identity, they
    then get opposite angles and equal magnitudes.

    Attributes:
        layers: block numbers.
        query, key: kinds of the modules; several, such as of encoder and decoder, are separated by commas.
        query_angles, key_angles: by layer, one per plane of the key, radians. If several query heads share a key head, the
            query's are circular means over them.
        query_magnitudes, key_magnitudes: likewise, factors (geometric means). All have nine significant digits.
        queries: kind of the query, by layer; empty where all have the same kind.
    """

    layers: tuple[int, ...]
    query: str
    key: str
    query_angles: tuple[tuple[float, ...], ...]
    key_angles: tuple[tuple[float, ...], ...]
    query_magnitudes: tuple[tuple[float, ...], ...]
    key_magnitudes: tuple[tuple[float, ...], ...]
    queries: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """The correlations."""
        return {"correlations": self.correlations()}

    def records(self) -> list[dict[str, Any]]:
        """A row per layer and plane, with the kind of the query where there are several."""
        names = ("query_angles", "key_angles", "query_magnitudes", "key_magnitudes")
        kinds = [{"query": kind} for kind in self.queries] or [{}] * len(self.layers)
        return [
            {**kind, "layer": layer, "plane": plane}
            | {name.removesuffix("s"): value for name, value in zip(names, values, strict=True)}
            for kind, layer, *planes in zip(kinds, self.layers, *(getattr(self, name) for name in names), strict=True)
            for plane, values in enumerate(zip(*planes, strict=True))
        ]

    def correlations(self) -> dict[str, float | None]:
        """Pearson correlation of query and key over all planes, of angles and of log magnitudes; None if either is constant."""
        variables = {
            "angles": (np.concatenate(self.query_angles), np.concatenate(self.key_angles)),
            "log magnitudes": (np.log(np.concatenate(self.query_magnitudes)), np.log(np.concatenate(self.key_magnitudes))),
        }
        values = {name: _pearson(*pair) for name, pair in variables.items()}
        return {name: None if np.isnan(value) else value for name, value in values.items()}


@dataclass(frozen=True)
class AngleStudy(Result):
    """Angles of the adapters of one recipe.

    Attributes:
        first: report of the first seed's adapter.
        structure: agreement between all seeds; None for a single seed.
    """

    first: AngleReport
    structure: SeedStructure | None

    def records(self) -> list[dict[str, Any]]:
        """The rows of the first seed's adapter."""
        return self.first.records()


def seed_structure(reports: Sequence[AngleReport]) -> SeedStructure:
    """Compare adapters of one recipe and different seeds.

    Raises InputError for fewer than two adapters, different sites, variants or group sizes, or a plane of magnitude 0.
    """
    reports = checked_list("measure.seed_structure", reports, AngleReport, "a list of measure.angles(adapter)")
    if len(reports) < 2:
        raise InputError(f"structure over seeds needs at least two adapters, not {len(reports)}")
    if len({tuple((site.name, len(site.angle)) for site in report.sites) for report in reports}) > 1:
        raise InputError("the adapters have different sites")
    if len({(report.variant, report.group_size) for report in reports}) > 1:
        raise InputError("the adapters have different variants or group sizes, so that their planes are not the same")
    check_magnitudes(site for report in reports for site in report.sites)

    def by_site(value: Callable[[SiteAngles], np.ndarray]) -> list[list[np.ndarray]]:
        return [[value(site) for site in report.sites] for report in reports]

    size = by_site(lambda site: np.abs(site.angle))
    centred = [[planes - planes.mean() for planes in report] for report in size]
    means = [[np.array([planes.mean()]) for planes in report] for report in size]
    signed = by_site(lambda site: np.asarray(site.angle))
    magnitudes = by_site(lambda site: np.log(site.magnitude))
    return SeedStructure(len(reports), *(_agreement(each) for each in (means, size, centred, signed, magnitudes)))


def _agreement(values: Sequence[Sequence[np.ndarray]]) -> Correlation:
    """Mean correlation over pairs of seeds with its bootstrap interval over sites; samples with a constant are left out.

    Of fewer than FEWEST sites nothing is known: the interval is -1 to 1.
    """
    sites = len(values[0])
    generator = np.random.default_rng(0)

    def mean(chosen: np.ndarray) -> float:
        rows = [np.concatenate([report[site] for site in chosen]) for report in values]
        return float(np.mean([_pearson(first, second) for first, second in combinations(rows, 2)]))

    value = mean(np.arange(sites))
    if np.isnan(value):
        return None
    if sites < FEWEST:
        return value, -1.0, 1.0
    samples = np.array([mean(generator.integers(sites, size=sites)) for _ in range(DRAWS)])
    return (value, *interval(samples[~np.isnan(samples)]))


def _pearson(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float:
    """Pearson correlation of radians or log magnitudes; NaN if either is constant up to single-precision rounding."""
    if min(np.ptp(first), np.ptp(second)) < 1e-6:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def query_key(report: AngleReport, key_heads: int | None = None) -> QueryKey:
    """Pair the planes of query and key in every layer that rotates both.

    Args:
        key_heads: number of key heads (num_key_value_heads), needed where a layer has more query planes than key planes.

    Raises:
        InputError: no layer rotates both, the numbers of planes do not fit `key_heads`, planes reach over several heads that
            share a key head, or a plane has magnitude 0.
    """
    check_argument("measure.query_key", report, AngleReport, "measure.angles(adapter)")
    if key_heads is not None:
        check_count("measure.query_key", "key_heads", key_heads)
    sites = {(site.layer, site.kind): site for site in report.sites if site.layer is not None}
    pairs = [(key, (key[0], _key_of(key[1]))) for key in sites if _key_of(key[1]) != key[1]]
    pairs = [(query, key) for query, key in pairs if key in sites]
    if not pairs:
        raise InputError(f"no layer rotates query and key; the sites are {', '.join(dict.fromkeys(kind for _, kind in sites))}")
    check_magnitudes(sites[each] for pair in pairs for each in pair)
    layers = [_planes_of(sites[query], sites[key], key_heads, report.group_size) for query, key in pairs]
    columns: list[Any] = [tuple(map(_nine_digits, column)) for column in zip(*layers, strict=True)]
    queries, keys = (tuple(kind for _, kind in each) for each in zip(*pairs, strict=True))
    numbers = tuple(sites[each].layer or 0 for each, _ in pairs)
    several = queries if len({*queries}) > 1 else ()
    return QueryKey(numbers, ", ".join(dict.fromkeys(queries)), ", ".join(dict.fromkeys(keys)), *columns, queries=several)


def _planes_of(
    query: SiteAngles, key: SiteAngles, key_heads: int | None, group_size: int
) -> tuple[Float[np.ndarray, " planes"], ...]:
    """Angles of query and key and magnitudes of both, one per plane of the key. Raises InputError as `query_key`."""
    queries, keys = len(query.angle), len(key.angle)
    if key_heads is None and queries != keys:
        raise InputError(
            f"layer {key.layer} has {queries} query and {keys} key planes: give key_heads=config.num_key_value_heads"
        )
    heads = key_heads or 1
    if queries % keys or keys % heads:
        raise InputError(f"layer {key.layer}: {queries} query and {keys} key planes for {heads} key heads")
    if queries > keys and (width := 2 * keys // heads) % group_size:
        raise InputError(
            f"layer {key.layer}: groups of {group_size} dimensions do not divide key heads of {width}, so that a plane of a "
            "query head is none of its key head: train with a group_size that divides them"
        )
    angle, log_magnitude = (np.reshape(each, (heads, queries // keys, -1)) for each in (query.angle, np.log(query.magnitude)))
    mean_angle = stats.circmean(angle, high=np.pi, low=-np.pi, axis=1).ravel()
    return mean_angle, np.asarray(key.angle), np.exp(log_magnitude.mean(1).ravel()), key.magnitude


def _nine_digits(planes: Float[np.ndarray, " planes"]) -> tuple[float, ...]:
    """The values as `angles` has those of fp32, so that their JSON is short."""
    return tuple(float(f"{value:.9g}") for value in planes.tolist())


def _key_of(kind: str) -> str:
    """The kind of the key that belongs to a kind of query; a kind that is not a query is returned unchanged."""
    if kind.endswith("[query]"):
        return kind.removesuffix("[query]") + "[key]"
    return kind if "[" in kind else re.sub(r"query|(?<![a-z])q(?=_|$)", lambda match: {"query": "key", "q": "k"}[match[0]], kind)
