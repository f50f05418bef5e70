"""The application and its exit codes: 0 success, 1 a failed run, 2 wrong input."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from typing import TYPE_CHECKING

import typer
from typer.main import get_command

# Importing these modules registers their commands.
from road_interp.cli import (  # noqa: F401
    adapter_commands,
    measure_commands,
    model_commands,
    recipe_commands,
    study_commands,
    train_commands,
)
from road_interp.cli.options import PROGRAM, app
from road_interp.errors import exit_on_error, fail

if TYPE_CHECKING:
    from road_interp.training.study import Study

COMMAND = get_command(app)


def main_of(study: Study) -> None:
    """Entry point of the scripts in `analyses/`: `python analyses/NAME.py ...` runs `road-interp study NAME ...`."""
    sys.argv[1:1] = ["study", study.name]
    main()


def main() -> None:
    """Run the command line. Wrong input prints one line and exits with code 2, a failed run with code 1.

    It prints UTF-8, also into a pipe of Windows, whose encoding does not have every text. A path behind `NAME=` may begin with
    `~/`, which shells leave as it is there.
    """
    sys.argv[1:] = [
        re.sub(r"^([\w.-]+=)(~(?:/.*)?)$", lambda found: found[1] + os.path.expanduser(found[2]), each) for each in sys.argv[1:]
    ]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(encoding="utf-8")
    try:
        with exit_on_error(PROGRAM):
            COMMAND(standalone_mode=False)
    except typer.Abort:
        fail(PROGRAM, "interrupted", 1)
    except Exception as error:
        if not hasattr(error, "format_message"):  # which usage errors of typer have; it is empty where the help was printed
            raise
        if message := error.format_message():
            fail(PROGRAM, message, 2)
        sys.exit(2)
