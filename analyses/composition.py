"""Figure 5 of the paper, with scores: two tasks on planes of one state, alone and together, and controls beside them.

python analyses/composition.py --out figures                       # every condition, three seeds: hours on two cores
python analyses/composition.py --only "closing alone" --out figures  # the conditions of these names
python analyses/composition.py --quick --out figures
python analyses/composition.py --redraw figures/composition.json --out figures

Every condition and seed leaves its own folder under parts/ in the folder, and one that has its scores is not measured again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import matmul
from pathlib import Path
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from transformers import set_seed

from road_interp import plots
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.data.behaviours import behaviour
from road_interp.data.multitask import format_prompts, load_multitask_data
from road_interp.errors import InputError, exit_on_error
from road_interp.files import read_text, write_atomically
from road_interp.measure.composition import CompositionReport, composition, default_sets
from road_interp.models.generation import Answer, GenerateFn, answer_perplexity, greedy_answers, make_generator
from road_interp.models.loading import find_device, load_model, load_tokenizer
from road_interp.models.road_model import RoadModel
from road_interp.plots import export
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.schema import MixtureRecipe
from road_interp.runs.run import Run
from road_interp.runs.run_files import COMPOSITION, METRICS, RECIPE
from road_interp.sites.find import find_sites
from road_interp.training.api import train
from road_interp.training.arguments import training_arguments
from road_interp.training.low_rank import LowRankModel
from road_interp.training.multitask_generation import build_multitask_model, make_multitask_trainer

MAIN = "label+closing, co-activation 0.5"
PAIRS = ("label+closing", "closing+label", "label-only+closing", "label-comment+closing", "greeting+closing", "label+question",
         "german+closing", "capitals+label")  # fmt: skip
RATES = {"LoRA": 1e-3, "LoReFT": 2e-3}  # learning rates of the baselines, chosen on the spare reviews of the recipe
QUICK = ["training.max_steps=2", "scoring.test=4", "scoring.validation=4", "scoring.max_new_tokens=4"]
# Leaves recipe.yaml, composition.json and at last metrics.json in the folder.
Measure = Callable[[MixtureRecipe, Path], None]


def conditions() -> Iterator[tuple[str, list[str], Measure]]:
    """Names, what they change in the recipe, and how they are measured; the most wanted first."""
    for probability in (0.5, 0.0):
        yield f"label+closing, co-activation {probability:g}", [f"co_activation={probability}"], trained
    yield "label+closing, told in words", [], told_in_words
    for name in ("label", "closing"):
        yield f"{name} alone", [_tasks(name)], trained
    yield "label+closing, trained apart and multiplied", [], multiplied
    for method, rate in RATES.items():
        for probability in (0.5, 0.0):
            changes = [f"co_activation={probability}", f"training.learning_rate={rate}"]
            yield f"label+closing, {method}, co-activation {probability:g}", changes, partial(low_rank, method=method)
    yield "label+closing, with a LoRA for both tasks", [], with_lora
    for pair in PAIRS[1:]:
        for probability in (0.5, 0.0):
            changes = [_tasks(*pair.split("+")), f"co_activation={probability}", "scoring.max_new_tokens=32"]
            yield f"{pair}, co-activation {probability:g}", changes, trained
    yield "label+closing+greeting, co-activation 0.5", [_tasks("label", "closing", "greeting")], trained
    for probability in (0.25, 1.0):
        yield f"label+closing, co-activation {probability:g}", [f"co_activation={probability}"], trained
    for planes in ("alternating", "layers"):
        yield f"label+closing, {planes}", [f"planes={planes}"], trained
    yield "label+closing, all linear layers", ["adapter.sites=all-linear", "adapter.layers=10-20"], trained
    for part in ("angles", "magnitudes"):
        yield f"label+closing, {part} only", [f"adapter.learn={part}"], trained
    paper = ["adapter.layers=[15]", "adapter.positions=last"]
    yield "label+closing, one block at the last prompt token", paper, trained


def _tasks(*names: str) -> str:
    """Tasks with as many examples in all as the recipe's; naming the label takes three times as many as a phrase."""
    shares = [3 if name.startswith("label") else 1 for name in names]
    examples = [2400 * share // sum(shares) for share in shares]
    tasks = (f"{name}: {{behaviour: {name}, examples: {count}}}" for name, count in zip(names, examples, strict=True))
    return "tasks={" + ", ".join(tasks) + "}"


def trained(recipe: MixtureRecipe, folder: Path) -> None:
    """Train and score a recipe."""
    train(recipe, folder, progress=False)


def multiplied(recipe: MixtureRecipe, folder: Path) -> None:
    """Every task trained alone on all planes, and the adapters multiplied where several tasks are active."""
    alone: dict[str, RoadAdapter] = {}
    examples = sum(task.examples for task in recipe.tasks.values())
    for name, task in recipe.tasks.items():
        run = part(folder.parent, f"{name} alone", recipe.seed)
        measured(replace(recipe, tasks={name: replace(task, examples=examples)}), run, trained)
        alone[name] = Run.load(run).adapter
    products = {active: reduce(matmul, (alone[task] for task in active.split("+"))) for active in default_sets(list(alone))[1:]}
    base, tokenizer = load_model(recipe.model, "causal-lm")[0].eval(), load_tokenizer(recipe.model)
    model = RoadModel(base, RoadBank(products))

    def answering(prompts: Sequence[str], active: str) -> list[Answer]:
        def generate(inputs: dict[str, Any]) -> Any:
            return model.generate(inputs, adapter_names=[active] * len(inputs["input_ids"]), **_greedy(recipe, tokenizer))[1]

        return greedy_answers(generate, tokenizer, prompts, recipe.scoring.batch_size, base.device)

    _score(recipe, folder, base, tokenizer, answering, "trained apart and multiplied")


def low_rank(recipe: MixtureRecipe, folder: Path, method: Any) -> None:
    """LoRA, rank 4 a task, on the linear layers of the same blocks; or LoReFT, 4 rows a task, on the middle block's output."""
    set_seed(recipe.seed)
    base, tokenizer = load_model(recipe.model, "causal-lm")[0].eval(), load_tokenizer(recipe.model)
    where, layers = (
        ("all-linear", recipe.adapter.layers) if method == "LoRA" else ("block-output", base.config.num_hidden_layers // 2)
    )
    model = LowRankModel(base, find_sites(base, where, layers), list(recipe.tasks), 4, method, recipe.seed)
    device = find_device(None)
    mixture = load_multitask_data(recipe)
    arguments = training_arguments(recipe.training, recipe.seed, folder, device, False, eval_strategy="no", save_strategy="no")
    trainer = make_multitask_trainer(recipe, model.to(device), model.tasks, mixture, tokenizer, arguments)
    set_seed(recipe.seed)
    trainer.train()
    model.eval()
    settings = recipe.scoring
    answering = make_generator(model, tokenizer, settings.max_new_tokens, settings.batch_size)
    _score(recipe, folder, base, tokenizer, answering, f"{method}, co-activation {recipe.co_activation:g}")


def with_lora(recipe: MixtureRecipe, folder: Path) -> None:
    """Rotations on their planes as in the recipe, and one LoRA of rank 4 on the linear layers of the same blocks.

    The LoRA learns from every example and is always active: only the planes tell the tasks apart.
    """
    set_seed(recipe.seed)
    model = build_multitask_model(recipe)
    base: Any = model.model
    tokenizer = load_tokenizer(recipe.model)
    linears = [site.module for site in find_sites(base, "all-linear", recipe.adapter.layers)]
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=linears), base)
    for name, parameter in base.named_parameters():
        parameter.requires_grad_("lora_" in name)
    assert model.planes is not None
    device = find_device(None)
    mixture = load_multitask_data(recipe)
    arguments = training_arguments(recipe.training, recipe.seed, folder, device, False, eval_strategy="no", save_strategy="no")
    trainer = make_multitask_trainer(recipe, model.to(device), model.planes.tasks, mixture, tokenizer, arguments)
    set_seed(recipe.seed)
    trainer.train()
    model.eval()
    answering = make_generator(model, tokenizer, recipe.scoring.max_new_tokens, recipe.scoring.batch_size)
    bare = load_model(recipe.model, "causal-lm")[0].eval().to(device)  # fluency is judged by the model without the LoRA
    _score(recipe, folder, bare, tokenizer, answering, "with a LoRA for both tasks")


