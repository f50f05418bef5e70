"""The command that runs studies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from road_interp.cli.options import AsJson, Overrides, app, console, grouped, print_result, quiet_libraries
from road_interp.errors import InputError
from road_interp.progress import progress_bar

if TYPE_CHECKING:
    from road_interp.training.study import Study, StudyOptions


@dataclass(frozen=True)
class Selection:
    """Which pieces of a study, and where they go."""

    seeds: Annotated[str, typer.Option(help="as in 0,1,2")] = "0,1,2"
    only: Annotated[list[str] | None, typer.Option(help="a condition to measure; may be repeated; all by default")] = None
    quick: Annotated[
        bool, typer.Option("--quick", help="a few steps and examples of each condition: the numbers mean nothing")
    ] = False
    redraw: Annotated[bool, typer.Option("--redraw", help="draw what is there instead of measuring")] = False
    results: Annotated[Path, typer.Option(help="folder of the results")] = Path("results")
    runs: Annotated[Path, typer.Option(help="folder for the runs that are trained")] = Path("runs/studies")
    out: Annotated[Path, typer.Option(help="folder for the figures")] = Path("figures")


@app.command()
@grouped
def study(
    name: Annotated[str | None, typer.Argument(help="of the study; --list names them")] = None,
    overrides: Overrides = None,
    *,
    list_all: Annotated[bool, typer.Option("--list", help="the studies, with what they take in minutes")] = False,
    selection: Selection,
    as_json: AsJson = False,
) -> None:
    """Run a study: measure what is missing, draw its figures, say what they show.

    With --redraw and no name, draw every study that has results, and write a page of them.
    """
    from road_interp.training.study import find_study, studies
    from road_interp.training.study_page import write_page

    if list_all:
        _list(list(studies().values()), as_json)
    elif name is None and selection.redraw:
        page = write_page(list(studies().values()), _options(selection, tuple(overrides or ())), selection.out)
        print_result(as_json, {"page": str(page)}, f"page: {page}")
    elif name is None:
        raise InputError("name a study, list them with --list, or draw all that have results with --redraw")
    else:
        run_one(find_study(name), tuple(overrides or ()), selection, as_json)


def run_one(chosen: Study, overrides: tuple[str, ...], selection: Selection, as_json: bool) -> None:
    """Measure or read one study, draw it and print what it says."""
    from road_interp.training.study import read_study, run_study

    quiet_libraries()
    options = _options(selection, overrides)
    if selection.redraw:
        report = read_study(chosen, options)
    else:
        with progress_bar() as told:
            report = run_study(chosen, options, told)
    paths = chosen.draw(report, selection.out)
    sentence, numbers = chosen.describe(report)
    if as_json:
        print(json.dumps({"sentence": sentence, "numbers": dict(numbers), "figures": [str(path) for path in paths]}))
        return
    console.print(sentence, soft_wrap=True)
    for path in paths:
        console.print(f"figure: {path}", soft_wrap=True)


def _options(selection: Selection, overrides: tuple[str, ...]) -> StudyOptions:
    from road_interp.training.study import StudyOptions

    try:
        seeds = tuple(int(seed) for seed in selection.seeds.split(","))
    except ValueError:
        raise InputError(f"--seeds '{selection.seeds}' must be whole numbers with commas between, as in 0,1,2") from None
    return StudyOptions(overrides, seeds, tuple(selection.only or ()), selection.quick, selection.results, selection.runs)


def _list(known: list[Study], as_json: bool) -> None:
    if as_json:
        rows = [{"name": each.name, "title": each.title, "recipe": _recipe(each), "minutes": each.minutes} for each in known]
        print(json.dumps({"studies": rows}))
        return
    table = Table("study", "question", "recipe", "minutes", title="Studies, and what three seeds take on two cores")
    for each in known:
        table.add_row(each.name, each.title, _recipe(each), str(each.minutes))
    console.print(table)


def _recipe(study: Study) -> str:
    """Its name; empty where nothing is trained."""
    return study.recipe if isinstance(study.recipe, str) else ""
