"""The page about an adapter: what it says, that it is self-contained and escaped, and that it works in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from helpers.models import random_adapter
from road_interp.cli import app
from road_interp.measure import angles
from road_interp.measure.answers import Answers
from road_interp.plots.html_report import PLANES_PER_SITE, ScoreTable, report_page, scores_of
from road_interp.runs.run import Run
from road_interp.sites.site import Site

pytestmark = pytest.mark.rendered

GOLDEN = Path(__file__).parents[1] / "golden" / "0.1.0" / "runs"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SITES = (Site("blocks.0.mlp", 256, 0, "mlp"), Site("blocks.1.mlp", 8, 1, "mlp"))


def data_of(page: str) -> list:
    return json.loads(re.search(r"const planes = (.*?);  //", page)[1])


@pytest.mark.parametrize("variant", ["road_1", "road_2"])
def test_the_page_holds_the_planes_that_turn_most(variant):
    adapter = random_adapter(SITES, variant)
    planes = data_of(report_page(adapter, "a run"))
    assert [len(site) for site in planes] == [PLANES_PER_SITE, 4]
    for site, entries in zip(SITES, planes, strict=True):
        turned = adapter.angles(site).abs()
        assert [entry[0] for entry in entries] == turned.argsort(descending=True)[: len(entries)].tolist()
        maps = adapter.plane_maps(site)
        plane, *found = entries[0]
        expected = [maps.a[plane].real, maps.a[plane].imag] + (
            [0, 0] if maps.b is None else [maps.b[plane].real, maps.b[plane].imag]
        )
        assert found == pytest.approx([float(each) for each in expected], abs=1e-5)


def test_what_comes_from_data_is_escaped_and_nothing_is_loaded():
    evil = "</script><script>alert(1)</script>"
    sites = (Site(f"blocks.0.{evil}", 8, 0, evil),)
    page = report_page(random_adapter(sites), evil, evil, [ScoreTable(evil, [evil], [[evil]])])
    assert evil not in page
    assert page.count(html.escape(evil)) >= 7
    assert page.count("<script>") == 1
    assert not re.search(r'(?:src|href)="(?!data:)|url\(|@import|https?://', page)


def test_scores_are_named_by_their_path():
    metrics = {"test": {"accuracy": 0.8125, "interval": [0.7, 0.9]}, "classes": ["a", "b"], "steps": 12}
    assert scores_of(metrics) == [
        ("test accuracy", "0.8125"), ("test interval", "0.7, 0.9"), ("classes", "['a', 'b']"), ("steps", "12"),
    ]  # fmt: skip


def test_the_command_writes_it(finished, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(app.sys, "argv", ["road-interp", "report", *map(str, arguments)])
        app.main()

    finished.adapter.save(tmp_path / "adapter")
    (tmp_path / "adapter" / "metrics.json").write_text("{}")  # of somebody else
    monkeypatch.chdir(tmp_path)
    run("adapter", "--json")
    assert json.loads(capsys.readouterr().out) == {"page": "adapter.html"}
    assert "<h1>adapter</h1>" in (tmp_path / "adapter.html").read_text()
    run(finished.folder, "--out", tmp_path / "page.html", "--json")
    assert json.loads(capsys.readouterr().out) == {"page": str(tmp_path / "page.html")}
    page = (tmp_path / "page.html").read_text()
    assert "road_1, trained head" in page
    assert page.count("(40 texts)</td>") == 4
    assert re.search(r"with trained rotations and head: accuracy [0-9.]+ \[.*\(40 texts\)\. With a trained head alone: ", page)
    confusion = re.search(r'<table class="scores confusion">(.*?)</table>', page, re.DOTALL)[1]
    assert sum(int(count) for count in re.findall(r"<td>(\d+)</td>", confusion)) == 40
    (head,) = json.loads(re.search(r"const heads = (.*?);  //", page)[1])
    states = head["states"]
    assert [len(site) for site in states] == [min(8, site.width // 2) for site in finished.adapter.sites]
    assert {len(plane) for site in states for plane in site} == {40}
    for site in angles(finished.adapter).sites:
        assert f"<td>{site.name}</td>" in page
    for wrong in (tmp_path / "gone" / "page.html", tmp_path):
        with pytest.raises(SystemExit) as stopped:
            run(finished.folder, "--out", wrong)
        assert stopped.value.code == 2


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path")
@pytest.mark.parametrize(("seed", "mirrored"), [(1, False), (0, True)])
def test_it_works_in_a_browser(tmp_path, seed, mirrored):
    """A script behind the page's own sorts, chooses and turns, and writes what it finds into the document."""
    adapter = random_adapter(SITES, "road_2", spread=0.8 if mirrored else 0.3, seed=seed)
    column = 3  # planes
    probe = f"""<script>
      const column = () => [...document.querySelectorAll("#sites tbody tr")].map(row => row.cells[{column}].textContent);
      const sort = () => {{ document.querySelectorAll("#sites th button")[{column}].click(); return column(); }};
      const rows = [sort(), sort()], [first, second] = document.querySelectorAll("#sites tbody tr"), chosen = [];
      const press = (row, key) => {{
        row.focus();
        document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {{key, bubbles: true}}));
        chosen.push(at("site").value);
      }};
      second.click(); press(first, "a"); press(first, "Enter"); press(second, "Enter");
      first.click();
      const slide = t => {{ at("strength").value = t; at("strength").dispatchEvent(new Event("input")); }};
      const learned = at("numbers").textContent, curve = at("curve").getAttribute("d");
      slide(0);
      document.title = JSON.stringify({{rows, site: at("site").value, count: at("plane").length, learned, curve: curve.length,
        still: at("numbers").textContent, chosen, error: window.failed || null}});
    </script>"""
    watch = "<script>window.onerror = error => {window.failed = error};</script><script>"
    page = report_page(adapter, "a run").replace("<script>", watch, 1)
    (tmp_path / "page.html").write_text(page.replace("</html>", probe + "</html>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", (tmp_path / "page.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = json.loads(html.unescape(re.search("<title>(.*?)</title>", dom)[1]))
    assert found["error"] is None
    assert found["rows"] == [["128", "4"], ["4", "128"]]  # down, then up by the number of planes
    assert found["chosen"] == ["0", "1", "0"]  # by the keyboard
    assert (found["site"], found["count"]) == ("1", 4)  # the small site, which is the first row now
    polar = adapter.polar(SITES[1])
    plane = int(polar.angle.abs().argmax())
    assert bool(polar.reflection[plane]) == mirrored
    assert f"Angle{polar.angle[plane].rad2deg():.2f}°" in found["learned"]
    stretches = f"{polar.major[plane]:.4f} and {polar.minor[plane]:.4f}"
    assert stretches in found["learned"]
    assert (stretches if mirrored else "Angle0.00°Stretches1.0000 and 1.0000") in found["still"]  # at strength 0
    assert found["curve"] > 500


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path")
def test_states_are_drawn_and_turn_with_the_strength(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(app.sys, "argv", ["road-interp", "report", str(finished.folder), "--out", str(tmp_path / "page.html")])
    app.main()
    probe = """<script>
      const paths = () => [...document.querySelectorAll("#states path")].map(path => path.getAttribute("d"));
      const behind = paths();
      at("strength").value = 0; at("strength").dispatchEvent(new Event("input"));
      const still = paths(), pairs = still.filter((each, place) => place % 2 == 0 && each == still[place + 1]).length;
      document.title = JSON.stringify({count: behind.length, moved: behind.some((each, place) => each != still[place]), pairs,
        legend: [...document.querySelectorAll("#legend li")].map(item => item.textContent.trim()),
        signs: document.querySelectorAll("#legend path").length});
    </script>"""
    page = (tmp_path / "page.html").read_text()
    (tmp_path / "page.html").write_text(page.replace("</html>", probe + "</html>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", (tmp_path / "page.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = json.loads(html.unescape(re.search("<title>(.*?)</title>", dom)[1]))
    legend = list(map(str, finished.classes))
    assert found == {"count": 80, "moved": True, "pairs": 40, "legend": legend, "signs": len(legend)}


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path")
def test_states_of_the_chosen_head_are_drawn(tmp_path):
    adapter = random_adapter(SITES, "road_1")

    def answers(task, classes, count):
        labels = np.arange(count) % len(classes)
        states = {site.name: np.full((count, site.width // 2), count + 1j) for site in SITES}
        return Answers(tuple("abcdefg"[:count]), classes, labels, labels, labels, tuple(range(count)), states, task)

    probe = """<script>
      const drawn = () => [document.querySelectorAll("#states path").length, at("legend").innerText];
      const first = drawn();
      at("head").value = 1; at("head").dispatchEvent(new Event("change"));
      document.title = JSON.stringify([first, drawn(), [...at("head").options].map(option => option.text)]);
    </script>"""
    page = report_page(adapter, "a run", answers=[answers("tone", ("no", "yes"), 4), answers("start", ("a", "b", "c"), 7)])
    (tmp_path / "page.html").write_text(page.replace("</html>", probe + "</html>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", (tmp_path / "page.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    first, second, names = json.loads(html.unescape(re.search("<title>(.*?)</title>", dom)[1]))
    assert (first[0], first[1].split()) == (8, ["no", "yes"])  # every state in front of the rotation and behind it
    assert (second[0], second[1].split()) == (14, ["a", "b", "c"])
    assert names == ["tone", "start"]


def test_a_run_whose_data_are_elsewhere_has_a_page_that_says_so(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "origin.json").unlink(missing_ok=True)
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(re.sub(r"id: .*data\.csv", f"id: {tmp_path / 'gone.csv'}", text))
    monkeypatch.setattr(app.sys, "argv", ["road-interp", "report", str(folder), "--out", str(tmp_path / "page.html")])
    app.main()
    assert "the page is without the answers to the test texts: " in capsys.readouterr().err
    page = (tmp_path / "page.html").read_text()
    assert "Answers to the test texts" not in page
    assert page.count("(40 texts)</td>") == 4  # the scores are there


@pytest.mark.parametrize("kind", ["multitask-generation", "multitask-classification"])
def test_the_page_of_several_tasks_has_their_tables(tmp_path, monkeypatch, capsys, kind):
    folder = GOLDEN / kind
    monkeypatch.setattr(app.sys, "argv", ["road-interp", "report", str(folder), "--out", str(tmp_path / "page.html")])
    app.main()
    page = html.unescape((tmp_path / "page.html").read_text())
    run = Run.load(folder)
    assert f"The tasks {', '.join(run.planes.tasks)} of " in page
    scores = re.search(r'<table class="scores">(.*?)</table>', page, re.DOTALL)[1]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr><td>.*?</tr>", scores)]
    rates = run.metrics["test"].get("rates")
    if rates is None:  # metrics.json of 0.1.0 calls the accuracy of the heads otherwise
        assert [row[0] for row in rows] == [name for name, _ in scores_of(run.metrics)]
    else:
        assert [row[0] for row in rows] == list(rates)
        assert "fraction of answers that show a behaviour" in scores
