"""Fraction of answers that show a behaviour by the strength t of its rotation, A^t.

road-interp study strength      # SmolLM2's closing phrase, trained alone
"""

from __future__ import annotations

from pathlib import Path

from road_interp import plots
from road_interp.cli.app import main_of
from road_interp.errors import InputError
from road_interp.measure.perplexity import answer_perplexity
from road_interp.measure.strength import StrengthReport, strength
from road_interp.models.generation import Answer
from road_interp.models.loading import load_tokenizer
from road_interp.plots import export
from road_interp.training.composition_baselines import divided_by_seed
from road_interp.training.scoring import GenerationScorer
from road_interp.training.study import QUICK_GENERATION, Condition, Described, Piece, Study, only_result, with_interval
from road_interp.training.study_runs import run_of

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def measure(piece: Piece) -> StrengthReport:
    """The curve of a run with one behaviour, on the first 128 test prompts of its recipe."""
    if len(piece.recipe.tasks) != 1:
        raise InputError(f"the strength study needs a recipe with one task, not {len(piece.recipe.tasks)}")
    run = run_of(divided_by_seed(piece))
    scorer = GenerationScorer(run, 128)
    ((task, behaviour),) = scorer.behaviours.items()

    def generate(exponent: float) -> list[Answer]:
        piece.progress(f"strength {exponent:g}")
        return scorer.answers(run.adapter**exponent)

    fluency = answer_perplexity(scorer.base, load_tokenizer(run.recipe.model))
    return strength(
        generate,
        lambda answers: fluency(scorer.prompts, answers),
        STRENGTHS,
        scorer.reviews,
        model=run.recipe.model.name,
        task=task,
        behaviour=behaviour,
    )


def draw(found: StrengthReport, folder: Path) -> list[Path]:
    return [export.save_figure(plots.strength(found), found, folder, "strength")]


def describe(found: StrengthReport) -> Described:
    rows = [(f"strength {t:g}", with_interval(rate)) for t, rate in zip(found.strengths, found.rates(), strict=True)]
    rows += [(f"strength {t:g}, perplexity", f"{each:.0f}") for t, each in zip(found.strengths, found.perplexity, strict=True)]
    return f"Fraction of answers that show '{found.task}' by the strength of its rotation; 1 is the trained adapter.", rows


STUDY = Study(
    name="strength",
    title="Behaviour by strength of the rotation",
    question="From which strength of a rotation on does a model show the behaviour that it was trained for?",
    caveat=(
        "One model, one artificial behaviour, 600 training examples and one seed. It was trained at strength 1 only; other "
        "behaviours may begin elsewhere."
    ),
    recipe="composition-smollm2",
    conditions={"closing": Condition("closing alone", ("tasks={closing: {behaviour: closing}}",), seeds=1)},
    measure=measure,
    report=only_result,
    result=StrengthReport,
    draw=draw,
    describe=describe,
    minutes=15,
    quick=QUICK_GENERATION,
)

if __name__ == "__main__":
    main_of(STUDY)
