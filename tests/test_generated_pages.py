"""The generated pages of the manual: what every result page and the table of recipe keys hold."""

from __future__ import annotations

import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from road_interp.training.study import studies
from road_interp.training.study_page import command_of

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def generate():
    """The names of docs/generate.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        return runpy.run_path(str(DOCS / "generate.py"))


@pytest.mark.parametrize("name", ["causalgym", "interference"])
def test_a_result_page_begins_with_the_question_and_ends_with_the_caveat(generate, tmp_path, name):
    study = replace(studies()[name], draw=lambda report, folder: [])
    page = generate["result_page"](study, tmp_path)
    assert page.startswith(f"# {study.title}\n\n**{study.question}**\n\n")
    assert page.endswith(f"\n\n## What it cannot show\n\n{study.caveat}\n")


def test_a_result_page_names_the_inputs_of_its_measured_conditions(generate):
    known = studies()
    for name, command in (
        ("causalgym", "road-interp study causalgym templates=PATH --only agr_gender --only"),
        ("variables", "road-interp study variables ravel=PATH\n"),  # all its conditions are measured
        ("controls", "road-interp study controls templates=PATH --only agreement"),
        ("depth", "road-interp study depth\n"),
    ):
        text = generate["provenance"](known[name])
        assert text.startswith(f"    {command}")
        assert ("](../../reference/licences.md#files-of-others)" in text) == ("PATH" in command)
    assert "\n## Files of others\n" in (DOCS / "reference" / "licences.md").read_text()
    assert command_of(known["controls"], ["agreement"]) == "road-interp study controls --only agreement"  # others need templates
    assert command_of(known["depth"], known["depth"].conditions) == "road-interp study depth"


def test_times_that_were_not_recorded_are_named(generate):
    cells = re.findall(r"^\| .* \| \d+ \| (.*) \| ", generate["provenance"](studies()["angles"]), re.MULTILINE)
    assert cells
    assert "" not in cells


def test_types_of_public_functions_are_described(generate):
    page = generate["types_page"]()
    aliases = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", page, re.MULTILINE))
    assert aliases["Positions"] == r"str \| Sequence[Sequence[int]]"
    assert ".. autoclass:: road_interp.models.continuous_batching.ContinuousBatching\n   :members:" in page
    assert "RowSelection" not in page  # ContinuousBatching takes it, and is made by RoadModel
    assert not re.search(r"autoclass:: \S+[.](RoadAdapter|Site|Tensor)\b", page)  # those are public, or of another package


def test_every_key_of_a_recipe_has_a_meaning(generate):
    rows = re.findall(r"^\| (`\w+`) \| .* \| (.*) \|$", generate["recipe_page"](), re.MULTILINE)
    assert len(rows) > 70
    assert not [key for key, meaning in rows if not meaning.strip()]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0.50 and 10.5", ".50 and 10.5"),
        ("-0.00 [-0.004, 0.000]", ".00 [-.004, .000]"),
        ("0.03 [-0.00, 0.05]", ".03 [-.00, .05]"),
        ("-0.02 [-0.03, -0.00]", "-.02 [-.03, -.00]"),  # below 0
    ],
)
def test_numbers_below_one_are_shown_as_the_paper_does(generate, text, shown):
    assert generate["drop_zero"](text) == shown
