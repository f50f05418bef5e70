"""Commands about recipes: recipes, new."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from road_interp.cli.options import AsJson, app, print_result
from road_interp.cli.output_file import check_output_file
from road_interp.errors import InputError


@app.command()
def recipes(as_json: AsJson = False) -> None:
    """List the built-in recipes, and what they need."""
    from road_interp.recipes.catalogue import catalogue

    entries = catalogue()
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for entry in entries:
        table.add_row(entry.name, Text.assemble(f"{entry.description}\n", (f"needs {', '.join(entry.needs)}", "dim")))
    print_result(as_json, {"recipes": [asdict(entry) for entry in entries]}, table)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="name of the recipe; its file is NAME.yaml")],
    model: Annotated[str | None, typer.Option(help="hub id, folder, .gguf file, package://NAME/path or models://NAME")] = None,
    data: Annotated[str | None, typer.Option(help="CSV, TSV, JSONL or Parquet file, folder or hub id")] = None,
    text: Annotated[str | None, typer.Option(help="column with the texts")] = None,
    label: Annotated[str | None, typer.Option(help="column with the labels")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a commented recipe for your own model and labelled file; what is not given is asked for on a terminal."""
    from road_interp.files import write_atomically
    from road_interp.recipes.new_recipe import new_recipe

    stem = name.removesuffix(".yaml")
    if stem.endswith("/") or not stem:
        raise InputError(f"'{name}' is not a name of a recipe")
    path = Path(f"{stem}.yaml")
    check_output_file(path, "NAME")
    if path.exists():
        raise InputError(f"'{path}' exists already; choose another name")
    source = _given(data, "--data", "file with the labelled texts")
    columns = (_given(text, "--text", "column with the texts"), _given(label, "--label", "column with the labels"))
    _check_columns(source, columns)
    content = new_recipe(path.stem, _given(model, "--model", "model"), source, *columns)
    write_atomically(path, content)
    print_result(as_json, {"recipe": str(path)}, f"recipe: {path}; train it with: road-interp train {quote(str(path))}")


def _given(value: str | None, option: str, what: str) -> str:
    """The value of an option, or the answer of the user. Raises InputError where there is no terminal to ask on."""
    if value is None and not sys.stdin.isatty():
        raise InputError(f"{option} is missing: the {what}")
    return typer.prompt(what, err=True) if value is None else value


def _check_columns(data: str, columns: tuple[str, ...]) -> None:
    """Raise InputError for a data file that cannot be read or lacks one of the columns; data sets of the Hub are not read."""
    from road_interp.data.rows import listed_columns, read_rows
    from road_interp.data.table_files import FORMATS

    if Path(data).suffix not in FORMATS:
        return
    rows = read_rows(data, None, "train")
    for column in columns:
        if column not in rows.column_names:
            raise InputError(f"'{data}' has no column '{column}'; {listed_columns(rows)}")
