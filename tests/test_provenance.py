"""What a result says it was made with."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from road_interp import provenance

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not here")


@needs_git
def test_the_commit_is_the_one_that_git_names(tmp_path):
    def git(*words, folder=tmp_path / "main"):
        options = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        found = subprocess.run(["git", *options, *words], cwd=folder, capture_output=True, text=True, check=True)
        return found.stdout.strip()

    commit_of = provenance._commit
    main, worktree = tmp_path / "main", tmp_path / "worktree"
    main.mkdir()
    assert commit_of(main) is None
    git("init", "--quiet")
    assert commit_of(main) is None  # a branch without a commit
    git("commit", "--quiet", "--allow-empty", "--message", "first")
    assert commit_of(main) == git("rev-parse", "HEAD")
    git("worktree", "add", "--quiet", "-b", "other/branch", str(worktree))
    git("commit", "--quiet", "--allow-empty", "--message", "second", folder=worktree)
    assert commit_of(worktree) == git("rev-parse", "HEAD", folder=worktree) != commit_of(main)
    expected = commit_of(main), commit_of(worktree)
    git("pack-refs", "--all")
    assert (commit_of(main), commit_of(worktree)) == expected
    git("checkout", "--quiet", "--detach")
    assert commit_of(main) == expected[0]


def test_the_commit_is_the_one_of_the_code_that_runs(tmp_path):
    """Not that of the checkout when the first result is written, days later."""
    package = tmp_path / "road_interp"
    package.mkdir()
    (package / "provenance.py").write_text(Path(provenance.__file__).read_text())
    (tmp_path / ".git").mkdir()
    head = tmp_path / ".git" / "HEAD"
    head.write_text("a" * 40)
    spec = importlib.util.spec_from_file_location("copied_provenance", package / "provenance.py")
    copied = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = copied  # dataclasses look up their module here
    try:
        spec.loader.exec_module(copied)
    finally:
        del sys.modules[spec.name]
    head.write_text("b" * 40)
    assert copied.current_provenance().commit == "a" * 40


def test_the_command_names_no_folder_of_the_machine(monkeypatch, tmp_path):
    options = [f"ravel={tmp_path / 'ravel'}", "--out", str(tmp_path / "figures"), "runs/x"]
    monkeypatch.setattr("sys.argv", [str(tmp_path / "road-interp"), "study", "drift", *options])
    assert provenance.current_provenance((0,)).command == "road-interp study drift ravel=ravel --out figures runs/x"
