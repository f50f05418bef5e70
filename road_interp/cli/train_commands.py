"""Commands that train, score and use runs: train, demo, evaluate, predict."""

from __future__ import annotations

import json
import sys
import time
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from road_interp.cli import tables
from road_interp.cli.adapter_commands import load_adapter
from road_interp.cli.options import (
    PROGRAM,
    AsJson,
    Device,
    Out,
    Overrides,
    RecipeOptions,
    RunFolder,
    app,
    console,
    grouped,
    is_main_process,
    joined,
    leave_process_group,
    print_result,
    quiet_libraries,
)
from road_interp.cli.output_file import check_output_file
from road_interp.errors import InputError, fail
from road_interp.files import is_file
from road_interp.progress import progress_bar
from road_interp.sources import local_folder, readable_name

if TYPE_CHECKING:
    from road_interp.recipes.schema import TrainableRecipe
    from road_interp.runs.run import Run


@app.command()
@grouped
def train(
    recipe: Annotated[
        str, typer.Argument(help="a YAML file or the name of a built-in recipe; with --resume also the run folder to continue")
    ],
    overrides: Overrides = None,
    *,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue from the last checkpoint in --out")] = False,
    options: RecipeOptions,
    as_json: AsJson = False,
) -> None:
    """Train a recipe, and write a run folder with figures; with seeds=[0,1,2], one run after the other, in a folder for each."""
    recipe, out = _started_run(recipe, out, resume)
    overrides = joined(overrides, options.overrides)
    _train(recipe, overrides, out or _free_folder(Path(recipe).stem), options.device, resume, as_json)


@app.command()
@grouped
def demo(*, out: Out = None, options: RecipeOptions, as_json: AsJson = False) -> None:
    """Train and test rotations of MiniLM on film reviews, and draw them: a few minutes on two cores."""
    _train("sentiment-minilm", options.overrides, out or _free_folder("demo"), options.device, False, as_json)


@app.command()
def evaluate(
    run: RunFolder,
    data: Annotated[str | None, typer.Option(help="another file or data set, with the columns of the recipe's data")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="score this adapter instead, at its own positions: a run, adapter, PEFT or pyvene folder")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="CSV file to write: every scored text with its label, prediction and probability")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Score a run from its files; or score another adapter on its data, model and head."""
    quiet_libraries()
    from road_interp.recipes.paths import data_ids
    from road_interp.runs.run import Run
    from road_interp.runs.run_files import own_files
    from road_interp.training import api

    trained = Run.load(run)
    if predictions is not None:
        read = [*own_files(trained.folder), *data_ids(trained.recipe), *([data] if data else [])]
        check_output_file(predictions, "--predictions", read)
    if data is not None and trained.trained_on(data):
        print(f"{PROGRAM}: warning: '{data}' holds the texts that the run was trained on", file=sys.stderr)
    if adapter is not None:
        trained = replace(trained, adapter=load_adapter(local_folder(adapter), trained))
    if not as_json:
        console.print(f"scoring '{trained.folder}' on {readable_name(trained.recipe.model.name)}", soft_wrap=True)
    scores = api.evaluate(trained, data, predictions=predictions, device=device, progress=not as_json)
    is_multitask = trained.planes is not None
    print_result(as_json, scores, tables.multitask(scores) if is_multitask else f"{data or 'test set'}: {tables.score(scores)}")


@app.command()
def predict(
    run: RunFolder,
    texts: Annotated[str, typer.Argument(help="a file or data set with the text columns of the run's data; labels are not read")],
    out: Annotated[Path | None, typer.Option(help="CSV file to write; by default it is printed")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Predict the class, or the number, of every text of a file: text, prediction and probability."""
    quiet_libraries()
    from road_interp.data.labelled import read_texts
    from road_interp.files import write_atomically
    from road_interp.recipes.paths import data_ids
    from road_interp.runs.prediction import predictions_csv
    from road_interp.runs.run import Run
    from road_interp.runs.run_files import own_files

    trained = Run.load(run)
    if out is not None:
        check_output_file(out, "--out", [texts, *own_files(trained.folder), *data_ids(trained.recipe)])
    given = read_texts(trained.classification_recipe("predict").data, texts)
    with progress_bar() as update:
        predictions = trained.predict(given, device=device, progress=update)
    table = predictions_csv(predictions)
    if out is not None:
        write_atomically(out, table)
    if as_json:
        print(json.dumps({"predictions": [asdict(each) for each in predictions]}))
    elif out is None:
        print(table, end="")
    else:
        print(f"{len(predictions)} predictions: {out}")


