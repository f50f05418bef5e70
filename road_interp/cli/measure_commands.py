"""Commands that measure: drift, ablate, diagnose, size, bench."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from road_interp.cli import tables
from road_interp.cli.options import (
    AsJson,
    Device,
    Limit,
    ModelOrRun,
    Overrides,
    RecipeOptions,
    RunFolder,
    app,
    console,
    grouped,
    joined,
    print_figures,
    quiet_libraries,
)
from road_interp.cli.output_file import check_figure_folder, default_output, name_of
from road_interp.errors import InputError
from road_interp.files import is_file
from road_interp.progress import Progress, progress_bar
from road_interp.sources import SMOLLM2, local_folder

if TYPE_CHECKING:
    from road_interp.measure import AblationReport, Check, DriftReport
    from road_interp.measure.ablation import Scorer
    from road_interp.measure.throughput import ThroughputReport
    from road_interp.recipes.schema import ModelRecipe, MultiTaskGenerationRecipe
    from road_interp.runs.run import Run


@dataclass(frozen=True)
class TextOptions:
    """Options that select texts of the data and tokens of each text."""

    text: Annotated[str, typer.Option(help="column with the texts")] = "text"
    token: Annotated[
        str | None,
        typer.Option(help="states to compare: first, last, mean or all tokens; by default first ([CLS]), else last"),
    ] = None
    limit: Annotated[int | None, typer.Option("--limit", "--most", min=1, help="number of texts; all by default")] = None


LOADED_ALIKE = ("dtype", "max_length", "attn_implementation")  # settings in which compared models do not differ


@app.command()
@grouped
def drift(
    base: ModelOrRun,
    tuned: ModelOrRun,
    data: Annotated[str, typer.Argument(help="texts: a file, a data set id, or package://NAME/path")],
    *,
    options: TextOptions,
    out: Annotated[Path | None, typer.Option(help="folder for the figures and their data")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the hidden states of two models on the same texts: angle and change of norm at every block.

    Beside a run of kind multitask-generation the texts are prompts, in the template of its training.

    Under torchrun the texts are divided among the processes; the results are the same.
    """
    quiet_libraries()
    import torch
    from accelerate import PartialState

    from road_interp import measure
    from road_interp.data.multitask import format_prompts
    from road_interp.measure.drift import check_token
    from road_interp.models.hidden_states import text_token
    from road_interp.models.loading import load_tokenizer

    if out is not None:
        check_figure_folder(out)
    if options.token is not None:
        check_token(options.token)
    process = PartialState(cpu=not torch.cuda.is_available())
    texts = _read_texts(data, options.text, options.limit)
    with progress_bar(process.is_main_process) as update:
        before, after = _load_both(base, tuned, update)
        tokenizer = load_tokenizer(before.recipe)
        _check_same_tokens(before, after, texts)
        template = _template_of_runs(base, tuned)
        prompts = texts if template is None else format_prompts(template, texts, tokenizer)
        report = measure.drift(
            before.model.to(process.device),
            after.model.to(process.device),
            measure.text_batches(prompts, tokenizer, before.recipe.max_length, add_special_tokens=template is None),
            options.token or text_token(tokenizer),  # type: ignore[arg-type]
            base_name=before.name,
            tuned_name=after.name,
            progress=lambda what, done=0, total=None: update(what, done, len(texts)),
        )
    if process.is_main_process:
        _print_drift(report, out, as_json)
    process.destroy_process_group()


def _read_texts(data: str, column: str, limit: int | None) -> list[str]:
    """The texts of a file or data set in their order, or `limit` of them drawn with a fixed seed."""
    from road_interp.data.division import subsample
    from road_interp.data.rows import check_column, check_texts, read_rows

    rows = read_rows(data, None, "test")
    check_column(rows, column, data, "--text")
    check_texts(rows[column], column, data)
    return list((rows if limit is None else subsample(rows, limit))[column])


class _Loaded(NamedTuple):
    """A model (a run's with its rotations), the recipe that loads its base model, and its name."""

    model: Any
    recipe: ModelRecipe
    name: str


