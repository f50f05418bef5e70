"""What the studies of one adapter's parameters measure, with fakes for what is slow, and what their commands say about it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.scorers import needs, taken_apart
from helpers.studies import script_of
from road_interp.errors import InputError
from road_interp.measure import AblationReport, AngleReport, CapacityReport, QueryKey
from road_interp.measure.parameter_share import MethodOutcomes
from road_interp.measure.throughput import ThroughputReport, Timing
from road_interp.progress import silent
from road_interp.recipes.schema import ThroughputRecipe
from road_interp.training.study import Piece

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"


def test_throughput(known, command, monkeypatch, tmp_path):
    recipes = []

    def timed(recipe, progress):
        recipes.append(recipe)
        settings = [("requests", rows, recipe.new_tokens, 8) for rows in recipe.requests]
        settings += [("length", 8, length, 8) for length in recipe.lengths]
        settings += [("rank", 8, recipe.new_tokens, rank) for rank in recipe.ranks]
        settings += [("forward", 8, 0, 0)]
        timings = [Timing(task, "bare", *setting, (0.5, 1.0), (1.0, 1.0), 8) for task, *setting in settings]
        return ThroughputReport("tiny", 14, "cpu", "float32", 2, recipe.rounds, tuple(timings))

    monkeypatch.setitem(script_of(known["throughput"]), "run_throughput_recipe", timed)
    output = command("throughput", "--quick")
    assert [(recipe.rounds, recipe.requests, recipe.new_tokens) for recipe in recipes] == [(1, [1, 4], 4)]
    shown = ("bare, 1 at a time", "bare, 4 at a time", "forward: bare")  # the figure has lengths and ranks
    assert output["numbers"] == dict.fromkeys(shown, "1.00 [1.00, 1.00]")
    first = (tmp_path / "figures" / "throughput.json").read_text()
    again = command("throughput", "--quick", "--redraw", "--out", tmp_path / "again")
    assert again["figures"] == [str(tmp_path / "again" / "throughput.png")]
    assert json.loads((tmp_path / "again" / "throughput.json").read_text())["timings"] == json.loads(first)["timings"]
    assert len(recipes) == 1
    command("throughput")
    assert len(recipes) == 2
    assert all(isinstance(recipe, ThroughputRecipe) for recipe in recipes)


@pytest.mark.parametrize("downloaded", [False, True])
def test_a_model_that_is_not_downloaded_is_left_out_of_the_costs(known, command, monkeypatch, downloaded):
    """Each of the others is timed as itself, under its own name."""

    def timed(recipe, progress):
        timings = [Timing("forward", method, 8, 64, 0, (1.0,), (1.0,), 8) for method in ("bare", "RoadModel")]
        return ThroughputReport(recipe.model.name, 1, "cpu", "float32", 1, recipe.rounds, tuple(timings))

    script = script_of(known["engine"])
    monkeypatch.setitem(script, "run_throughput_recipe", timed)
    monkeypatch.setitem(script, "is_here", lambda identity: downloaded or not identity.startswith("models://"))
    with nullcontext() if downloaded else pytest.warns(UserWarning, match="gemma-3-270m: left out"):
        numbers = command("engine")["numbers"]
    models = ["SmolLM2-135M", "Gemma-3-270M"] if downloaded else ["SmolLM2-135M"]
    assert [*numbers] == [f"{model}: forward, 8 x 64 tokens / bare" for model in models]


def test_parameter_share(known, command, monkeypatch, tmp_path):
    """The best rate by validation; every method on every task of the folder, with the recipe of its files."""
    asked, sizes = [], set()

    def scripted(recipe, method, task, texts):
        asked.append((recipe, method, task))
        sizes.add(texts)
        best = recipe.training.learning_rate == 3e-3
        correct = True, False, best
        contained = () if task == "RTE" else (True, False, True)
        return MethodOutcomes(recipe.model.name, task, method, recipe.seed, 1e-3, 5, 0.1, 0.5 + best / 4, correct, contained)

    script = script_of(known["parameter-share"])
    monkeypatch.setitem(script, "method_outcomes", scripted)
    monkeypatch.setitem(
        script, "method_outcomes", lambda *given: pytest.fail("interrupted") if len(asked) == 2 else scripted(*given)
    )
    with pytest.raises(pytest.fail.Exception, match="interrupted"):
        command("parameter-share-rates", "--only", "minilm_lora-8")
    monkeypatch.setitem(script, "method_outcomes", scripted)
    told = command("parameter-share-rates", "--only", "minilm_lora-8")  # goes on where it was interrupted
    assert [recipe.training.learning_rate for recipe, *_ in asked] == [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
    assert {method for _, method, _ in asked} == {"lora-8"}
    tuned_on = asked[0][0].data
    assert sizes == {2000}
    sizes.clear()
    assert told["numbers"]["minilm, lora-8, best rate"] == "0.003"
    assert told["numbers"]["minilm, lora-8, rate 0.003"] == "0.750"
    asked.clear()
    monkeypatch.setitem(script, "RATES", {"minilm": {"road_1": 3e-3, "full": 1e-4}})
    slugs = [f"minilm_{task}_{method}" for task in ("rotten-tomatoes", "RTE") for method in ("road_1", "full")]
    glue = tmp_path / "glue"
    for name in ("train.tsv", "dev.tsv"):
        (glue / "RTE" / name).parent.mkdir(parents=True, exist_ok=True)
        (glue / "RTE" / name).touch()
    told = command("parameter-share", f"glue={glue}", "--seeds", "0,1", *(each for slug in slugs for each in ("--only", slug)))
    assert [(method, task, recipe.seed) for recipe, method, task in asked] == [
        (method, task, seed) for task in ("rotten-tomatoes", "RTE") for method in ("road_1", "full") for seed in (0, 1)
    ]
    reviews, entailment = asked[0][0].data, asked[4][0].data
    assert reviews == tuned_on  # so that the rates are chosen on validation texts of the same split
    assert sizes == {None}
    assert (reviews.per_class, reviews.filter) == (3500, {"source": "rotten_tomatoes"})
    assert (entailment.id, entailment.validation, entailment.filter) == (f"{glue}/RTE/train.tsv", f"{glue}/RTE/dev.tsv", {})
    assert (entailment.text, entailment.text_pair, entailment.per_class) == ("sentence1", "sentence2", None)
    assert [Path(path).stem for path in told["figures"]] == ["parameter-share-rotten-tomatoes", "parameter-share-rte"]
    recorded = json.loads((tmp_path / "results" / "MANIFEST.json").read_text())
    assert {entry["precision"] for entry in recorded.values()} <= {"bf16", "fp32"}
    (name,) = [row for row in told["numbers"] if row.endswith("RTE, road_1 (0.100%) minus full fine-tuning")]
    assert told["numbers"][name].startswith("0.333")
    divided = {row.rpartition("rotten-tomatoes, ")[2]: value for row, value in told["numbers"].items() if "training text" in row}
    assert divided["test texts in a training text"] == "2 of 3"
    assert divided["road_1 (0.100%) minus full fine-tuning, texts in a training text"].startswith("0.500")
    assert divided["road_1 (0.100%) minus full fine-tuning, texts in no training text"].startswith("0.000")
    assert len(divided) == 3  # those of RTE, which are pairs, are not divided
    assert [value for row, value in told["numbers"].items() if row.endswith("RTE, full (0.100%), by seed")] == ["0.333, 0.333"]
    for method, seed in (("road_1", 1), ("full", 0)):
        (tmp_path / "results" / "parameter-share" / f"minilm_RTE_{method}" / f"seed-{seed}.json.gz").unlink()
    told = command("parameter-share", "--redraw", "--seeds", "0,1")  # methods that have other seeds each are not compared
    assert not [row for row in told["numbers"] if row.endswith("RTE, road_1 (0.100%) minus full fine-tuning")]
    assert [row for row in told["numbers"] if row.endswith("RTE, road_1 (0.100%)")]
    with pytest.raises(InputError, match="rates must hold one learning rate here"):
        script["measure"](SimpleNamespace(recipe=script["Settings"](rates=(1e-4, 1e-3))))
    with pytest.raises(InputError, match="no learning rate is chosen for lora-1 on minilm: give one, as in rates="):
        script["measure"](SimpleNamespace(recipe=script["Settings"](method="lora-1")))
    with pytest.raises(InputError, match="task 'SST-2' needs glue=FOLDER, a folder with SST-2/train.tsv and dev.tsv"):
        script["overrides_of"](script["Settings"](task="SST-2"), 1e-3)


def test_ablation(known, command, finished, monkeypatch, tmp_path):
    """Of a real run; runs that learned one component stand beside the run of their seed that learned both."""
    script, trained = script_of(known["ablation"]), []

    def run_once(piece):
        trained.append((piece.condition, piece.recipe.adapter.trainable, piece.recipe.training.max_steps))
        return finished

    monkeypatch.setitem(script, "run_of", run_once)
    output = command("ablation", "--quick")
    assert trained == [("both", "both", 2), ("angles-only", "angles", 2), ("magnitudes-only", "magnitudes", 2)]
    found = AblationReport.load(tmp_path / "figures" / "ablation.json")
    assert found.rows[0].component == "both"
    assert [(row.group, row.component) for row in found.rows[-2:]] == [
        ("trained alone", "angles only"), ("trained alone", "magnitudes only"),
    ]  # fmt: skip
    assert found.rows[-1].correct == found.rows[0].correct  # the same run, after all
    assert {row.group for row in found.rows} >= {"components", "layer", "kind", "most rotated"}
    assert "angles alone lose" in output["sentence"]
    assert output["numbers"]["both minus magnitudes only trained alone"].startswith("0.000 [")
    monkeypatch.setitem(script, "run_of", None)
    command("ablation", "--quick")  # nothing is left


def test_ablations_of_seeds_are_put_together(known):
    study = known["ablation"]
    script = script_of(study)
    pieces = {slug: [] for slug in study.conditions}
    for seed in (0, 1):
        both = taken_apart(needs("angles"), seed=seed)
        pieces["both"].append(both)
        for slug, (_, component) in script["ALONE"].items():
            row = replace(both.rows[0], group="trained alone", component=component)
            pieces[slug].append(replace(both, rows=(row,)))
    whole = study.report(pieces)
    assert whole.seeds == (0, 1)
    assert [row.component for row in whole.rows[-2:]] == ["angles only", "magnitudes only"]
    assert len(whole.rows[-1].correct) == 20
    with pytest.raises(InputError, match="results of different seeds"):
        study.report({**pieces, "angles-only": pieces["angles-only"][:1]})
    with pytest.raises(InputError, match="needs the conditions both"):
        study.report({"angles-only": pieces["angles-only"]})
    assert study.report({"both": pieces["both"][:1]}).rows == pieces["both"][0].rows


def test_equivalence_is_shown_where_the_interval_is_inside_the_margin(known):
    """1,000 texts: angles cut out, and trained alone, differ in one of them; magnitudes cut out fail, alone in 30."""
    study, report = known["ablation-sst2"], taken_apart(needs("angles"))
    right = {"both": 1000, "angles only": 999, "magnitudes only": 0, "angles only alone": 999, "magnitudes only alone": 970}
    kept = [replace(row, correct=_right(right.get(row.component, 0))) for row in report.rows if row.group == "components"]
    whole = replace(report, rows=tuple(kept))
    for component in ("angles only", "magnitudes only"):
        whole = whole.with_trained_alone(component, _right(right[f"{component} alone"]))
    verdicts = {row: value for row, value in study.describe(whole)[1] if "within" in row}
    assert verdicts == {
        "both minus angles only within 0.02": "shown",
        "both minus magnitudes only within 0.02": "not shown",
        "both minus angles only trained alone within 0.02": "shown",
        "both minus magnitudes only trained alone within 0.02": "not shown",
    }
    divided = replace(whole, contained=_right(970))  # the texts of which magnitudes trained alone miss none
    found = dict(study.describe(divided)[1])
    assert {row: value for row, value in found.items() if "within" in row and "texts in" not in row} == verdicts
    name = "both minus magnitudes only trained alone"
    assert found[f"{name} within 0.02, texts in a training text"] == "shown"
    assert found[f"{name} within 0.02, texts in no training text"] == "not shown"
    assert found[f"{name}, texts in no training text"].startswith("1.000 [")


def _right(count):
    return (True,) * count + (False,) * (1000 - count)


def test_angles(known, command, workplace, monkeypatch, tmp_path):
    """End to end: two runs are trained and compared; another study takes what is there."""
    overrides = [f"model.id={workplace / 'model'}", f"data.id={workplace / 'data.csv'}", "data.filter={}", "data.per_class=null"]
    output = command("angles", *overrides, "--quick")
    assert [Path(path).stem for path in output["figures"]] == [
        "angles",
        "magnitudes",
        "planes",
        "angle-histogram",
        "shares",
        "structure",
    ]
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == 2
    written = [(folder / "metrics.json").stat().st_mtime_ns for folder in runs]
    assert [name for name in output["numbers"] if name.startswith("correlation between seeds")]
    output = command("query-key", *overrides, "--quick")  # which takes the first seed of the same recipe
    assert [Path(path).stem for path in output["figures"]] == ["query-key"]
    assert [(folder / "metrics.json").stat().st_mtime_ns for folder in sorted((tmp_path / "runs").iterdir())] == written
    assert set(output["numbers"]) == {"all-linear: angles", "all-linear: log magnitudes"}
    assert QueryKey.load(tmp_path / "figures" / "query-key.json").layers == (0, 1)
    one = command("angles", *overrides, "--quick", "--seeds", "1", "--redraw", "--out", tmp_path / "one")
    assert len(one["figures"]) == 5  # a single seed has nothing to agree with
    assert AngleReport.load(tmp_path / "one" / "angles.json").sites


def test_studies_that_share_quick_runs_train_them_alike(known):
    assert known["interference"].quick == known["multitask-accuracy"].quick
    shared = [known[name].quick for name in ("ablation", "angles", "capacity", "drift", "query-key")]
    assert len(set(shared)) == 1


def test_capacity(known, command, monkeypatch, tmp_path):
    script, trained, rates = script_of(known["capacity"]), [], set()

    def scores(accuracy, **parameters):
        return {"test": {"accuracy": accuracy, "examples": 40}, "parameters": {**parameters, "percent of backbone": 0.1}}

    def baseline(recipe, method, *, seed, learning_rate, rank=8):
        trained.append((method, rank if method == "lora" else None))
        rates.add((method, learning_rate))
        return None, scores(0.9 if rank == 16 else 0.7, trained=10)

    def rotated(piece):
        adapter = piece.recipe.adapter
        trained.append((adapter.variant, adapter.sites, adapter.layers, adapter.trainable))
        return SimpleNamespace(metrics=scores(0.8, adapter=10))

    monkeypatch.setitem(script, "train_baseline", baseline)
    monkeypatch.setitem(script, "run_of", rotated)
    for _ in range(2):
        output = command("capacity", "--quick")
    assert len(trained) == len(set(trained)) == len(known["capacity"].conditions) == 19  # each is another way, once
    (row,) = [name for name in output["numbers"] if name.startswith("LoRA, rank: rank 16")]
    assert (row, output["numbers"][row][:4]) == ("LoRA, rank: rank 16 (0.100%)", "0.90")
    assert "cannot be ordered" in output["sentence"]
    only = ("capacity", "--quick", "--results", tmp_path / "only")
    command(*only, "--only", "road_4", "--only", "lora-4")
    found = CapacityReport.load(tmp_path / "figures" / "capacity.json")
    assert [point.name for point in found.points] == ["road_4", "rank 4"]
    assert found.task == "rotten-tomatoes"
    two = replace(found, points=(replace(found.points[1], scores=(0.5, 0.75)),))
    assert dict(script["describe"](two)[1])["LoRA, rank: rank 4, by seed"] == "0.500, 0.750"
    trained.clear()  # what is there of other ways stands beside them
    command(*only, "--only", "fc1")
    assert trained == [("road_1", "fc1", None, "both")]
    names = [point.name for point in CapacityReport.load(tmp_path / "figures" / "capacity.json").points]
    assert names == ["road_4", "fc1", "rank 4"]
    assert rates == {("lora", 1e-3), ("full", 1e-4)}
    rates.clear()  # an override holds for all methods
    changed = ("training.learning_rate=0.005", "data.filter.source=imdb")
    command("capacity", "--quick", *changed, "--only", "lora-4", "--only", "full")
    assert rates == {("lora", 0.005), ("full", 0.005)}
    assert CapacityReport.load(tmp_path / "figures" / "capacity.json").task == "imdb"


def test_stored_points_of_the_capacity_have_the_names_of_their_conditions(known):
    stored = sorted((RESULTS / "capacity").glob("*/*.json.gz"))
    assert stored
    for path in stored:
        name = known["capacity"].conditions[path.parent.name].name
        (point,) = CapacityReport.load(path).points
        assert name in (point.name, f"{point.family.split(',')[0]}, {point.name}", point.family)


def test_as_many_adapters_as_are_asked_for_are_trained_jointly(known, monkeypatch):
    script, counts = script_of(known["joint-training"]), []
    base = SimpleNamespace(to=lambda device: None)
    monkeypatch.setitem(script, "load_model", lambda recipe, kind: (base, None))
    monkeypatch.setitem(script, "joint_training", lambda model, asked, *options: counts.append(asked))
    for most in (1, 6, 16):
        script["measure_training"](Piece(script["TrainingSettings"](most=most), "x", 0, Path(), silent))
    assert counts == [[1], [1, 2, 4], [1, 2, 4, 8, 16]]
    with pytest.raises(InputError, match="must be at least 1"):
        script["TrainingSettings"](most=0)
