"""Run the command line in the test process."""

from __future__ import annotations

import sys

from road_interp.cli import app


def run(capsys, monkeypatch, *arguments):
    """The exit code, standard output and standard error of a command."""
    monkeypatch.setattr(sys, "argv", ["road-interp", *map(str, arguments)])
    code = 0
    try:
        app.main()
    except SystemExit as exit:
        code = exit.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err
