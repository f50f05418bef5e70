"""Damaged files of every kind are understood or refused with InputError: no crash, no file elsewhere, little memory.

`make test` damages 30 files of every kind, `make test-soak` 100,000 in all; helpers/hostile_files.py has the limits.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource")  # not on Windows
TESTS = Path(__file__).parent
PROGRAM = TESTS / "helpers" / "hostile_files.py"
KINDS = ("adapter", "peft", "pyvene", "recipe", "run", "result", "templates", "ravel", "pairs", "gguf")
FILES = int(os.environ.get("FILES", "300"))
SLOW = {"gguf": 10}  # fewer files of a kind that takes long to read


def test_damaged_files_are_understood_or_refused():
    share = FILES // len(KINDS)
    for names in (KINDS,) if share <= 100 else [(kind,) for kind in KINDS]:
        count = share // SLOW.get(names[0], 1)
        command = [sys.executable, PROGRAM, ",".join(names), "0", str(count)]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(TESTS)}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [line.split() for line in done.stdout.splitlines() if line.partition(" ")[0] in KINDS]
        print(done.stdout)
        assert [name for name, *_ in lines] == list(names)
        assert all(int(understood) + int(refused) == count and int(refused) > 0 for _, understood, refused in lines)
