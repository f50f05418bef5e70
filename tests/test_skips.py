"""The inventory of skips holds every reason for which a test may be skipped, and no other."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent
SKIPPING = {"pytest.skip", "pytest.mark.skipif", "pytest.importorskip"}


def reasons_in(path):
    """The reasons of a test file, with those of the marks that it imports from the helpers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) in SKIPPING:
            (reason,) = call.args if ast.unparse(call.func) == "pytest.skip" else [each.value for each in call.keywords if each.arg == "reason"]
            yield ast.literal_eval(reason)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    if "needs_compiler" in imported:
        yield from reasons_in(TESTS / "helpers" / "models.py")


def test_the_inventory_of_skips_is_complete():
    known = {
        f"{path.relative_to(TESTS.parent).as_posix()}: {reason}" for path in TESTS.rglob("test_*.py") for reason in reasons_in(path)
    }
    assert sorted(known) == (TESTS / "skips.txt").read_text(encoding="utf-8").splitlines()