def told_in_words(recipe: MixtureRecipe, folder: Path) -> None:
    """The bare model, told to do what the active tasks do."""
    base: Any = load_model(recipe.model, "causal-lm")[0].eval()
    tokenizer = load_tokenizer(recipe.model)
    texts = [review.text for review in load_multitask_data(recipe).test]

    def answering(prompts: Sequence[str], active: str) -> list[Answer]:
        told = [behaviour(task).instruction for task in recipe.tasks if task in active.split("+")]
        asked = format_prompts(recipe, [f"{text}\n{' '.join(told)}".strip() for text in texts], tokenizer)

        def generate(inputs: dict[str, Any]) -> Any:
            return base.generate(**inputs, **_greedy(recipe, tokenizer))

        return greedy_answers(generate, tokenizer, asked, recipe.scoring.batch_size, base.device)

    _score(recipe, folder, base, tokenizer, answering, "told in words")


def _greedy(recipe: MixtureRecipe, tokenizer: Any) -> dict[str, Any]:
    return {
        "max_new_tokens": recipe.scoring.max_new_tokens,
        "do_sample": False,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _score(recipe: MixtureRecipe, folder: Path, base: Any, tokenizer: Any, answering: GenerateFn, method: str) -> None:
    """Score the answers to the test reviews."""
    mixture = load_multitask_data(recipe)
    report = composition(
        answering,
        answer_perplexity(base, tokenizer),
        mixture.scorers,
        mixture.test,
        format_prompts(recipe, [review.text for review in mixture.test], tokenizer),
        model=recipe.model.name,
        method=method,
        seed=recipe.seed,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RECIPE, recipe.to_yaml())
    write_atomically(folder / COMPOSITION, report.to_json())
    write_atomically(folder / METRICS, json.dumps({"test": report.summary()}) + "\n")


def part(parts: Path, name: str, seed: int) -> Path:
    """The folder of one condition and seed."""
    return parts / f"{name}, seed {seed}"


def measured(recipe: MixtureRecipe, folder: Path, measure: Measure) -> CompositionReport:
    """The scores in the folder, which are measured first if it is not finished; what an interrupted run left is thrown away."""
    if not (folder / METRICS).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        measure(recipe, folder)
    elif load_recipe(folder / RECIPE) != recipe:
        raise InputError(f"'{folder}' was measured with another recipe; choose another --out")
    return CompositionReport.from_json((folder / COMPOSITION).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--only", nargs="+", choices=[name for name, _, _ in conditions()], metavar="CONDITION")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="two steps and four prompts of the main condition")
    parser.add_argument("--redraw", type=Path, help="draw from the JSON of an earlier run instead of measuring")
    options = parser.parse_args()
    if options.redraw is not None:
        report = CompositionReport.from_json(read_text(options.redraw))
        print(export.save_figure(plots.composition(report), report, options.out, "composition"))
        return
    parts = options.out / ("parts-quick" if options.quick else "parts")
    parts.mkdir(parents=True, exist_ok=True)
    seeds = options.seeds[:1] if options.quick else options.seeds
    for name, changes, measure in conditions():
        if name not in (options.only or [name]) or (options.quick and name != MAIN):
            continue
        reports = []
        for seed in seeds:
            folder = part(parts, name, seed)
            if not (folder / METRICS).is_file():
                print(f"{name}, seed {seed}", flush=True)
            recipe = load_recipe("composition-smollm2", [*changes, *(QUICK if options.quick else []), f"seed={seed}"])
            assert isinstance(recipe, MixtureRecipe)
            reports.append(measured(recipe, folder, measure))
        together = replace(CompositionReport.over_seeds(reports), method=name)
        write_atomically(options.out / f"composition, {name}.json", together.to_json())
        if name == MAIN:
            print(export.save_figure(plots.composition(together), together, options.out, "composition"))


if __name__ == "__main__":
    with exit_on_error(Path(__file__).name):
        main()
