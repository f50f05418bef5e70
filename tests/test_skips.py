"""The inventory of skips holds every reason for which a test may be skipped, and no other."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent


def reasons_in(path):
    """The reasons in a test file, and those of the marks that it imports from the helpers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) == "pytest.skip":
            yield ast.literal_eval(call.args[0])
        if ast.unparse(call.func) in ("pytest.mark.skipif", "pytest.importorskip"):
            yield ast.literal_eval({each.arg: each.value for each in call.keywords}["reason"])
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    if "needs_compiler" in imported:
        yield from reasons_in(TESTS / "helpers" / "models.py")


def test_the_inventory_of_skips_is_complete():
    tests = {path.relative_to(TESTS.parent).as_posix(): path for path in TESTS.rglob("test_*.py")}
    known = {f"{name}: {reason}" for name, path in tests.items() for reason in reasons_in(path)}
    assert sorted(known) == (TESTS / "skips.txt").read_text(encoding="utf-8").splitlines()
