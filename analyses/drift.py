"""Pilot study 1 of the paper: change of hidden states by training, in direction and in magnitude, by block.

    road-interp study drift              # MiniLM's [CLS]: full fine-tuning, LoRA and road_1 on film reviews, three seeds
    road-interp study drift-smollm2      # SmolLM2's last prompt token under the rotations of two behaviours

Two controls for MiniLM: the pretrained model against itself, and two seeds of full fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.pyplot import subplots
from matplotlib.style import context
from scipy.stats import combine_pvalues

from road_interp import plots
from road_interp.adapters.joined_names import join_names
from road_interp.cli.app import main_of
from road_interp.data.labelled import load_labelled
from road_interp.data.multitask import format_prompts, load_multitask_data
from road_interp.errors import InputError
from road_interp.measure import DriftReport, DriftStudy, drift, text_batches
from road_interp.measure.drift import ReadPointDrift
from road_interp.measure.drift_sums import Mean
from road_interp.models.loading import load_model, load_tokenizer
from road_interp.plots import export
from road_interp.training.composition_baselines import divided_by_seed
from road_interp.training.fine_tuning import train_baseline
from road_interp.training.study import (
    QUICK_CLASSIFICATION,
    QUICK_GENERATION,
    Condition,
    Described,
    Piece,
    Pieces,
    Study,
    settings_hash,
    with_interval,
)
from road_interp.training.study_runs import baseline_rate, run_of

PRETRAINED, NULL = "pretrained", "pretrained against itself"
NAMES = {"full": "full fine-tuning", "lora": "LoRA, rank 8", "road_1": "road_1"}

BASELINES: dict[str, tuple[Any, dict[str, Any]]] = {}  # trained models by method and recipe: two conditions share them


def model_of(piece: Piece, method: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """The model that a method trains, and its metrics."""
    if method == PRETRAINED:
        return load_model(piece.recipe.model)[0], {}
    if method == "road_1":
        run = run_of(piece)
        return run.load_model(), run.metrics
    recipe = replace(piece.recipe, seed=seed)
    if (key := settings_hash(recipe, method)) not in BASELINES:
        BASELINES[key] = train_baseline(recipe, method, seed=seed, learning_rate=baseline_rate(recipe, method))
    return BASELINES[key]


def measure(piece: Piece) -> DriftStudy:
    """Change between the model before and after training, on the validation and test texts."""
    recipe, pair = piece.recipe, piece.condition == "full-seed-against-seed"
    data = load_labelled(recipe.data)
    batches = list(
        text_batches([*data.validation["text"], *data.test["text"]], load_tokenizer(recipe.model), recipe.model.max_length)
    )
    method = {"full-seed-against-seed": "full", "pretrained-against-itself": PRETRAINED}.get(piece.condition, piece.condition)
    before, _ = model_of(piece, method if pair else PRETRAINED, piece.seed)
    after, scores = model_of(piece, method, piece.seed + 1 if pair else piece.seed)
    names = {"base_name": NAMES["full"] if pair else PRETRAINED, "tuned_name": STUDY.conditions[piece.condition].name}
    return DriftStudy((drift(before, after, batches, **names, progress=piece.progress),), (scores,))


def measure_smollm2(piece: Piece) -> DriftStudy:
    """Change of the last prompt token by the rotations of both tasks, on held-out reviews in the template of the training."""
    piece = divided_by_seed(piece)
    recipe = piece.recipe
    data, tokenizer = load_multitask_data(recipe), load_tokenizer(recipe.model)
    prompts = format_prompts(recipe, [review.text for review in (*data.validation, *data.test)], tokenizer)
    batches = text_batches(prompts, tokenizer, recipe.model.max_length, add_special_tokens=False)
    base, tuned = load_model(recipe.model)[0], run_of(piece).load_model()
    method = f"{join_names(recipe.task_names)}, co-activation {recipe.co_activation:g}"
    names = {"base_name": recipe.model.name, "tuned_name": method}
    return DriftStudy((drift(base, tuned, batches, "last", **names, progress=piece.progress),), ({},))


def report(pieces: Pieces) -> DriftStudy:
    studies = list(chain.from_iterable(pieces.values()))
    if all(found.tuned == NULL for study in studies for found in study.reports):
        raise InputError("the report needs a trained model: measure a condition such as --only full")
    reports = tuple(found for study in studies for found in study.reports)
    return DriftStudy(reports, tuple(scores for study in studies for scores in study.scores))


def draw(found: DriftStudy, folder: Path) -> list[Path]:
    """Three figures: all blocks with all seeds, and for the first seed of every method the second-last block and all blocks."""
    base = found.reports[0].base
    names = dict.fromkeys(each.tuned for each in found.reports if each.base == base and each.tuned != NULL)
    first = [next(each for each in found.reports if each.tuned == name) for name in names]
    with context(plots.STYLE):
        blocks = subplots(1, 2, figsize=(7, 4), layout="constrained")[1]
        size = (min(7, 2.4 * max(2, len(first))), 2.4)
        points = subplots(1, len(first), figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False)[1][0]
    for ax, quantity in zip(blocks, ("angle", "dM"), strict=True):
        plots.drift_blocks([each for each in found.reports if each.tuned != NULL], ax, quantity=quantity)
    share_legend(blocks)
    for each, ax in zip(first, points, strict=True):
        before_norm = any(place.before_norm for place in each.places)
        plots.drift_scatter(each, ax, place=each.place(-2, before_norm=before_norm)).label_outer()
    share_legend(points)
    shown = DriftStudy(tuple(first), ())
    return [
        export.save_figure(blocks[0], found, folder, "drift"),
        export.save_figure(points[0], shown, folder, "drift-scatter"),
        export.save_figure(plots.drift_grid(first), shown, folder, "drift-grid"),
    ]


def share_legend(panels: Sequence[Axes]) -> None:
    """Put the last panel's legend below all of them."""
    shown = [legend for ax in panels if (legend := ax.get_legend()) is not None]
    if shown:
        labels = [text.get_text() for text in shown[-1].get_texts()]
        with context(plots.STYLE):
            panels[0].figure.legend(shown[-1].legend_handles, labels, loc="outside lower center", ncols=2)
    for legend in shown:
        legend.remove()


