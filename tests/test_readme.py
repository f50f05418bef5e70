"""What the README shows works."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from road_interp.files import read_json_object, write_atomically
from road_interp.recipes.loader import load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_program_prints_what_is_shown(capsys):
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (output,) = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    exec(compile(program, "README.md", "exec"), {})
    assert capsys.readouterr().out == output
    assert len(program.splitlines()) <= 15


def test_the_recipe_is_one():
    (recipe,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert load_recipe(yaml.safe_load(recipe)).data.id == "films.csv"
    assert len(recipe.splitlines()) <= 6


def test_it_is_short():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert not [line for line in lines if len(line) > 140 or line.lstrip().startswith("<!--")]


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)


def test_every_finding_links_to_its_results():
    findings = README.partition("\n## Findings\n")[2].partition("\n## ")[0]
    bullets = findings.split("\n- ")[1:]
    assert bullets
    for bullet in bullets:
        studies = set(re.findall("<!--= (.+?):", bullet))
        assert studies <= set(re.findall(r"\]\(results/([\w-]+)\)", bullet)), bullet[:60]


def test_commands_exist():
    from typer.main import get_command

    from road_interp.cli.app import app

    commands = get_command(app).commands
    assert set(re.findall(r"^    road-interp (\w+)", README, re.MULTILINE)) <= set(commands)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make ([\w-]+)", README)) <= set(targets)
    assert all((ROOT / script).is_file() for script in re.findall(r"analyses/\w+\.py", README))


@pytest.fixture(scope="module")
def check():
    """The names of docs/write_numbers.py."""
    return runpy.run_path(str(ROOT / "docs" / "write_numbers.py"))


def test_no_interval_is_typed():
    assert "<!--=" in README
    bare = re.sub(r"<!--=.*?<!--/-->", "", README, flags=re.DOTALL)
    assert not re.findall(r"\d\s\[-?\d?\.\d+,", bare)


def test_a_changed_outcome_fails_the_check(check, tmp_path, monkeypatch, capsys):
    """A page that was written from the results, whose results change."""
    shutil.copytree(ROOT / "results" / "cost", tmp_path / "results" / "cost")
    (tmp_path / "docs" / "figures").mkdir(parents=True)
    page = tmp_path / "README.md"
    page.write_text("A step takes <!--= cost: RoAd -->?<!--/-->.\n")
    main = check["main"]
    monkeypatch.setitem(main.__globals__, "ROOT", tmp_path)
    monkeypatch.setitem(main.__globals__, "PAGES", (page,))
    monkeypatch.setattr(sys, "argv", ["write_numbers.py", "--write"])
    assert main() == 0
    monkeypatch.setattr(sys, "argv", ["write_numbers.py"])
    assert main() == 0
    assert capsys.readouterr().out == ""
    (piece,) = (tmp_path / "results").glob("*/*/*.json.gz")
    content = read_json_object(piece)
    (road,) = (each for each in content["methods"] if each["method"] == "RoAd")
    road["seconds"] = [2 * value for value in road["seconds"]]
    write_atomically(piece, json.dumps(content))
    check["rows"].cache_clear()
    assert main() == 1
    assert capsys.readouterr().out.startswith("README.md: cost: RoAd: ")


def test_a_number_of_the_results_that_is_typed_is_found(check, tmp_path):
    shutil.copytree(ROOT / "results" / "composition", tmp_path / "composition")
    row = "SmolLM2-135M, planes, co-activation 0.5: label+closing"
    value = check["rows"]("composition", tmp_path)[row].partition(" [")[0]
    marked = f"<!--= composition: {row} -->{value}<!--/-->"
    assert check["typed"](f"{marked} and `{value}` and .001", tmp_path) == []
    (line,) = check["typed"](f"{marked}, or 0{value}", tmp_path)
    assert line.startswith(f"0{value} is typed: composition: ")
    shutil.copytree(ROOT / "results" / "engine", tmp_path / "engine")
    check["known_values"].cache_clear()
    above_one = next(text for text in check["rows"]("engine", tmp_path).values() if text.startswith("1."))[:5]
    assert check["typed"](f"costs {above_one} times as much", tmp_path)[0].startswith(f"{above_one} is typed: engine: ")
    assert check["typed"](f"version 2.{above_one}", tmp_path) == []
    for value in ("12.34", "1.05", "0.77732", "1234.5"):
        assert check["telling"](f"of {value} [{value}, 1.5], {value}.") == [value] * 3
    assert check["telling"]("0.05, 1.5, .012, transformers 4.45.1, block 12, 100,000 files, width 2,048.") == ["2,048"]
    shutil.copytree(ROOT / "results" / "size", tmp_path / "size")
    check["known_values"].cache_clear()
    assert check["typed"]("with 20,736 values", tmp_path)[0].startswith("20,736 is typed: size: ")


def test_a_changed_number_is_found_and_put_right(check):
    first = min(check["MARKED"].finditer(README), key=lambda mark: mark[2])  # one study: `make lint` checks all
    wrong = f"{first[1]}.123 [.1, .2]{first[5]}"
    (line,) = check["differences"](wrong, ROOT / "results")
    assert check["one_line"](line) == check["one_line"](f"{first[2]}: {first[3]}: .123 [.1, .2] should be {first[4]}")
    assert check["one_line"](check["current"](wrong, ROOT / "results")) == check["one_line"](first[0])
    assert check["broken_as"](".1\n  [.0,\n  .2]", ".123 [.1, .3]") == ".123\n  [.1,\n  .3]"
    assert check["broken_as"](".1\n[.0, .2]", "above in 3") == "above\nin 3"
    assert check["broken_as"](".1\n[.0, .2]", "none") == "none"
    with pytest.raises(KeyError, match="study 'ablation' has no row 'no such'; the nearest: "):
        check["current"]("<!--= ablation: no such -->1<!--/-->", ROOT / "results")