def _load_both(base: str, tuned: str, progress: Progress) -> tuple[_Loaded, _Loaded]:
    """Both models, loaded alike. Raises InputError for runs that differ in how their models are loaded."""
    settings = _settings_of_runs(base, tuned)
    progress(f"loading {base}")
    before = _load_model_or_run(base, settings)
    progress(f"loading {tuned}")
    return before, _load_model_or_run(tuned, settings)


def _check_same_tokens(base: _Loaded, tuned: _Loaded, texts: list[str]) -> None:
    """Raise InputError for a text of which the tokeniser of `tuned`, if it has one, makes other tokens than that of `base`.

    Both models read those of `base`.
    """
    from road_interp.models.loading import load_tokenizer

    if base.recipe.id == tuned.recipe.id:
        return
    try:
        tokenizers = [load_tokenizer(each.recipe) for each in (base, tuned)]
    except InputError:  # a model can be saved without one
        return
    tokens = (tokenizer(texts, verbose=False)["input_ids"] for tokenizer in tokenizers)
    for text, one, other in zip(texts, *tokens, strict=True):
        if one != other:
            what = f"{base.name} and {tuned.name} have other tokens for the text {text[:40]!r}"
            raise InputError(f"{what}, and drift would read those of {base.name} in both: compare models of one tokeniser")


def _recipes_of_runs(*identifiers: str) -> list[Any]:
    """The recipes of the runs among these."""
    from road_interp.runs.run import Run
    from road_interp.runs.run_files import RECIPE

    return [Run.load(each).recipe for each in identifiers if is_file(local_folder(each) / RECIPE)]


def _template_of_runs(*identifiers: str) -> MultiTaskGenerationRecipe | None:
    """The recipe whose template a run among these is trained in; None without one. Raises InputError for two templates."""
    from road_interp.recipes.schema import MultiTaskGenerationRecipe

    found = [each for each in _recipes_of_runs(*identifiers) if isinstance(each, MultiTaskGenerationRecipe)]
    if len({each.template for each in found}) > 1:
        raise InputError("the runs have different templates, so that their prompts differ: compare runs of one template")
    return found[0] if found else None


def _settings_of_runs(*identifiers: str) -> ModelRecipe | None:
    """How the runs among these load their models; None without a run. Raises InputError for runs that differ in it."""
    found = [each.model for each in _recipes_of_runs(*identifiers)]
    for key in LOADED_ALIKE:
        if len({getattr(each, key) for each in found}) > 1:
            given = " and ".join(str(getattr(each, key)) for each in found)
            raise InputError(f"the runs have model.{key} {given}: rounding and lengths would count as drift")
    return found[0] if found else None


def _load_model_or_run(identifier: str, settings: ModelRecipe | None) -> _Loaded:
    """A model or a run; a model beside a run is loaded with the run's `settings`, so that the two differ in weights only."""
    from road_interp.models.loading import check_length, load_model
    from road_interp.recipes.schema import ModelRecipe
    from road_interp.runs.run import Run
    from road_interp.runs.run_files import RECIPE

    if is_file(local_folder(identifier) / RECIPE):
        run = Run.load(identifier)
        return _Loaded(run.load_model(), run.recipe.model, name_of(run.folder))
    recipe = ModelRecipe(identifier)
    if settings is not None:
        same = {key: getattr(settings, key) for key in LOADED_ALIKE}
        recipe = settings if settings.id == identifier else replace(recipe, **same)
    model, _ = load_model(recipe)
    check_length(model, recipe)
    return _Loaded(model, recipe, recipe.name)


def _print_drift(report: DriftReport, out: Path | None, as_json: bool) -> None:
    from road_interp.plots import export

    paths = [] if out is None else export.draw_drift(report, out)
    if as_json:
        print(report.to_json())
        return
    console.print(tables.drift(report))
    print_figures(paths)


