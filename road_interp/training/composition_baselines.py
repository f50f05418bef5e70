"""Multi-task composition: divided planes, and baselines without division, an adapter per set, products, low ranks, and words.

Each function takes a piece of a study whose recipe has `kind: multitask-generation`, and returns its scores on the test reviews,
or where it has an argument `split`, on the reviews of "validation" or "test".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial, reduce
from operator import matmul
from typing import Any, Literal

from torch import Tensor, nn

from road_interp.adapters.bank import RoadBank
from road_interp.adapters.joined_names import BASE, split_names
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.data.behaviours import PARTS, answer_parts
from road_interp.data.multitask import Example, format_prompts, load_multitask_data, load_reviews
from road_interp.errors import InputError
from road_interp.measure.composition import CompositionReport, all_sets, composition
from road_interp.measure.labels import MethodLabel
from road_interp.measure.perplexity import answer_perplexity
from road_interp.models.generation import Answer, GenerateFn, greedy_answers, greedy_settings, make_generator
from road_interp.models.loading import find_device, load_model, load_tokenizer, on_device
from road_interp.models.road_model import RoadModel
from road_interp.recipes.schema import PLAIN, MultiTaskGenerationRecipe, TaskRecipe
from road_interp.sites.find import find_sites
from road_interp.training.experiment import identity_model, trained_in_memory
from road_interp.training.low_rank import LowRankModel
from road_interp.training.multitask_generation import GenerationTrainer, MultiTaskGenerationExperiment, score_composition
from road_interp.training.study import Piece
from road_interp.training.study_runs import run_of


def divided_by_seed(piece: Piece) -> Piece:
    """The piece with the division of the reviews that belongs to its seed."""
    reviews = replace(piece.recipe.reviews, split_seed=piece.seed)
    return piece._replace(recipe=replace(piece.recipe, reviews=reviews))


def trained(piece: Piece) -> CompositionReport:
    """The composition report of the recipe's run."""
    report = run_of(piece).composition
    assert isinstance(report, CompositionReport)
    return report


def planes(piece: Piece, split: str = "test", others_left_out: bool = False) -> CompositionReport:
    """Train the planes of every task, and score them on one split only; no run folder is written.

    With `others_left_out`, every example leaves the tokens that decide the parts of any other task out of its loss. Raises
    InputError for other positions than all tokens then.
    """
    experiment = _experiment(piece.recipe, others_left_out)
    model = experiment.build_model(find_device(None))
    _train(experiment, model)
    return score_composition(piece.recipe, model, experiment.tokenizer, experiment.data, split)


class Undivided(nn.Module):
    """A RoadModel whose planes belong to no task, called as one with task planes is: which tasks are active does not matter."""

    def __init__(self, road: RoadModel) -> None:
        super().__init__()
        self.road, self.model, self.positions = road, road.model, road.positions

    def forward(self, base: Mapping[str, Any], tasks: Any, trainable_tasks: Any, positions: Any = None) -> tuple[Any, Any]:
        """The rotated model's output."""
        return self.road(base=base, positions=positions)

    def generate(self, base: Mapping[str, Any], tasks: Any, **options: Any) -> tuple[Any, Tensor]:
        """Generated token ids."""
        return self.road.generate(base, **options)


class _OwnTokensOnly(MultiTaskGenerationExperiment):
    """Every example leaves the tokens that decide the parts of any other task out of its loss."""

    def make_trainer(self, *args: Any, **options: Any) -> GenerationTrainer:
        trainer = super().make_trainer(*args, **options)
        examples: Any = trainer.train_dataset
        trainer.train_dataset = examples.map(self._without_others)
        return trainer

    def _without_others(self, row: dict[str, Any]) -> dict[str, Any]:
        own = self.recipe.task_names[row["task"]]
        others = sum({part for task, part in self.parts.items() if task != own})
        return {"labels": [-100 if decided & others else id for id, decided in zip(row["labels"], row["decides"], strict=True)]}


