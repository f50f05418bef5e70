"""Ablation of a trained adapter: angles or magnitudes, layers, module kinds, number of planes.

    road-interp study ablation                # sentiment-minilm, three seeds
    road-interp study ablation-smollm2        # two behaviours of SmolLM2: components and planes only
    road-interp study ablation-sst2 glue=FOLDER      # components only, on phrases of SST-2, against a margin of equivalence

Runs that train angles only or magnitudes only are compared with the run of the same seed that trains both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from road_interp.cli.app import main_of
from road_interp.data.contained import PLACES, contained_texts
from road_interp.data.labelled import load_labelled
from road_interp.measure.ablation import ANGLES, BOTH, BY, MAGNITUDES, NEITHER, Ablation, AblationReport, ablation
from road_interp.plots import export
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.schema import TrainingRecipe
from road_interp.sources import readable_name
from road_interp.training.composition_baselines import divided_by_seed
from road_interp.training.glue_files import glue_files, glue_overrides
from road_interp.training.scoring import make_scorer
from road_interp.training.study import (
    QUICK_CLASSIFICATION,
    QUICK_GENERATION,
    Condition,
    Described,
    Piece,
    Pieces,
    Study,
    needs,
    with_interval,
)
from road_interp.training.study_runs import run_of

MARGIN = 0.02  # of equivalence on SST-2: a fraction of the texts
ALONE = {"angles-only": ("angles", ANGLES), "magnitudes-only": ("magnitudes", MAGNITUDES)}


def measure(piece: Piece, **options: Any) -> AblationReport:
    """The ablation of a run, with options of `ablation`; for a run that trains one component, its own outcomes."""
    behaviours = piece.recipe.kind == "multitask-generation"
    run, model = run_of(divided_by_seed(piece) if behaviours else piece), piece.recipe.model.name
    scorer = make_scorer(run)
    if piece.condition in ALONE:
        row = Ablation("trained alone", "all planes", ALONE[piece.condition][1], tuple(map(bool, scorer(run.adapter))))
        return AblationReport(model, scorer.task, run.adapter.variant, (piece.seed,), (row,), scorer.metric)
    options = {"by": ("planes",) if behaviours else BY, **options}
    return ablation(run.adapter, scorer, model=model, seed=piece.seed, progress=piece.progress, **options)


def report(pieces: Pieces) -> AblationReport:
    """The ablation over all seeds, with the runs that train one component."""
    measured = [slug for slug in ALONE if slug in pieces]
    needs(pieces, "both", *measured)
    whole = AblationReport.over_seeds(pieces["both"])
    for slug, (_, component) in ALONE.items():
        if slug in measured:
            alone = AblationReport.over_seeds(pieces[slug])
            whole = whole.with_trained_alone(component, alone.rows[0].correct)
    return whole


def describe(found: AblationReport) -> Described:
    rows = {component: found.of("components", "all planes", component) for component in (BOTH, ANGLES, MAGNITUDES, NEITHER)}
    sentence = (
        f"{readable_name(found.model)}, {found.metric}: angles alone lose {with_interval(found.loss(rows[ANGLES]))} "
        "against both components, "
        f"magnitudes alone {with_interval(found.loss(rows[MAGNITUDES]))}, neither "
        f"{with_interval(found.loss(rows[NEITHER]))}. Intervals are of variance components over seeds and texts."
    )
    whole = [row for row in found.rows if row.what == "all planes"]
    numbers = [(f"{row.group}: {row.component}", with_interval(found.accuracy(row))) for row in whole]
    for group in dict.fromkeys(row.group for row in whole):
        pair = {row.component: row for row in whole if row.group == group}
        for component in (ANGLES, MAGNITUDES, NEITHER) if BOTH in pair else ():
            numbers.append((f"{group}: {BOTH} minus {component}", with_interval(found.contrast(pair[BOTH], pair[component]))))
        if {ANGLES, MAGNITUDES} <= {*pair}:
            difference = found.contrast(pair[ANGLES], pair[MAGNITUDES])
            numbers.append((f"{group}: {ANGLES} minus {MAGNITUDES}", with_interval(difference)))
    for row in whole:
        if row.group == "trained alone":
            difference = found.contrast(rows[BOTH], row)
            numbers.append((f"{BOTH} minus {row.component} trained alone", with_interval(difference)))
    return sentence, numbers


def draw(found: AblationReport, folder: Path) -> list[Path]:
    return [export.draw_ablation(found, folder)]


@dataclass(frozen=True)
class Settings:
    """Settings of the study of SST-2.

    Attributes:
        glue: folder of GLUE's files, SST-2/train.tsv and dev.tsv.
        per_class: number of training texts of each class.
        more: further overrides of the recipe sentiment-minilm.
    """

    glue: str | None = None
    per_class: int = 3500
    more: tuple[str, ...] = ()
    seed: int = 0

    @property
    def training(self) -> TrainingRecipe:
        """How the recipe trains, whose precision is recorded."""
        recipe: Any = load_recipe("sentiment-minilm", self.more)
        return recipe.training


def measure_sst2(piece: Piece) -> AblationReport:
    """The ablation of a run of sentiment-minilm with SST-2 in place of its data; or a run that trains one component."""
    settings: Settings = piece.recipe
    overrides = [*glue_overrides(settings.glue, "SST-2"), f"data.per_class={settings.per_class}", f"seed={settings.seed}"]
    if piece.condition in ALONE:
        overrides.append(f"adapter.trainable={ALONE[piece.condition][0]}")
    piece = piece._replace(recipe=load_recipe("sentiment-minilm", [*overrides, *settings.more]))
    data = load_labelled(piece.recipe.data)
    contained = tuple(contained_texts(data.test["text"][:], data.train["text"][:]).tolist())
    return replace(measure(piece, by=(), refit=False), task="SST-2", contained=contained)


def _within(difference: Sequence[float]) -> str:
    _, *interval = difference
    return "shown" if all(abs(bound) < MARGIN for bound in interval) else "not shown"


def describe_sst2(found: AblationReport) -> Described:
    sentence, numbers = describe(found)
    both = found.of("components", "all planes", BOTH)
    for row in found.rows:
        if row.component in (ANGLES, MAGNITUDES):
            name = f"{row.component} trained alone" if row.group == "trained alone" else row.component
            numbers.append((f"{BOTH} minus {name} within {MARGIN:g}", _within(found.contrast(both, row))))
            for contained, place in PLACES.items() if {*PLACES} <= {*found.contained} else ():
                difference = found.contrast(both, row, contained)
                numbers.append((f"{BOTH} minus {name}, texts {place}", with_interval(difference)))
                numbers.append((f"{BOTH} minus {name} within {MARGIN:g}, texts {place}", _within(difference)))
    return f"{sentence} Equivalence within {MARGIN:g} is shown where an interval of 95% lies inside it.", numbers


STUDY = Study(
    name="ablation",
    title="Ablation of components, layers and planes",
    question=(
        "What do the answers of a trained adapter depend on: its angles, its magnitudes, which layers and modules, and how many "
        "planes?"
    ),
    caveat=(
        "One model, one data set and three seeds, with narrower intervals than the study capacity has for the same runs. An "
        "ablation says what this adapter uses, not what another training could do without; the learning rate was chosen for "
        "both components together."
    ),
    recipe="sentiment-minilm",
    conditions={
        "both": Condition("both trained"),
        **{slug: Condition(component, (f"adapter.trainable={key}",)) for slug, (key, component) in ALONE.items()},
    },
    measure=measure,
    report=report,
    result=AblationReport,
    draw=draw,
    describe=describe,
    minutes=90,
    quick=QUICK_CLASSIFICATION,
)
SMOLLM2 = replace(
    STUDY,
    name="ablation-smollm2",
    title="Ablation of components, layers and planes, SmolLM2-135M",
    question="Do the behaviours of a language model depend on the angles or on the magnitudes, and on how many planes?",
    caveat=(
        "One model, two artificial behaviours and one division of the reviews. The rates were chosen for rotations with both "
        "components, so that it does not say how well one component would do if trained alone."
    ),
    recipe="composition-smollm2",
    conditions={"both": Condition("both trained")},
    draw=lambda found, folder: draw(found, folder / "smollm2"),
    minutes=60,
    quick=QUICK_GENERATION,
)
SST2 = replace(
    STUDY,
    name="ablation-sst2",
    title="Ablation of components, MiniLM on SST-2",
    question="Are the angles of a trained adapter, or its magnitudes, alone as good as both, within a margin set before?",
    caveat=(
        "One model and one data set; on the two thirds of the test texts that stand in no training text it is not shown that "
        "magnitudes trained alone are within the margin. An ablation says what an adapter uses that was trained with both "
        "components, and one component trained alone has the learning rate that was chosen for both."
    ),
    recipe=Settings,
    conditions={
        slug: Condition(each.name, ("more=[training.precision=fp32]",), requires=("glue",))
        for slug, each in STUDY.conditions.items()
    },
    measure=measure_sst2,
    draw=lambda found, folder: draw(found, folder / "sst2"),
    describe=describe_sst2,
    minutes=60,
    seeds=(0, 1, 2, 3, 4),
    quick=("per_class=32", "more=[training.max_steps=2]"),
    inputs={"glue": lambda settings: glue_files(settings.glue, "SST-2")},
)

if __name__ == "__main__":
    main_of(STUDY)
