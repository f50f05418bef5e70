"""One page with every figure of some folders: what it shows, its numbers with intervals, how it was made.

python analyses/index.py figures                     # writes figures/index.html, self-contained
python analyses/index.py figures figures/smollm2     # the same, with those of another model behind them
"""

from __future__ import annotations

import argparse
import base64
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from PIL import Image

from road_interp.adapters.bank import BASE
from road_interp.causal.accuracy import ScanReport
from road_interp.causal.depth_sweep import DepthReport
from road_interp.errors import exit_on_error
from road_interp.files import write_atomically
from road_interp.measure import (
    AblationReport,
    AngleReport,
    CapacityReport,
    CompositionReport,
    DisentangleReport,
    DriftReport,
    DriftStudy,
    InterferenceReport,
    QueryKey,
    SeedStructure,
    StrengthReport,
)
from road_interp.measure.ablation import ANGLES, BOTH, MAGNITUDES, NEITHER
from road_interp.measure.multitask_accuracy import MultiTaskAccuracyStudy
from road_interp.measure.throughput import ThroughputReport
from road_interp.plots.structure import LABELS

Row = tuple[str, str]  # what, and its value with interval where there is one
PAGE = Environment(autoescape=True).from_string((Path(__file__).parent / "index.html.jinja").read_text())


@dataclass(frozen=True)
class Shown:
    """One figure on the page."""

    name: str
    title: str
    sentence: str
    rows: list[Row]
    command: str
    versions: str
    seeds: str
    date: str
    image: str


@dataclass(frozen=True)
class Known:
    """How a figure of that name (or one that begins so) is told.

    Attributes:
        read: from its JSON.
        tell: the sentence that it supports and its numbers, from what was read.
    """

    title: str
    read: Callable[[str], Any]
    tell: Callable[[Any], tuple[str, list[Row]]]


