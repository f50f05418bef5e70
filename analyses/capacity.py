"""Score against the share of trained weights: RoAd's variants, places and layers, angles or magnitudes alone, and LoRA's ranks.

python analyses/capacity.py --out figures            # MiniLM on film reviews, three seeds: hours
python analyses/capacity.py --only road_1 block-output "rank 4" --seeds 0 --out figures
python analyses/capacity.py --quick --out figures
python analyses/capacity.py --redraw figures/capacity.json --out figures

Every training leaves its score under parts/ in the folder, and one that is there is not measured again. --only says what is
trained; figure and JSON hold all that is there of the seeds that are named.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from road_interp import plots
from road_interp.errors import exit_on_error
from road_interp.files import read_text, write_atomically
from road_interp.measure.capacity import CapacityPoint, CapacityReport
from road_interp.plots import export
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.schema import Recipe
from road_interp.training.api import train
from road_interp.training.fine_tuning import RATES, train_baseline
from road_interp.training.study import QUICK, log_status, settings_hash, study_options

TASK = "rotten-tomatoes"


def ways() -> Iterator[tuple[str, str, list[str]]]:
    """Family, name and what changes in the recipe; LoRA and full fine-tuning have nothing to change there."""
    for variant in ("road_1", "road_2", "road_4"):
        yield "RoAd, variant", variant, [f"adapter.variant={variant}"]
    for part in ("angles", "magnitudes"):
        yield "RoAd, one part", f"{part} only", [f"adapter.learn={part}"]
    for sites in ("fc1", "mlp", "attention", "attention-qk", "block-output"):
        yield "RoAd, places", sites, [f"adapter.sites={sites}"]
    for layers in ("0-2", "3-5", "5"):
        yield "RoAd, layers", f"layers {layers}", [f"adapter.layers='{layers}'"]
    for rank in (1, 2, 4, 8, 16):
        yield "LoRA, rank", f"rank {rank}", []
    yield "full fine-tuning", "all weights", []


def point(family: str, name: str, recipe: Recipe) -> CapacityPoint:
    """Train one way and score it."""
    if family == "LoRA, rank":
        scores = train_baseline(
            recipe, "lora", seed=recipe.seed, learning_rate=RATES["lora"], rank=int(name.removeprefix("rank "))
        )[1]
        trained = scores["parameters"]["trained"]
    elif family == "full fine-tuning":
        scores = train_baseline(recipe, "full", seed=recipe.seed, learning_rate=RATES["full"])[1]
        trained = scores["parameters"]["trained"]
    else:
        with tempfile.TemporaryDirectory() as folder:
            scores = train(recipe, Path(folder) / "run", progress=False).metrics
        trained = scores["parameters"]["adapter"]
    test, percent = scores["test"], scores["parameters"]["percent of backbone"]
    return CapacityPoint(family, name, trained, percent, (test["accuracy"],), test["examples"])


def measure(parts: Path, seeds: Sequence[int], only: Sequence[str], changes: Sequence[str]) -> CapacityReport:
    """Train what is named and missing, over all seeds; the report holds whatever is there of these seeds."""
    parts.mkdir(parents=True, exist_ok=True)
    reports = []
    for seed in seeds:
        points: list[CapacityPoint] = []
        for family, name, change in ways():
            recipe = load_recipe("sentiment-minilm", [*changes, *change, f"seed={seed}"])
            assert isinstance(recipe, Recipe)
            path = parts / f"{family} {name}, seed {seed}, {settings_hash(recipe, RATES)}.json"
            if name in only and not path.is_file():
                log_status(path.stem)
                found = CapacityReport(recipe.model.name, TASK, (point(family, name, recipe),))
                write_atomically(path, found.to_json())
            if path.is_file():
                points += CapacityReport.from_json(read_text(path)).points
        reports.append(CapacityReport(recipe.model.name, TASK, tuple(points)))
    return CapacityReport.over_seeds(reports)


def main() -> None:
    options = study_options(__doc__, "one seed, two steps", only=[name for _, name, _ in ways()])
    if options.redraw is not None:
        report = CapacityReport.from_json(read_text(options.redraw))
    else:
        report = measure(options.parts, options.seeds, options.only, QUICK if options.quick else ())
    print(export.save_figure(plots.capacity(report), report, options.out, "capacity"))


if __name__ == "__main__":
    with exit_on_error(Path(__file__).name):
        main()
