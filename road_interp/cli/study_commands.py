"""The command `study`."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from road_interp.cli.options import AsJson, Overrides, app, console, grouped, joined, print_figures, print_result, quiet_libraries
from road_interp.cli.output_file import check_figure_folder
from road_interp.errors import InputError
from road_interp.progress import progress_bar, waiting

if TYPE_CHECKING:
    from road_interp.training.study import Study, StudyOptions


@dataclass(frozen=True)
class Selection:
    """Options that select pieces of a study and the folders."""

    seeds: Annotated[str, typer.Option(help="as in 0,1,2; some conditions take the first ones only; by default the study's")] = ""
    only: Annotated[list[str] | None, typer.Option(help="a condition to measure; may be repeated; all by default")] = None
    quick: Annotated[bool, typer.Option("--quick", help="measure a few steps and examples only; the numbers are meaningless")] = (
        False
    )
    redraw: Annotated[bool, typer.Option("--redraw", help="draw existing results without measuring")] = False
    results: Annotated[Path, typer.Option(help="folder of the results")] = Path("results")
    runs: Annotated[Path, typer.Option(help="parent of the run folders")] = Path("runs/studies")
    out: Annotated[Path | None, typer.Option(help="folder for the figures; by default figures, with --quick figures/quick")] = (
        None
    )

    @property
    def figures(self) -> Path:
        """The folder for the figures. Those of meaningless numbers do not replace others."""
        return self.out or Path("figures/quick" if self.quick else "figures")


@app.command()
@grouped
def study(
    name: Annotated[str | None, typer.Argument(help="name of the study; --list shows all")] = None,
    overrides: Overrides = None,
    *,
    list_all: Annotated[
        bool, typer.Option("--list", help="list the studies with their question and duration in minutes")
    ] = False,
    selection: Selection,
    as_json: AsJson = False,
) -> None:
    """Run a study: measure missing pieces, draw the figures, print a summary.

    With --redraw and no name, draw every study that has results, and write one HTML page.
    """
    if selection.only and name is None:
        raise InputError("--only names conditions of one study: name the study, too")
    if list_all:
        _print_studies(as_json)
    elif name is not None:
        _run(name, _options(selection, overrides), selection, as_json)
    elif selection.redraw:
        _redraw(_options(selection, overrides), selection.figures, as_json)
    else:
        raise InputError("name a study, list them with --list, or draw all that have results with --redraw")


def _run(name: str, options: StudyOptions, selection: Selection, as_json: bool) -> None:
    """Measure or read one study, draw it and print its summary."""
    with waiting("reading the study"):
        from road_interp.training.study import find_study
        from road_interp.training.study_page import draw_study
        from road_interp.training.study_pieces import read_study, run_study

        chosen = find_study(name)
    check_figure_folder(selection.figures)
    if selection.redraw:
        report = read_study(chosen, options)
    else:
        with redirect_stdout(sys.stderr), progress_bar() as update:  # trackers print, and standard output is for results
            report = run_study(chosen, options, update)
    with waiting("drawing"):
        paths = draw_study(chosen, report, options, selection.figures)
        sentence, numbers = chosen.describe(report)
    if as_json:
        print(json.dumps({"sentence": sentence, "numbers": dict(numbers), "figures": [str(path) for path in paths]}))
        return
    console.print(sentence, soft_wrap=True)
    print_figures(paths)


def _redraw(options: StudyOptions, folder: Path, as_json: bool) -> None:
    """Draw every study that has results, and write one page."""
    with waiting("reading the studies"):
        from road_interp.training.study import studies
        from road_interp.training.study_page import write_page

        known = list(studies().values())
    check_figure_folder(folder)
    with progress_bar() as update:
        page = write_page(known, options, folder, update)
    print_result(as_json, {"page": str(page)}, f"page: {page}")


def _options(selection: Selection, overrides: list[str] | None) -> StudyOptions:
    quiet_libraries()
    from road_interp.training.study import StudyOptions

    try:
        seeds = tuple(int(seed) for seed in selection.seeds.split(",") if selection.seeds)
    except ValueError:
        raise InputError(f"--seeds '{selection.seeds}' must be whole numbers with commas between, as in 0,1,2") from None
    given = tuple(joined(overrides))
    return StudyOptions(given, seeds, tuple(selection.only or ()), selection.quick, selection.results, selection.runs)


def _print_studies(as_json: bool) -> None:
    with waiting("reading the studies"):
        from road_interp.training.study import studies

        known = list(studies().values())
    if as_json:
        shown = ("name", "title", "question", "minutes")
        rows = [{**{key: getattr(each, key) for key in shown}, "recipe": _recipe(each)} for each in known]
        print(json.dumps({"studies": rows}))
        return
    table = Table(title="Studies; minutes on two cores")
    table.add_column("study", no_wrap=True)  # a name that is cut cannot be given back
    for column in ("question", "recipe", "minutes"):
        table.add_column(column, overflow="fold")
    for each in known:
        table.add_row(each.name, each.question, _recipe(each), str(each.minutes))
    console.print(table)


def _recipe(study: Study) -> str:
    """The name of the study's recipe; empty if nothing is trained."""
    return study.recipe if isinstance(study.recipe, str) else ""
