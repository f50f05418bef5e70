"""One self-contained HTML page about an adapter: its figures, a table of its sites, and its planes at any strength."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import torch
from jinja2 import Environment
from matplotlib.axes import Axes
from matplotlib.pyplot import close
from matplotlib.style import context

from road_interp import measure, plots
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.measure.answers import Answers
from road_interp.provenance import library_versions
from road_interp.sites.site import Site

PLANES_PER_SITE = 64  # all planes of a large model would be tens of megabytes
STATE_PLANES = 8  # planes per site that are shown with states
CHANGED_TEXTS = 20
COLUMNS = {"mean |angle|": ".2f", "max |angle|": ".1f", "mean magnitude": ".4f", "min magnitude": ".3f", "max magnitude": ".3f"}
SHARES = ("rotation", "uniform scale", "anisotropic stretch")


class ScoreTable(NamedTuple):
    """A table of scores: what stands above it, the names of its columns, and the cells of every row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def report_page(
    adapter: RoadAdapter, title: str, about: str = "", scores: Sequence[ScoreTable] = (), answers: Sequence[Answers] = ()
) -> str:
    """The page as HTML text. It loads no other file, and text from data is escaped.

    Args:
        about: a sentence above the scores.
        answers: of every head of the run, for its confusion matrix, the texts whose answer the rotations change, and the states
            that are shown in the planes.
    """
    found = measure.angles(adapter)
    sites = []
    for site in found.sites:
        summary = site.summary()
        layer = "" if site.layer is None else site.layer
        numbers = [format(summary[column], digits) for column, digits in COLUMNS.items()]
        shares = [format(summary[f"share of {share}"], ".2f") for share in SHARES]
        sites.append({"name": site.name, "row": [layer, site.kind, len(site.angle), *numbers, *shares]})
    template = resources.files("road_interp.plots").joinpath("report.html.jinja").read_text("utf-8")
    drawings = {"Angles": plots.angles, "Magnitudes": plots.magnitudes, "Planes": plots.planes}
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(
            title=title,
            adapter=adapter,
            versions=", ".join(f"{name} {version}" for name, version in library_versions().items()),
            about=about,
            scores=scores,
            images={name: _png(draw(found)) for name, draw in drawings.items()},
            columns=["site", "layer", "module", "planes", *COLUMNS, *(f"share of {share}" for share in SHARES)],
            sites=sites,
            planes=(planes := [_planes(adapter, site) for site in adapter.sites]),
            planes_per_site=PLANES_PER_SITE,
            state_planes=STATE_PLANES,
            answers=answers,
            changed_texts=CHANGED_TEXTS,
            heads=[_head(each, adapter.sites, planes) for each in answers],
        )
    )


def scores_of(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers in a run's metrics as rows, each named by its path: `("test accuracy", "0.813")`."""
    rows: list[tuple[str, str]] = []
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            rows += [(f"{name} {inner}", text) for inner, text in scores_of(value)]
        elif isinstance(value, list) and all(isinstance(each, float | int) for each in value):
            rows.append((name, ", ".join(format(each, ".4g") for each in value)))
        else:
            rows.append((name, format(value, ".4g") if isinstance(value, float) else str(value)))
    return rows


def _head(answers: Answers, sites: Sequence[Site], planes: Sequence[list[list[float]]]) -> dict[str, Any]:
    """Classes and labels of the texts that were read, and by site and shown plane their states: pairs of coordinates."""
    found = []
    for site, shown in zip(sites, planes, strict=True):
        states = answers.states[site.name][:, [int(plane) for plane, *_ in shown[:STATE_PLANES]]].T
        found.append([[[round(float(z.real), 3), round(float(z.imag), 3)] for z in plane] for plane in states])
    return {"classes": list(map(str, answers.classes)), "labels": answers.labels[list(answers.read)].tolist(), "states": found}


def _planes(adapter: RoadAdapter, site: Site) -> list[list[float]]:
    """The most rotated planes of a site: index, and the complex `a` and `b` of `z -> a z + b conj(z)`."""
    maps = adapter.plane_maps(site)
    b = torch.zeros_like(maps.a) if maps.b is None else maps.b
    numbers = torch.stack([maps.a.real, maps.a.imag, b.real, b.imag], 1)
    chosen = adapter.angles(site).abs().argsort(descending=True)[:PLANES_PER_SITE]
    return [[plane, *(round(number, 5) for number in numbers[plane].tolist())] for plane in chosen.tolist()]


def _png(ax: Axes) -> str:
    """The PNG of the figure in base64. The figure is closed."""
    figure: Any = ax.get_figure(root=True)
    image = io.BytesIO()
    with context(plots.STYLE):
        figure.savefig(image, format="png")
    close(figure)
    return base64.b64encode(image.getvalue()).decode()
