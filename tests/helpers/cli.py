"""Run the command line in the test process, or in two processes."""

from __future__ import annotations

import subprocess
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


def run_two_processes(*arguments):
    """The standard output of a command that torchrun starts with two processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "road_interp.cli"]
    command = [sys.executable, *launch, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
