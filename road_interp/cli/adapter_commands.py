"""Commands about adapters: inspect, report, compose, export."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from road_interp.cli import tables
from road_interp.cli.options import (
    AdapterArgument,
    AsJson,
    NewFolder,
    RunFolder,
    app,
    check_new_folder,
    console,
    print_figures,
    print_result,
)
from road_interp.cli.output_file import check_figure_folder, check_output_file, default_output, name_of
from road_interp.errors import InputError
from road_interp.files import is_file
from road_interp.progress import progress_bar, waiting
from road_interp.sources import local_folder, readable_name

if TYPE_CHECKING:
    from rich.table import Table

    from road_interp.adapters.road_adapter import RoadAdapter
    from road_interp.measure.answers import Answers
    from road_interp.plots.html_report import ScoreTable
    from road_interp.runs.run import Run


@app.command()
def inspect(
    adapter: AdapterArgument,
    out: Annotated[Path | None, typer.Option(help="folder for the figures; by default figures/NAME, for a folder NAME")] = None,
    as_json: AsJson = False,
) -> None:
    """Print angles and magnitudes of the planes at every site, and draw the figures."""
    folder = local_folder(adapter)
    out = out or default_output(folder, Path("figures") / name_of(folder))
    check_figure_folder(out)
    with waiting("reading and drawing the adapter"):
        from road_interp import measure
        from road_interp.plots import export

        report = measure.angles(load_adapter(folder))
        paths = export.draw_adapter(report, out)
    if as_json:
        print(json.dumps({site.name: site.summary() for site in report.sites}))
        return
    console.print(tables.angles(report))
    print_figures(paths)


@app.command()
def report(
    adapter: AdapterArgument,
    out: Annotated[Path | None, typer.Option(help="path of the HTML page; by default NAME.html, for a folder NAME")] = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page: scores, answers to test texts, figures, sites, and a view of single planes."""
    from road_interp.files import write_atomically
    from road_interp.plots.html_report import report_page
    from road_interp.recipes.paths import data_ids
    from road_interp.runs.run import Run
    from road_interp.runs.run_files import RECIPE, own_files

    folder = local_folder(adapter)
    loaded = load_adapter(folder)
    run = Run.load(folder) if is_file(folder / RECIPE) else None
    name = name_of(folder)
    out = out or default_output(folder, Path(f"{name}.html"))
    check_output_file(out, "--out", [*own_files(folder), *(() if run is None else data_ids(run.recipe))])
    contents = ("", [], []) if run is None else (_summary(run), _score_tables(run), _answers(run))
    write_atomically(out, report_page(loaded, name, *contents))
    print_result(as_json, {"page": str(out)}, f"page: {out}")


def _summary(run: Run) -> str:
    """What the scores of a run are, in a sentence."""
    from road_interp.runs.run_files import FROZEN

    model = readable_name(run.recipe.model.name)
    if run.planes is None:
        rotated, frozen = (tables.score(scores["test"]) for scores in (run.metrics, run.metrics[FROZEN]))
        return f"{model} with trained rotations and head: {rotated}. With a trained head alone: {frozen}."
    return f"The tasks {', '.join(run.planes.tasks)} of {model} on their test data, by the planes that are active."


def _score_tables(run: Run) -> list[ScoreTable]:
    """The tables that the command line prints of a run; all its metrics where it has none."""
    from road_interp.plots.html_report import ScoreTable, scores_of

    if run.planes is None:
        return [_score_table(tables.run(run))._replace(caption="")]
    shown: Any = tables.multitask(run.metrics.get("test", {})).renderables
    return [_score_table(table) for table in shown] or [ScoreTable("", ("score", "value"), scores_of(run.metrics))]


def _score_table(table: Table) -> ScoreTable:
    from road_interp.plots.html_report import ScoreTable

    columns = [str(column.header) for column in table.columns]
    return ScoreTable(str(table.title), columns, list(zip(*(map(str, column.cells) for column in table.columns), strict=True)))


def _answers(run: Run) -> list[Answers]:
    """The answers of every head of a run to its test texts, where it chooses between classes."""
    from road_interp.recipes.schema import MultiTaskClassificationRecipe
    from road_interp.runs.answers import answers_of
    from road_interp.training.multitask_classifier import answers_by_task

    try:
        with progress_bar() as update:
            if isinstance(run.recipe, MultiTaskClassificationRecipe):
                return answers_by_task(run, update)
            found = answers_of(run, update)
    except InputError as error:  # such as data that are not on this machine
        typer.echo(f"the page is without the answers to the test texts: {error}", err=True)
        return []
    return [] if found is None else [found]


@app.command()
def compose(
    adapters: Annotated[list[str], typer.Argument(help="two or more adapter or run folders")],
    weights: Annotated[str | None, typer.Option(help="exponent of each adapter, as in 1,0.5; 1 by default")] = None,
    out: NewFolder = None,
    as_json: AsJson = False,
) -> None:
    """Multiply powers of adapters: A^w1 B^w2 ..., where the last adapter acts on the state first."""
    exponents = [1.0] * len(adapters) if weights is None else _numbers(weights)
    if len(exponents) != len(adapters):
        raise InputError(f"{len(adapters)} adapters need {len(adapters)} weights, not '{weights}'; separate them by commas")
    folder = check_new_folder(out)
    if len(adapters) < 2:
        raise InputError("one adapter is given: compose needs two or more")
    loaded = [load_adapter(local_folder(adapter)) for adapter in adapters]
    product, *others = (each if exponent == 1 else each**exponent for each, exponent in zip(loaded, exponents, strict=True))
    for other in others:
        product = product @ other
    product.save(folder)
    summary = {"out": str(folder), "variant": product.variant, "parameters": product.num_parameters}
    print_result(as_json, summary, f"{product.variant} adapter in {folder}")


@app.command()
def export(
    run: RunFolder,
    out: NewFolder = None,
    as_json: AsJson = False,
) -> None:
    """Write the rotations and the head of a run as a folder for PeftModel.from_pretrained."""
    folder = check_new_folder(out)
    with waiting("reading the run and its model"):
        from road_interp.runs.run import Run

        Run.load(run).to_peft(folder)
    print_result(as_json, {"out": str(folder)}, f"PEFT adapter in {folder}")


def load_adapter(folder: Path, run: Run | None = None) -> RoadAdapter:
    """The adapter in a run folder, an adapter folder or a PEFT folder.

    Args:
        run: a run whose model the adapter is for; pyvene folders need it, and for PEFT folders its model determines the sites.
    """
    from road_interp.adapters.road_adapter import RoadAdapter
    from road_interp.adapters.storage import holds_adapter
    from road_interp.runs.run_files import RECIPE, check_finished

    if is_file(folder / RECIPE):
        check_finished(folder)
        if run is not None:
            from road_interp.runs.run import Run

            return Run.load(folder).adapter  # whose positions are those of its recipe, also in a run of 0.1.0
    base = None if run is None else run.load_model().model
    if base is not None and not holds_adapter(folder):
        from road_interp.models import pyvene_io

        if is_file(folder / pyvene_io.CONFIG):
            return pyvene_io.read_interventions(folder, base)[0]
    return RoadAdapter.load(folder, base)


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"--weights '{text}' must be numbers with commas between, as in 1,0.5") from None
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"--weights '{text}' must be finite numbers")
    return numbers
