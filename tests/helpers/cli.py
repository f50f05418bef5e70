"""The command line in this process."""

from __future__ import annotations

import sys

from road_interp.cli import app


def run(capsys, monkeypatch, *arguments):
    """What a command ends with: its exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["road-interp", *map(str, arguments)])
    code = 0
    try:
        app.main()
    except SystemExit as exit:
        code = exit.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err
