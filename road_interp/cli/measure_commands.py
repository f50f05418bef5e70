"""Commands that measure: drift, ablate, diagnose, bench."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from road_interp.cli import tables
from road_interp.cli.options import (
    AsJson,
    Device,
    Dtype,
    ModelOrRun,
    Overrides,
    Seed,
    _as_overrides,
    _check_folder,
    _quiet_libraries,
    app,
    console,
)
from road_interp.errors import InputError

if TYPE_CHECKING:
    from road_interp.measure import AblationReport, Check, DriftReport
    from road_interp.measure.ablation import Score
    from road_interp.measure.throughput import BenchReport
    from road_interp.recipes.schema import ModelRecipe
    from road_interp.runs.run import Run
from road_interp.sources import SMOLLM2


@app.command()
def drift(
    base: ModelOrRun,
    tuned: ModelOrRun,
    data: Annotated[str, typer.Argument(help="texts: a file, a data set id, or package://NAME/path")],
    text: Annotated[str, typer.Option(help="the column that holds them")] = "text",
    token: Annotated[
        str | None, typer.Option(help="whose states: first, last, mean or all; by default [CLS] or, where there is none, last")
    ] = None,
    most: Annotated[int | None, typer.Option(min=1, help="texts to draw; all by default")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the figures and their numbers")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the hidden states of two models on the same texts: how far they turn, how much they grow.

    Under torchrun the texts are divided among the processes; the numbers are the same.
    """
    import torch
    from accelerate import PartialState
    from rich.progress import Progress

    from road_interp import measure
    from road_interp.models.loading import load_tokenizer

    _quiet_libraries()
    _check_folder(out)
    texts = _read_texts(data, text, most)
    process = PartialState(cpu=not torch.cuda.is_available())
    loaded = [_load_model_or_run(name) for name in (base, tuned)]
    models, recipe = [model.to(process.device) for model, *_ in loaded], loaded[0][1]
    tokenizer = load_tokenizer(recipe)
    with Progress(console=Console(stderr=True), disable=not process.is_main_process) as bar:
        line = bar.add_task("texts", total=len(texts))
        report = measure.drift(
            models[0],
            models[1],
            measure.text_batches(texts, tokenizer, recipe.max_length),
            token or ("last" if tokenizer.cls_token is None else "first"),  # type: ignore[arg-type]
            base_name=loaded[0][2],
            tuned_name=loaded[1][2],
            progress=lambda count: bar.advance(line, count),
        )
    if process.is_main_process:
        _show_drift(report, out, as_json)
    process.destroy_process_group()


def _read_texts(data: str, column: str, most: int | None) -> list[str]:
    """Texts of a file or data set: all in their order, or some drawn by a fixed seed."""
    from road_interp.data.labelled import drawn, read_rows

    rows = read_rows(data, None, "test")
    if column not in rows.column_names:
        raise InputError(f"'{data}' has no column '{column}' (--text); its columns are {', '.join(rows.column_names)}")
    texts = (rows if most is None else drawn(rows, most))[column]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"'{data}', row {row}: column '{column}' holds {text!r}, not text")
    return texts


def _load_model_or_run(identifier: str) -> tuple[Any, ModelRecipe, str]:
    """A model, with its rotations where it is a run folder, how it was loaded, and its name."""
    from road_interp.models.loading import check_length, load_model
    from road_interp.recipes.schema import ModelRecipe
    from road_interp.runs.run import Run
    from road_interp.runs.run_files import RECIPE

    if (Path(identifier) / RECIPE).is_file():
        run = Run.load(identifier)
        return run.load_model(), run.recipe.model, run.folder.name
    recipe = ModelRecipe(identifier)
    model, _ = load_model(recipe)
    check_length(model, recipe)
    return model, recipe, recipe.name


def _show_drift(report: DriftReport, out: Path | None, as_json: bool) -> None:
    from road_interp.plots import export

    paths = [] if out is None else export.draw_drift(report, out)
    if as_json:
        print(report.to_json())
        return
    console.print(tables.drift(report))
    for path in paths:
        console.print(f"figure: {path}", soft_wrap=True)