@app.command()
def ablate(
    run: Annotated[str, typer.Argument(help="folder of a run with one head, or with behaviours")],
    limit: Limit = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="further groups to ablate: layer, kind or planes; may be repeated; all by default"),
    ] = None,
    refit: Annotated[bool, typer.Option("--refit", help="also score the components with a refitted head")] = False,
    out: Annotated[
        Path | None, typer.Option(help="folder for the figure and its data; by default figures/NAME, for a run NAME")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Score a run with components of its adapter reset to the identity: angles, magnitudes, layers, module kinds or planes."""
    from road_interp.measure.ablation import BY
    from road_interp.plots import export

    folder = local_folder(run)
    out = out or default_output(folder, Path("figures") / name_of(folder))
    check_figure_folder(out)
    report = _ablate(run, limit, by or BY, refit, device)
    path = export.draw_ablation(report, out)
    if as_json:
        print(report.to_json())
        return
    console.print(tables.ablation(report))
    print_figures([path])


def _ablate(folder: str, limit: int | None, by: Collection[str], refit: bool, device: str | None) -> AblationReport:
    quiet_libraries()
    from road_interp import measure
    from road_interp.runs.run import Run
    from road_interp.training.scoring import make_scorer

    run = Run.load(folder)
    model, seed = run.recipe.model.name, run.recipe.seed
    with progress_bar() as update:
        scorer = make_scorer(run, limit, device, update)
        if refit and scorer.refitted is None:
            raise InputError(f"--refit needs a run of one classification task; '{folder}' has no head that can be refitted")
        return measure.ablation(run.adapter, scorer, model=model, seed=seed, by=by, refit=refit, progress=update)


@app.command()
def diagnose(
    run: RunFolder,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            "--most",
            min=1,
            help="number of test examples, all by default; behaviours generate four answers for each. That tasks compose is "
            "judged by the scores of the run",
        ),
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="a run of another task on the same model and sites, whose score should not drop")
    ] = None,
    margin: Annotated[float, typer.Option(min=0, max=1, help="accuracy that may be lost; choose it before you measure")] = 0.01,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Test whether rotations suit a task: reliance on magnitudes, damage to a control task, failure of tasks to compose."""
    quiet_libraries()
    from road_interp import measure
    from road_interp.runs.run import Run
    from road_interp.training.scoring import is_one_number, make_scorer

    loaded, other = Run.load(run), None if control is None else Run.load(control)
    if other is not None and (other.recipe.model, other.adapter.sites) != (loaded.recipe.model, loaded.adapter.sites):
        raise InputError(f"--control: '{control}' must have the model and the sites of '{run}'")
    with progress_bar(other is not None) as update:
        scorer = None if other is None else make_scorer(other, limit, device, update)
    checks = []
    if len(loaded.recipe.task_names) > 1 and len(loaded.composition.tasks) > 1:
        checks.append(measure.fails_to_compose(loaded.composition, margin))
    if is_one_number(loaded):
        checks.append(measure.needs_magnitudes(_ablate(run, limit, (), False, device), margin))
    if other is not None and scorer is not None:
        checks.append(_check_control(loaded, other, scorer, margin))
    if not checks:
        raise InputError(f"'{run}' has no single score and no tasks that are scored together: there is nothing to check")
    diagnosis = measure.Diagnosis(tuple(checks))
    if as_json:
        print(diagnosis.to_json())
        return
    for check in diagnosis.checks:
        console.print(tables.check(check))


def _check_control(run: Run, control: Run, scorer: Scorer, margin: float) -> Check:
    """The check on a control run, for the whole adapter and for each of its layers."""
    from road_interp import measure

    layers = {f"layer {layer}": adapter for layer, adapter in run.adapter.by_layer().items()}
    adapters = {"control": control.adapter, "all layers": run.adapter, "undone": control.adapter.inverse(), **layers}
    model, seed = run.recipe.model.name, run.recipe.seed
    with progress_bar() as update:
        report = measure.interference(adapters, {"control": scorer}, model=model, seed=seed, progress=update)
    return measure.hurts_others(report, "control", "all layers", margin, "undone")


@dataclass(frozen=True)
class WorkloadOptions:
    """Options that override keys of a throughput recipe."""

    rounds: Annotated[int | None, typer.Option(min=1, help="number of times everything is timed")] = None
    requests: Annotated[str | None, typer.Option(help="batch sizes of the generation task, as in 1,8,16")] = None
    new_tokens: Annotated[int | None, typer.Option(min=1, help="tokens to generate per request")] = None
    lengths: Annotated[str | None, typer.Option(help="numbers of tokens to generate for eight requests")] = None
    ranks: Annotated[str | None, typer.Option(help="ranks of one unmerged LoRA, with eight rows")] = None
    methods: Annotated[
        str | None, typer.Option("--methods", "--peers", help="methods to time, as in bare,RoadModel; all by default")
    ] = None
    tasks: Annotated[str | None, typer.Option(help="what to time, as in forward,requests,compiled decoding")] = None

    @property
    def overrides(self) -> list[str]:
        """The options as overrides of the recipe."""
        lists = {
            "requests": self.requests,
            "lengths": self.lengths,
            "ranks": self.ranks,
            "methods": self.methods,
            "tasks": self.tasks,
        }
        numbers = {"rounds": self.rounds, "new_tokens": self.new_tokens}
        overrides = [f"{key}=[{text}]" for key, text in lists.items() if text is not None]
        return overrides + [f"{key}={count}" for key, count in numbers.items() if count is not None]


@app.command()
def size(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...", help="hub id, folder, .gguf file, package://NAME/path or known name; all known by default"
        ),
    ] = None,
    sites: Annotated[str, typer.Option(help="presets or patterns with commas between")] = "all-linear,attention,block-output",
    variant: Annotated[str, typer.Option(help="road_1, road_2 or road_4, with commas between")] = "road_1,road_2,road_4",
    as_json: AsJson = False,
) -> None:
    """Size of adapters on models of any size, from their configurations alone, beside LoRA of rank 8."""
    quiet_libraries()
    from road_interp.measure.size import SHAPES, adapter_sizes, meta_model

    with progress_bar(not as_json) as report:
        reports = []
        for number, name in enumerate(names := models or list(SHAPES)):
            report(name, number, len(names))
            reports.append(adapter_sizes(meta_model(name), name, sites.split(","), variant.split(",")))
    if as_json:
        print(json.dumps({"models": [json.loads(each.to_json()) for each in reports]}))
    else:
        console.print(tables.sizes(reports))


