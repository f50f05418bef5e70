"""Does the angle or the magnitude of frozen states carry a task? Two-layer classifiers that see one of them, and probes.

python analyses/disentangle.py --out figures            # MiniLM's [CLS] on Rotten Tomatoes, three seeds
python analyses/disentangle.py --before-norm --out figures    # what enters the LayerNorm that the last block ends in
python analyses/disentangle.py --quick --out figures
python analyses/disentangle.py --redraw figures/disentangle-rotten-tomatoes.json --out figures
python analyses/disentangle.py --task RTE --data id=RTE/train.tsv validation=RTE/dev.tsv text=sentence1 text_pair=sentence2

`--data` replaces the data block of the recipe sentiment-minilm, key by key; its other keys have the defaults of a recipe.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from torch.utils.data import DataLoader
from transformers import AutoModel, DataCollatorWithPadding, set_seed

from road_interp import plots
from road_interp.data.labelled import load_labelled, subsample
from road_interp.errors import exit_on_error
from road_interp.files import read_text
from road_interp.measure.disentangle import SPLITS, DisentangleReport, Splits, disentangle, read_features
from road_interp.models.loading import find_device, load_model, load_tokenizer
from road_interp.plots import export
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.schema import Recipe
from road_interp.training.classification import encode
from road_interp.training.study import log_status

QUICK = 200  # texts of each split


def measure(task: str, data: Sequence[str], before_norm: bool, seeds: Sequence[int], most: int | None) -> DisentangleReport:
    """The study on the texts of a recipe, at most `most` of each split."""
    recipe = load_recipe("sentiment-minilm", ["data={}", *(f"data.{each}" for each in data)] if data else [])
    assert isinstance(recipe, Recipe)
    loaded, tokenizer = load_labelled(recipe.data), load_tokenizer(recipe.model)
    splits = {split: getattr(loaded, split) for split in SPLITS}
    texts = {split: encode(rows if most is None else subsample(rows, most), tokenizer, recipe) for split, rows in splits.items()}
    base = load_model(recipe.model)[0].to(find_device(None))

    def features(model: Any, name: str) -> Splits:
        log_status(f"states of the {name} backbone")
        collate = DataCollatorWithPadding(tokenizer)
        token = "last" if tokenizer.cls_token is None else "first"
        return {
            split: read_features(model, DataLoader(rows, batch_size=64, collate_fn=collate), token, before_norm)
            for split, rows in texts.items()
        }

    def untrained(seed: int) -> Any:
        set_seed(seed)
        return AutoModel.from_config(base.config).to(base.device)

    return disentangle(
        features(base, "pretrained"),
        {seed: features(untrained(seed), f"random (seed {seed})") for seed in seeds},
        metric=loaded.metric,
        num_labels=loaded.num_labels,
        model=recipe.model.name,
        task=task,
        progress=log_status,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--task", default="rotten-tomatoes", help="name of the task in the figure and its files")
    parser.add_argument("--data", nargs="+", default=[], metavar="KEY=VALUE", help="another data block for the recipe")
    parser.add_argument("--before-norm", action="store_true", help="states that enter the last block's LayerNorm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help=f"one seed, {QUICK} texts of each split")
    parser.add_argument("--redraw", type=Path, help="draw from the JSON of an earlier run instead of measuring")
    options = parser.parse_args()
    if options.redraw is not None:
        report = DisentangleReport.from_json(read_text(options.redraw))
    else:
        disable_progress_bars()
        seeds = options.seeds[: 1 if options.quick else None]
        report = measure(options.task, options.data, options.before_norm, seeds, QUICK if options.quick else None)
    name = f"disentangle-{report.task}{'-before-norm' * options.before_norm}" if options.redraw is None else options.redraw.stem
    print(export.save_figure(plots.disentangle(report), report, options.out, name))


if __name__ == "__main__":
    with exit_on_error(Path(__file__).name):
        main()
