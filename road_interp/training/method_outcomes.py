"""Train one method of fine-tuning on a classification recipe, and keep the outcome of every test text."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, cast, get_args

import numpy as np
from jaxtyping import Bool
from transformers import set_seed

from road_interp.data.contained import contained_texts
from road_interp.data.division import subsample
from road_interp.data.head_outputs import chosen_classes
from road_interp.data.labelled import by_length, tokenize
from road_interp.errors import InputError
from road_interp.measure.parameter_share import MethodOutcomes
from road_interp.models.loading import find_device
from road_interp.recipes.schema import ClassificationRecipe
from road_interp.rotation.plane_maps import Variant
from road_interp.training.classification import ClassificationExperiment
from road_interp.training.experiment import trained_in_memory
from road_interp.training.fine_tuning import Method, baseline
from road_interp.training.parameter_counts import count_parameters
from road_interp.training.trainer import RoadTrainer


def method_outcomes(recipe: ClassificationRecipe, method: str, task: str, texts: int | None = None) -> MethodOutcomes:
    """Train one method with the data, the seed and the settings of a recipe, without leaving files on disk.

    Args:
        method: a variant of RoAd such as "road_1", "lora-R" for LoRA of rank R at the recipe's sites, "full" for all weights, or
            "head" for the head alone, which every method trains.
        task: name of the data for the result.
        texts: number of training texts, drawn from those of the recipe's split; all by default.

    Raises:
        InputError: an unknown method, data that are not scored by accuracy, or a head whose outputs are NaN.
    """
    set_seed(recipe.seed)
    experiment = ClassificationExperiment(recipe)
    experiment.load_data()
    if texts is not None:
        experiment.data = replace(experiment.data, train=subsample(experiment.data.train, texts))
    if experiment.data.metric != "accuracy":
        raise InputError(f"outcomes per text need accuracy, not {experiment.data.metric}")
    if method in get_args(Variant):
        experiment.recipe = replace(recipe, adapter=replace(recipe.adapter, variant=cast(Variant, method)))
        model: Any = experiment.build_model(find_device(None))
        counts = count_parameters(model, model.model, experiment.head)
    else:
        model, counts = baseline(experiment, *_kind(method))
    with trained_in_memory(experiment, model) as trainer:
        validation, test = (_correct(trainer, experiment.splits[name]) for name in ("validation", "test"))
        contained = _contained(experiment)
    rate, name = recipe.training.learning_rate, recipe.model.name
    numbers = counts.trained, counts.percent, float(validation.mean())
    return MethodOutcomes(name, task, method, recipe.seed, rate, *numbers, tuple(test.tolist()), contained)


def _kind(method: str) -> tuple[Method, int]:
    """The kind of a baseline, and the rank of a LoRA."""
    if method in ("full", "head"):
        return cast(Method, method), 0
    if rank := re.fullmatch(r"lora-([1-9]\d{0,3})", method):
        return "lora", int(rank[1])
    raise InputError(f"unknown method '{method}'; use {', '.join(get_args(Variant))}, lora-R, full or head")


def _contained(experiment: ClassificationExperiment) -> tuple[bool, ...]:
    """Whether each test text, in the order of the predictions, stands in a training text; empty for pairs of texts."""
    train, test = experiment.data.train, experiment.data.test
    if "text_pair" in test.column_names:
        return ()
    found = contained_texts(test["text"][:], train["text"][:])
    order = by_length(tokenize(test, experiment.tokenizer, experiment.recipe.model.max_length))
    return tuple(found[order].tolist())


def _correct(trainer: RoadTrainer, split: Any) -> Bool[np.ndarray, " texts"]:
    """Whether each text of a split is classified rightly. Raises InputError for outputs of the head that are NaN."""
    output = trainer.predict(split)
    return chosen_classes(np.asarray(output.predictions)) == np.asarray(output.label_ids)
