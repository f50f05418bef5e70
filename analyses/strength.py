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
from typing import Any

from road_interp import figures, plots
from road_interp.errors import InputError, in_one_line
from road_interp.files import read_text
from road_interp.measure.composition import Answer, answer_perplexity, greedy_answers
from road_interp.measure.strength import StrengthReport, strength
from road_interp.mixture import ask, load_mixture
from road_interp.model import RoadModel
from road_interp.pretrained import load_model, load_tokenizer
from road_interp.recipe import MixtureRecipe
from road_interp.run import Run

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def measure(folder: Path, strengths: Sequence[float], prompts: int) -> StrengthReport:
    """The curve of a run that learned one behaviour, on the first test prompts of its recipe."""
    run = Run.load(folder)
    recipe = run.recipe
    if not isinstance(recipe, MixtureRecipe) or len(recipe.tasks) != 1:
        raise InputError(f"'{folder}' did not learn one behaviour alone")
    base: Any = load_model(recipe.model, "causal-lm")[0].eval()
    tokenizer, mixture = load_tokenizer(recipe.model), load_mixture(recipe)
    reviews = mixture.test[:prompts]
    asked = ask(recipe, [review.text for review in reviews], tokenizer)
    options = {
        "max_new_tokens": recipe.scoring.max_new_tokens,
        "do_sample": False,
        "pad_token_id": tokenizer.pad_token_id,
    }
    ((task, behaviour),) = mixture.scorers.items()

    def answering(power: float) -> list[Answer]:
        print(f"strength {power:g}", file=sys.stderr)
        model = RoadModel(base, run.adapter**power, recipe.adapter.positions)

        def generate(inputs: dict[str, Any]) -> Any:
            return model.generate(inputs, **options)[1]

        return greedy_answers(generate, tokenizer, asked, recipe.scoring.batch_size, base.device)

    fluency = answer_perplexity(base, tokenizer)
    return strength(
        answering,
        lambda answers: fluency(asked, answers),
        strengths,
        reviews,
        model=recipe.model.name,
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
    print(figures.save_figure(plots.strength(report), report, options.out, "strength"))


if __name__ == "__main__":
    with in_one_line(Path(__file__).name):
        main()
