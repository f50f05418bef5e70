"""Figure 5 of the paper, with scores: two tasks on planes of one state, alone and together, and controls beside them.

python analyses/composition.py --out figures                       # every condition, three seeds: hours on two cores
python analyses/composition.py --only label+closing --out figures  # the conditions whose name holds this text
python analyses/composition.py --quick --out figures
python analyses/composition.py --redraw figures/composition.json --out figures

Every condition and seed leaves its own file under parts/ in the folder, and one that is there is not measured again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from road_interp import figures, plots
from road_interp.behaviours import behaviour
from road_interp.files import write_atomically
from road_interp.measure.composition import CompositionReport, answer_perplexity, composition, greedy_answers
from road_interp.mixture import ask, load_mixture
from road_interp.pretrained import load_model, load_tokenizer
from road_interp.recipe import MixtureRecipe, load_recipe
from road_interp.training import train

MAIN = "label+closing, co-activation 0.5"
PAIRS = ("label+closing", "closing+label", "label-comment+closing", "greeting+closing", "label+question", "german+closing",
         "capitals+label")  # fmt: skip
QUICK = ["training.max_steps=2", "scoring.test=4", "scoring.validation=4", "scoring.max_new_tokens=4"]


def conditions() -> Iterator[tuple[str, list[str]]]:
    """Names and what they change in the recipe."""
    for pair in PAIRS:
        tasks = "tasks={" + ", ".join(f"{name}: {{behaviour: {name}}}" for name in pair.split("+")) + "}"
        for probability in (0.5, 0.0) if pair != "label+closing" else (0.5, 0.0, 0.25, 1.0):
            yield f"{pair}, co-activation {probability:g}", [tasks, f"co_activation={probability}"]
    for planes in ("alternating", "layers"):
        yield f"label+closing, {planes}", [f"planes={planes}"]
    for name in ("label", "closing"):
        yield f"{name} alone", [f"tasks={{{name}: {{behaviour: {name}}}}}"]
    yield "label+closing, told in words", []


def measure_condition(name: str, recipe: MixtureRecipe) -> CompositionReport:
    """Train and score one condition, or ask the bare model in words."""
    if name.endswith("told in words"):
        return told_in_words(recipe)
    with tempfile.TemporaryDirectory() as folder:
        run = train(recipe, Path(folder) / "run", progress=False)
        return CompositionReport.from_json((run.folder / "composition.json").read_text())


def told_in_words(recipe: MixtureRecipe) -> CompositionReport:
    """The bare model, told to do what the active tasks do."""
    base: Any = load_model(recipe.model, "causal-lm")[0].eval()
    tokenizer = load_tokenizer(recipe.model)
    mixture, settings = load_mixture(recipe), recipe.scoring
    texts = [review.text for review in mixture.test]

    def generate(inputs: dict[str, Any]) -> Any:
        return base.generate(
            **inputs, max_new_tokens=settings.max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )

    def answering(prompts: list[str], active: str) -> Any:
        told = [behaviour(task).instruction for task in recipe.tasks if task in active.split("+")]
        asked = ask(recipe, [f"{text}\n{' '.join(told)}".strip() for text in texts], tokenizer)
        return greedy_answers(generate, tokenizer, asked, settings.batch_size, base.device)

    perplexity = answer_perplexity(base, tokenizer, settings.batch_size)
    prompts = ask(recipe, texts, tokenizer)
    return composition(
        answering, perplexity, mixture.scorers, mixture.test, prompts,
        model=recipe.model.id.rpartition("/")[2], method="told in words", seed=recipe.seed,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--only", default="", help="measure the conditions whose name holds this text")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="two steps and four prompts of the main condition")
    parser.add_argument("--redraw", type=Path, help="draw from the JSON of an earlier run instead of measuring")
    options = parser.parse_args()
    if options.redraw is not None:
        report = CompositionReport.from_json(options.redraw.read_text())
        print(figures.save_figure(plots.composition(report), report, options.out, "composition"))
        return
    parts = options.out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    seeds = options.seeds[:1] if options.quick else options.seeds
    for name, changes in conditions():
        if options.only not in name or (options.quick and name != MAIN):
            continue
        reports = []
        for seed in seeds:
            path = parts / f"composition, {name}, seed {seed}.json"
            if not path.is_file():
                print(f"{name}, seed {seed}", flush=True)
                recipe = load_recipe("composition-smollm2", [*changes, *(QUICK if options.quick else []), f"seed={seed}"])
                assert isinstance(recipe, MixtureRecipe)
                write_atomically(path, measure_condition(name, recipe).to_json())
            reports.append(CompositionReport.from_json(path.read_text()))
        together = replace(CompositionReport.over_seeds(reports), method=name)
        write_atomically(options.out / f"composition, {name}.json", together.to_json())
        if name == MAIN:
            print(figures.save_figure(plots.composition(together), together, options.out, "composition"))


if __name__ == "__main__":
    main()
