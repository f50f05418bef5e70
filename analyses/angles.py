"""Angles and magnitudes of a trained adapter, and their agreement between seeds.

road-interp study angles     # sentiment-minilm, three seeds; figures of one adapter show the first
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from road_interp import plots
from road_interp.cli.app import main_of
from road_interp.measure import AngleReport, angles, seed_structure
from road_interp.measure.structure import AngleStudy
from road_interp.plots import export
from road_interp.plots.structure import LABELS
from road_interp.training.study import QUICK_CLASSIFICATION, Condition, Described, Piece, Pieces, Study, with_interval
from road_interp.training.study_runs import run_of


def measure(piece: Piece) -> AngleReport:
    return angles(run_of(piece).adapter)


def report(pieces: Pieces) -> AngleStudy:
    """Angles of the first seed, and the agreement between seeds where there are several."""
    (reports,) = pieces.values()
    return AngleStudy(reports[0], seed_structure(reports) if len(reports) > 1 else None)


def draw(found: AngleStudy, folder: Path) -> list[Path]:
    paths = export.draw_adapter(found.first, folder)
    drawings = {"angle-histogram": plots.angle_histogram, "shares": plots.shares}
    paths += [export.save_figure(plot(found.first), found.first, folder, name) for name, plot in drawings.items()]
    if found.structure is not None:
        paths.append(export.save_figure(plots.seed_structure(found.structure), found.structure, folder, "structure"))
    return paths


def describe(found: AngleStudy) -> Described:
    sites = found.first.sites
    angle = np.degrees(np.abs(np.concatenate([site.angle for site in sites])))
    changed = np.abs(np.concatenate([site.magnitude for site in sites]) - 1)
    largest = max(sites, key=lambda site: site.summary()["mean |angle|"])
    sentence = (
        f"The mean |angle| of a plane is {angle.mean():.1f} degrees and its mean |magnitude - 1| is {100 * changed.mean():.1f}%. "
        f"The site with the largest mean |angle| is layer {largest.layer}, {largest.kind}. Intervals of correlations are over "
        "sites; query and key mirror each other and count as two."
    )
    shares = np.mean([list(site.shares.values()) for site in sites], axis=0)
    rows = [("planes", f"{len(angle):,}"), ("largest angle", f"{angle.max():.0f} degrees")]
    rows += [(f"share of {name}, mean over sites", f"{share:.2f}") for name, share in zip(sites[0].shares, shares, strict=True)]
    for name, label in LABELS.items() if found.structure is not None else ():
        value = getattr(found.structure, name)
        rows.append((f"correlation between seeds: {label}", "undefined" if value is None else with_interval(value, 2)))
    return sentence, rows


STUDY = Study(
    name="angles",
    title="Angles and magnitudes of a trained adapter",
    question="Which planes does an adapter rotate and by how much, and do adapters of other seeds rotate the same ones?",
    caveat=(
        "One model, one data set and three seeds. A large angle is no proof that the answers need it: that is the question of "
        "the study ablation."
    ),
    recipe="sentiment-minilm",
    conditions={"road_1": Condition("road_1")},
    measure=measure,
    report=report,
    result=AngleReport,
    draw=draw,
    describe=describe,
    minutes=20,
    quick=QUICK_CLASSIFICATION,
    quick_seeds=2,
)

if __name__ == "__main__":
    main_of(STUDY)
