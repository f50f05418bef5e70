"""The base of results: what is written comes back, with where it came from, and what cannot be used is named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass
from importlib import metadata
from typing import Any

import numpy as np
import pytest

from road_interp.errors import InputError
from road_interp.provenance import Provenance
from road_interp.results import FORMAT, Result


@dataclass(frozen=True)
class Part:
    name: str
    right: tuple[bool, ...]


@dataclass(frozen=True)
class Report(Result):
    title: str
    seeds: tuple[int, ...]
    parts: tuple[Part, ...]
    rates: Mapping[str, tuple[float, float]]
    nothing: float | None = None

    def summary(self) -> Any:
        """How many parts there are."""
        return {"parts": len(self.parts)}


@dataclass(frozen=True)
class Single(Result):
    seed: int


REPORT = Report("Ü", (0, 3), (Part("a", (True, False, True)), Part("b", ())), {"x": (0.5, 1.0)})


def test_a_result_is_shown_in_one_line():
    assert repr(REPORT) == "Report(title='Ü', seeds=(0, 3), parts=<2>, rates=<1>, nothing=None)"
    assert repr(Single(3)) == "Single(seed=3)"
    assert len(repr(Report("x" * 1000, tuple(range(1000)), (), {}))) < 120


def test_a_result_comes_back_equal():
    again = Report.from_json(REPORT.to_json())
    assert again == REPORT
    assert again.to_json() == REPORT.to_json()
    assert isinstance(again.parts, tuple)
    assert again.parts[0].right == (True, False, True)


def test_numbers_of_numpy_are_written_as_those_of_python():
    given = Report("x", tuple(np.arange(2)), (Part("a", tuple(np.array([True, False]))),), {"x": tuple(np.float32([0.5, 1.0]))})
    again = Report.from_json(given.to_json())
    assert again == given
    assert type(again.seeds[0]) is int
    assert again.parts[0].right == (True, False)
    with pytest.raises(InputError, match="object cannot be written as JSON"):
        Report("x", (0,), (), {"x": object()}).to_json()


def test_the_json_says_what_it_is_and_where_it_came_from(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/road-interp", "ablate", "a run"])
    content = json.loads(REPORT.to_json())
    assert (content["format"], content["result"]) == (FORMAT, "Report")
    assert content["summary"] == {"parts": 2}
    assert json.loads(REPORT.to_json(with_summary=False)) == {key: content[key] for key in content if key != "summary"}
    assert content["parts"] == [{"name": "a", "right": "101"}, {"name": "b", "right": []}]
    assert content["title"] == "Ü"
    made = content["provenance"]
    assert made["versions"]["torch"] == metadata.version("torch")
    assert made["command"] == "road-interp ablate 'a run'"
    assert made["seeds"] == [0, 3]
    assert json.loads(Single(7).to_json())["provenance"]["seeds"] == [7]
    assert "summary" not in json.loads(Single(7).to_json())


def test_provenance_is_that_of_who_made_it(monkeypatch):
    monkeypatch.setattr("sys.argv", ["first"])
    text = REPORT.to_json()
    monkeypatch.setattr("sys.argv", ["second"])
    again = Report.from_json(text)
    assert REPORT.provenance is None
    assert again.provenance.command == "first"
    assert json.loads(again.to_json())["provenance"]["command"] == "first"
    other = Report.from_json(json.dumps({**json.loads(text), "provenance": {"versions": {}, "commit": None, "command": "x"}}))
    assert other.provenance == Provenance({}, None, "x")
    assert other == again  # two measurements with the same numbers are equal


def test_results_are_frozen():
    with pytest.raises(FrozenInstanceError):
        REPORT.title = "other"


def test_files_are_written_whole_and_read_back(tmp_path):
    REPORT.save(tmp_path / "report.json")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text(encoding="utf-8").endswith("}\n")
    assert Report.load(tmp_path / "report.json") == REPORT


def test_numbers_that_are_not_finite_and_ascii_output_come_back():
    text = Report("Ü", (0,), (), {"x": (float("inf"), 0.5)}).to_json()
    assert text.isascii()
    assert Report.from_json(text).rates == {"x": (float("inf"), 0.5)}


def test_files_of_0_1_0_had_neither_format_nor_provenance():
    old = {"title": "t", "seeds": [0], "parts": [{"name": "a", "right": [True, False]}], "rates": {}, "summary": {"rates": []}}
    found = Report.from_json(json.dumps(old))
    assert found == Report("t", (0,), (Part("a", (True, False)),), {})
    assert found.provenance is None


def changed(**keys):
    return json.dumps({**json.loads(REPORT.to_json()), **keys})


RELEASE = metadata.version("road-interp")
WRONG = {
    "not valid JSON": "{",
    "not valid JSON (key 'format' is given twice)": '{"format": 1, "format": 1}',
    "not valid JSON (Exceeds": "1" * 5000,
    "not valid JSON (maximum": "[" * 100_000,
    "the JSON of Report must hold one object": "[]",
    "'title' is missing": "{}",
    "unknown key 'titel'; did you mean 'title'?": changed(titel="x"),
    "'parts[0].right' must be": changed(parts=[{"name": "a", "right": "01x"}]),
    "'parts[1].name' is missing": changed(parts=[{"name": "a", "right": ""}, {"right": ""}]),
    "'rates.x' must be a list of 2 values, not of 1": changed(rates={"x": [1]}),
    "'rates.x[1]' must be number, not None": changed(rates={"x": [1, None]}),
    "'seeds' must be a list of whole numbers, not 3": changed(seeds=3),
    "unknown key 'provenance.when'": changed(provenance={"when": 1}),
    "'provenance.versions' is missing": changed(provenance={"commit": None, "command": "x"}),
    f"format 2 is newer than this release of road-interp, which reads 1: pip install 'road-interp>={RELEASE}'": changed(format=2),
    "format '2' is not supported, only 1": changed(format="2"),
    "this is the JSON of Single, not of Report": Single(7).to_json(),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_used_is_named(message):
    with pytest.raises(InputError) as caught:
        Report.from_json(WRONG[message])
    assert str(caught.value).startswith(message)


def test_files_are_named_by_who_reads_them(tmp_path):
    (tmp_path / "other.json").write_text(WRONG["this is the JSON of Single, not of Report"])
    (tmp_path / "no-text.json").write_bytes(b"\xff")
    (tmp_path / "plain.json.gz").write_text("{}")
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"{}")[:-5])
    (tmp_path / "changed.json.gz").write_bytes(gzip.compress(b"{}")[:-8] + bytes(8))
    for name, message in (
        ("other.json", "other.json: this is the JSON of Single, not of Report"),
        ("no-text.json", "no-text.json' is not a text file"),
        ("plain.json.gz", "plain.json.gz' is not a whole gzip file"),
        ("cut.json.gz", "cut.json.gz' is not a whole gzip file"),
        ("changed.json.gz", "changed.json.gz' is not a whole gzip file"),
        ("gone.json", "gone.json' does not exist"),
    ):
        with pytest.raises(InputError) as caught:
            Report.load(tmp_path / name)
        assert message in str(caught.value)
        assert str(caught.value).count(str(tmp_path)) == 1


def test_a_path_that_ends_in_gz_is_compressed(tmp_path):
    """And the same result gives the same bytes, whatever the time and the path."""
    written = [tmp_path / name for name in ("report.json.gz", "other.json.gz")]
    for path in written:
        REPORT.save(path)
        assert Report.load(path) == REPORT
        assert json.loads(gzip.decompress(path.read_bytes())) == json.loads(REPORT.to_json())
    assert written[0].read_bytes() == written[1].read_bytes()
    assert written[0].read_bytes()[4:8] == bytes(4)  # the time in its header


def test_a_path_may_be_text(tmp_path):
    written = Report("title", (0,), (), {})
    written.save(str(tmp_path / "report.json"))
    assert Report.load(str(tmp_path / "report.json")) == written
    written.save(tmp_path / "new" / "folder" / "report.json")
    assert Report.load(tmp_path / "new" / "folder" / "report.json") == written
