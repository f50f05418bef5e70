"""Pilot study 1 of the paper on MiniLM: how far fine-tuning moves [CLS], by direction and by magnitude, block by block.

python analyses/drift.py --out figures             # full fine-tuning, LoRA and road_1 on film reviews, three seeds
python analyses/drift.py --quick --out figures
python analyses/drift.py --redraw figures/drift.json --out figures

Two controls stand beside them: the pretrained model against itself, and two seeds of full fine-tuning against each other. Every
comparison leaves its JSON under parts/ in the folder, and one that is there is not measured again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.pyplot import subplots
from matplotlib.style import context
from torch import Tensor

from road_interp import plots
from road_interp.data.labelled import load_labelled
from road_interp.errors import exit_on_error
from road_interp.files import read_text, write_atomically
from road_interp.measure import DriftStudy, drift, text_batches
from road_interp.models.loading import load_model, load_tokenizer
from road_interp.plots import export
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.schema import Recipe
from road_interp.training.fine_tuning import RATES, Method, train_baseline
from road_interp.training.study import QUICK, settings_hash, study_options, train_once

PRETRAINED, FULL, LORA, ROAD = "pretrained", "full fine-tuning", "LoRA, rank 8", "road_1"
ANOTHER = "full fine-tuning, seed against seed"
NULL = "pretrained against itself"
METHODS: dict[str, Method] = {FULL: "full", LORA: "lora"}  # beside road_1
Which = tuple[str, int]  # method and seed


def comparisons(seeds: Sequence[int]) -> Iterator[tuple[Which, Which, str]]:
    """The model before, the model after, and what the latter is called."""
    for method in (FULL, LORA, ROAD):
        for seed in seeds:
            yield (PRETRAINED, 0), (method, seed), method
    for first, second in pairwise(seeds):
        yield (FULL, first), (FULL, second), ANOTHER
    yield (PRETRAINED, 0), (PRETRAINED, 0), NULL


def load_recipe_for(seed: int, changes: Sequence[str] = ()) -> Recipe:
    """The recipe that all methods train."""
    recipe = load_recipe("sentiment-minilm", [*changes, f"seed={seed}"])
    assert isinstance(recipe, Recipe)
    return recipe


@cache
def read_batches(changes: tuple[str, ...]) -> list[dict[str, Tensor]]:
    """The texts that no method learns from."""
    recipe = load_recipe_for(0, changes)
    task = load_labelled(recipe.data)
    texts = [*task.validation["text"], *task.test["text"]]
    return list(text_batches(texts, load_tokenizer(recipe.model), recipe.model.max_length))


def trained(method: str, recipe: Recipe, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model that a method makes, and what its training came to; road_1 leaves its run in the folder."""
    if method == PRETRAINED:
        return load_model(recipe.model)[0], {}
    if method == ROAD:
        run = train_once(recipe, folder)
        return run.load_model(), run.metrics
    return train_baseline(recipe, METHODS[method], seed=recipe.seed, learning_rate=RATES[METHODS[method]])


def measure(parts: Path, seeds: Sequence[int], changes: Sequence[str]) -> DriftStudy:
    """All comparisons; those that are there are read from their files."""
    parts.mkdir(parents=True, exist_ok=True)

    @cache
    def model(method: str, seed: int) -> tuple[Any, dict[str, Any]]:
        print(f"{method}, seed {seed}", flush=True)
        return trained(method, load_recipe_for(seed, changes), parts / f"{method}, seed {seed}")

    studies = []
    for base, tuned, name in comparisons(seeds):
        settings = settings_hash(*(load_recipe_for(seed, changes) for _, seed in (base, tuned)), RATES)
        path = parts / f"{base[0]} {base[1]} to {tuned[0]} {tuned[1]}, {settings}.json"
        if not path.is_file():
            (before, _), (after, scores) = model(*base), model(*tuned)
            report = drift(before, after, read_batches(tuple(changes)), base_name=base[0], tuned_name=name)
            write_atomically(path, DriftStudy((report,), (scores,)).to_json())
        studies.append(DriftStudy.from_json(path.read_text()))
    reports = (report for study in studies for report in study.reports)
    return DriftStudy(tuple(reports), tuple(scores for study in studies for scores in study.scores))


def draw(study: DriftStudy, folder: Path) -> list[Path]:
    """Every block with all seeds; the second-last block, and the grid of all, with the first seed of every method."""
    names = dict.fromkeys(report.tuned for report in study.reports if report.base == PRETRAINED and report.tuned != NULL)
    first = [next(report for report in study.reports if report.tuned == name) for name in names]
    with context(plots.STYLE):
        blocks = subplots(1, 2, figsize=(8.5, 2.8), layout="constrained")[1]
        size = (2.4 * len(first), 2.4)
        points = subplots(1, len(first), figsize=size, layout="constrained", sharex=True, sharey=True)[1]
    for ax, quantity in zip(blocks, ("angle", "dM"), strict=True):
        plots.drift_blocks(study.reports, ax, quantity=quantity)
    blocks[0].get_legend().remove()  # the other serves both
    for report, ax in zip(first, points, strict=True):
        plots.drift_scatter(report, ax, place=report.place(-2, before_norm=True)).label_outer()
    shown = DriftStudy(tuple(first), ())
    return [
        export.save_figure(blocks[0], study, folder, "drift"),
        export.save_figure(points[0], shown, folder, "drift-scatter"),
        export.save_figure(plots.drift_grid(first), shown, folder, "drift-grid"),
    ]


def main() -> None:
    options = study_options(__doc__, "one seed, two steps")
    if options.redraw is not None:
        study = DriftStudy.from_json(read_text(options.redraw))
    else:
        study = measure(options.parts, options.seeds, QUICK if options.quick else ())
    for path in draw(study, options.out):
        print(path)


if __name__ == "__main__":
    with exit_on_error(Path(__file__).name):
        main()
