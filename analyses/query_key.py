"""Learned angles of the query planes against those of the key planes, by layer.

    road-interp study query-key              # MiniLM
    road-interp study query-key-smollm2      # SmolLM2, with the paper's pairs of dimensions and with those of its rotary encoding

Without a rotary encoding the mirroring is a theorem, and the study its check: the score of a query and a key depends on the
difference of the angles of a pair of planes and on the product of their magnitudes only. So their gradients are opposite (angles)
and equal (log magnitudes), and from the identity on an optimizer that treats all values alike keeps them so. A rotary encoding
commutes with rotations of its own pairs only, and grouped keys answer to several queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from road_interp import plots
from road_interp.cli.app import main_of
from road_interp.measure import QueryKey, angles, query_key
from road_interp.measure.intervals import mean_of_seeds
from road_interp.plots import export
from road_interp.results import Result
from road_interp.sources import SMOLLM2
from road_interp.training.study import QUICK_CLASSIFICATION, Condition, Described, Piece, Pieces, Study, with_interval
from road_interp.training.study_runs import run_of

SMOLLM2_CHANGES = (
    f"model.id={SMOLLM2}",
    "data.per_class=1000",
    "data.validation_size=0.1",
    "data.test_size=0.1",
    "adapter.sites=attention-qk",
    "training.batch_size=16",
    "training.max_steps=80",
)
ROTARY = "rotary-pairs"


def measure(piece: Piece) -> QueryKey:
    run = run_of(piece)
    return query_key(angles(run.adapter), getattr(run.load_model().model.config, "num_key_value_heads", None))


@dataclass(frozen=True)
class QueryKeyStudy(Result):
    """The pairs of planes of one adapter per condition."""

    adapters: Mapping[str, QueryKey]


def report(pieces: Pieces) -> QueryKeyStudy:
    return QueryKeyStudy({slug: found[0] for slug, found in pieces.items()})


def draw(found: QueryKeyStudy, folder: Path) -> list[Path]:
    names = {slug: f"query-key-{slug}" if slug == ROTARY else "query-key" for slug in found.adapters}
    return [export.save_figure(plots.query_key(each), each, folder, names[slug]) for slug, each in found.adapters.items()]


BY_BLOCK = ("layers", "query_angles", "key_angles", "query_magnitudes", "key_magnitudes")


def over_blocks(found: QueryKey, name: str) -> str:
    """The correlation `name` over all planes, with the 95% interval of a jackknife over blocks where there are several."""
    value, count = found.correlations()[name], len(found.layers)
    if value is None:
        return "undefined"
    if count == 1:
        return f"{value:.5f}"
    left_out = [without(found, block).correlations()[name] for block in range(count)]
    _, low, high = mean_of_seeds([count * value - (count - 1) * (each or 0.0) for each in left_out])
    half = (high - low) / 2
    return with_interval((value, max(value - half, -1.0), min(value + half, 1.0)), 5)


def without(found: QueryKey, block: int) -> QueryKey:
    """The planes of all blocks but one, by its place in `layers`."""
    kept = {name: (*values[:block], *values[block + 1 :]) for name in BY_BLOCK if (values := getattr(found, name))}
    return replace(found, **kept, queries=())


def describe(found: QueryKeyStudy) -> Described:
    rows = [(f"{slug}: {name}", over_blocks(each, name)) for slug, each in found.adapters.items() for name in each.correlations()]
    sentence = (
        "Correlation of angles and of log magnitudes between query and key of one training, with the 95% interval of a jackknife "
        "over blocks. Without a rotary encoding -1 (angles) and 1 "
        "(magnitudes) follow from the symmetry of the gradient. A model with a rotary encoding and grouped keys, such as "
        "SmolLM2-135M, breaks it in two ways; in the pairs of the rotary encoding (rotary-pairs) only the grouped keys are left, "
        "with Adam: by plain gradient descent their angles would mirror the mean over the heads of a group."
    )
    return sentence, rows


STUDY = Study(
    name="query-key",
    title="Query against key",
    question="Do queries and keys learn opposite angles and equal magnitudes, as the symmetry of their gradients demands?",
    caveat="One model, one data set and one seed. The answer follows from the parametrisation, and says nothing about language.",
    recipe="sentiment-minilm",
    conditions={"all-linear": Condition("all linear layers", seeds=1)},
    measure=measure,
    report=report,
    result=QueryKey,
    draw=draw,
    describe=describe,
    minutes=10,
    quick=QUICK_CLASSIFICATION,
)
ON_SMOLLM2 = replace(
    STUDY,
    name="query-key-smollm2",
    title="Query against key with a rotary encoding",
    question="What is left of the mirrored angles of queries and keys with a rotary encoding and grouped keys?",
    caveat=(
        "One model, one data set, one seed and 80 training steps. Correlations over planes do not say how much the answers "
        "depend on what is left."
    ),
    conditions={
        "attention-qk": Condition("queries and keys of all blocks", SMOLLM2_CHANGES, seeds=1),
        ROTARY: Condition("in the pairs of the rotary encoding", (*SMOLLM2_CHANGES, "adapter.group_size=64"), seeds=1),
    },
    draw=lambda found, folder: draw(found, folder / "smollm2"),
    minutes=30,
)

if __name__ == "__main__":
    main_of(STUDY)
