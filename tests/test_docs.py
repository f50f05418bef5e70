"""Every code block of the manual works.

- `python` blocks of a page run in their order in one scope, lines of `console` blocks that begin with `$ ` run too, all in one
  folder.
- A `text` block directly behind one of them is what it prints.
- A `code-block` with a caption is a file of that name; one of YAML is a valid recipe.
- Commands in `sh` blocks take hours, devices or the network, or serve: their names and options exist, and the keys that they give
  built-in recipes. Those that train or study run with few steps (`make test-slow`); those of `serve.md` are run by
  tests/serving/test_run_server.py, and that of the evaluation harness by tests/test_interop.py.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import json
import os
import re
import shlex
import sys
from dataclasses import replace
from inspect import isfunction
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from typer.main import get_command

import road_interp as ri
from helpers.models import tiny_model
from road_interp import measure, plots
from road_interp.cli.app import app, main
from road_interp.recipes.loader import builtin_recipes, load_recipe, load_trainable_recipes, read_recipe
from road_interp.training.study import studies

ROOT = Path(__file__).parents[1]
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if "generated" not in page.parts)
FENCE = re.compile(
    r"^```(?:\{code-block\} )?(\w+)\n(?::caption: (\S+)\n)?\n?(.*?)^```$(?:\n\s*^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
)
RUN = {"python", "console"}


def blocks(page):
    """Language, file name, content and expected output of every block."""
    return FENCE.findall(page.read_text())


def run_console(content, monkeypatch):
    """What the commands of a block print; they run in this process, which has imported torch."""
    printed = []
    for line in content.splitlines():
        if line.startswith("$ "):
            words = shlex.split(line[2:])
            assert words[0] == "road-interp", line
            monkeypatch.setattr(sys, "argv", words)
            with contextlib.redirect_stdout(io.StringIO()) as captured:
                main()
            printed.append(captured.getvalue())
    return "".join(printed)


def check_command(line):
    """The command of a line exists and has the options that it uses."""
    words = shlex.split(line, comments=True)
    words = words[words.index("road-interp") + 1 :]
    if words[0].startswith("--"):
        return
    command = get_command(app).commands[words[0]]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line
    if words[0] == "train" and words[1] in builtin_recipes():
        load_trainable_recipes(words[1], [word for word in words[2:] if re.match(r"[\w.]+=", word)])
    if words[0] == "study" and not words[1].startswith("--"):
        assert words[1] in studies(), line


@pytest.mark.docs
@pytest.mark.rendered
@pytest.mark.parametrize("page", [page for page in PAGES if RUN & {each[0] for each in blocks(page)}], ids=lambda page: page.stem)
def test_blocks_work(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(ROOT / "interventions", tmp_path / "interventions")
    scope: dict[str, object] = {}
    for language, caption, content, output in blocks(page):
        if caption:
            Path(caption).parent.mkdir(parents=True, exist_ok=True)
            Path(caption).write_text(content)
            if language == "yaml":
                load_recipe(caption)
        if caption or language not in RUN:
            continue
        if language == "console":
            printed = run_console(content, monkeypatch)
        else:
            with contextlib.redirect_stdout(io.StringIO()) as captured:
                exec(compile(content, str(page), "exec"), scope)
            printed = captured.getvalue()
        assert not output or printed == output, printed
    plt.close("all")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_commands_and_options_exist(page):
    for language, _, content, _ in blocks(page):
        for line in content.splitlines() if language in ("sh", "console") else ():
            if re.match(r"(\$ )?(\S+ )*road-interp ", line):
                check_command(line.removeprefix("$ "))
    for line in re.findall(r"^    (road-interp .*)", page.read_text(), re.MULTILINE):
        check_command(line)


def long_commands():
    """The commands of the manual that train a built-in recipe or measure a study, without those that need files of others."""
    pages = "\n".join(page.read_text() for page in PAGES)
    found = re.findall(r"^ *road-interp ((?:train|study) [a-z].*?)(?:  +#.*)?$", pages, re.MULTILINE)
    return [line for line in dict.fromkeys(found) if not re.search(r"\b(FOLDER|FILE)\b|\.yaml", line)]


@pytest.mark.slow
@pytest.mark.rendered
@pytest.mark.parametrize("line", long_commands())
def test_long_commands_run_with_few_steps(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shorter = {study.recipe: study.quick for study in studies().values() if isinstance(study.recipe, str)}
    command, name, *words = shlex.split(line)
    words += ["--quick"] if command == "study" else shorter[name]
    run_console(f"$ road-interp {shlex.join([command, name, *words])}", monkeypatch)
    assert [path for path in tmp_path.rglob("*.json") if path.stat().st_size], line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_indented_blocks_are_commands(page):
    """Other code is fenced, so that it runs."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not [line for line in re.findall(r"(?<=\n\n)    (.*)", prose) if not re.match("(road-interp|pip|make) ", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text())
    assert not [link for link in links if "generated" not in link and not (page.parent / link).exists()]


