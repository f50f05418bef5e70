"""Train a recipe, score a run again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedTokenizerBase,
    set_seed,
)

from road_interp.adapters.modules_to_save import head_file
from road_interp.data.labelled import load_examples, load_task
from road_interp.data.multitask import load_mixture, load_questions
from road_interp.errors import InputError
from road_interp.models.loading import find_device, load_tokenizer, on_device
from road_interp.recipes.loader import trainable
from road_interp.recipes.schema import AnyRecipe, MixtureRecipe
from road_interp.runs.run import Run
from road_interp.runs.run_files import CLASSES, HEAD
from road_interp.runs.run_folder import finish_run, prepare_folder, start_run
from road_interp.training.classification import _build, _count, _frozen_scores, encode, make_trainer, score_split
from road_interp.training.distributed import shard_blocks
from road_interp.training.multitask_classifier import load_heads_model, load_labels, score_heads, train_heads
from road_interp.training.multitask_generation import score_matches, score_mixture, train_mixture
from road_interp.training.trainer import train_on


def train(
    recipe: AnyRecipe, out: str | Path | None = None, *, resume: bool = False, device: str | None = None, progress: bool = True
) -> Run:
    """Learn the rotations of a recipe and leave a run folder.

    Args:
        recipe: what to train.
        out: the run folder; by default the next free one under runs/.
        resume: go on from the last checkpoint in `out`.
        device: "cpu" or "cuda"; by default whatever torch finds.
        progress: show progress bars.

    Raises:
        InputError: an input that cannot be used, or an `out` that holds something else. Nothing has been written then.
    """
    recipe = trainable(recipe)
    if isinstance(recipe, MixtureRecipe):
        learn = train_heads if recipe.has_heads else train_mixture
        return learn(recipe, out, resume=resume, device=device, progress=progress)
    where = find_device(device)
    folder = prepare_folder(recipe, out, resume)
    set_seed(recipe.seed)
    task = load_task(recipe.data)
    tokenizer = load_tokenizer(recipe.model)
    model, head = _build(recipe, task)
    if recipe.model.shard:
        shard_blocks(model.model, where)
    splits = {name: encode(getattr(task, name), tokenizer, recipe) for name in ("train", "validation", "test")}
    trainer = make_trainer(recipe, model, task, tokenizer, splits, folder, where, progress)
    start_run(folder, recipe, {CLASSES: {"classes": task.classes}}, where)
    frozen = _frozen_scores(trainer, model, task, splits, tokenizer)
    set_seed(recipe.seed)
    train_on(trainer, folder, resume)
    metrics = {
        "validation": score_split(trainer, task, splits["validation"]),
        "test": score_split(trainer, task, splits["test"]),
        "frozen backbone, trained head": frozen,
        "parameters": _count(model, head),
    }
    return finish_run(trainer, recipe, model.adapter, metrics, {HEAD: head_file(model.model, head)}, folder, where)


def evaluate(run: Run, data: str | None = None, *, device: str | None = None, progress: bool = True) -> dict[str, Any]:
    """Score a run's model again from its files: on the recipe's test set, or on another file or data set read alike.

    For a mixture the summaries of its reports (`CompositionReport`, `HeadsReport`, `MatchReport`), on its own test data; for one
    task that is tested on questions, on others too.
    """
    tokenizer = load_tokenizer(run.recipe.model)
    if isinstance(run.recipe, MixtureRecipe):
        recipe = run.recipe if data is None else with_questions(run.recipe, data)
        if run.recipe.has_heads:
            labels = load_labels(run.recipe)
            heads = on_device(load_heads_model(run, labels, tokenizer), find_device(device))
            return score_heads(run.recipe, heads, tokenizer, labels, "test", progress).summary()
        return _evaluate_mixture(run, recipe, tokenizer, device, progress)
    task = load_task(run.recipe.data)
    examples = task.test if data is None else load_examples(run.recipe.data, data, run.classes)
    encoded = encode(examples, tokenizer, run.recipe)
    model = run.load_model()
    trainer = make_trainer(run.recipe, model, task, tokenizer, {"validation": encoded}, run.folder, find_device(device), progress)
    return score_split(trainer, task, encoded)


def _evaluate_mixture(
    run: Run, recipe: MixtureRecipe, tokenizer: PreTrainedTokenizerBase, device: str | None, progress: bool
) -> dict[str, Any]:
    """The scores of a run's behaviours and questions; what the tasks learned from is read only where reviews are shared."""
    questions = load_questions(recipe, tokenizer)
    behaving = any(task.behaviour is not None for task in recipe.tasks.values())
    if not questions and not behaving:
        raise InputError("the recipe tests its tasks on nothing: give them 'test' and 'match'")
    model = on_device(run.load_model(), find_device(device))
    summary = score_mixture(recipe, model, tokenizer, load_mixture(recipe), "test", progress).summary() if behaving else {}
    return summary | (score_matches(recipe, model, tokenizer, questions, progress).summary() if questions else {})


def with_questions(recipe: MixtureRecipe, data: str) -> MixtureRecipe:
    """The recipe of one task with other questions to test it on. Raises InputError for tasks that are not tested on questions."""
    if len(recipe.tasks) > 1 or any(task.test is None for task in recipe.tasks.values()):
        raise InputError(
            "a mixture is scored on the test prompts of its recipe; --data is for labelled text and one task's questions"
        )
    return replace(recipe, tasks={name: replace(task, test=data) for name, task in recipe.tasks.items()})
