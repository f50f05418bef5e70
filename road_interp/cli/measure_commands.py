"""Commands that measure: drift, ablate, diagnose, bench."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from road_interp.cli import tables
from road_interp.cli.options import (
    AsJson,
    Device,
    Limit,
    ModelOrRun,
    Overrides,
    RecipeOptions,
    app,
    check_folder,
    console,
    grouped,
    quiet_libraries,
)
from road_interp.errors import InputError
from road_interp.progress import progress_bar
from road_interp.sources import SMOLLM2

if TYPE_CHECKING:
    from road_interp.measure import AblationReport, Check, DriftReport
    from road_interp.measure.ablation import Scorer
    from road_interp.measure.throughput import ThroughputReport
    from road_interp.recipes.schema import ModelRecipe
    from road_interp.runs.run import Run


@dataclass(frozen=True)
class TextOptions:
    """Which texts of the data, and which tokens of them."""

    text: Annotated[str, typer.Option(help="the column that holds them")] = "text"
    token: Annotated[
        str | None, typer.Option(help="whose states: first, last, mean or all; by default [CLS] or, where there is none, last")
    ] = None
    limit: Annotated[int | None, typer.Option("--limit", "--most", min=1, help="texts to draw; all by default")] = None


@app.command()
@grouped
def drift(
    base: ModelOrRun,
    tuned: ModelOrRun,
    data: Annotated[str, typer.Argument(help="texts: a file, a data set id, or package://NAME/path")],
    *,
    options: TextOptions,
    out: Annotated[Path | None, typer.Option(help="folder for the figures and their numbers")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the hidden states of two models on the same texts: how far they turn, how much they grow.

    Under torchrun the texts are divided among the processes; the numbers are the same.
    """
    import torch
    from accelerate import PartialState

    from road_interp import measure
    from road_interp.models.loading import load_tokenizer

    quiet_libraries()
    check_folder(out)
    texts = _read_texts(data, options.text, options.limit)
    process = PartialState(cpu=not torch.cuda.is_available())
    loaded = [_load_model_or_run(name) for name in (base, tuned)]
    models, recipe = [model.to(process.device) for model, *_ in loaded], loaded[0][1]
    tokenizer = load_tokenizer(recipe)
    token = options.token or ("last" if tokenizer.cls_token is None else "first")
    with progress_bar(process.is_main_process) as told:
        report = measure.drift(
            models[0],
            models[1],
            measure.text_batches(texts, tokenizer, recipe.max_length),
            token,  # type: ignore[arg-type]
            base_name=loaded[0][2],
            tuned_name=loaded[1][2],
            progress=lambda what, done=0, total=None: told(what, done, len(texts)),
        )
    if process.is_main_process:
        _show_drift(report, out, as_json)
    process.destroy_process_group()