@app.command()
@grouped
def bench(
    model: Annotated[
        str,
        typer.Argument(metavar="[RECIPE OR MODEL]", help="a throughput recipe, or the model.id of a causal language model"),
    ] = SMOLLM2,
    overrides: Overrides = None,
    *,
    workload: WorkloadOptions,
    options: RecipeOptions,
    out: Annotated[Path | None, typer.Option(help="folder for the figure and its data")] = None,
    as_json: AsJson = False,
) -> None:
    """Time rotations against the bare model, pyvene's loop, PEFT's RoAd, LoRA and OFT, and stacked LoRA."""
    quiet_libraries()
    from road_interp.measure.throughput import run_throughput_recipe
    from road_interp.plots import export
    from road_interp.recipes.loader import builtin_recipes, load_throughput_recipe

    if out is not None:
        check_figure_folder(out)
    is_recipe = model in builtin_recipes() or Path(model).suffix in (".yaml", ".yml")  # a path may also be a .gguf model
    source = model if is_recipe else {"kind": "throughput", "model": {"id": model}, "requests": [1, 2, 4, 8, 16]}
    recipe = load_throughput_recipe(source, joined(overrides, workload.overrides, options.overrides))

    def save_partial(partial_report: ThroughputReport) -> None:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            partial_report.save(out / "throughput.partial.json")

    with progress_bar() as update:
        report = run_throughput_recipe(recipe, options.device, update, save_partial)
    if out is not None:
        export.draw_throughput(report, out)
        (out / "throughput.partial.json").unlink(missing_ok=True)
    print(report.to_json()) if as_json else console.print(tables.throughput(report))