def test_pages_that_configs_and_recipes_name_exist():
    named = {
        name
        for path in (ROOT / "interventions").iterdir()
        for name in re.findall(r"\b(?:docs|analyses)/\S+?\.\w+", path.read_text())
    }
    assert "docs/how-to/pyvene-configs.md" in named
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_configs_say_how_they_are_used(monkeypatch):
    monkeypatch.setattr(ri, "load_model", functools.cache(ri.load_model))
    monkeypatch.chdir(ROOT)
    for path in sorted((ROOT / "interventions").glob("*.pyvene.json")):
        content = json.loads(path.read_text())
        assert content["command"] == (
            f"python -c \"import json; exec('\\n'.join(json.load(open('interventions/{path.name}'))['usage']))\""
        )
        names = {}
        exec("\n".join(content["usage"]), names)
        with torch.no_grad():
            plain = names["base"](**names["batch"]).logits
        changed = (names["output"].logits != plain).flatten(1).any(1)
        assert changed.tolist() == [not path.name.startswith("road-two")] * 3  # RoAd starts at the identity


def test_the_program_of_the_harness_refuses_positions_that_it_cannot_find(monkeypatch, tmp_path):
    """With a harness that only keeps the model; tests/test_interop.py has the real one."""
    (program,) = [content for _, caption, content, _ in blocks(ROOT / "docs/works-with.md") if caption == "road_lm.py"]
    harness = SimpleNamespace(
        __init__=lambda self, model, **options: None, _loglikelihood_tokens=lambda self, requests, **options: [-1.0]
    )
    for name, content in {
        "lm_eval": {},
        "lm_eval.__main__": {"cli_evaluate": None},
        "lm_eval.api": {},
        "lm_eval.api.registry": {"register_model": lambda name: lambda kind: kind},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": type("HFLM", (), vars(harness))},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    monkeypatch.setattr(ri, "load_model", lambda *given: (tiny_model("Llama"), []))
    monkeypatch.setattr(ri, "load_tokenizer", lambda *given: None)
    scope = {"__name__": "road_lm"}
    exec(compile(program, "road_lm.py", "exec"), scope)
    adapter = ri.RoadAdapter.identity(ri.find_sites(tiny_model("Llama"), "block-output"))
    for positions in ("all", "last"):
        replace(adapter, positions=positions).save(tmp_path / positions)
    assert scope["RoadLM"]("base", str(tmp_path / "all"))._loglikelihood_tokens([]) == [-1.0]
    with pytest.raises(ri.InputError, match="positions 'last' of the prompt are not known"):
        scope["RoadLM"]("base", str(tmp_path / "last"))._loglikelihood_tokens([])


def ids_in(content):
    """The ids of models and data sets in the content of a recipe."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if key in ("id", "test", "validation") and isinstance(value, str):
            yield value
        yield from ids_in(value)


@pytest.mark.parametrize("recipe", builtin_recipes())
def test_the_table_of_licences_names_every_model_and_data_set_of_the_built_in_recipes(recipe):
    table = (ROOT / "docs/reference/licences.md").read_text()
    ids = list(ids_in(read_recipe(recipe)))
    assert ids
    for identity in ids:
        package = re.match(r"package://(\w+)/", identity)
        name = package[1].replace("_", "-") if package else identity.replace("models://", "road-interp models ")
        assert f"`{name}`" in table, identity


def texts_of(path):
    """The texts of a Python file without its docstrings, with three dots for each value that is put into one."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(piece.value) if isinstance(piece, ast.Constant) else "..." for piece in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            yield node.value


def test_the_page_of_errors_has_the_texts_of_messages():
    headings = re.findall("^### (.*)$", (ROOT / "docs/how-to/errors.md").read_text(), re.MULTILINE)
    texts = [text for path in (ROOT / "road_interp").rglob("*.py") for text in texts_of(path)]
    assert len(headings) > 20
    assert not [heading for heading in headings if not any(heading in text for text in texts)]
    assert min(map(len, headings)) > 12  # so that a common word is not found by chance


def test_the_page_of_figures_names_every_figure_and_measurement():
    code = re.findall(r"`[^`\n]+`", (ROOT / "docs/how-to/figures.md").read_text())
    named = set(re.findall(r"\w+", " ".join(code)))
    drawn = {name for name in plots.__all__ if callable(getattr(plots, name))}
    measured = {name for name in measure.__all__ if isfunction(getattr(measure, name))}
    assert drawn | measured <= named


def test_lines_are_short():
    pages = [*PAGES, *ROOT.glob("*.md"), *(ROOT / "results").glob("*.md")]
    lines = [(page.name, line) for page in pages for line in page.read_text().splitlines()]
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(notebook.read_text())["cells"]
        lines += [(notebook.name, line) for cell in cells for line in "".join(cell["source"]).splitlines()]
    assert not [each for each in lines if len(each[1]) > 140]


def test_no_line_starts_with_a_mark():
    """Markdown takes such a line for a block of HTML, which ends the paragraph."""
    assert not [page.name for page in PAGES if re.search(r"^ *<!--", page.read_text(), re.MULTILINE)]