def describe(found: DriftStudy) -> Described:
    def over_seeds(name: str, places: list[ReadPointDrift]) -> list[tuple[str, str]]:
        angle, size = (_spread([getattr(place, quantity)[0] for place in places]) for quantity in ("angle", "dM"))
        rows = [(name, f"{with_interval(angle, 1)} degrees, dM {with_interval(size)}")]
        ratios = [ratio[0] for place in places if not place.norm_is_pinned and (ratio := place.over_null)]
        if ratios:
            null = with_interval(_spread(ratios), 2)
            if len(ratios) < len(places):  # texts that turn by 90 degrees or more have no null
                null = f"no isotropic change of that angle in {len(places) - len(ratios)} of {len(places)} seeds"
            rows.append((f"{name}, dM over that of an isotropic change", null))
        return rows

    named: dict[str, list[DriftReport]] = {}
    for each in found.reports:
        named.setdefault(each.tuned, []).append(each)
    rows = [
        row
        for name, reports in named.items()
        for place in reports[0].places
        for row in over_seeds(f"{name}: {place.name}", [each.place(place.layer, place.before_norm) for each in reports])
    ]
    for name, reports in named.items():
        rows.append((f"{name}: against an isotropic change", _compared(reports, against_null)))
        rows.append((f"{name}: length against turn", _compared(reports, against_turn)))
    first = found.reports[0]
    sentence = (
        f"Change of the state of the {first.token} token: mean over seeds, lowest to highest. The change of length dM of a block "
        "is above or below its turn, 2 sin(angle / 2), if the 95% intervals over texts of all seeds are: both are fractions of "
        "the norm. For an isotropic change a test over seeds must say so, too, in which one random vector changes all texts of a "
        "seed (Fisher's method, 2.5% on a side). Without a null, no isotropic change has the block's angle in some seed."
    )
    if any(place.norm_is_pinned for place in first.places):
        sentence += " After a LayerNorm the norm is set by construction: a small change of magnitude there is no evidence."
    return sentence, rows


