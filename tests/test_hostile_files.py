"""Damaged files of every kind are understood or refused with InputError: no crash, no file elsewhere, little memory.

`make test` damages 12 files of every kind, `make test-soak` 100,000 in all; helpers/hostile_files.py has the limits.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import hostile_files

pytest.importorskip("resource", reason="Windows has no limits of resources")
TESTS = Path(__file__).parent
KINDS = tuple(hostile_files.KINDS)
FILES = int(os.environ.get("FILES", "120"))
SLOW = {"gguf": 10}  # fewer files of a kind that takes long to read


@pytest.mark.parametrize(
    ("event", "given"),
    [
        ("open", ("/elsewhere/x", "w", os.O_WRONLY)),
        ("os.remove", ("/elsewhere/x", -1)),
        ("os.rename", ("/folder/x", "/elsewhere/x", -1, -1)),
        ("subprocess.Popen", ("sh", [], None, None)),
        ("socket.connect", (None, ("host", 80))),
    ],
)
def test_what_reading_must_not_do_ends_the_process(monkeypatch, event, given):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    hostile_files.watch(event, given, "/folder")
    assert ended == [1]
    for harmless in (("open", ("/elsewhere/x", "r", os.O_RDONLY)), ("open", ("/folder/x", "w", os.O_WRONLY))):
        hostile_files.watch(*harmless, "/folder")
    assert ended == [1]


def test_damaged_files_are_understood_or_refused():
    share = FILES // len(KINDS)
    for names in (KINDS,) if share <= 100 else [(kind,) for kind in KINDS]:
        count = share // SLOW.get(names[0], 1)
        command = [sys.executable, hostile_files.__file__, ",".join(names), "0", str(count)]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(TESTS)}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [line.split() for line in done.stdout.splitlines() if line.partition(" ")[0] in KINDS]
        print(done.stdout)
        assert [name for name, *_ in lines] == list(names)
        assert all(int(understood) + int(refused) == count and int(refused) > 0 for _, understood, refused in lines)
