"""Accuracy by the share of trained weights: RoAd by variant, sites, layers and component, LoRA by rank, full fine-tuning.

road-interp study capacity                                   # MiniLM on film reviews, three seeds: hours
road-interp study capacity --only road_1 --only lora-4 --seeds 0
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from pathlib import Path

from road_interp import plots
from road_interp.cli.app import main_of
from road_interp.measure.capacity import CapacityPoint, CapacityReport
from road_interp.plots import export
from road_interp.training.fine_tuning import train_baseline
from road_interp.training.study import QUICK_CLASSIFICATION, Condition, Described, Piece, Pieces, Study, with_interval
from road_interp.training.study_runs import baseline_rate, run_of


def rotation(piece: Piece, family: str, name: str) -> CapacityReport:
    """The accuracy of a RoAd run."""
    metrics = run_of(piece).metrics
    return point(piece, family, name, metrics["parameters"]["adapter"], metrics)


def low_rank(piece: Piece, rank: int) -> CapacityReport:
    rate = baseline_rate(piece.recipe, "lora")
    scores = train_baseline(piece.recipe, "lora", seed=piece.seed, learning_rate=rate, rank=rank)[1]
    return point(piece, "LoRA, rank", f"rank {rank}", scores["parameters"]["trained"], scores)


def full(piece: Piece) -> CapacityReport:
    rate = baseline_rate(piece.recipe, "full")
    scores = train_baseline(piece.recipe, "full", seed=piece.seed, learning_rate=rate)[1]
    return point(piece, "full fine-tuning", "all weights", scores["parameters"]["trained"], scores)


def point(piece: Piece, family: str, name: str, trained: int, scores: dict) -> CapacityReport:
    test, percent = scores["test"], scores["parameters"]["percent of backbone"]
    found = CapacityPoint(family, name, trained, percent, (test["accuracy"],), test["examples"], (piece.seed,))
    return CapacityReport(piece.recipe.model.name, piece.recipe.data.name, (found,))


def conditions() -> dict[str, Condition]:
    """All methods, by slug."""
    rotations = [("RoAd, variant", variant, variant, f"adapter.variant={variant}") for variant in ("road_1", "road_2", "road_4")]
    for component in ("angles", "magnitudes"):
        key = f"adapter.trainable={component}"
        rotations.append(("RoAd, one component", f"{component} only", f"{component}-only", key))
    for sites in ("fc1", "mlp", "attention", "attention-qk", "block-output"):
        rotations.append(("RoAd, sites", sites, sites, f"adapter.sites={sites}"))
    for layers in ("0-2", "3-5", "5"):
        rotations.append(("RoAd, layers", f"layers {layers}", f"layers-{layers}", f"adapter.layers='{layers}'"))
    found = {slug: Condition(name, (key,), partial(rotation, family=family, name=name)) for family, name, slug, key in rotations}
    found |= {f"lora-{rank}": Condition(f"LoRA, rank {rank}", (), partial(low_rank, rank=rank)) for rank in (1, 2, 4, 8, 16)}
    return {**found, "full": Condition("full fine-tuning")}


def report(pieces: Pieces) -> CapacityReport:
    return CapacityReport.over_seeds(list(chain.from_iterable(pieces.values())))


def draw(found: CapacityReport, folder: Path) -> list[Path]:
    return [export.save_figure(plots.capacity(found), found, folder, "capacity")]


def describe(found: CapacityReport) -> Described:
    single = sum(len(each.scores) == 1 for each in found.points)
    sentence = (
        f"Test accuracy by the share of trained weights. {single} of {len(found.points)} conditions have one seed, and no "
        "outcomes per text are stored: the points cannot be ordered. Intervals add the variance over seeds to Wilson's, and are "
        "wider than those of the study ablation for the same runs. The learning rates of LoRA and full training were not tuned."
    )
    rows = [
        (f"{each.family}: {each.name} ({each.percent:.3f}%)", with_interval((each.mean, *each.interval))) for each in found.points
    ]
    for each in found.points:
        if len(each.scores) > 1:
            rows.append((f"{each.family}: {each.name}, by seed", ", ".join(f"{score:.3f}" for score in each.scores)))
    return sentence, rows


STUDY = Study(
    name="capacity",
    title="Accuracy by trained weights",
    question=(
        "How does accuracy grow with the share of trained weights, for RoAd by variant, sites and layers, for LoRA by rank, and "
        "for full fine-tuning?"
    ),
    caveat=(
        "One model and one data set, and one seed for most conditions. The learning rates of LoRA and of full fine-tuning are "
        "common ones and were not tuned, those of RoAd come from a prototype, so that methods cannot be ranked."
    ),
    recipe="sentiment-minilm",
    conditions=conditions(),
    measure=full,
    report=report,
    result=CapacityReport,
    draw=draw,
    describe=describe,
    minutes=400,
    quick=QUICK_CLASSIFICATION,
)

if __name__ == "__main__":
    main_of(STUDY)
