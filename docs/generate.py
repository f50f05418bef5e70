"""The generated pages of the manual: tutorials, results, and the reference of names, recipe keys and commands.

python docs/generate.py        # writes docs/generated; `make docs` does it first
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import shutil
import textwrap
import typing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import typer
from matplotlib import use
from public_types import types_of
from write_numbers import drop_zero

import road_interp
from road_interp.cli.app import app
from road_interp.files import read_json_object
from road_interp.plots.export import for_the_web
from road_interp.recipes import schema
from road_interp.training.study import Study, StudyOptions, studies
from road_interp.training.study_page import command_of
from road_interp.training.study_pieces import FILES, read_study

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
NAMESPACES = {"api": "road_interp", **{name: f"road_interp.{name}" for name in ("measure", "plots", "causal", "recipes")}}


def main(docs: Path) -> None:
    """Write all generated pages below `docs`/generated, which is emptied first."""
    use("agg")
    folder = docs / "generated"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("tutorials", "results", "reference"):
        (folder / name).mkdir(parents=True)
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        shutil.copy(notebook, folder / "tutorials")
    measured = [name for name in studies() if any((RESULTS / name).glob(f"*/{FILES}"))]
    with ProcessPoolExecutor() as processes:
        list(processes.map(write_result_page, measured, [folder / "results"] * len(measured)))
    for name, module in NAMESPACES.items():
        (folder / "reference" / f"{name}.md").write_text(names_page(module))
    (folder / "reference" / "types.md").write_text(types_page())
    (folder / "reference" / "recipe-keys.md").write_text(recipe_page())
    (folder / "reference" / "commands.md").write_text(commands_page())


# Results


def write_result_page(name: str, folder: Path) -> None:
    """Write the page of the study of this name, and its figures, into the folder."""
    (folder / f"{name}.md").write_text(result_page(studies()[name], folder))


def result_page(study: Study, folder: Path) -> str:
    """Question, sentence, figures, table, protocol, provenance and caveat of a study; its figures are drawn into the folder."""
    report = read_study(study, StudyOptions(results=RESULTS))
    sentence, rows = study.describe(report)
    with for_the_web():
        figures = study.draw(report, folder / study.name)
    parts = [
        f"# {study.title}",
        f"**{study.question}**",
        sentence,
        *(f"```{{image}} {path.relative_to(folder)}\n:alt: {path.stem}\n```" for path in figures),
    ]
    parts += [table(("", "value"), [(name, drop_zero(value)) for name, value in rows])]
    parts += ["## Protocol", protocol(study), "## How it was made", provenance(study)]
    parts += ["## What it cannot show", study.caveat]
    return "\n\n".join(parts) + "\n"


def protocol(study: Study) -> str:
    """The section of PROTOCOLS.md about a study, else about the recipe that it trains."""
    text = (RESULTS / "PROTOCOLS.md").read_text()
    for name in (study.name, study.recipe):
        if found := re.search(rf"^## {re.escape(str(name))}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE):
            return found[1].strip()
    return "This study was measured before protocols were written."


def provenance(study: Study) -> str:
    """The command of a study, its conditions with seeds and measured minutes, and the versions."""
    manifest = json.loads((RESULTS / "MANIFEST.json").read_text())
    pieces = {path: entry | provenance_of(path) for path, entry in manifest.items() if path.startswith(f"{study.name}/")}
    rows, measured = [], []
    for slug, condition in study.conditions.items():
        own = [entry for path, entry in pieces.items() if path.startswith(f"{study.name}/{slug}/")]
        if own:
            minutes = f"{sum(entry['seconds'] for entry in own) / 60:.0f}"
            measured.append(slug)
            rows.append((condition.name, str(len(own)), minutes, " ".join(sorted({entry["commit"][:7] for entry in own}))))
    versions = sorted(
        {", ".join(f"{name} {version}" for name, version in entry["versions"].items()) for entry in pieces.values()}
    )
    precisions = sorted({entry["precision"] for entry in pieces.values() if "precision" in entry})
    recipe = study.recipe if isinstance(study.recipe, str) else None
    command = command_of(study, measured)
    return "\n\n".join(
        [
            "    " + " \\\n        ".join(textwrap.wrap(command, 110, break_long_words=False, break_on_hyphens=False)),
            *(["PATH stands for [files of others](../../reference/licences.md#files-of-others)."] if "=PATH" in command else []),
            f"The numbers lie in `results/{study.name}`" + (f", the recipe is `{recipe}`." if recipe else "."),
            table(("condition", "seeds", "minutes", "commits"), rows),
            *([f"Trained in {' and '.join(precisions)}, as far as recorded."] if precisions else []),
            *(f"Versions: {each}." for each in versions),
        ]
    )


def provenance_of(path: str) -> dict[str, typing.Any]:
    """The provenance of a stored piece."""
    made: dict[str, typing.Any] = read_json_object(RESULTS / path)["provenance"]
    return made


# Names


def names_page(module_name: str) -> str:
    """The documentation of every public name of a module, classes before functions."""
    module = importlib.import_module(module_name)
    top = () if module_name == "road_interp" else road_interp.__all__
    found = {name: getattr(module, name) for name in module.__all__ if name not in top}
    classes = [name for name, value in found.items() if inspect.isclass(value)]
    functions = [name for name, value in found.items() if inspect.isroutine(value)]
    title = "ri" if module_name == "road_interp" else module_name.replace("road_interp", "ri")
    doc = inspect.cleandoc(module.__doc__ or "").split("\n\n")[0]
    parts = [f"# `{title}`", doc]
    if shared := [name for name in module.__all__ if name in top]:
        parts.append(f"Also here, described under [`ri`](api.md): {', '.join(f'`{name}`' for name in shared)}.")
    for heading, names, directive in (("Classes", classes, "autoclass"), ("Functions", functions, "autofunction")):
        if names:
            members = {name: members_of(found[name]) for name in classes}
            blocks = "\n\n".join(f".. {directive}:: {module_name}.{name}{members.get(name, '')}" for name in names)
            parts += [f"## {heading}", f"```{{eval-rst}}\n{blocks}\n```"]
    return "\n\n".join(parts) + "\n"


def members_of(found: type) -> str:
    """The option of autoclass that shows members. The docstring of a named tuple describes its fields already."""
    return "" if hasattr(found, "_fields") else "\n   :members:"


def types_page() -> str:
    """The types in signatures of public names that are no public names: aliases as a table, classes with their documentation."""
    found = types_of(tuple(NAMESPACES.values()))
    aliases = sorted(each for each in found if each.meaning is not None and not each.meaning.startswith("TypeVar"))
    classes = sorted(each for each in found if each.meaning is None)
    rows = [(f"`{each.name}`", f"`{each.meaning}`", ", ".join(f"`{name}`" for name in found[each][:3])) for each in aliases]
    blocks = "\n\n".join(
        f".. autoclass:: {each.module}.{each.name}{members_of(getattr(importlib.import_module(each.module), each.name))}"
        for each in classes
    )
    return (
        "\n\n".join(
            [
                "# Types",
                "What public functions take and give besides public classes. Their attributes and methods may be used; the "
                "modules that define them may change.",
                "## Aliases",
                table(("alias", "meaning", "in"), rows),
                "## Classes",
                f"```{{eval-rst}}\n{blocks}\n```",
            ]
        )
        + "\n"
    )


# Recipe keys


def recipe_page() -> str:
    """Every key of every kind of recipe: type, default and meaning, from the dataclasses."""
    parts = [
        "# Keys of recipes",
        "A recipe is YAML with a `kind`; `KEY=VALUE` on the command line overrides a key, as in `training.epochs=3`. In place of "
        "`seed`, `seeds: [0, 1, 2]` makes a training for each.",
    ]
    kinds = list(schema.KINDS.items())
    parts += [f"- [{kind}](#{kind})" for kind, _ in kinds]
    sections: list[type] = []
    for kind, found in kinds:
        parts += [f"## {kind}", first_paragraph(found), keys_table(found)]
        sections += [inner for field in dataclasses.fields(found) for inner in dataclasses_in(hints_of(found)[field.name])]
    known: list[type] = []
    while sections:
        section = sections.pop(0)
        if section in known or section in schema.KINDS.values():
            continue
        known.append(section)
        parts += [f"## {section.__name__}", first_paragraph(section), keys_table(section)]
        sections += [inner for hint in hints_of(section).values() for inner in dataclasses_in(hint)]
    return "\n\n".join(parts) + "\n"


def keys_table(section: type) -> str:
    """A row for every field of a dataclass."""
    meanings, hints = attributes_of(section), hints_of(section)
    rows = []
    for field in dataclasses.fields(section):
        factory = field.default_factory
        default = "required" if field.default is dataclasses.MISSING else f"`{json.dumps(field.default)}`"
        if factory is not dataclasses.MISSING:
            value = factory()
            default = "those below" if dataclasses.is_dataclass(value) else f"`{json.dumps(value)}`"
        rows.append((f"`{field.name}`", readable_type(hints[field.name]), default, meanings.get(field.name, "")))
    return table(("key", "type", "default", "meaning"), rows)


def hints_of(section: type) -> dict[str, typing.Any]:
    """The resolved types of the fields."""
    return typing.get_type_hints(section)


def dataclasses_in(hint: typing.Any) -> Iterator[type]:
    """The dataclasses that a type mentions."""
    if dataclasses.is_dataclass(hint):
        yield typing.cast(type, hint)
    for inner in typing.get_args(hint):
        yield from dataclasses_in(inner)


def readable_type(hint: typing.Any) -> str:
    """A type in the words of YAML."""
    words = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", typing.Any: "anything"}
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is list:
        return f"list of {readable_type(inner[0])}"
    if isinstance(origin, type) and issubclass(origin, typing.Mapping):
        return f"mapping to {readable_type(inner[1])}"
    if inner:
        return " or ".join(map(readable_type, inner))
    if dataclasses.is_dataclass(hint):
        name = typing.cast(type, hint).__name__
        return f"[{name}](#{name.lower()})"
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def first_paragraph(thing: typing.Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0].split())


def attributes_of(section: type) -> dict[str, str]:
    """The meaning of every attribute in the docstring's section "Attributes", also of those before a common colon."""
    found = re.search(r"Attributes:\n(.*?)(?=\n\S|\Z)", inspect.cleandoc(section.__doc__ or ""), re.DOTALL)
    meanings: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", found[1]) if found else ():
        names, _, meaning = entry.partition(":")
        meanings |= {name.strip(): " ".join(meaning.split()) for name in names.split(",")}
    return meanings


# Commands


def commands_page() -> str:
    """Every command with its arguments and options."""
    group: typing.Any = typer.main.get_command(app)
    parts = ["# Commands", inspect.cleandoc(group.help or "")]
    for name, command in sorted(group.commands.items()):
        usage = " ".join(p.metavar or p.name.upper() for p in command.params if p.param_type_name == "argument")
        rows = [(option_name(p), getattr(p, "help", None) or "", default_of(p)) for p in command.params]
        parts += [
            f"## {name}",
            f"    road-interp {name} {usage}".rstrip(),
            inspect.cleandoc(command.help or "").replace("\b\n", ""),
        ]
        parts.append(table(("", "", "default"), rows))
    return "\n\n".join(parts) + "\n"


def option_name(parameter: typing.Any) -> str:
    """The name as it is typed."""
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    return ", ".join(f"`{name}`" for name in parameter.opts)


def default_of(parameter: typing.Any) -> str:
    """The default value, if it is a value."""
    value = parameter.default
    return f"`{value}`" if isinstance(value, (str, int, float, Path)) and not isinstance(value, bool) and str(value) else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    main(Path(__file__).parent)
