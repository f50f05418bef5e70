"""What the commands share: the application, common options, and functions that check folders and print."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from road_interp.errors import InputError
from road_interp.files import check_writable, exists
from road_interp.progress import waiting

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(markup=False, emoji=False)  # names and paths may hold brackets, as in "c_attn[query]"
PROGRAM = "road-interp"


def print_version(wanted: bool) -> None:
    """Print the version of the package and end the program, if it is wanted."""
    if wanted:
        from road_interp.version import __version__

        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True, help="print the version")] = False,
) -> None:
    """RoAd rotations of the hidden states of language models: train, run, measure and draw them."""


Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. training.learning_rate=5e-3")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default cuda where torch finds it")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object only")]
Out = Annotated[Path | None, typer.Option(help="the run folder; by default the next free runs/NAME")]
NewFolder = Annotated[Path | None, typer.Option(help="folder for the result; it must not exist")]
RunFolder = Annotated[str, typer.Argument(help="a run folder")]
AdapterArgument = Annotated[str, typer.Argument(help="an adapter folder (PEFT's RoAd too), or a run folder")]
ModelOrRun = Annotated[
    str, typer.Argument(help="hub id, folder, .gguf file, package://NAME/path, models://NAME, or a run folder")
]
Limit = Annotated[int | None, typer.Option("--limit", "--most", min=1, help="number of test examples; all by default")]


@dataclass(frozen=True)
class RecipeOptions:
    """The device, and options that override keys of the recipe."""

    device: Device = None
    dtype: Annotated[str | None, typer.Option(help="dtype of the base model: float32, bfloat16, float16, auto")] = None
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="seed, instead of the recipe's")] = None

    @property
    def overrides(self) -> list[str]:
        """The options as overrides of the recipe."""
        settings = {"model.dtype": self.dtype, "seed": self.seed}
        return [f"{key}={value}" for key, value in settings.items() if value is not None]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each dataclass parameter of a command by one parameter per field: typer reads options from the signature."""
    hints = inspect.get_annotations(command, eval_str=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            types = inspect.get_annotations(groups[name], eval_str=True)
            parameters += [_keyword(field.name, types[field.name], field.default) for field in fields(groups[name])]
        else:
            parameters.append(_keyword(name, hints[name], parameter.default))

    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _keyword(name: str, hint: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def joined(*groups: Sequence[str] | None) -> list[str]:
    """All overrides of the groups. Raises InputError for a key that is given twice, or whose section is given behind it."""
    found = [override for group in groups for override in group or ()]
    keys = [override.partition("=")[0] for override in found]
    if twice := [key for key in keys if keys.count(key) > 1]:
        given = [override for override in found if override.partition("=")[0] == twice[0]]
        raise InputError(f"'{twice[0]}' is given twice: {', '.join(given)}")
    for number, key in enumerate(keys):
        if replaced := [each for each in keys[:number] if each.startswith(f"{key}.")]:
            raise InputError(f"'{key}' is given behind '{replaced[0]}', which it would replace: give it before")
    return found


def print_result(as_json: bool, content: dict[str, Any], text: Any) -> None:
    """Print `content` as one JSON object, or `text` (a string or a rich table)."""
    print(json.dumps(content)) if as_json else console.print(text, soft_wrap=isinstance(text, str))


def print_figures(paths: Iterable[Path]) -> None:
    """Print a line with the path of each figure."""
    for path in paths:
        console.print(f"figure: {path}", soft_wrap=True)


def check_new_folder(out: Path | None) -> Path:
    """The folder of --out. Raises InputError if it is missing, exists already, or cannot be a folder."""
    if out is None or exists(out):
        missing, taken = "--out is missing: the folder for the result", f"'{out}' exists already; choose another folder"
        raise InputError(missing if out is None else taken)
    check_writable(out)
    return out


def quiet_libraries() -> None:
    """Load the libraries, which takes seconds; turn off their progress bars, and messages of transformers below errors."""
    with waiting("loading the libraries"):
        import datasets
        import transformers

        import road_interp.models.road_model  # noqa: F401  (pyvene)

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def is_main_process() -> bool:
    """Whether this process prints and draws: rank 0 under torchrun, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def leave_process_group() -> None:
    """Destroy the process group of torchrun, if there is one."""
    from accelerate import PartialState

    PartialState().destroy_process_group()