def _train(recipe: str, overrides: list[str], folder: Path, device: str | None, resume: bool, as_json: bool) -> None:
    """Train, draw and print every seed; under torchrun the main process alone draws and prints."""
    from road_interp.recipes.loader import load_trainable_recipes
    from road_interp.runs.run_folder import check_free

    recipes = load_trainable_recipes(recipe, overrides)
    quiet_libraries()
    folders = [folder] if len(recipes) == 1 else [folder / f"seed-{each.seed}" for each in recipes]
    if is_main_process() and not resume:
        for each in folders:  # of all seeds, before the first is trained
            check_free(each)
    if not as_json and is_main_process():
        first = recipes[0]
        console.print(
            f"training {first.adapter.variant} on {first.adapter.sites} of {readable_name(first.model.name)}", soft_wrap=True
        )
    if len(recipes) == 1:
        scores = _train_seed(recipes[0], folder, device, resume, as_json)
    else:
        runs = zip(recipes, folders, strict=True)
        scores = {"runs": [_train_seed(each, own, device, resume, as_json, folder) for each, own in runs]}
    if as_json and is_main_process():
        print(json.dumps(scores))
    leave_process_group()


def _train_seed(
    recipe: TrainableRecipe, folder: Path, device: str | None, resume: bool, as_json: bool, of_seeds: Path | None = None
) -> dict[str, Any]:
    """Train one seed, draw it, and return its scores; print them unless `as_json`.

    With `resume`, a finished run is loaded, and what is missing of its figures is drawn.

    Args:
        of_seeds: the parent of the folders of several seeds. With `resume`, seeds that have not begun are begun.
    """
    started = time.monotonic()
    from road_interp import measure
    from road_interp.plots import export
    from road_interp.runs.run_files import FIGURES, METRICS, RECIPE
    from road_interp.training import api

    try:
        if resume and (folder / METRICS).is_file():
            run = _finished_run(folder, recipe)
        else:
            resume = resume and (of_seeds is None or (folder / RECIPE).is_file())
            with redirect_stdout(sys.stderr):  # trackers print, and standard output is for results
                run = api.train(recipe, folder, resume=resume, device=device, progress=not as_json)
        seconds = time.monotonic() - started
        if is_main_process():
            export.draw_adapter(measure.angles(run.adapter), run.folder / FIGURES)
    except KeyboardInterrupt:
        has_begun = (folder / RECIPE).is_file() or of_seeds is not None
        hint = f"; go on with: the same command, --resume --out {quote(str(of_seeds or folder))}" if has_begun else ""
        fail(PROGRAM, f"interrupted{hint}", 1)
    if is_main_process() and not as_json:
        _report(run, seconds)
    return {"folder": str(run.folder), "seconds": round(seconds, 1), **run.metrics}


def _finished_run(folder: Path, recipe: TrainableRecipe) -> Run:
    """The run in a folder. Raises InputError if its recipe is another, or if its data have changed."""
    from road_interp.recipes.difference import describe_difference
    from road_interp.recipes.loader import load_stored_recipe
    from road_interp.runs.run import Run
    from road_interp.runs.run_files import RECIPE

    if difference := describe_difference(load_stored_recipe(folder / RECIPE), recipe):
        raise InputError(f"the recipe differs from the one of the finished run '{folder}': {difference}")
    run = Run.load(folder)
    run.check_data()
    return run


def _started_run(recipe: str, out: Path | None, resume: bool) -> tuple[str, Path | None]:
    """The recipe and the folder of the run to train; a run folder given as the recipe stands for both of its own."""
    from road_interp.recipes.loader import recipe_path
    from road_interp.runs.run_files import RECIPE

    folder = Path(recipe)
    if is_file(folder / RECIPE):
        if not resume:
            raise InputError(f"'{folder}' is a run folder; add --resume to continue it, or train '{folder / RECIPE}' again")
        return str(folder / RECIPE), out or folder
    if resume and any(folder.glob(f"seed-*/{RECIPE}")):
        raise InputError(f"'{folder}' holds the runs of several seeds: give their recipe, with --resume --out {quote(recipe)}")
    if resume and out is None:
        recipe_path(recipe)  # which says so where there is none
        raise InputError("--resume needs --out, the run folder to continue, or that folder instead of the recipe")
    return recipe, out


def _free_folder(name: str) -> Path:
    from road_interp.runs.run_folder import next_free

    return next_free(Path("runs") / name)


def _report(run: Run, seconds: float) -> None:
    from road_interp.runs.run_files import FIGURES

    count: dict[str, Any] = run.metrics["parameters"]
    if run.planes is not None:
        console.print(tables.multitask(run.metrics.get("test", {})))
        console.print(f"rotations: {count['adapter']:,} parameters; results in {run.folder} ({seconds:.0f} s)", soft_wrap=True)
        return
    console.print(tables.run(run))
    console.print(
        f"rotations: {count['adapter']:,} parameters, {count['percent of backbone']:.3f}% of the backbone's {count['backbone']:,}"
        f" (head: {count['head']:,})"
    )
    if kept := run.metrics.get("kept epoch"):
        console.print(f"the weights are those of epoch {kept}, the first with the best validation score")
    console.print(f"results in {run.folder}, figures in {run.folder / FIGURES} ({seconds:.0f} s)", soft_wrap=True)
