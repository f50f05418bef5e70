"""Settings of all tests: the environment, garbage collection, the inventory of skips, and figures."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

gc.disable()  # during imports and collection, which take a third longer with it
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("MKL_DISABLE_FAST_MM", "1")  # MKL's own allocator can loop forever in a forked worker of a DataLoader
MEMORY = Path("/dev/shm")  # of Linux; a container may have little of it
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2 << 30:
    # Tests write, sync and delete thousands of files, which is slow on some disks.
    os.environ.setdefault("TMPDIR", str(MEMORY))
    tempfile.tempdir = os.environ["TMPDIR"]  # the folder may have been asked for by now


def pytest_configure(config):
    """Load the fixtures, except in the process that only hands out tests: they import torch, which takes seconds."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("helpers.fixtures")


def freeze():
    """Garbage collection, which engines call when they stop, need not look at what exists by now."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish(session):
    """Freeze what imports and collection made, and collect from here on."""
    freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def what_a_file_leaves_is_frozen():
    """Freeze what the tests of a file leave: modules that they import, and models that all tests share."""
    yield
    freeze()


SKIPS = Path(__file__).with_name("skips.txt")  # a file and a reason per line: the skips that are known


def pytest_terminal_summary(terminalreporter):
    """Print the skips that are not in the inventory."""
    skipped = terminalreporter.stats.get("skipped", [])
    found = {f"{each.nodeid.partition('::')[0]}: {each.longrepr[2].removeprefix('Skipped: ')}" for each in skipped}
    if new := found - set(SKIPS.read_text().splitlines()):
        terminalreporter.section("skips that are not in tests/skips.txt")
        terminalreporter.write_line("\n".join(sorted(new)))


@pytest.fixture(autouse=True)
def figures_are_closed():
    """What a test has drawn goes with it."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(autouse=True)
def figures_are_not_rendered(request, monkeypatch):
    """Figures are drawn, but neither fitted nor rendered, which is slow, unless a test is marked `rendered`."""
    if not request.node.get_closest_marker("rendered"):
        monkeypatch.setattr("road_interp.plots.style.fit", lambda ax, may_grow: None)
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **options: file.write(b"drawn"))
