"""What the README shows works."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def run_block(number: int, scope: dict[str, Any], text: str = README) -> dict[str, Any]:
    blocks = re.findall(r"<!-- tested -->\n```python\n(.*?)```", text, re.DOTALL)
    exec(compile(blocks[number], "README.md", "exec"), scope)
    return scope


def test_every_python_block_is_tested():
    assert README.count("```python") == README.count("<!-- tested -->") == 4


def test_first_python_block():
    scope = run_block(0, {})
    assert scope["adapter"].num_parameters == 2 * (5 * 384 + 1536)
    assert scope["model"].adapter.distance(scope["adapter"]) == 0
    assert any(parameter.grad.abs().max() > 0 for parameter in scope["model"].parameters() if parameter.requires_grad)


def test_blocks_on_a_language_model(capsys):
    scope = run_block(1, {})
    ids = scope["ids"]
    assert torch.equal(ids[1], ids[2])
    assert not torch.equal(ids[0], ids[1])
    assert "Paris" in capsys.readouterr().out
    pytest.importorskip("transformers", minversion="5.18", reason="the third block needs transformers 5.18")
    outputs = run_block(2, scope)["outputs"]
    assert [len(each.generated_tokens) for each in outputs] == [4, 4]
    assert torch.equal(scope["ids"][1], ids[0])  # strength 1


def test_block_on_tasks():
    scope = run_block(1, {})
    logits = run_block(3, scope)["output"].logits
    assert torch.equal(logits[0], logits[3])  # the identity so far


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)


def test_commands_exist():
    from typer.main import get_command

    from road_interp.cli.app import app

    commands = get_command(app).commands
    assert set(re.findall(r"^    road-interp (\w+)", README, re.MULTILINE)) <= set(commands)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make ([\w-]+)", README)) <= set(targets)
    assert all((ROOT / script).is_file() for script in re.findall(r"analyses/\w+\.py", README))


def numbers():
    return runpy.run_path(str(ROOT / "docs" / "write_numbers.py"))


def test_numbers_are_those_of_the_stored_results():
    check = numbers()
    for page in check["PAGES"]:
        assert check["differences"](page.read_text(), ROOT / "results") == [], page.name


def test_no_interval_is_typed():
    assert "<!--=" in README
    bare = re.sub(r"<!--=.*?<!--/-->", "", README, flags=re.DOTALL)
    assert not re.findall(r"\d\s\[-?\d?\.\d+,", bare)


def test_a_changed_number_is_found_and_put_right():
    check = numbers()
    (first, *_) = check["MARKED"].finditer(README)
    wrong = README[: first.start(5)] + ".123 [.1, .2]" + README[first.end(5) :]
    (line,) = check["differences"](wrong, ROOT / "results")
    assert line == f"{first[2]}: {first[3]}: .123 [.1, .2] should be {first[5]}"
    assert check["current"](wrong, ROOT / "results") == README
    with pytest.raises(KeyError, match="study 'ablation' has no row 'no such'; it has components: both"):
        check["current"]("<!--= ablation: no such -->1<!--/-->", ROOT / "results")
