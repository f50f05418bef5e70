"""How often a behaviour shows at other strengths of its learned rotation, A^t: a threshold, or a line?

road-interp train composition-smollm2 'tasks={closing: {behaviour: closing}}' --out runs/closing
python analyses/strength.py runs/closing --out figures
python analyses/strength.py runs/closing --quick --out figures
python analyses/strength.py --redraw figures/strength.json --out figures
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from road_interp.answer_scorer import GenerationScorer

from road_interp import plots
from road_interp.errors import InputError, exit_on_error
from road_interp.files import read_text
from road_interp.measure.strength import StrengthReport, strength
from road_interp.models.generation import Answer, answer_perplexity
from road_interp.models.loading import load_tokenizer
from road_interp.plots import export
from road_interp.recipes.schema import MixtureRecipe
from road_interp.runs.run import Run

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def measure(folder: Path, strengths: Sequence[float], prompts: int) -> StrengthReport:
    """The curve of a run that learned one behaviour, on the first test prompts of its recipe."""
    run = Run.load(folder)
    if not isinstance(run.recipe, MixtureRecipe) or len(run.recipe.tasks) != 1:
        raise InputError(f"'{folder}' did not learn one behaviour alone")
    scorer = GenerationScorer(run, prompts)
    ((task, behaviour),) = scorer.behaviours.items()

    def answering(power: float) -> list[Answer]:
        print(f"strength {power:g}", file=sys.stderr)
        return scorer.answers(run.adapter**power)

    fluency = answer_perplexity(scorer.base, load_tokenizer(run.recipe.model))
    return strength(
        answering,
        lambda answers: fluency(scorer.prompts, answers),
        strengths,
        scorer.reviews,
        model=run.recipe.model.name,
        task=task,
        behaviour=behaviour,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="a run folder of one behaviour")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--quick", action="store_true", help="two strengths and four prompts")
    parser.add_argument("--redraw", type=Path, help="draw from the JSON of an earlier run instead of measuring")
    options = parser.parse_args()
    if options.redraw is not None:
        report = StrengthReport.from_json(read_text(options.redraw))
    elif options.run is None:
        parser.error("a run folder is needed, or --redraw")
    else:
        strengths, prompts = ((0.0, 1.0), 4) if options.quick else (STRENGTHS, options.prompts)
        report = measure(options.run, strengths, prompts)
    print(export.save_figure(plots.strength(report), report, options.out, "strength"))


if __name__ == "__main__":
    with exit_on_error(Path(__file__).name):
        main()
