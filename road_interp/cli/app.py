"""The command line: thin commands over the library. Exit codes: 0 done, 1 the run failed, 2 the input was wrong."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

# These add their commands to the application.
from road_interp.cli import adapter_commands, measure_commands, study_commands, train_commands  # noqa: F401
from road_interp.cli.options import PROGRAM, app
from road_interp.errors import exit_on_error, fail

if TYPE_CHECKING:
    from road_interp.training.study import Study


def main_of(study: Study) -> None:
    """Run a script of `analyses/`: `python analyses/NAME.py ...` is `road-interp study NAME ...`."""
    sys.argv[1:1] = ["study", study.name]
    main()


def main() -> None:
    """Run the command line; what the user got wrong is one line and exit code 2, a failed run one line and exit code 1."""
    try:
        with exit_on_error(PROGRAM):
            app(standalone_mode=False)
    except typer.Exit as exit:
        sys.exit(exit.exit_code)
    except typer.Abort:
        fail(PROGRAM, "interrupted", 1)
    except Exception as error:
        if hasattr(error, "format_message"):  # wrong use of the command line, as typer says it
            fail(PROGRAM, error.format_message(), 2)
        raise
