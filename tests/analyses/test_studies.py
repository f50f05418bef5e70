"""Every figure script runs from its command line and redraws from its own JSON without a model."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_ablation import needs, taken_apart
from test_composition import report as scripted_report

from helpers.models import random_adapter, tiny_model, token_batch
from helpers.taught import word_tokenizer
from road_interp.errors import InputError
from road_interp.measure import CapacityPoint, CapacityReport, DriftStudy, InterferenceReport
from road_interp.measure.multitask_accuracy import MultiTaskAccuracyReport
from road_interp.measure.strength import StrengthReport
from road_interp.measure.throughput import ThroughputReport, Timing
from road_interp.plots import export
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.schema import MixtureRecipe
from road_interp.sites.find import find_sites
from road_interp.training.study import QUICK

ANALYSES = Path(__file__).parents[1] / "analyses"


def load(name):
    spec = importlib.util.spec_from_file_location(f"analysis_{name}", ANALYSES / f"{name}.py")
    script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def run(name, *arguments, monkeypatch, **replaced):
    script = load(name)
    for what, value in replaced.items():
        monkeypatch.setattr(script, what, value)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    script.main()


def test_throughput(tmp_path, monkeypatch, capsys):
    def timed(recipe, progress):
        settings = [("requests", rows, recipe.new_tokens, 8) for rows in recipe.requests]
        settings += [("length", 8, length, 8) for length in recipe.lengths]
        settings += [("rank", 8, recipe.new_tokens, rank) for rank in recipe.ranks]
        timings = [Timing(task, "bare", *setting, (0.5, 1.0), (1.0, 1.0), 8) for task, *setting in settings]
        return ThroughputReport("tiny", 14, "cpu", "float32", 2, recipe.rounds, tuple(timings))

    run("throughput", "--quick", "--out", tmp_path, monkeypatch=monkeypatch, bench_recipe=timed)
    first = (tmp_path / "throughput.json").read_text()
    again = tmp_path / "again"
    run("throughput", "--redraw", tmp_path / "throughput.json", "--out", again, monkeypatch=monkeypatch, bench_recipe=None)
    assert (again / "throughput.json").read_text() == first
    assert (again / "throughput.pdf").stat().st_size > 1000
    assert capsys.readouterr().out.count("throughput.png") == 2
    with pytest.raises(SystemExit):
        run("throughput", "--unknown", monkeypatch=monkeypatch)


def test_composition(tmp_path, monkeypatch, capsys):
    asked = []

    def scripted(recipe, folder):
        asked.append((folder.name, recipe.scoring.test))
        folder.mkdir(parents=True)
        (folder / "composition.json").write_text(scripted_report(recipe.seed).to_json())
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        (folder / "metrics.json").write_text("{}")

    run("composition", "--quick", "--out", tmp_path, monkeypatch=monkeypatch, trained=scripted)
    run("composition", "--quick", "--out", tmp_path, monkeypatch=monkeypatch, trained=scripted)
    assert asked == [("label+closing, co-activation 0.5, seed 0", 4)]  # what is there is not measured again
    first = (tmp_path / "composition.json").read_text()
    run("composition", "--redraw", tmp_path / "composition.json", "--out", tmp_path / "again", monkeypatch=monkeypatch)
    assert (tmp_path / "again" / "composition.json").read_text() == first
    assert capsys.readouterr().out.count("composition.png") == 3


def test_conditions_of_the_composition_are_recipes():
    script = load("composition")
    names = [name for name, _, _ in script.conditions()]
    assert script.MAIN in names
    assert len(names) == len(set(names))
    for _, changes, _ in script.conditions():
        assert isinstance(load_recipe("composition-smollm2", changes), MixtureRecipe)


def test_multiplied_adapters_are_those_of_the_tasks_alone(tmp_path, monkeypatch):
    script = load("composition")
    asked = {}

    def measured(recipe, folder, measure):
        asked[folder.name] = recipe
        if len(asked) == 2:
            raise StopIteration

    monkeypatch.setattr(script, "measured", measured)
    monkeypatch.setattr(script.Run, "load", lambda folder: SimpleNamespace(adapter=None))
    with pytest.raises(StopIteration):
        script.multiplied(load_recipe("composition-smollm2", ["seed=2"]), tmp_path / "components" / "multiplied")
    for name, changes, _ in script.conditions():
        if name.endswith(" alone"):
            assert asked[f"{name}, seed 2"] == load_recipe("composition-smollm2", [*changes, "seed=2"])


def test_heads(tmp_path, monkeypatch, capsys):
    trained = []

    def scripted(recipe, folder):
        trained.append((folder.name, recipe.training.max_steps))
        tasks = tuple(recipe.tasks)
        correct = {task: dict.fromkeys(("__base__", task, "+".join(tasks)), (True, False)) for task in tasks}
        return SimpleNamespace(composition=MultiTaskAccuracyReport("m", "x", tasks, (recipe.seed,), correct))

    run("heads", "--quick", "--out", tmp_path, monkeypatch=monkeypatch, train_once=scripted)
    names = ["co-activation 0.5", "co-activation 0", "sentiment alone", "source alone"]
    assert trained == [(f"{name}, seed 0", 2) for name in names]
    first = (tmp_path / "heads.json").read_text()
    run("heads", "--redraw", tmp_path / "heads.json", "--out", tmp_path / "again", monkeypatch=monkeypatch, train_once=None)
    assert (tmp_path / "again" / "heads.json").read_text() == first
    assert capsys.readouterr().out.count("heads.png") == 2


def test_strength(tmp_path, monkeypatch, capsys):
    report = StrengthReport("m", "closing", (0.0, 1.0), ((False, False), (True, False)), (2.0, 3.0))
    asked = []

    def scripted(folder, strengths, prompts):
        asked.append((folder, strengths, prompts))
        return report

    run("strength", tmp_path / "run", "--quick", "--out", tmp_path, monkeypatch=monkeypatch, measure=scripted)
    assert asked == [(tmp_path / "run", (0.0, 1.0), 4)]
    run("strength", "--redraw", tmp_path / "strength.json", "--out", tmp_path / "again", monkeypatch=monkeypatch, measure=None)
    assert (tmp_path / "again" / "strength.json").read_text() == report.to_json()
    with pytest.raises(SystemExit):
        run("strength", monkeypatch=monkeypatch)


def test_interchange(tmp_path, monkeypatch, capsys):
    def tiny(recipe, head):
        return tiny_model("Llama", head, vocab_size=400), []

    run(
        "interchange", "--quick", "--layer", 0, "--tasks", "gender", "agreement:object", "--out", tmp_path,
        monkeypatch=monkeypatch, load_model=tiny, load_tokenizer=lambda recipe: word_tokenizer(),
    )  # fmt: skip
    parts = ["controls-agreement-0", "controls-gender-0", "cost", "depth-gender-0", "depths-gender", "scan-gender"]
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == parts
    assert json.loads((tmp_path / "controls-agreement-0.json").read_text())["rows"][0]["span"] == "object"
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("c*.json")}
    assert "scan-gender.png" in capsys.readouterr().out

    (tmp_path / "scan-gender.json").unlink()
    run("interchange", "--redraw", tmp_path, "--out", tmp_path, monkeypatch=monkeypatch, load_model=None)
    told = capsys.readouterr().out
    assert "controls-agreement-0" in told
    assert "depths-gender.png" in told
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("c*.json")} == written


def test_disentangle(tmp_path, monkeypatch, capsys):
    def tiny(recipe):
        return tiny_model("Bert", vocab_size=400), []

    rows = [f"{name} was {mood},she left,{mood}" for name in ("Mary", "John", "Anna", "Paul") * 8 for mood in ("glad", "sad")]
    (tmp_path / "pairs.csv").write_text("\n".join(["one,two,mood", *rows]) + "\n")
    data = [f"id={tmp_path / 'pairs.csv'}", "text=one", "text_pair=two", "label=mood", "metric=matthews"]
    run(
        "disentangle", "--quick", "--out", tmp_path, "--task", "mood", "--data", *data,
        monkeypatch=monkeypatch, load_model=tiny, load_tokenizer=lambda recipe: word_tokenizer(),
    )  # fmt: skip
    first = (tmp_path / "disentangle-mood.json").read_text()
    content = json.loads(first)
    assert (content["metric"], content["seeds"], len(content["labels"])) == ("matthews", [0], 6)
    assert [outcome["numbers"] for outcome in content["outcomes"]] == [32, 32, 32, 1, 32, 32, 1, 4, 4, 16, 52, 0]
    again = tmp_path / "again"
    run(
        "disentangle", "--redraw", tmp_path / "disentangle-mood.json", "--out", again,
        monkeypatch=monkeypatch, disentangle=None,
    )  # fmt: skip
    assert (again / "disentangle-mood.json").read_text() == first
    run(
        "disentangle", "--quick", "--before-norm", "--out", tmp_path, "--task", "mood", "--data", *data,
        monkeypatch=monkeypatch, load_model=tiny, load_tokenizer=lambda recipe: word_tokenizer(),
    )  # fmt: skip
    before = json.loads((tmp_path / "disentangle-mood-before-norm.json").read_text())
    assert (content["place"], before["place"]) == ("block 1", "block 1, before its LayerNorm")
    assert capsys.readouterr().out.count("disentangle-mood.png") == 2


def test_drift(tmp_path, monkeypatch, capsys):
    base, made = tiny_model("Bert"), []

    def scripted(method, recipe, folder):
        made.append((method, recipe.seed, recipe.training.max_steps))
        moved = tiny_model("Bert", seed=recipe.seed + len(method))
        return (base, {}) if method == "pretrained" else (moved, {"test": {"accuracy": 0.5}})

    batches = [token_batch(4), token_batch(3, seed=1)]
    options = {"monkeypatch": monkeypatch, "trained": scripted, "read_batches": {tuple(QUICK): batches}.__getitem__}
    run("drift", "--quick", "--out", tmp_path, **options)
    run("drift", "--quick", "--out", tmp_path, **options)
    names = ["pretrained", "full fine-tuning", "LoRA, rank 8", "road_1"]
    assert made == [(name, 0, 2) for name in names]  # each once, and what is there is not measured again
    first = (tmp_path / "drift.json").read_text()
    study = DriftStudy.from_json(first)
    assert [report.tuned for report in study.reports] == [*names[1:], "pretrained against itself"]
    assert study.scores == (*3 * [{"test": {"accuracy": 0.5}}], {})
    assert all(place.angle == place.dM == (0, 0, 0) for place in study.reports[-1].places)
    assert all(place.angle[0] > 1 for report in study.reports[:-1] for place in report.places)
    run("drift", "--redraw", tmp_path / "drift.json", "--out", tmp_path / "again", monkeypatch=monkeypatch, trained=None)
    assert (tmp_path / "again" / "drift.json").read_text() == first
    assert (tmp_path / "again" / "drift-grid.pdf").stat().st_size > 1000
    assert capsys.readouterr().out.count("drift-scatter.png") == 3


def test_drift_compares_seeds_too():
    compared = list(load("drift").comparisons([0, 1, 2]))
    assert len(compared) == len(set(compared)) == 3 * 3 + 2 + 1
    assert [pair[:2] for pair in compared[9:]] == [
        (("full fine-tuning", 0), ("full fine-tuning", 1)),
        (("full fine-tuning", 1), ("full fine-tuning", 2)),
        (("pretrained", 0), ("pretrained", 0)),
    ]


def test_ablation(tmp_path, monkeypatch, capsys, finished):
    run("ablation", finished.folder, "--quick", "--out", tmp_path, monkeypatch=monkeypatch)
    first = (tmp_path / "ablation.json").read_text()
    assert json.loads(first)["rows"][0]["part"] == "both"
    run("ablation", finished.folder, "--quick", "--out", tmp_path, monkeypatch=monkeypatch, scorer_of=None)  # nothing is left
    run("ablation", "--redraw", tmp_path / "ablation.json", "--out", tmp_path / "again", monkeypatch=monkeypatch)
    with pytest.raises(SystemExit):
        run("ablation", finished.folder, "--most", 0, "--out", tmp_path, monkeypatch=monkeypatch)
    printed = capsys.readouterr()
    assert "--most must be at least 1" in printed.err
    assert (tmp_path / "again" / "ablation.json").read_text() == first
    assert printed.out.count("ablation.png") == 3


def test_ablation_trains_where_no_run_is_given(tmp_path, monkeypatch, capsys, finished):
    asked = []

    def trained(*question):
        asked.append(question)
        return [finished.folder] if "adapter.learn=both" in question[1] else []

    run("ablation", "--quick", "--out", tmp_path, monkeypatch=monkeypatch, runs_for_seeds=trained)
    assert asked == [
        ("sentiment-minilm", (*QUICK, f"adapter.learn={part}"), [0], tmp_path / "parts-quick")
        for part in ("both", "angles", "magnitudes")
    ]


def test_runs_that_learned_one_part_alone_stand_beside_their_seeds_run(tmp_path, monkeypatch, capsys, finished):
    alone = tmp_path / "angles alone"
    shutil.copytree(finished.folder, alone)
    recipe = (alone / "recipe.yaml").read_text()
    (alone / "recipe.yaml").write_text(recipe.replace("learn: both", "learn: angles"))
    run("ablation", finished.folder, alone, "--quick", "--out", tmp_path, monkeypatch=monkeypatch)
    rows = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    assert (rows[-1]["group"], rows[-1]["part"]) == ("trained alone", "angles only")
    assert rows[-1]["correct"] == rows[0]["correct"]  # a copy of the run, after all
    with pytest.raises(InputError, match="no run of the recipe and seed of '.*angles alone' that learned both parts"):
        run("ablation", alone, "--quick", "--out", tmp_path, monkeypatch=monkeypatch)


def test_scripts_that_share_quick_runs_train_them_alike():
    assert load("interference").QUICK == load("heads").QUICK


def test_angles(tmp_path, monkeypatch, capsys, finished):
    run("angles", finished.folder, finished.folder, "--out", tmp_path, monkeypatch=monkeypatch, runs_for_seeds=None)
    names = ["angles", "magnitudes", "planes", "angle-histogram", "shares", "structure", "query-key"]
    assert [Path(line).stem for line in capsys.readouterr().out.split()] == names
    assert json.loads((tmp_path / "structure.json").read_text())["signed"] == pytest.approx([1, 1, 1])
    again = tmp_path / "again"
    run("angles", "--redraw", tmp_path, "--out", again, monkeypatch=monkeypatch, measure=None)
    assert {file.name for file in tmp_path.glob("*.*")} == {file.name for file in again.glob("*.*")}
    assert (again / "query-key.json").read_text() == (tmp_path / "query-key.json").read_text()


def test_angles_leaves_out_what_there_is_nothing_for(tmp_path, monkeypatch, capsys, finished):
    def no_query(report, key_heads):
        raise InputError("no layer rotates query and key")

    def trained(name, changes, seeds, parts):
        assert (name, seeds, parts) == ("sentiment-minilm", [4], tmp_path / "components")
        return [finished.folder]

    run("angles", "--seeds", 4, "--out", tmp_path, monkeypatch=monkeypatch, query_key=no_query, runs_for_seeds=trained)
    printed = capsys.readouterr()
    assert [Path(line).stem for line in printed.out.split()] == ["angles", "magnitudes", "planes", "angle-histogram", "shares"]
    assert "no layer rotates query and key" in printed.err


def test_angles_are_redrawn_from_what_is_there(tmp_path, monkeypatch, capsys):
    folder = ANALYSES.parent / "docs" / "studies" / "smollm2"
    run("angles", "--redraw", folder, "--out", tmp_path, monkeypatch=monkeypatch)
    assert capsys.readouterr().out.split() == [str(tmp_path / "query-key.png")]
    with pytest.raises(InputError, match="holds none of angles.json, structure.json, query-key.json"):
        run("angles", "--redraw", tmp_path / "none", monkeypatch=monkeypatch)


def test_interference(tmp_path, monkeypatch, capsys):
    sites, asked = find_sites(tiny_model("Bert"), "fc1"), []

    def trained(recipe, folder):
        asked.append((folder.name, list(recipe.tasks), recipe.training.max_steps))
        return SimpleNamespace(adapter=random_adapter(sites, seed=len(asked)))

    def scorer(run, task):
        whole = run.adapter.angles(sites[0])  # half of the answers are wrong once the first layer turned further
        return lambda adapter: np.array([True, torch.allclose(adapter.angles(sites[0]), whole, atol=1e-4)] * 20)

    replaced = {"monkeypatch": monkeypatch, "train_once": trained, "HeadScorer": scorer}
    for _ in range(2):
        run("interference", "--quick", "--out", tmp_path, **replaced)
    names = ["sentiment", "source"]
    assert asked == [(f"{name} alone, seed 0", [name], 2) for name in names]  # what is there is not measured again
    first = (tmp_path / "interference.json").read_text()
    report = InterferenceReport.from_json(first)
    assert report.names == tuple(name for task in names for name in (task, f"{task} layer 0", f"{task} layer 1"))
    assert list(report.correct["source"]) == ["nothing", "sentiment", "sentiment layer 0", "sentiment layer 1"]
    assert [report.cost("source", f"sentiment{part}")[0] for part in ("", " layer 0", " layer 1")] == [0.5, 0.5, 0]
    run("interference", "--redraw", tmp_path / "interference.json", "--out", tmp_path / "again", monkeypatch=monkeypatch)
    assert (tmp_path / "again" / "interference.json").read_text() == first
    printed = capsys.readouterr().out
    assert printed.count("interference.png") == 3
    told = "hurt other features? yes (what 'source' loses with 'sentiment', against a margin of 0.01)"
    assert printed.count(told) == 3


def test_index_shows_every_known_figure_with_its_sentence(tmp_path, monkeypatch, capsys):
    report = StrengthReport("m", "<closing>", (0.0, 1.0), ((False, False), (True, False)), (2.0, 3.0))
    run("strength", tmp_path / "run", "--out", tmp_path, monkeypatch=monkeypatch, measure=lambda *_: report)
    export.draw_ablation(taken_apart(needs("angles")), tmp_path)
    (tmp_path / "stranger.png").write_bytes(b"")
    export.draw_ablation(taken_apart(needs("angles")), tmp_path / "other")
    run("index", tmp_path, tmp_path / "other", monkeypatch=monkeypatch)
    page = (tmp_path / "index.html").read_text()
    assert page.count("<section") == page.count("data:image/png;base64,") == 3
    assert re.findall('<section id="(.*)">', page) == ["ablation", "strength", "other/ablation"]
    assert "accuracy: angles alone lose 0.000 [0.000, 0.000] of both parts and magnitudes alone 0.500" in page
    assert "&#39;&lt;closing&gt;&#39;" in page
    assert 'src="http' not in page
    assert "strength run --out out</code>" in page.replace(str(tmp_path), "out").replace("out/run", "run")
    assert page.count(f"torch {version('torch')}") == 3


def test_index_tells_what_was_measured(tmp_path, monkeypatch, capsys):
    docs = ANALYSES.parent / "docs"
    for place in ("", "studies", "composition", "heads", "interchange"):
        for image in (docs / place).glob("*.png"):
            if (numbers := image.with_suffix(".json")).is_file():
                shutil.copy(image, tmp_path)
                shutil.copy(numbers, tmp_path)
    run("index", tmp_path, monkeypatch=monkeypatch)
    page = (tmp_path / "index.html").read_text()
    known = {shown.name for shown in load("index").shown_in(tmp_path, tmp_path)}
    kinds = (
        "angles shares structure query-key drift disentangle-rotten-tomatoes ablation composition heads strength scan-agreement"
    )
    before = "disentangle-rotten-tomatoes-before-norm"
    assert known == {*kinds.split(), before, "capacity", "interference", "throughput", "depths-agreement"}
    assert page.count("<section") == len(known)
    assert "trained alone: angles only" in page
    assert not re.search(r"\bnan\b", re.sub('base64,[^"]*', "", page))


def test_capacity(tmp_path, monkeypatch, capsys):
    trained = []

    def scripted(family, name, recipe):
        trained.append(name)
        return CapacityPoint(family, name, 10, 0.1, (0.8,), 40)

    for _ in range(2):
        run("capacity", "--quick", "--out", tmp_path, monkeypatch=monkeypatch, point=scripted)
    assert len(trained) == len(set(trained)) == 19  # what is there is not measured again
    only = tmp_path / "only"
    run("capacity", "--quick", "--only", "road_4", "rank 4", "--out", only, monkeypatch=monkeypatch, point=scripted)
    assert [each.name for each in CapacityReport.from_json((only / "capacity.json").read_text()).points] == ["road_4", "rank 4"]
    trained.clear()  # what is there of other ways stands beside them
    run("capacity", "--quick", "--only", "fc1", "--out", only, monkeypatch=monkeypatch, point=scripted)
    assert trained == ["fc1"]
    names = [each.name for each in CapacityReport.from_json((only / "capacity.json").read_text()).points]
    assert names == ["road_4", "fc1", "rank 4"]
    first = (tmp_path / "capacity.json").read_text()
    run("capacity", "--redraw", tmp_path / "capacity.json", "--out", tmp_path / "again", monkeypatch=monkeypatch, point=None)
    assert (tmp_path / "again" / "capacity.json").read_text() == first
    assert capsys.readouterr().out.count("capacity.png") == 5
