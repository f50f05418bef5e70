"""Baselines of multi-task composition: multiplied adapters, LoRA and LoReFT per task, a shared LoRA, and instructions.

Each function takes a piece of a study whose recipe has `kind: multitask-generation`, and returns its scores on the test reviews.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import matmul
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from torch import Tensor
from transformers import set_seed

from road_interp.adapters.bank import RoadBank
from road_interp.data.behaviours import behaviour
from road_interp.data.multitask import format_prompts, load_multitask_data
from road_interp.measure.composition import CompositionReport, composition, default_sets
from road_interp.measure.labels import MethodLabel
from road_interp.models.generation import Answer, GenerateFn, answer_perplexity, greedy_answers, make_generator
from road_interp.models.loading import find_device, load_model, load_tokenizer
from road_interp.models.road_model import RoadModel
from road_interp.recipes.schema import MultiTaskGenerationRecipe
from road_interp.sites.find import find_sites
from road_interp.training.low_rank import LowRankModel
from road_interp.training.multitask_generation import MultiTaskGenerationExperiment
from road_interp.training.study import Piece, run_of


def trained(piece: Piece) -> CompositionReport:
    """The composition report of the recipe's run."""
    report = run_of(piece).composition
    assert isinstance(report, CompositionReport)
    return report


def multiplied(piece: Piece) -> CompositionReport:
    """Train each task alone on all planes; multiply the adapters of the active tasks."""
    recipe: MultiTaskGenerationRecipe = piece.recipe
    examples = sum(task.examples for task in recipe.tasks.values())
    alone = {}
    for name, task in recipe.tasks.items():
        single_task = replace(recipe, tasks={name: replace(task, examples=examples)})
        alone[name] = run_of(piece._replace(recipe=single_task)).adapter
    products = {active: reduce(matmul, (alone[task] for task in active.split("+"))) for active in default_sets(list(alone))[1:]}
    base, tokenizer = load_model(recipe.model, "causal-lm")[0].eval(), load_tokenizer(recipe.model)
    model = RoadModel(base, RoadBank(products))

    def generate(prompts: Sequence[str], active: str) -> list[Answer]:
        def ids(inputs: dict[str, Any]) -> Tensor:
            names = [active] * len(inputs["input_ids"])
            return model.generate(inputs, adapter_names=names, **_greedy(recipe, tokenizer))[1]

        return greedy_answers(ids, tokenizer, prompts, recipe.scoring.batch_size, base.device)

    return _score(recipe, base, tokenizer, generate, "trained separately and multiplied")


def low_rank(piece: Piece, method: Literal["LoRA", "LoReFT"]) -> CompositionReport:
    """LoRA (rank 4 per task) on all linear layers of the recipe's blocks, or LoReFT (4 rows per task) on the middle block."""
    recipe: MultiTaskGenerationRecipe = piece.recipe
    set_seed(recipe.seed)
    experiment = _experiment(recipe)
    base, tokenizer = load_model(recipe.model, "causal-lm")[0].eval(), experiment.tokenizer
    middle = base.config.num_hidden_layers // 2
    target, layers = ("all-linear", recipe.adapter.layers) if method == "LoRA" else ("block-output", middle)
    model = LowRankModel(base, find_sites(base, target, layers), list(recipe.tasks), 4, method, recipe.seed)
    _train(experiment, model)
    generate = make_generator(model, tokenizer, recipe.scoring.max_new_tokens, recipe.scoring.batch_size)
    return _score(recipe, base, tokenizer, generate, f"{method}, co-activation {recipe.co_activation:g}")


def with_lora(piece: Piece) -> CompositionReport:
    """The recipe's rotations, with one LoRA of rank 4 shared by all tasks on the linear layers of the recipe's blocks.

    The LoRA is trained on every example and is always active; only the planes differ between tasks.
    """
    from peft import LoraConfig, inject_adapter_in_model

    recipe: MultiTaskGenerationRecipe = piece.recipe
    set_seed(recipe.seed)
    experiment = _experiment(recipe)
    device = find_device(None)
    model = experiment.build_model(device)
    base: Any = model.model
    linears = [site.module for site in find_sites(base, "all-linear", recipe.adapter.layers)]
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=linears), base)
    for name, parameter in base.named_parameters():
        parameter.requires_grad_("lora_" in name)
    _train(experiment, model)
    generate = make_generator(model, experiment.tokenizer, recipe.scoring.max_new_tokens, recipe.scoring.batch_size)
    bare = load_model(recipe.model, "causal-lm")[0].eval().to(device)  # perplexity is measured by the model without the LoRA
    return _score(recipe, bare, experiment.tokenizer, generate, "with a LoRA for both tasks")


def instruction(piece: Piece) -> CompositionReport:
    """The bare model, with the instructions of the active tasks in its prompts."""
    recipe: MultiTaskGenerationRecipe = piece.recipe
    base: Any = load_model(recipe.model, "causal-lm")[0].eval()
    tokenizer = load_tokenizer(recipe.model)
    texts = [review.text for review in load_multitask_data(recipe).test]

    def generate(prompts: Sequence[str], active: str) -> list[Answer]:
        instructions = [behaviour(task).instruction for task in recipe.tasks if task in active.split("+")]
        instructed = format_prompts(recipe, [f"{text}\n{' '.join(instructions)}".strip() for text in texts], tokenizer)
        ids = partial(base.generate, **_greedy(recipe, tokenizer))
        return greedy_answers(lambda inputs: ids(**inputs), tokenizer, instructed, recipe.scoring.batch_size, base.device)

    return _score(recipe, base, tokenizer, generate, "instruction in the prompt")


def _experiment(recipe: MultiTaskGenerationRecipe) -> MultiTaskGenerationExperiment:
    experiment = MultiTaskGenerationExperiment(recipe)
    experiment.load_data()
    return experiment


def _train(experiment: MultiTaskGenerationExperiment, model: Any) -> None:
    """Train a model with the recipe's settings, without leaving files on disk."""
    device = find_device(None)
    with TemporaryDirectory() as folder:
        trainer = experiment.make_trainer(model.to(device), Path(folder), device, False, save_strategy="no")
        set_seed(experiment.recipe.seed)
        trainer.train()
    model.eval()


def _greedy(recipe: MultiTaskGenerationRecipe, tokenizer: Any) -> dict[str, Any]:
    return {"max_new_tokens": recipe.scoring.max_new_tokens, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}


def _score(recipe: MultiTaskGenerationRecipe, base: Any, tokenizer: Any, generate: GenerateFn, method: str) -> CompositionReport:
    """Score the generated answers to the test reviews; `base` measures their perplexity."""
    data = load_multitask_data(recipe)
    prompts = format_prompts(recipe, [review.text for review in data.test], tokenizer)
    label = MethodLabel(recipe.model.name, method, recipe.seed)
    return composition(generate, answer_perplexity(base, tokenizer), data.behaviours, data.test, prompts, label)