def with_interval(values: tuple[float, ...], digits: int = 3) -> str:
    """A value and its 95% interval."""
    value, low, high = values
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Their mean, lowest and highest."""
    return float(np.mean(values)), min(values), max(values)


def tell_angles(report: AngleReport) -> tuple[str, list[Row]]:
    angle = np.degrees(np.abs(np.concatenate([site.angle for site in report.sites])))
    grown = np.abs(np.concatenate([site.magnitude for site in report.sites]) - 1)
    most = max(report.sites, key=lambda site: site.summary()["mean |angle|"])
    sentence = (
        f"A plane turns by {angle.mean():.1f} degrees and changes its magnitude by {100 * grown.mean():.1f}% on average; "
        f"the identity is 0 and 0. The site that turns most is layer {most.layer}, {most.kind}."
    )
    shares = np.mean([list(site.shares.values()) for site in report.sites], axis=0)
    rows = [
        (f"share of {name}, mean over sites", f"{share:.2f}") for name, share in zip(report.sites[0].shares, shares, strict=True)
    ]
    return sentence, [("planes", f"{len(angle):,}"), ("largest angle", f"{angle.max():.0f} degrees"), *rows]


def tell_structure(found: SeedStructure) -> tuple[str, list[Row]]:
    known = {label: getattr(found, name) for name, label in LABELS.items()}
    rows = [(label, "undefined" if each is None else with_interval(each, 2)) for label, each in known.items()]
    pattern, single = (dict(rows)[LABELS[name]] for name in ("sites", "planes_within_sites"))
    sentence = (
        f"Over {found.seeds} seeds the pattern of layers and modules comes back with a correlation of {pattern}, "
        f"single planes within a site with {single}."
    )
    return sentence, rows


def tell_query_key(found: QueryKey) -> tuple[str, list[Row]]:
    rows = [(name, "undefined" if value is None else f"{value:.5f}") for name, value in found.correlations().items()]
    sentence = (
        "How angles and log magnitudes of query and key correlate. At -1 and 1 one of the two adapters is redundant: attention "
        "sees only the difference of the angles and the product of the magnitudes."
    )
    return sentence, rows


def tell_drift(study: DriftStudy) -> tuple[str, list[Row]]:
    def over_seeds(reports: list[DriftReport], layer: int, before_norm: bool) -> str:
        places = [report.place(layer, before_norm) for report in reports]
        angle, grown = ([getattr(place, quantity)[0] for place in places] for quantity in ("angle", "dM"))
        return f"{with_interval(spread(angle), 1)} degrees, dM {with_interval(spread(grown))}"

    named: dict[str, list[DriftReport]] = {}
    for report in study.reports:
        named.setdefault(report.tuned, []).append(report)
    rows = [
        (f"{name}: {place.name}", over_seeds(reports, place.layer, place.before_norm))
        for name, reports in named.items()
        for place in reports[0].places
    ]
    first = study.reports[0]
    sentence = (
        f"{first.tuned} turns the {first.token} token's state by {over_seeds(named[first.tuned], -1, False)} at the last block "
        f"and by {over_seeds(named[first.tuned], 0, False)} at the first (means over seeds, lowest to highest)."
    )
    if any(place.norm_is_pinned for place in first.places):
        sentence += " Behind a LayerNorm the norm is set by construction: a small change of magnitude there says nothing."
    return sentence, rows


def tell_disentangle(report: DisentangleReport) -> tuple[str, list[Row]]:
    behind = {arm: report.gap("full", arm) for arm in ("angle only", "magnitude only", "random backbone")}
    sentence = (
        f"Behind the full layer stay angle only by {with_interval(behind['angle only'])}, magnitude only by "
        f"{with_interval(behind['magnitude only'])} and the full layer on a random backbone by "
        f"{with_interval(behind['random backbone'])}. The magnitude arm sees one number per text; the probes on norms see more. "
        "Where blocks end in a LayerNorm their norms are set by it: there only the norms before it can tell anything."
    )
    rows = [(each.name, with_interval((report.score(each.name), *report.interval(each.name)))) for each in report.outcomes]
    return sentence, rows


def tell_ablation(report: AblationReport) -> tuple[str, list[Row]]:
    parts = {part: report.of("components", "all planes", part) for part in (BOTH, ANGLES, MAGNITUDES, NEITHER)}
    sentence = (
        f"{report.model}, {report.metric}: angles alone lose {with_interval(report.loss(parts[ANGLES]))} of both parts and "
        f"magnitudes alone {with_interval(report.loss(parts[MAGNITUDES]))}; without either "
        f"{with_interval(report.loss(parts[NEITHER]))} are lost."
    )
    return sentence, [
        (f"{row.group}: {row.part}", with_interval(report.accuracy(row))) for row in report.rows if row.what == "all planes"
    ]


def tell_capacity(report: CapacityReport) -> tuple[str, list[Row]]:
    best = max(report.points, key=lambda point: point.mean)
    small = min(report.points, key=lambda point: point.percent)
    sentence = (
        f"{best.family} {best.name} scores highest with {best.percent:.3f}% of the weights trained; the fewest, "
        f"{small.percent:.3f}% ({small.family} {small.name}), give {with_interval((small.mean, *small.interval))}."
    )
    rows = [
        (f"{point.family}: {point.name} ({point.percent:.3f}%)", with_interval((point.mean, *point.interval)))
        for point in report.points
    ]
    return sentence, rows


def tell_interference(report: InterferenceReport) -> tuple[str, list[Row]]:
    costs = {(task, other): report.cost(task, other) for task, rows in report.correct.items() for other in list(rows)[1:]}
    (task, other), worst = max(costs.items(), key=lambda item: item[1][0])
    sentence = f"The largest cost is that of '{other}' to '{task}': {with_interval(worst)} of accuracy."
    return sentence, [(f"{task} with {other}", with_interval(cost)) for (task, other), cost in costs.items()]


def tell_composition(report: CompositionReport) -> tuple[str, list[Row]]:
    together = "+".join(report.tasks)
    joint = (report.rate(together, report.tasks), *report.interval(together, report.tasks))
    rows = [
        (f"{'nothing' if score.active == BASE else score.active} active: {task}", with_interval((rate, *interval)))
        for score in report.scores
        for task in report.tasks
        for rate, interval in [(report.rate(score.active, [task]), report.interval(score.active, [task]))]
    ]
    rows += [(f"{task}: lost to the others' planes", with_interval(report.cost(task))) for task in report.tasks]
    return f"With all tasks active {with_interval(joint)} of the answers show all of them ({report.method}).", rows


def tell_heads(study: MultiTaskAccuracyStudy) -> tuple[str, list[Row]]:
    rows = [
        (f"{report.method}: {task}, lost against training alone", with_interval(study.gap(task, report)))
        for report in study.together
        for task in report.tasks
    ]
    return "What a head loses when it shares its states with another task and both are active.", rows


def tell_strength(report: StrengthReport) -> tuple[str, list[Row]]:
    rows = [(f"strength {t:g}", with_interval(rate)) for t, rate in zip(report.strengths, report.rates(), strict=True)]
    return f"How often '{report.task}' shows when its rotation is applied at another strength than the learned one.", rows


def tell_scan(report: ScanReport) -> tuple[str, list[Row]]:
    cells = np.array(report.accuracy)
    layer, span = np.unravel_index(cells.argmax(), cells.shape)
    sentence = f"The variable of {report.task} is exchanged best at block {report.layers[layer]}, {report.spans[span]}."
    return sentence, [("interchange accuracy there", f"{cells.max():.3f}")]


def tell_depths(report: DepthReport) -> tuple[str, list[Row]]:
    flipped = {
        (depth, count): with_interval(spread([table[j][k].flipped for table in report.cells]))
        for j, depth in enumerate(report.depths)
        for k, count in enumerate(report.rows)
    }
    (shallow, *_, deep), (few, *_, many) = report.depths, report.rows
    sentence = (
        f"Answers to {report.task} that flip: with {few} swapped row {flipped[shallow, few]} at depth {shallow} and "
        f"{flipped[deep, few]} at depth {deep}; with {many} rows {flipped[shallow, many]} and {flipped[deep, many]} (means over "
        "seeds, lowest to highest)."
    )
    return sentence, [(f"depth {depth}, {count} rows", value) for (depth, count), value in flipped.items()]


def tell_throughput(report: ThroughputReport) -> tuple[str, list[Row]]:
    rows = []
    for timing in report.timings:
        if timing.task == "requests":
            low, high = timing.spread
            rows.append((f"{timing.peer}, {timing.rows} at a time", f"{timing.ratio:.2f} [{low:.2f}, {high:.2f}]"))
    sentence = (
        f"Time of {report.model} with a different adapter in every row, as a ratio to the bare model: median and quartiles of "
        f"{report.rounds} rounds on {report.device}."
    )
    return sentence, rows


KNOWN = {
    "angles": Known("How far planes turn", AngleReport.from_json, tell_angles),
    "magnitudes": Known("How much planes grow or shrink", AngleReport.from_json, tell_angles),
    "planes": Known("The planes that turn most", AngleReport.from_json, tell_angles),
    "angle-histogram": Known("Angles by module", AngleReport.from_json, tell_angles),
    "shares": Known("Rotation, scale and stretch", AngleReport.from_json, tell_angles),
    "structure": Known("What comes back with another seed", SeedStructure.from_json, tell_structure),
    "query-key": Known("Query against key", QueryKey.from_json, tell_query_key),
    "drift": Known("How far states move", DriftStudy.from_json, tell_drift),
    "disentangle": Known("Angle against magnitude of frozen states", DisentangleReport.from_json, tell_disentangle),
    "ablation": Known("What of an adapter does the work", AblationReport.from_json, tell_ablation),
    "capacity": Known("Score by how much is trained", CapacityReport.from_json, tell_capacity),
    "interference": Known("Adapters in each other's way", InterferenceReport.from_json, tell_interference),
    "composition": Known("Two behaviours in one answer", CompositionReport.from_json, tell_composition),
    "heads": Known("Two heads on one state", MultiTaskAccuracyStudy.from_json, tell_heads),
    "strength": Known("A behaviour by its strength", StrengthReport.from_json, tell_strength),
    "throughput": Known("Different adapters in one batch", ThroughputReport.from_json, tell_throughput),
    "depths": Known("How deep a stack, how many rows", DepthReport.from_json, tell_depths),
    "scan": Known("Where a variable is", ScanReport.from_json, tell_scan),
}


def shown_in(folder: Path, page: Path) -> Iterator[Shown]:
    """Every figure of the folder that is known, in the order of `KNOWN`, named as seen from the folder of the page."""
    for kind, known in KNOWN.items():
        for image in sorted(folder.glob(f"{kind}*.png")):
            longer = [name for name in KNOWN if len(name) > len(kind) and image.stem.startswith(name)]
            numbers = image.with_suffix(".json")
            if longer or not numbers.is_file():
                continue
            result = known.read(numbers.read_text())
            sentence, rows = known.tell(result)
            seeds = getattr(result, "seeds", ())
            drawn = f"seeds {', '.join(map(str, seeds))}" if isinstance(seeds, tuple) and seeds else ""
            date = datetime.fromtimestamp(image.stat().st_mtime, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
            data = base64.b64encode(image.read_bytes()).decode()
            with Image.open(image) as picture:
                command, versions = (str(picture.info.get(key, "unknown")) for key in ("Command", "Versions"))
            name = Path(os.path.relpath(image, page)).with_suffix("").as_posix()
            yield Shown(name, known.title, sentence, rows, command, versions, drawn, date, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*", default=[Path("figures")], help="the first one gets the page")
    folders = parser.parse_args().folders
    shown = [each for folder in folders for each in shown_in(folder, folders[0])]
    write_atomically(folders[0] / "index.html", PAGE.render(figures=shown))
    print(folders[0] / "index.html")


if __name__ == "__main__":
    with exit_on_error(Path(__file__).name):
        main()