@app.command()
def ablate(
    run: Annotated[Path, typer.Argument(help="a run folder: of one classification task, or of behaviours")],
    most: Annotated[int | None, typer.Option(min=1, help="test examples to draw; all by default")] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="layer, kind or planes, beside the parts of all planes; may be repeated; all by default"),
    ] = None,
    refit: Annotated[bool, typer.Option("--refit", help="score the parts with a refitted head too")] = False,
    out: Annotated[Path | None, typer.Option(help="folder for the figure and its numbers; by default the run's figures/")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Score a run with parts of its adapter set back: angles or magnitudes, layers, modules, all but a few planes."""
    from road_interp.measure.ablation import BY
    from road_interp.plots import export
    from road_interp.runs.run_files import FIGURES

    _check_folder(out)
    report = _ablate(run, most, by or BY, refit, device)
    path = export.draw_ablation(report, out or run / FIGURES)
    if as_json:
        print(json.dumps(report.summary()))
        return
    console.print(tables.ablation(report))
    console.print(f"figure: {path}", soft_wrap=True)


def _ablate(folder: Path, most: int | None, by: Collection[str], refit: bool, device: str | None) -> AblationReport:
    from rich.progress import Progress

    from road_interp import measure
    from road_interp.runs.run import Run
    from road_interp.training.scoring import scorer_of

    _quiet_libraries()
    run = Run.load(folder)
    scorer = scorer_of(run, most, device)
    if refit and scorer.refitted is None:
        raise InputError(f"--refit: heads are fitted again of runs that learned one classification task only, not of '{folder}'")
    with Progress(console=Console(stderr=True)) as bar:
        line = bar.add_task("", total=None)
        return measure.ablation(
            run.adapter,
            scorer,
            model=run.recipe.model.name,
            task=scorer.task,
            seed=run.recipe.seed,
            metric=scorer.metric,
            refitted=scorer.refitted if refit else None,
            by=by,
            progress=lambda name, done, total: bar.update(line, description=name, completed=done, total=total),
        )


@app.command()
def diagnose(
    run: Annotated[Path, typer.Argument(help="a run folder: of one classification task, of several heads, or of behaviours")],
    most: Annotated[
        int | None, typer.Option(min=1, help="test examples to draw; all by default, of which behaviours answer each four times")
    ] = None,
    control: Annotated[
        Path | None, typer.Option(help="the run of another task, on the same sites, that should not suffer")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Ask whether a rotation was the wrong tool: does it rely on magnitudes, hurt a control, do tasks compose?"""
    from road_interp import measure
    from road_interp.recipes.schema import MixtureRecipe
    from road_interp.runs.run import Run
    from road_interp.training.scoring import scorer_of

    _quiet_libraries()
    loaded, other = Run.load(run), None if control is None else Run.load(control)
    if other is not None and (other.recipe.model, other.adapter.sites) != (loaded.recipe.model, loaded.adapter.sites):
        raise InputError(f"'{control}' is of another model or of other sites than '{run}': its control must share them")
    scored = None if other is None else scorer_of(other, most, device)
    recipe, checks = loaded.recipe, []
    several = recipe if isinstance(recipe, MixtureRecipe) and len(recipe.tasks) > 1 else None
    if several is not None:
        checks.append(measure.fails_to_compose(loaded.composition))
    if several is None or not several.has_heads:
        checks.append(measure.needs_magnitudes(_ablate(run, most, (), False, device)))
    if other is not None and scored is not None:
        checks.append(_hurts(loaded, other, scored))
    diagnosis = measure.Diagnosis(tuple(checks))
    if as_json:
        print(diagnosis.to_json())
        return
    for check in diagnosis.checks:
        console.print(tables.check(check))


def _hurts(run: Run, control: Run, score: Score) -> Check:
    """The check on a control run: the adapter whole, and layer by layer."""
    from road_interp import measure

    layers = {f"layer {layer}": part for layer, part in run.adapter.by_layer().items()}
    adapters = {"control": control.adapter, "all layers": run.adapter, **layers}
    with Console(stderr=True).status("") as status:
        report = measure.interference(
            adapters,
            {"control": score},
            model=run.recipe.model.name,
            seed=run.recipe.seed,
            progress=lambda what: status.update(f"scoring {what}"),
        )
    return measure.hurts_others(report, "control", "all layers")


@app.command()
def bench(
    model: Annotated[
        str,
        typer.Argument(metavar="[RECIPE OR MODEL]", help="a throughput recipe, or a causal language model as recipes name it"),
    ] = SMOLLM2,
    overrides: Overrides = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="how often everything is timed")] = None,
    requests: Annotated[str | None, typer.Option(help="batch sizes of the generation task, as in 1,8,16")] = None,
    new_tokens: Annotated[int | None, typer.Option(min=1, help="generated per request")] = None,
    lengths: Annotated[str | None, typer.Option(help="numbers of tokens to generate for eight requests")] = None,
    ranks: Annotated[str | None, typer.Option(help="of one unmerged LoRA for eight rows")] = None,
    peers: Annotated[str | None, typer.Option(help="time these only, as in bare,RoadModel; all by default")] = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(help="folder for the figure and its numbers")] = None,
    as_json: AsJson = False,
) -> None:
    """Time rotations beside the bare model, pyvene's loop, PEFT's RoAd and LoRA, and stacked LoRA, in one run."""
    from road_interp.files import write_atomically
    from road_interp.measure.throughput import bench_recipe
    from road_interp.plots import export
    from road_interp.recipes.loader import builtin_recipes, load_recipe
    from road_interp.recipes.schema import BenchRecipe

    _quiet_libraries()
    _check_folder(out)
    lists = {"requests": requests, "lengths": lengths, "ranks": ranks, "peers": peers}
    changes = [f"{key}=[{text}]" for key, text in lists.items() if text is not None]
    changes += [f"{key}={count}" for key, count in (("rounds", rounds), ("new_tokens", new_tokens)) if count is not None]
    is_recipe = model in builtin_recipes() or Path(model).suffix in (".yaml", ".yml")  # a model may be a file too, with .gguf
    source = model if is_recipe else {"model": {"id": model}, "requests": [1, 2, 4, 8, 16]}
    recipe = load_recipe(source, [*(overrides or ()), *changes, *_as_overrides(dtype, seed)])
    if not isinstance(recipe, BenchRecipe):
        raise InputError(f"recipe '{model}' says nothing to time: its command is road-interp train")
    with Console(stderr=True).status("") as status:

        def progress(task: str, so_far: BenchReport) -> None:
            status.update(f"timing: {task}")
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                write_atomically(out / "throughput.partial.json", so_far.to_json())

        report = bench_recipe(recipe, device, progress)
    if out is not None:
        export.draw_bench(report, out)
        (out / "throughput.partial.json").unlink()
    print(report.to_json()) if as_json else console.print(tables.bench(report))
