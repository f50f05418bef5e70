"""Angle against magnitude of frozen states: two-layer classifiers with one of the two as input, and probes.

road-interp study disentangle                   # MiniLM's [CLS] on Rotten Tomatoes, three seeds
road-interp study disentangle-before-norm       # the input of the LayerNorm that ends the last block
road-interp study disentangle data.id=SST-2/train.tsv data.validation=SST-2/dev.tsv data.text=sentence data.filter={}
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import AutoModel, DataCollatorWithPadding, set_seed

from road_interp import plots
from road_interp.cli.app import main_of
from road_interp.measure.disentangle import DisentangleReport, disentangle
from road_interp.measure.frozen_states import SPLITS, SplitFeatures, read_features
from road_interp.models.hidden_states import text_token
from road_interp.models.loading import find_device, load_model
from road_interp.plots import export
from road_interp.training.classification import ClassificationExperiment
from road_interp.training.study import Condition, Described, Piece, Pieces, Study, with_interval


def measure(piece: Piece, before_norm: bool) -> DisentangleReport:
    """Scores of the arms and the probes for one seed."""
    experiment = ClassificationExperiment(piece.recipe)
    experiment.load_data()
    base, tokenizer = load_model(piece.recipe.model)[0].to(find_device(None)), experiment.tokenizer

    def features(model: Any, name: str) -> SplitFeatures:
        piece.progress(f"states of the {name} backbone")
        collate = DataCollatorWithPadding(tokenizer)
        batches = {split: DataLoader(experiment.splits[split], batch_size=64, collate_fn=collate) for split in SPLITS}
        return {split: read_features(model, loader, text_token(tokenizer), before_norm) for split, loader in batches.items()}

    pretrained = features(base, "pretrained")
    set_seed(piece.seed)
    untrained = features(AutoModel.from_config(base.config).to(base.device), "random")
    data = experiment.data
    sizes = {"metric": data.metric, "num_labels": data.num_labels}
    names = {"model": piece.recipe.model.name, "task": piece.recipe.data.name}
    return disentangle(pretrained, {piece.seed: untrained}, **sizes, **names, progress=piece.progress)


def report(pieces: Pieces) -> DisentangleReport:
    (reports,) = pieces.values()
    return DisentangleReport.over_seeds(reports)


def draw(found: DisentangleReport, folder: Path) -> list[Path]:
    suffix = "-before-norm" if "before" in found.place else ""
    return [export.save_figure(plots.disentangle(found), found, folder, f"disentangle-{found.task}{suffix}")]


COMPARED = (  # what norms say, beside as many numbers that hold the direction, and beside the states
    ("as many random directions", "norms at all read points"),
    ("a random direction at all read points", "norms at all read points"),
    ("states", "norms at all read points"),
    ("states", "chunk norms at all read points"),
    ("states", "chunk norms in a random basis"),
    ("chunk norms at all read points", "chunk norms in a random basis"),
)


def describe(found: DisentangleReport) -> Described:
    gap = {arm: with_interval(found.gap("full", arm)) for arm in ("angle only", "magnitude only", "random backbone")}
    sentence = (
        f"Against the full layer, angle only loses {gap['angle only']}, magnitude only {gap['magnitude only']}, and the full "
        f"layer on a random backbone {gap['random backbone']}. The magnitude arm has one input value per text, the probes on "
        "norms have more. A LayerNorm at the end of a block sets the norm of the whole state there; norms of chunks depend on "
        "the direction of the state, also behind it."
    )
    rows = [(each.name, with_interval(found.score(each.name))) for each in found.outcomes]
    return sentence, [*rows, *((f"{one} minus {other}", with_interval(found.gap(one, other))) for one, other in COMPARED)]


STUDY = Study(
    name="disentangle",
    title="Angle against magnitude of frozen states",
    question="Is the label of a text in the direction of a frozen state, or in its magnitude?",
    caveat=(
        "One model and one data set. The state follows a LayerNorm, which sets its norm: that classifiers find little in the "
        "norm is by construction there, and probes show what can be read, not what the model uses."
    ),
    recipe="sentiment-minilm",
    conditions={"output": Condition("the last block's output")},
    measure=partial(measure, before_norm=False),
    report=report,
    result=DisentangleReport,
    draw=draw,
    describe=describe,
    minutes=15,
    quick=("data.per_class=330", "data.validation_size=200", "data.test_size=200"),
)
BEFORE_NORM = replace(
    STUDY,
    name="disentangle-before-norm",
    title="Angle against magnitude before the last LayerNorm",
    question="Is the label of a text in the magnitude of a frozen state where no LayerNorm has set its norm yet?",
    caveat="One model, one data set and one read point. Probes show what can be read from a state, not what the model uses.",
    conditions={"before-norm": Condition("the input of the last block's LayerNorm")},
    measure=partial(measure, before_norm=True),
)

if __name__ == "__main__":
    main_of(STUDY)
