"""What adapters cost at any size: trained values, bytes and multiplications, from configurations alone.

road-interp study size        # ten models; road-interp size MODEL shows any other
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from road_interp import plots
from road_interp.cli.app import main_of
from road_interp.measure.size import SHAPES, SizeReport, adapter_sizes, meta_model
from road_interp.plots import export
from road_interp.results import Result
from road_interp.rotation.plane_maps import VARIANTS
from road_interp.sources import readable_name
from road_interp.training.study import Condition, Described, Piece, Pieces, Study

LIMIT = 0.1  # percent: "fewer than 0.1% trainable parameters" (paper, abstract)


@dataclass(frozen=True)
class Settings:
    """Settings of the study."""

    model: str = "all-MiniLM-L6-v2"
    variants: list[str] = field(default_factory=lambda: list(VARIANTS))
    seed: int = 0


@dataclass(frozen=True)
class SizesReport(Result):
    """The sizes of adapters on several models.

    Attributes:
        models: one report per model.
    """

    models: tuple[SizeReport, ...]


def measure(piece: Piece) -> SizeReport:
    return adapter_sizes(meta_model(piece.recipe.model), piece.recipe.model, variants=piece.recipe.variants)


def report(pieces: Pieces) -> SizesReport:
    return SizesReport(tuple(found for reports in pieces.values() for found in reports))


def draw(found: SizesReport, folder: Path) -> list[Path]:
    """A marker for the smallest variant, with a bar up to the largest."""
    percent: dict[str, dict[str, tuple[float, float, float]]] = {}
    for model in found.models:
        for sites in dict.fromkeys(size.sites for size in model.sizes):
            of_sites = [size.percent for size in model.sizes if size.sites == sites]
            percent.setdefault(sites, {})[readable_name(model.model)] = (min(of_sites), min(of_sites), max(of_sites))
    ax = plots.means(percent, label="trained values (% of the model), road_1 with a bar to road_4")
    ax.axvline(LIMIT, color="0.5", linewidth=0.8, linestyle="--")
    ax.set_xscale("log")
    return [export.save_figure(ax, found, folder, "size")]


def describe(found: SizesReport) -> Described:
    rows = []
    for model in found.models:
        for size in model.sizes:
            lora = "" if size.lora is None else f"; LoRA of rank 8 {size.lora:,}"
            mark = "" if size.percent < LIMIT else ", not fewer than 0.1%"
            name = f"{readable_name(model.model)}, {size.sites}, {size.variant}"
            rows.append((name, f"{size.trained:,} values, {size.percent:.4f}%{mark}{lora}"))
    return "Trained values of an adapter, in percent of the model's parameters.", rows


STUDY = Study(
    name="size",
    title="The size of adapters",
    question="How many values does an adapter train, in percent of the model's parameters?",
    caveat="Counted from configurations of ten models, without weights. It says nothing about accuracy or speed.",
    recipe=Settings,
    conditions={name.lower(): Condition(name, (f"model={name}",), seeds=1) for name in SHAPES},
    measure=measure,
    report=report,
    result=SizeReport,
    draw=draw,
    describe=describe,
    minutes=1,
    quick=("variants=[road_1]",),
    quick_conditions=1,
)

if __name__ == "__main__":
    main_of(STUDY)
