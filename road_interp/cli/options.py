"""What the commands share: the application, their options, and how they talk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    pass


app = typer.Typer(
    help="Rotate the hidden states of a language model: learn a rotation, run it, look at it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


console = Console()


PROGRAM = "road-interp"


Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. training.learning_rate=5e-3")]


Device = Annotated[str | None, typer.Option(help="cpu or cuda; by default what torch finds")]


Dtype = Annotated[str | None, typer.Option(help="of the base model: float32, bfloat16, float16, auto")]


Seed = Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="instead of the recipe's")]


AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]


Out = Annotated[Path | None, typer.Option(help="the run folder; by default the next free runs/NAME")]


ModelOrRun = Annotated[str, typer.Argument(help="hub id, folder, .gguf file, package://NAME/path, or a run folder")]


def _check_folder(out: Path | None) -> None:
    """Before anything is computed for it."""
    from road_interp.files import check_folder

    if out is not None:
        check_folder(out)


def _as_overrides(dtype: str | None, seed: int | None) -> list[str]:
    settings = {"model.dtype": dtype, "seed": seed}
    return [f"{key}={value}" for key, value in settings.items() if value is not None]


def _is_main_process() -> bool:
    """Whether this is the one of torchrun's processes that talks and draws; alone it is."""
    return os.environ.get("RANK", "0") == "0"


def _leave_group() -> None:
    """End what torchrun's processes share."""
    from accelerate import PartialState

    PartialState().destroy_process_group()


def _quiet_libraries() -> None:
    """Loading reports of the libraries below are not the user's concern; their warnings are."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