def undivided(piece: Piece, left_out: Literal["none", "drawn", "all"] = "none", split: str = "test") -> CompositionReport:
    """One adapter on all planes, trained on the examples of all tasks. It is on or off: it cannot be told which tasks to show.

    Args:
        left_out: the other tasks whose parts every example leaves out of its loss: those of a random set that is drawn anew for
            it, as for the co-activated examples of divided planes, or all. Of two tasks both are the other one.

    Raises:
        InputError: other positions than all tokens with `left_out="all"`, which hides from the trainer where a prompt ends.
    """
    recipe: MultiTaskGenerationRecipe = replace(
        piece.recipe, co_activation=float(left_out == "drawn"), co_activation_loss="own", shared=None
    )
    experiment = _experiment(recipe, left_out == "all")
    model = _train_undivided(experiment)
    generate = make_generator(model, experiment.tokenizer, recipe.scoring)
    base = _base(recipe)
    bare = Undivided(identity_model(base, recipe.adapter))
    without = make_generator(bare, experiment.tokenizer, recipe.scoring)
    answers = cache(lambda prompts, on: (generate if on else without)(prompts, BASE))

    def generate_for(prompts: Sequence[str], active: str) -> list[Answer]:
        return answers(tuple(prompts), active != BASE)

    method = {"none": "undivided", "drawn": "undivided, drawn tasks left out", "all": "undivided, other tasks left out"}[left_out]
    return _score(recipe, base, experiment.tokenizer, generate_for, method, split)


def adapter_per_set(piece: Piece) -> CompositionReport:
    """One adapter on all planes for every set of tasks, trained on answers that show the whole set.

    This is the ceiling: every adapter has the steps and the reviews that the other methods have for all tasks together.

    Raises:
        InputError: fewer reviews than the tasks have examples.
    """
    recipe: MultiTaskGenerationRecipe = piece.recipe
    data = load_multitask_data(recipe)
    held_out = len(data.validation) + len(data.test)
    count = sum(map(len, data.examples.values()))
    reviews = load_reviews(recipe.reviews)[held_out : held_out + count] if recipe.reviews else []
    if len(reviews) < count:
        raise InputError(f"an adapter per set needs {count} training reviews, one per example of the tasks, not {len(reviews)}")
    sets, adapters = all_sets(list(data.behaviours)), {}
    for number, name in enumerate(sets):
        piece.progress(f"adapter of {name}", number, len(sets))
        shown = [each for task, each in data.behaviours.items() if task in split_names(name)]
        examples = [Example(each.text, tuple(answer_parts(shown, each))) for each in reviews]
        only = replace(recipe, tasks={"set": TaskRecipe(behaviour=PLAIN)}, co_activation=0.0, shared=None)
        experiment = MultiTaskGenerationExperiment(only)
        experiment.data = replace(data, examples={"set": examples}, behaviours={})
        experiment.parts = {"set": sum({1 << PARTS.index(each.part) for each in shown})} if shown else {}
        adapters[_adapter_name(name)] = _train_undivided(experiment).road.adapter
    return _score_adapters(recipe, adapters, {name: _adapter_name(name) for name in sets}, "an adapter per set of tasks")


def multiplied(piece: Piece) -> CompositionReport:
    """Train each task alone on all planes; multiply the adapters of the active tasks.

    Every adapter has the steps and the number of examples that the other methods have for all tasks together.
    """
    recipe: MultiTaskGenerationRecipe = piece.recipe
    examples = sum(task.examples for task in recipe.tasks.values())
    alone = {}
    for name, task in recipe.tasks.items():
        single_task = replace(recipe, tasks={name: replace(task, examples=examples)}, shared=None)
        alone[name] = run_of(piece._replace(recipe=single_task)).adapter
    shared = [] if recipe.shared is None else [recipe.shared]
    sets = all_sets([name for name in alone if name != recipe.shared])
    parts = {name: [*split_names(name), *shared] for name in sets}
    names = {name: " and ".join(tasks) or BASE for name, tasks in parts.items()}
    products = {names[name]: reduce(matmul, (alone[task] for task in tasks)) for name, tasks in parts.items() if tasks}
    return _score_adapters(recipe, products, names, "trained separately and multiplied")


def low_rank(
    piece: Piece,
    method: Literal["LoRA", "LoReFT"],
    layers: int | str | list[int] | None = None,
    split: str = "test",
) -> CompositionReport:
    """LoRA (rank 4 per task) on all linear layers, or LoReFT (4 rows per task) on the block outputs, of some blocks.

    Args:
        layers: the blocks; by default those of the recipe.

    Raises:
        InputError: positions other than all tokens.
    """
    recipe: MultiTaskGenerationRecipe = piece.recipe
    if recipe.adapter.positions != "all":
        raise InputError(f"{method} adapts all tokens: adapter.positions must be all, not {recipe.adapter.positions}")
    experiment = _experiment(recipe)
    base = _base(recipe)
    target = "all-linear" if method == "LoRA" else "block-output"
    sites = find_sites(base, target, recipe.adapter.layers if layers is None else layers, recipe.adapter.stack)
    model = LowRankModel(base, sites, list(recipe.tasks), 4, method, recipe.seed)
    _train(experiment, model)
    generate = make_generator(model, experiment.tokenizer, recipe.scoring, recipe.shared)
    return _score(recipe, base, experiment.tokenizer, generate, f"{method}, co-activation {recipe.co_activation:g}", split)


