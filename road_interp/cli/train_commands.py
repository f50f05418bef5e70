"""Commands that train and score: train, demo, evaluate."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from road_interp.cli import tables
from road_interp.cli.options import (
    PROGRAM,
    AsJson,
    Device,
    Dtype,
    Out,
    Overrides,
    Seed,
    _as_overrides,
    _is_main_process,
    _leave_group,
    _quiet_libraries,
    app,
    console,
)
from road_interp.errors import InputError, fail

if TYPE_CHECKING:
    from road_interp.recipes.schema import Trainable
    from road_interp.runs.run import Run
from road_interp.cli.adapter_commands import _load_adapter


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="a YAML file or the name of a built-in recipe")],
    overrides: Overrides = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint in --out")] = False,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Train a recipe and leave a run folder with its figures."""
    started = time.monotonic()
    from road_interp.recipes.loader import load_recipe, trainable
    from road_interp.runs.run_files import METRICS, RECIPE

    loaded = trainable(load_recipe(recipe, [*(overrides or ()), *_as_overrides(dtype, seed)]))
    if resume and out is None:
        raise InputError("--resume needs --out, the run folder to go on with")
    folder = out or _free_folder(Path(recipe).stem)
    try:
        run = _train(loaded, folder, resume, device, as_json)
    except KeyboardInterrupt:
        unfinished = (folder / RECIPE).is_file() and not (folder / METRICS).is_file()
        fail(PROGRAM, "interrupted" + (f"; go on with: the same command, --resume --out {folder}" if unfinished else ""), 1)
    if _is_main_process():
        _report(run, time.monotonic() - started, as_json)
    _leave_group()


@app.command()
def demo(out: Out = None, device: Device = None, seed: Seed = None, as_json: AsJson = False) -> None:
    """Learn rotations of a small BERT on film reviews, test them, draw them: a few minutes on two cores."""
    train("sentiment-minilm", out=out or _free_folder("demo"), device=device, seed=seed, as_json=as_json)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    data: Annotated[str | None, typer.Option(help="another file or data set, read as the recipe says")] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="other rotations instead: a run or adapter folder, PEFT's RoAd, pyvene's interventions")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Score a trained run again, from its files alone; or other rotations on its task, model and head."""
    from road_interp.runs.run import Run
    from road_interp.training import api

    _quiet_libraries()
    trained = Run.load(run)
    if adapter is not None:
        trained = replace(trained, adapter=_load_adapter(adapter, trained))
    scores = api.evaluate(trained, data, device=device, progress=not as_json)
    if as_json:
        print(json.dumps(scores))
    elif trained.planes is not None:
        console.print(tables.mixture(scores))
    else:
        console.print(f"[bold]{data or 'test set'}[/]: {tables.score(scores)}")


def _free_folder(name: str) -> Path:
    from road_interp.runs.run_folder import next_free

    return next_free(Path("runs") / name)


def _train(recipe: Trainable, out: Path, resume: bool, device: str | None, quiet: bool) -> Run:
    from road_interp import measure
    from road_interp.plots import export
    from road_interp.runs.run_files import FIGURES
    from road_interp.training import api

    _quiet_libraries()
    if not quiet and _is_main_process():
        console.print(f"training {recipe.adapter.variant} on {recipe.adapter.sites} of {recipe.model.id}", soft_wrap=True)
    run = api.train(recipe, out, resume=resume, device=device, progress=not quiet)
    if _is_main_process():
        export.draw_adapter(measure.angles(run.adapter), run.folder / FIGURES)
    return run


def _report(run: Run, seconds: float, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"folder": str(run.folder), "seconds": round(seconds, 1), **run.metrics}))
        return
    if run.planes is not None:
        console.print(tables.mixture(run.metrics.get("test", {})))
        parameters = run.metrics["parameters"]["adapter"]
        console.print(f"rotations: {parameters:,} parameters; results in {run.folder} ({seconds:.0f} s)", soft_wrap=True)
        return
    console.print(tables.run(run))
    count = run.metrics["parameters"]
    console.print(
        f"rotations: {count['adapter']:,} parameters, {count['percent of backbone']:.3f}% of the backbone's {count['backbone']:,}"
        f" (head: {count['head']:,})"
    )
    console.print(f"results in {run.folder}, figures in {run.folder / 'figures'} ({seconds:.0f} s)", soft_wrap=True)