def _compared(reports: list[DriftReport], sign_of: Callable[[list[ReadPointDrift]], str]) -> str:
    """The blocks by what `sign_of` says of the places of all seeds, and those that are unchanged."""
    blocks: dict[str, list[int]] = {"above": [], "below": [], "undecided": [], "no null": [], "unchanged": []}
    before_norm = any(place.before_norm for place in reports[0].places)
    for layer in reports[0].layers:
        places = [each.place(layer, before_norm) for each in reports]
        unchanged = all(place.angle[0] == place.dM[0] == 0 for place in places)
        blocks["unchanged" if unchanged else sign_of(places)].append(layer)
    return "; ".join(f"{sign} in {_ranges(layers)}" for sign, layers in blocks.items() if layers)


def against_turn(places: list[ReadPointDrift]) -> str:
    """Whether dM is above or below the turn of the texts in all seeds."""
    return _side([place.over_turn for place in places])


def against_null(places: list[ReadPointDrift]) -> str:
    """Whether dM is above or below that of an isotropic change, in all seeds and over seeds, where texts may change alike."""
    side = _side([place.over_null for place in places])
    if side not in ("above", "below"):
        return side
    chances = [place.chance_as_small if side == "below" else place.chance_as_large for place in places]
    found = [chance for chance in chances if chance is not None]
    return side if combine_pvalues(found, method="fisher").pvalue < 0.025 else "undecided"


def _side(ratios: list[Mean | None]) -> str:
    """Where 1 lies to the intervals over texts of all seeds."""
    known = [ratio for ratio in ratios if ratio is not None]
    if len(known) < len(ratios):
        return "no null"
    if all(low > 1 for _, low, _ in known):
        return "above"
    return "below" if all(high < 1 for _, _, high in known) else "undecided"


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers as text, such as "0, 2 to 5"."""
    runs = [list(run) for _, run in groupby(numbers, key=lambda number: number - numbers.index(number))]
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _spread(values: list[float]) -> tuple[float, float, float]:
    """Mean, lowest and highest."""
    return float(np.mean(values)), min(values), max(values)


STUDY = Study(
    name="drift",
    title="Change of hidden states by training",
    question=(
        "Do hidden states change by training in direction or in magnitude, and more than an isotropic change would make them?"
    ),
    caveat=(
        "One model, one data set and three seeds; the learning rates of full fine-tuning and LoRA were not tuned. How far a "
        "state moves does not say whether the answers depend on it."
    ),
    recipe="sentiment-minilm",
    conditions={
        **{slug: Condition(name) for slug, name in NAMES.items()},
        "full-seed-against-seed": Condition("full fine-tuning, seed against seed", seeds=2),
        "pretrained-against-itself": Condition(NULL, seeds=1),
    },
    measure=measure,
    report=report,
    result=DriftStudy,
    draw=draw,
    describe=describe,
    minutes=65,
    quick=QUICK_CLASSIFICATION,
)
SMOLLM2 = replace(
    STUDY,
    name="drift-smollm2",
    title="Change of hidden states by training, SmolLM2-135M",
    question="Do the rotations of two behaviours change the states of a language model in direction or in magnitude?",
    caveat=(
        "One model, two artificial behaviours and three divisions of the reviews, at the last token of the prompt only. There is "
        "no other method beside the rotations."
    ),
    recipe="composition-smollm2",
    conditions={"planes_coact-0.5": Condition("label+closing, co-activation 0.5")},
    measure=measure_smollm2,
    draw=lambda found, folder: draw(found, folder / "smollm2"),
    minutes=30,
    quick=QUICK_GENERATION,
)

if __name__ == "__main__":
    main_of(STUDY)