def instruction(piece: Piece) -> CompositionReport:
    """The bare model, with the instructions of the active tasks in its prompts; its answers may have any form."""
    recipe: MultiTaskGenerationRecipe = piece.recipe
    base = _base(recipe)
    tokenizer = load_tokenizer(recipe.model)
    data = load_multitask_data(recipe)
    texts = [review.text for review in data.test]
    told = {name: replace(each, free_form=True) for name, each in data.behaviours.items()}

    def generate(prompts: Sequence[str], active: str) -> list[Answer]:
        instructions = [each.instruction for task, each in told.items() if task in split_names(active)]
        instructed = format_prompts(recipe, texts, tokenizer, "".join(f"\n{each}" for each in instructions))
        ids = partial(base.generate, **greedy_settings(tokenizer, recipe.scoring.max_new_tokens))
        return greedy_answers(lambda inputs: ids(**inputs), tokenizer, instructed, recipe.scoring.batch_size, base)

    label = MethodLabel(recipe.model.name, "instruction in the prompt", recipe.seed)
    return composition(
        generate, answer_perplexity(base, tokenizer), told, data.test, format_prompts(recipe, texts, tokenizer), label
    )


def _adapter_name(tasks: str) -> str:
    """The name in a bank of the adapter for a set of tasks: "a+b" would be the product of two."""
    return " and ".join(split_names(tasks)) or "none"


def _base(recipe: MultiTaskGenerationRecipe) -> Any:
    """The bare language model, in evaluation mode, on the device of the trainings."""
    return on_device(load_model(recipe.model, "causal-lm")[0], find_device(None)).eval()


def _experiment(recipe: MultiTaskGenerationRecipe, others_left_out: bool = False) -> MultiTaskGenerationExperiment:
    if others_left_out and recipe.adapter.positions != "all":
        raise InputError(f"tokens that are left out of the loss need adapter.positions=all, not {recipe.adapter.positions}")
    experiment = (_OwnTokensOnly if others_left_out else MultiTaskGenerationExperiment)(recipe)
    experiment.load_data()
    return experiment


def _train_undivided(experiment: MultiTaskGenerationExperiment) -> Undivided:
    model = Undivided(identity_model(_base(experiment.recipe), experiment.recipe.adapter))
    _train(experiment, model)
    return model


def _train(experiment: MultiTaskGenerationExperiment, model: Any) -> None:
    """Train a model with the recipe's settings, without leaving files on disk."""
    with trained_in_memory(experiment, model, save_strategy="no"):
        model.eval()


def _score_adapters(
    recipe: MultiTaskGenerationRecipe, adapters: Mapping[str, RoadAdapter], names: Mapping[str, str], method: str
) -> CompositionReport:
    """Score a bank of adapters; `names` has the adapter of every set of active tasks."""
    base, tokenizer = _base(recipe), load_tokenizer(recipe.model)
    model = RoadModel(base, RoadBank(adapters))

    def generate(prompts: Sequence[str], active: str) -> list[Answer]:
        def ids(inputs: dict[str, Any]) -> Tensor:
            rows = [names[active]] * len(inputs["input_ids"])
            return model.generate(inputs, adapter_names=rows, **greedy_settings(tokenizer, recipe.scoring.max_new_tokens))[1]

        return greedy_answers(ids, tokenizer, prompts, recipe.scoring.batch_size, base)

    return _score(recipe, base, tokenizer, generate, method)


def _score(
    recipe: MultiTaskGenerationRecipe, base: Any, tokenizer: Any, generate: GenerateFn, method: str, split: str = "test"
) -> CompositionReport:
    """Score the generated answers to the reviews of a split; `base` measures their perplexity."""
    data = load_multitask_data(recipe)
    reviews = getattr(data, split)
    prompts = format_prompts(recipe, [review.text for review in reviews], tokenizer)
    label = MethodLabel(recipe.model.name, method, recipe.seed)
    return composition(generate, answer_perplexity(base, tokenizer), data.behaviours, reviews, prompts, label)