def _read_texts(data: str, column: str, limit: int | None) -> list[str]:
    """Texts of a file or data set: all in their order, or some drawn by a fixed seed."""
    from road_interp.data.labelled import read_rows, subsample

    rows = read_rows(data, None, "test")
    if column not in rows.column_names:
        raise InputError(f"'{data}' has no column '{column}' (--text); its columns are {', '.join(rows.column_names)}")
    texts = (rows if limit is None else subsample(rows, limit))[column]
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
    run: Annotated[Path, typer.Argument(help="a run folder: of one classification, of one head, or of behaviours")],
    limit: Limit = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="layer, kind or planes, beside the components of all planes; may be repeated; all by default"),
    ] = None,
    refit: Annotated[bool, typer.Option("--refit", help="score the components with a refitted head too")] = False,
    out: Annotated[Path | None, typer.Option(help="folder for the figure and its numbers; by default the run's figures/")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Score a run with components of its adapter set back: angles or magnitudes, layers, modules, all but a few planes."""
    from road_interp.measure.ablation import BY
    from road_interp.plots import export
    from road_interp.runs.run_files import FIGURES

    check_folder(out)
    report = _ablate(run, limit, by or BY, refit, device)
    path = export.draw_ablation(report, out or run / FIGURES)
    if as_json:
        print(json.dumps(report.summary()))
        return
    console.print(tables.ablation(report))
    console.print(f"figure: {path}", soft_wrap=True)


def _ablate(folder: Path, limit: int | None, by: Collection[str], refit: bool, device: str | None) -> AblationReport:
    from road_interp import measure
    from road_interp.runs.run import Run
    from road_interp.training.scoring import make_scorer

    quiet_libraries()
    run = Run.load(folder)
    scorer = make_scorer(run, limit, device)
    if refit and scorer.refitted is None:
        raise InputError(f"--refit: heads are fitted again of runs that learned one classification task only, not of '{folder}'")
    model, seed = run.recipe.model.name, run.recipe.seed
    with progress_bar() as told:
        return measure.ablation(run.adapter, scorer, model=model, seed=seed, by=by, refit=refit, progress=told)


@app.command()
def diagnose(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", "--most", min=1, help="test examples to draw; all by default, of which behaviours answer each four times"
        ),
    ] = None,
    control: Annotated[
        Path | None, typer.Option(help="the run of another task, on the same sites, that should not suffer")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Ask whether a rotation was the wrong tool: does it rely on magnitudes, hurt a control, do tasks compose?"""
    from road_interp import measure
    from road_interp.runs.run import Run
    from road_interp.training.scoring import is_one_number, make_scorer

    quiet_libraries()
    loaded, other = Run.load(run), None if control is None else Run.load(control)
    if other is not None and (other.recipe.model, other.adapter.sites) != (loaded.recipe.model, loaded.adapter.sites):
        raise InputError(f"'{control}' is of another model or of other sites than '{run}': its control must share them")
    scorer = None if other is None else make_scorer(other, limit, device)
    checks = []
    if len(loaded.recipe.task_names) > 1:
        checks.append(measure.fails_to_compose(loaded.composition))
    if is_one_number(loaded):
        checks.append(measure.needs_magnitudes(_ablate(run, limit, (), False, device)))
    if other is not None and scorer is not None:
        checks.append(_hurts(loaded, other, scorer))
    diagnosis = measure.Diagnosis(tuple(checks))
    if as_json:
        print(diagnosis.to_json())
        return
    for check in diagnosis.checks:
        console.print(tables.check(check))


def _hurts(run: Run, control: Run, scorer: Scorer) -> Check:
    """The check on a control run: the adapter whole, and layer by layer."""
    from road_interp import measure

    layers = {f"layer {layer}": part for layer, part in run.adapter.by_layer().items()}
    adapters = {"control": control.adapter, "all layers": run.adapter, **layers}
    model, seed = run.recipe.model.name, run.recipe.seed
    with progress_bar() as told:
        report = measure.interference(adapters, {"control": scorer}, model=model, seed=seed, progress=told)
    return measure.hurts_others(report, "control", "all layers")


@dataclass(frozen=True)
class WorkloadOptions:
    """Options that stand in for keys of a throughput recipe."""

    rounds: Annotated[int | None, typer.Option(min=1, help="how often everything is timed")] = None
    requests: Annotated[str | None, typer.Option(help="batch sizes of the generation task, as in 1,8,16")] = None
    new_tokens: Annotated[int | None, typer.Option(min=1, help="generated per request")] = None
    lengths: Annotated[str | None, typer.Option(help="numbers of tokens to generate for eight requests")] = None
    ranks: Annotated[str | None, typer.Option(help="of one unmerged LoRA for eight rows")] = None
    methods: Annotated[
        str | None, typer.Option("--methods", "--peers", help="time these only, as in bare,RoadModel; all by default")
    ] = None

    @property
    def overrides(self) -> list[str]:
        """The same as overrides of the recipe."""
        lists = {"requests": self.requests, "lengths": self.lengths, "ranks": self.ranks, "methods": self.methods}
        numbers = {"rounds": self.rounds, "new_tokens": self.new_tokens}
        changes = [f"{key}=[{text}]" for key, text in lists.items() if text is not None]
        return changes + [f"{key}={count}" for key, count in numbers.items() if count is not None]


@app.command()
@grouped
def bench(
    model: Annotated[
        str,
        typer.Argument(metavar="[RECIPE OR MODEL]", help="a throughput recipe, or a causal language model as recipes name it"),
    ] = SMOLLM2,
    overrides: Overrides = None,
    *,
    workload: WorkloadOptions,
    options: RecipeOptions,
    out: Annotated[Path | None, typer.Option(help="folder for the figure and its numbers")] = None,
    as_json: AsJson = False,
) -> None:
    """Time rotations beside the bare model, pyvene's loop, PEFT's RoAd, LoRA and OFT, and stacked LoRA, in one run."""
    from road_interp.measure.throughput import run_throughput_recipe
    from road_interp.plots import export
    from road_interp.recipes.loader import builtin_recipes, load_throughput_recipe

    quiet_libraries()
    check_folder(out)
    is_recipe = model in builtin_recipes() or Path(model).suffix in (".yaml", ".yml")  # a model may be a file too, with .gguf
    source = model if is_recipe else {"kind": "throughput", "model": {"id": model}, "requests": [1, 2, 4, 8, 16]}
    recipe = load_throughput_recipe(source, [*(overrides or ()), *workload.overrides, *options.overrides])

    def keep(so_far: ThroughputReport) -> None:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            so_far.save(out / "throughput.partial.json")

    with progress_bar() as told:
        report = run_throughput_recipe(recipe, options.device, told, keep)
    if out is not None:
        export.draw_throughput(report, out)
        (out / "throughput.partial.json").unlink()
    print(report.to_json()) if as_json else console.print(tables.throughput(report))
