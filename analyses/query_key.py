"""Learned angles of the query planes against those of the key planes, by layer.

road-interp study query-key              # MiniLM: attention depends on the difference of the angles only
road-interp study query-key-smollm2      # SmolLM2, whose rotary position encoding pairs other dimensions
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from road_interp import plots
from road_interp.cli.app import main_of
from road_interp.measure import QueryKey, angles, query_key
from road_interp.plots import export
from road_interp.sources import SMOLLM2
from road_interp.training.study import Condition, Described, Piece, Pieces, Study, run_of

QUICK = ("training.max_steps=2", "data.per_class=200", "data.validation_size=0.2", "data.test_size=0.2")
SMOLLM2_CHANGES = (
    f"model.id={SMOLLM2}",
    "data.per_class=1000",
    "data.validation_size=0.1",
    "data.test_size=0.1",
    "adapter.sites=attention-qk",
    "training.batch_size=16",
    "training.max_steps=80",
)


def measure(piece: Piece) -> QueryKey:
    run = run_of(piece)
    return query_key(angles(run.adapter), getattr(run.load_model().model.config, "num_key_value_heads", 1))


def report(pieces: Pieces) -> QueryKey:
    return next(iter(pieces.values()))[0]


def draw(found: QueryKey, folder: Path) -> list[Path]:
    return [export.save_figure(plots.query_key(found), found, folder, "query-key")]


def describe(found: QueryKey) -> Described:
    rows = [(name, "undefined" if value is None else f"{value:.5f}") for name, value in found.correlations().items()]
    sentence = (
        "Correlation of angles and of log magnitudes between query and key. At -1 (angles) and 1 (magnitudes) one of the two "
        "adapters is redundant: attention depends on the difference of the angles and the product of the magnitudes only."
    )
    return sentence, rows


STUDY = Study(
    name="query-key",
    title="Query against key",
    recipe="sentiment-minilm",
    conditions={"all-linear": Condition("all linear layers", seeds=1)},
    measure=measure,
    report=report,
    result=QueryKey,
    draw=draw,
    describe=describe,
    minutes=10,
    quick=QUICK,
)
ON_SMOLLM2 = replace(
    STUDY,
    name="query-key-smollm2",
    conditions={"attention-qk": Condition("queries and keys of all blocks", SMOLLM2_CHANGES, seeds=1)},
    draw=lambda found, folder: draw(found, folder / "smollm2"),
    minutes=15,
)

if __name__ == "__main__":
    main_of(STUDY)
