"""What the pieces of studies share: runs, trained once, and language models, loaded once."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from road_interp.errors import InputError
from road_interp.files import check_folder, locked
from road_interp.models.loading import load_model, load_tokenizer
from road_interp.recipes.loader import load_recipe, load_stored_recipe
from road_interp.recipes.schema import ClassificationRecipe, TrainableRecipe
from road_interp.runs.run import Run
from road_interp.runs.run_files import METRICS, RECIPE
from road_interp.training.api import train
from road_interp.training.fine_tuning import LEARNING_RATES, Method
from road_interp.training.study import Piece, settings_hash
from road_interp.training.study_inputs import digests


def run_of(piece: Piece) -> Run:
    """The run of a piece's recipe, trained or resumed if it is not finished.

    The folder name holds the model and the hash of the recipe, so that studies with equal recipes share a run. Models and data
    that are local files or folders have a run for each content.

    Raises:
        InputError: the folder holds a run of another recipe.
    """
    model = piece.recipe.model
    key = settings_hash(piece.recipe, *digests(piece.recipe, {}).values())
    return train_once(piece.recipe, piece.runs / f"{model.name}-{key}")


def train_once(recipe: TrainableRecipe, folder: Path) -> Run:
    """The run of a recipe in a folder, trained or resumed if it is not finished; a second process waits for the first.

    Raises:
        InputError: the folder holds a run of another recipe, or of data files that have changed since.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not (folder / METRICS).is_file():
            return train(recipe, folder, resume=(folder / RECIPE).is_file(), progress=False)
    if load_stored_recipe(folder / RECIPE) != recipe:
        raise InputError(f"'{folder}' was trained with another recipe; choose another --runs")
    run = Run.load(folder)
    run.check_data()
    return run


def baseline_rate(recipe: ClassificationRecipe, method: Method) -> float:
    """The learning rate of a baseline: that of LEARNING_RATES, unless an override has changed the one of sentiment-minilm."""
    built_in: Any = load_recipe("sentiment-minilm")
    rate = recipe.training.learning_rate
    return LEARNING_RATES[method] if rate == built_in.training.learning_rate else rate


@cache
def language_model(identity: str) -> tuple[Any, Any]:
    """The causal language model of an id and its tokeniser, loaded once."""
    return load_model(identity, "causal-lm")[0], load_tokenizer(identity)
