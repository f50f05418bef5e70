"""What each study measures, with fakes for what is slow, and what its command says about it."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.cli import run
from helpers.compositions import composition_report
from helpers.models import random_adapter, tiny_model, token_batch
from helpers.scorers import needs, taken_apart
from helpers.studies import pieces_of, script_of
from helpers.taught import word_tokenizer
from road_interp.causal.controls import ControlReport
from road_interp.causal.cost import CostReport
from road_interp.causal.depth_sweep import DepthReport
from road_interp.causal.noun_task import number_and_gender
from road_interp.causal.variable_methods import VariablesComparison
from road_interp.errors import InputError
from road_interp.measure import (
    AblationReport,
    AngleReport,
    CapacityReport,
    CompositionReport,
    DisentangleReport,
    DriftStudy,
    InterferenceReport,
    QueryKey,
    StrengthReport,
)
from road_interp.measure.multitask_accuracy import MultiTaskAccuracyReport
from road_interp.measure.parameter_share import MethodOutcomes
from road_interp.measure.throughput import ThroughputReport, Timing
from road_interp.measure.two_layer_classifier import ARMS
from road_interp.recipes.schema import ThroughputRecipe
from road_interp.sites.find import find_sites
from road_interp.training import composition_baselines
from road_interp.training import study as study_module
from road_interp.training.study import StudyOptions, read_study, run_study, studies

ROOT = Path(__file__).parents[2]
RESULTS, ANALYSES = ROOT / "results", ROOT / "analyses"
NAMES = sorted(studies())
MEASURED = [name for name in NAMES if (RESULTS / name).is_dir()]  # a new study is committed before it is measured
MIB = 2**20


def test_throughput(known, command, monkeypatch, tmp_path):
    recipes = []

    def timed(recipe, progress):
        recipes.append(recipe)
        settings = [("requests", rows, recipe.new_tokens, 8) for rows in recipe.requests]
        settings += [("length", 8, length, 8) for length in recipe.lengths]
        settings += [("rank", 8, recipe.new_tokens, rank) for rank in recipe.ranks]
        timings = [Timing(task, "bare", *setting, (0.5, 1.0), (1.0, 1.0), 8) for task, *setting in settings]
        return ThroughputReport("tiny", 14, "cpu", "float32", 2, recipe.rounds, tuple(timings))

    monkeypatch.setitem(script_of(known["throughput"]), "run_throughput_recipe", timed)
    output = command("throughput", "--quick")
    assert [(recipe.rounds, recipe.requests, recipe.new_tokens) for recipe in recipes] == [(1, [1, 4], 4)]
    assert output["numbers"] == {"bare, 1 at a time": "1.00 [1.00, 1.00]", "bare, 4 at a time": "1.00 [1.00, 1.00]"}
    first = (tmp_path / "figures" / "throughput.json").read_text()
    again = command("throughput", "--quick", "--redraw", "--out", tmp_path / "again")
    assert again["figures"] == [str(tmp_path / "again" / "throughput.png")]
    assert json.loads((tmp_path / "again" / "throughput.json").read_text())["timings"] == json.loads(first)["timings"]
    assert len(recipes) == 1
    command("throughput")
    quiet = dict(zip(known["throughput"].conditions, recipes[1:], strict=True))
    assert all(isinstance(recipe, ThroughputRecipe) and "bare" in (recipe.methods or ["bare"]) for recipe in recipes)
    assert [quiet[slug].methods[-1] for slug in ("quiet", "with-oft")] == ["PEFT LoRA", "PEFT OFT"]
    assert quiet["quiet"].requests == [8]


def test_parameter_share(known, command, monkeypatch, tmp_path):
    """The best rate by validation; every method on every task of the folder, with the recipe of its files."""
    asked, sizes = [], set()

    def scripted(recipe, method, task, texts):
        asked.append((recipe, method, task))
        sizes.add(texts)
        best = recipe.training.learning_rate == 3e-3
        return MethodOutcomes(recipe.model.name, task, method, recipe.seed, 1e-3, 5, 0.1, 0.5 + best / 4, (True, False, best))

    script = script_of(known["parameter-share"])
    monkeypatch.setitem(script, "train_method", scripted)
    told = command("parameter-share-rates", "--only", "minilm_lora-8")
    assert [recipe.training.learning_rate for recipe, *_ in asked] == [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
    assert {method for _, method, _ in asked} == {"lora-8"}
    tuned_on = asked[0][0].data
    assert sizes == {2000}
    sizes.clear()
    assert told["sentence"].endswith("The best: minilm lora-8 0.003.")
    assert told["numbers"]["minilm, lora-8, rate 0.003"] == "0.750"
    asked.clear()
    monkeypatch.setitem(script, "RATES", {"minilm": {"road_1": 3e-3, "full": 1e-4}})
    slugs = [f"minilm_{task}_{method}" for task in ("rotten-tomatoes", "RTE") for method in ("road_1", "full")]
    told = command("parameter-share", "glue=glue", "--seeds", "0,1", *(each for slug in slugs for each in ("--only", slug)))
    assert [(method, task, recipe.seed) for recipe, method, task in asked] == [
        (method, task, seed) for task in ("rotten-tomatoes", "RTE") for method in ("road_1", "full") for seed in (0, 1)
    ]
    reviews, entailment = asked[0][0].data, asked[4][0].data
    assert reviews == tuned_on  # so that the rates are chosen on validation texts of the same split
    assert sizes == {None}
    assert (reviews.per_class, reviews.filter) == (3500, {"source": "rotten_tomatoes"})
    assert (entailment.id, entailment.validation, entailment.filter) == ("glue/RTE/train.tsv", "glue/RTE/dev.tsv", {})
    assert (entailment.text, entailment.text_pair, entailment.per_class) == ("sentence1", "sentence2", None)
    assert [Path(path).stem for path in told["figures"]] == ["parameter-share-rotten-tomatoes", "parameter-share-rte"]
    (name,) = [row for row in told["numbers"] if row.endswith("RTE, road_1 (0.100%) minus full fine-tuning")]
    assert told["numbers"][name].startswith("0.333")
    assert [value for row, value in told["numbers"].items() if row.endswith("RTE, full (0.100%), by seed")] == ["0.333, 0.333"]
    with pytest.raises(InputError, match="rates must hold one learning rate here"):
        script["measure"](SimpleNamespace(recipe=script["Settings"](rates=(1e-4, 1e-3))))
    with pytest.raises(InputError, match="no learning rate is chosen for lora-1 on minilm: give one, as in rates="):
        script["measure"](SimpleNamespace(recipe=script["Settings"](method="lora-1")))
    with pytest.raises(InputError, match="task 'SST-2' needs glue=FOLDER, a folder with SST-2/train.tsv and dev.tsv"):
        script["overrides_of"](script["Settings"](task="SST-2"), 1e-3)


def test_composition(known, command, monkeypatch, tmp_path):
    asked = []

    def scripted(piece):
        asked.append((piece.condition, piece.seed, piece.recipe.reviews.split_seed, piece.recipe.scoring.test))
        return composition_report(piece.seed)

    script = script_of(known["composition"])
    assert next(iter(known["composition"].conditions)) == script["MAIN"]
    monkeypatch.setitem(script, "trained", scripted)
    for _ in range(2):
        output = command("composition", "--quick", "--seeds", "3")
    assert asked == [(script["MAIN"], 3, 3, 4)]  # what is there is not measured again; the seed divides the reviews, too
    (frequent,) = [value for row, value in output["numbers"].items() if row.endswith("the more frequent label")]
    assert frequent == "0.500"
    (attempted,) = [value for row, value in output["numbers"].items() if row.endswith("label+closing, right or wrong")]
    assert 0.7 <= float(attempted) <= 1
    (name,) = [row for row in output["numbers"] if row.endswith("least, label+closing")]
    assert output["numbers"][name].startswith("0.700 [")
    drawn = CompositionReport.load(tmp_path / "figures" / "composition.json")
    assert len(drawn.scores[0].answers) == 8
    assert len(output["figures"]) == 2


def test_conditions_of_the_composition(known, monkeypatch, tmp_path):
    """One step for every eight examples; low ranks have learning rates of their own."""
    study = known["composition"]
    recipes = {}
    for slug in study.conditions:
        (piece,) = pieces_of(study, StudyOptions(seeds=(0,), only=(slug,), results=tmp_path))
        recipes[slug] = piece.recipe
    main = recipes["planes_coact-0.5"]
    for slug, recipe in recipes.items():
        examples = sum(task.examples for task in recipe.tasks.values())
        rate = {"lora": 1e-3, "loreft": 2e-3}.get(re.split("_", slug)[0], 3e-3)
        assert recipe.training == replace(main.training, learning_rate=rate, max_steps=examples // 8), slug
        assert recipe.co_activation == float((re.findall(r"coact-([0-9.]+)", slug) or [0.5])[0])
    assert sum(task.examples for task in main.tasks.values()) == 4800
    assert list(recipes["4-tasks_planes_coact-0.5"].tasks) == ["greeting", "label", "german", "closing"]
    assert recipes["planes_shared-end"].shared == "plain"


def test_multiplied_adapters_are_trained_apart_on_all_examples(known, monkeypatch, tmp_path):
    asked = []

    def trained(piece):
        asked.append({name: task.examples for name, task in piece.recipe.tasks.items()})
        if len(asked) == 2:
            raise StopIteration
        return SimpleNamespace(adapter=None)

    monkeypatch.setattr(composition_baselines, "run_of", trained)
    with pytest.raises(StopIteration):
        run_study(known["composition"], StudyOptions(seeds=(2,), only=("multiplied",), results=tmp_path))
    assert asked == [{"label": 4800}, {"closing": 4800}]


def test_multitask_accuracy(known, command, monkeypatch, tmp_path):
    trained = []

    def scripted(piece):
        recipe, tasks = piece.recipe, tuple(piece.recipe.tasks)
        trained.append((piece.condition, tasks, recipe.co_activation, recipe.training.max_steps))
        correct = {task: dict.fromkeys(("__base__", task, "+".join(tasks)), (True, False)) for task in tasks}
        return SimpleNamespace(composition=MultiTaskAccuracyReport("m", "x", tasks, (recipe.seed,), correct))

    monkeypatch.setitem(script_of(known["multitask-accuracy"]), "run_of", scripted)
    output = command("multitask-accuracy", "--quick")
    both = ("sentiment", "source")
    assert [each[:2] for each in trained] == [
        ("coact-0.5", both),
        ("coact-0", both),
        *((f"{task}-alone", (task,)) for task in both),
    ]
    assert [each[2] for each in trained[:2]] == [0.5, 0]
    assert {each[3] for each in trained} == {2}
    content = json.loads((tmp_path / "figures" / "multitask-accuracy.json").read_text())
    assert [each["method"] for each in content["together"]] == ["co-activation 0.5", "co-activation 0"]
    assert list(content["alone"]) == list(both)
    assert output["numbers"]["co-activation 0: source, lost against training alone"].startswith("0.000")
    command("multitask-accuracy", "--quick", "--redraw")
    assert len(trained) == 4


def test_strength(known, command, monkeypatch, tmp_path):
    report = StrengthReport("m", "<closing>", (0.0, 1.0), ((False, False), (True, False)), (2.0, 3.0))
    asked = []

    def scripted(piece):
        asked.append((list(piece.recipe.tasks), piece.recipe.scoring.test, piece.seed))
        return report

    monkeypatch.setitem(known, "strength", replace(known["strength"], measure=scripted))
    output = command("strength", "--quick")
    assert asked == [(["closing"], 4, 0)]  # one seed
    assert list(output["numbers"]) == ["strength 0", "strength 1"]
    assert StrengthReport.load(tmp_path / "figures" / "strength.json") == report
    command("strength", "--quick", "--redraw", "--out", tmp_path / "again")
    assert StrengthReport.load(tmp_path / "again" / "strength.json") == report
    command("--redraw", "--quick")
    assert "&#39;&lt;closing&gt;&#39;" in (tmp_path / "figures" / "index.html").read_text()


@pytest.fixture
def tiny_language_model(monkeypatch):
    """A random Llama with one token for every word of the pairs in the place of SmolLM2."""
    loaded = []

    def load(identity, head):
        loaded.append(identity)
        return tiny_model("Llama", head, vocab_size=400), []

    monkeypatch.setattr(study_module, "load_model", load)
    monkeypatch.setattr(study_module, "load_tokenizer", lambda identity: word_tokenizer())
    study_module.language_model.cache_clear()
    yield loaded
    study_module.language_model.cache_clear()


def test_interchange_beside_its_controls(command, tiny_language_model, tmp_path):
    output = command("controls", "layer=0", "steps=2", "--quick")
    assert "(1 on agreement)" in output["sentence"]
    assert "agreement, full swap" in output["numbers"]
    (path,) = (tmp_path / "results" / "quick").glob("controls-*/*/*.json")
    assert path.parent.name == "agreement"
    report = ControlReport.load(path)
    assert {(row.task, row.span, row.layer) for row in report.rows if hasattr(row, "layer")} <= {("agreement", "subject", 0)}
    output = command("controls", "layer=0", "steps=2", "--quick", "--only", "gender", "--results", tmp_path / "gender")
    assert "1 on gender)" in output["sentence"]
    assert output["figures"] == []
    assert len(tiny_language_model) == 1  # the model is loaded once
    command("controls", "layer=0", "steps=2", "--quick", "--redraw")
    assert len(tiny_language_model) == 1


def test_scan_and_depth_of_an_interchange(command, tiny_language_model, tmp_path):
    output = command("scan", "--quick")
    assert [Path(path).name for path in output["figures"]] == ["scan-agreement.png"]
    assert re.search(r"is highest at block 0 \(\w+\)(, block \d \(\w+\))*\.$", output["sentence"])
    output = command("depth", "layer=0", "--quick")
    assert [Path(path).name for path in output["figures"]] == ["depth-agreement.png"]
    assert all(name.startswith("depth ") for name in output["numbers"])
    (path,) = (tmp_path / "results" / "quick").glob("depth-*/agreement/seed-0.json")
    assert len(DepthReport.load(path).cells) == 1
    assert len(tiny_language_model) == 1


def test_cost_of_an_interchange(command, no_model, tmp_path):
    output = command("cost", "--quick")
    report = CostReport.load(tmp_path / "results" / "quick" / "cost" / "width-2048" / "seed-0.json")
    assert report.width == 64
    assert len(output["numbers"]) == 10
    assert output["figures"] == []


TASKS, METHODS = ("agr_gender", "agr_sv_num_pp"), ("full swap", "DAS, rank 1")


def test_causalgyms_table(known, command, tiny_language_model, monkeypatch, tmp_path):
    """The tasks of the file, whatever else CausalGym has."""
    script = script_of(known["causalgym"])
    loaded = tiny_model("Llama", "causal-lm", vocab_size=400), word_tokenizer()
    monkeypatch.setitem(script, "language_model", lambda model: loaded)
    built_in = json.loads((ROOT / "road_interp" / "causal" / "templates.json").read_text())
    (tmp_path / "tasks.json").write_text(json.dumps({"agr_sv_num_pp": built_in["agreement"], "agr_gender": built_in["gender"]}))
    output = command("causalgym", f"templates={tmp_path / 'tasks.json'}", "layers=[0, 1]", "steps=2", "pairs=[32, 8, 16]")
    assert output["sentence"].startswith("Log odds ratio (nats) and its selectivity, at the block of 0, 1 with the highest")
    odds = {(task, method): _odds(output["numbers"][f"{task}, {method}"]) for task in TASKS for method in METHODS}
    apart = [odds[task, METHODS[1]] - odds[task, METHODS[0]] for task in TASKS]
    told = output["numbers"]["DAS, rank 1 minus full swap"]
    assert _odds(output["numbers"]["mean of 2 tasks, full swap"]) == pytest.approx(
        sum(odds[task, METHODS[0]] for task in TASKS) / 2, abs=0.011
    )
    assert _odds(told) == pytest.approx(sum(apart) / 2, abs=0.016)
    assert float(told.rpartition(" ")[2]) == pytest.approx(abs(apart[0] - apart[1]) / 2, abs=0.016)


def _odds(told: str) -> float:
    return float(re.search(r"log odds ratio (-?[\d.]+)", told)[1])


def test_later_seeds_of_several_variables_take_the_rates_that_the_first_chose(known):
    """Those of the stored comparison of seed 0, by validation."""
    script = script_of(known["variables"])
    settings, grid, methods = script["Settings"], script["RATES"], script["METHODS"]
    first = VariablesComparison.load(RESULTS / "variables/smollm2_city_16/seed-0.json")
    tried = {method: [each for each in first.trials if each.method == method] for method in methods}
    assert {tuple(each.rate for each in trials) for trials in tried.values()} == {grid}
    chosen = {method: (max(trials, key=lambda each: each.validation).rate,) for method, trials in tried.items()}
    of_cities = settings(entities="city", rates=grid)
    assert script["rates_of"](replace(of_cities, seed=1)) == chosen
    assert script["rates_of"](of_cities) == dict.fromkeys(methods, grid)
    assert script["rates_of"](replace(of_cities, seed=1, model="other")) == dict.fromkeys(methods, grid)
    assert script["rates_of"](replace(of_cities, seed=1, rates=(1e-4,))) == dict.fromkeys(methods, (1e-4,))
    assert script["rates_of"](settings(seed=1)) is None


def test_several_variables(known, command, monkeypatch, tmp_path):
    """Every question is taken as answered rightly, because the model knows nothing."""
    script = script_of(known["variables"])
    task = number_and_gender()
    words = [text for prompts in task.prompts.values() for prompt in prompts for text in prompt.replace(":", " : ").split()]
    tokenizer = word_tokenizer(*task.values, *(word.strip(";.") for word in words), ";", ".")
    loaded = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer)), tokenizer
    monkeypatch.setitem(script, "language_model", lambda model: loaded)
    monkeypatch.setitem(script, "answered", lambda settings, task, piece: (list(task.questions()), 7))
    common = ("layer=0", "prefix=''", "steps=2", "pairs=[8, 8, 8]", "methods=[stacked RoAd, masked components]")
    slugs = ("--only", "smollm2_number-gender_1", "--only", "smollm2_number-gender_2")
    output = command("variables", *common, *slugs)
    assert [Path(path).name for path in output["figures"]] == ["variables-smollm2-number-gender.png"]
    assert len(output["numbers"]) == 2 * (3 + 2 + 1)
    data = output["numbers"]["SmolLM2-135M, number and gender, 2 per variable, data"]
    assert data == "448 of 7 questions, about 112 entities, are answered rightly; 32 test pairs"
    (path,) = (tmp_path / "results").glob("variables-*/smollm2_number-gender_2/seed-0.json")
    found = VariablesComparison.load(path)
    assert (found.coordinates, found.answered, found.pairs) == (2, (112, 448, 7), (32, 32, 32))
    assert (
        found.of("no swap").disentangle == found.of("no swap").scores[0].isolation / 2 + found.of("no swap").scores[0].cause / 2
    )


def test_entities_need_a_folder(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, monkeypatch, "study", "variables", "--only", "smollm2_city_1")
    assert code == 2
    assert "entities 'city' need ravel=FOLDER" in err.splitlines()[-1]


def test_disentangle(command, workplace, tmp_path):
    (tmp_path / "mood").mkdir()
    rows = [f"w{n} {mood} w{n + 1},w{n % 7} w1,{mood}" for n in range(19) for mood in ("fine", "poor")] * 2
    (tmp_path / "mood" / "pairs.csv").write_text("\n".join(["one,two,mood", *rows]) + "\n")
    data = {"id": tmp_path / "mood" / "pairs.csv", "text": "one", "text_pair": "two", "label": "mood", "metric": "matthews"}
    sizes = {"filter": "{}", "per_class": "null", "validation_size": 16, "test_size": 16}
    overrides = [f"data.{key}={value}" for key, value in {**data, **sizes}.items()]
    overrides += [f"model.id={workplace / 'model'}", "--quick"]
    command("disentangle", *overrides)
    content = json.loads((tmp_path / "figures" / "disentangle-mood.json").read_text())
    assert (content["metric"], content["seeds"], len(content["labels"])) == ("matthews", [0], 16)
    assert [outcome["numbers"] for outcome in content["outcomes"]] == [32, 32, 32, 1, 32, 32, 1, 4, 4, 16, 16, 16, 52, 0]
    output = command("disentangle-before-norm", *overrides)
    assert [Path(path).stem for path in output["figures"]] == ["disentangle-mood-before-norm"]
    before = json.loads((tmp_path / "figures" / "disentangle-mood-before-norm.json").read_text())
    assert (content["place"], before["place"]) == ("block 1", "block 1, before its LayerNorm")
    again = command("disentangle", *overrides, "--redraw", "--out", tmp_path / "again")
    assert list(again["numbers"]) == [outcome["name"] for outcome in content["outcomes"]]
    first, second = (DisentangleReport.load(tmp_path / folder / "disentangle-mood.json") for folder in ("figures", "again"))
    assert first == second


def test_seeds_of_the_disentangling_are_put_together(known):
    study, options = known["disentangle"], StudyOptions(results=RESULTS)
    whole = read_study(study, options)
    pieces = [DisentangleReport.load(path) for path in sorted((RESULTS / "disentangle" / "output").iterdir())]
    assert whole.seeds == (0, 1, 2)
    for arm in ARMS:
        assert whole.of(arm).predictions == tuple(value for piece in pieces for value in piece.of(arm).predictions)
        assert whole.score(arm) == pytest.approx(np.mean([piece.score(arm) for piece in pieces]))
        assert len(whole.of(arm).chosen) == 3
    assert whole.probes == pieces[0].probes
    assert whole.chance == pieces[0].chance
    for other, message in (
        (pieces[0], "seed"),
        (replace(pieces[1], task="other"), "only reports of one model, task, metric"),
        (replace(pieces[1], labels=pieces[1].labels[::-1]), "on the same texts"),
        (replace(pieces[1], outcomes=(*pieces[1].outcomes[:4], *pieces[1].outcomes[5:])), "the probes differ"),
    ):
        with pytest.raises(InputError, match=message):
            DisentangleReport.over_seeds([pieces[0], other])


@pytest.fixture
def moved(known, monkeypatch):
    """Tiny models in the place of those that `drift` compares; which were trained."""
    script, trained = script_of(known["drift"]), []

    def baseline(recipe, method, *, seed, learning_rate):
        trained.append((method, seed, recipe.training.max_steps))
        assert recipe.seed == seed
        return tiny_model("Bert", seed=10 + seed), {"test": {"accuracy": 0.5}}

    def rotated(piece):
        trained.append(("road_1", piece.seed, piece.recipe.training.max_steps))
        return SimpleNamespace(load_model=lambda: tiny_model("Bert", seed=20 + piece.seed), metrics={"test": {"accuracy": 0.5}})

    texts = {"text": ["a", "b"]}
    monkeypatch.setitem(script, "train_baseline", baseline)
    monkeypatch.setitem(script, "run_of", rotated)
    monkeypatch.setitem(script, "load_model", lambda recipe: (tiny_model("Bert"), []))
    monkeypatch.setitem(script, "load_tokenizer", lambda recipe: None)
    monkeypatch.setitem(script, "load_labelled", lambda data: SimpleNamespace(validation=texts, test=texts))
    monkeypatch.setitem(script, "text_batches", lambda *_: [token_batch(4), token_batch(3, seed=1)])
    script["BASELINES"].clear()
    yield trained
    script["BASELINES"].clear()


def test_drift(command, moved, tmp_path):
    for _ in range(2):
        output = command("drift", "--quick")
    assert moved == [("full", 0, 2), ("lora", 0, 2), ("road_1", 0, 2), ("full", 1, 2)]  # each once
    found = DriftStudy.load(tmp_path / "figures" / "drift.json")
    names = ["full fine-tuning", "LoRA, rank 8", "road_1", "full fine-tuning, seed against seed", "pretrained against itself"]
    assert [report.tuned for report in found.reports] == names
    assert [report.base for report in found.reports] == [*["pretrained"] * 3, "full fine-tuning", "pretrained"]
    assert found.scores == (*4 * [{"test": {"accuracy": 0.5}}], {})
    assert all(place.angle == place.dM == (0, 0, 0) for place in found.reports[-1].places)
    assert all(place.angle[0] > 1 for report in found.reports[:-1] for place in report.places)
    assert [Path(path).stem for path in output["figures"]] == ["drift", "drift-scatter", "drift-grid"]
    shown = DriftStudy.load(tmp_path / "figures" / "drift-grid.json")
    assert [report.tuned for report in shown.reports] == names[:3]  # controls are in no grid
    assert "After a LayerNorm the norm is set by construction" in output["sentence"]
    methods = {report.tuned for report in found.reports}
    assert len(output["numbers"]) == sum(len(report.places) for report in found.reports) + len(methods)
    against = {f"{each}: against an isotropic change" for each in methods}
    assert against <= set(output["numbers"])
    assert output["numbers"]["pretrained against itself: against an isotropic change"] == "unchanged in 0, 1"


def test_drift_of_every_seed_and_between_seeds(known, moved, tmp_path):
    found = run_study(known["drift"], StudyOptions(results=tmp_path))
    assert len(found.reports) == len(found.scores) == 3 * 3 + 2 + 1
    assert Counter(moved) == Counter((method, seed, None) for method in ("full", "lora", "road_1") for seed in range(3))
    pairs = [report for report in found.reports if report.base == "full fine-tuning"]
    assert len(pairs) == 2
    angles = [found.reports[number].places[0].angle for number in range(3)]
    assert len(set(angles)) == 3
    only = replace(known["drift"], conditions={"road_1": known["drift"].conditions["road_1"]})
    assert read_study(only, StudyOptions(results=tmp_path, seeds=(1,))).reports == found.reports[7:8]


def test_drift_of_a_language_model(known, moved, monkeypatch, tmp_path):
    script, study = script_of(known["drift-smollm2"]), known["drift-smollm2"]
    divisions = []

    def load(recipe):
        divisions.append(recipe.reviews.split_seed)
        return SimpleNamespace(validation=[], test=[])

    monkeypatch.setitem(script, "load_multitask_data", load)
    monkeypatch.setitem(script, "format_prompts", lambda *_: ["a"] * 20)
    found = run_study(study, StudyOptions(results=tmp_path, seeds=(0, 1)))
    assert divisions == [0, 1]
    assert [report.token for report in found.reports] == ["last", "last"]
    assert len({(report.base, report.tuned) for report in found.reports}) == 1  # seeds of one method have one name
    assert study.draw(found, tmp_path / "out")[0] == tmp_path / "out" / "smollm2" / "drift.png"


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


def test_interference(known, command, monkeypatch, tmp_path):
    sites, asked = find_sites(tiny_model("Bert"), "fc1"), []

    def trained(piece):
        asked.append((list(piece.recipe.tasks), piece.recipe.training.max_steps))
        return SimpleNamespace(adapter=random_adapter(sites, seed=len(asked)))

    def scorer(run, task):
        whole = run.adapter.angles(sites[0])  # half of the answers are wrong once the first layer turned further
        return lambda adapter: np.array([True, torch.allclose(adapter.angles(sites[0]), whole, atol=1e-4)] * 20)

    script = script_of(known["interference"])
    monkeypatch.setitem(script, "run_of", trained)
    monkeypatch.setitem(script, "MultiTaskScorer", scorer)
    for _ in range(2):
        output = command("interference", "--quick")
    assert asked == [(["sentiment"], 2), (["source"], 2)]  # what is there is not measured again
    report = InterferenceReport.load(tmp_path / "figures" / "interference.json")
    assert report.names == tuple(f"{task}{part}" for task in ("sentiment", "source") for part in ("", " layer 0", " layer 1"))
    assert list(report.correct["source"]) == ["nothing", "sentiment", "sentiment layer 0", "sentiment layer 1"]
    assert [report.cost("source", f"sentiment{part}")[0] for part in ("", " layer 0", " layer 1")] == [0.5, 0.5, 0]
    assert "The largest cost is that of 'source' to 'sentiment': 0.500" in output["sentence"]


def test_capacity(known, command, monkeypatch, tmp_path):
    script, trained = script_of(known["capacity"]), []

    def scores(accuracy, **parameters):
        return {"test": {"accuracy": accuracy, "examples": 40}, "parameters": {**parameters, "percent of backbone": 0.1}}

    def baseline(recipe, method, *, seed, learning_rate, rank=8):
        trained.append((method, rank if method == "lora" else None))
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
    trained.clear()  # what is there of other ways stands beside them
    command(*only, "--only", "fc1")
    assert trained == [("road_1", "fc1", None, "both")]
    names = [point.name for point in CapacityReport.load(tmp_path / "figures" / "capacity.json").points]
    assert names == ["road_4", "fc1", "rank 4"]


def test_stored_points_of_the_capacity_have_the_names_of_their_conditions(known):
    for slug, condition in known["capacity"].conditions.items():
        for path in (RESULTS / "capacity" / slug).glob("*.json"):
            (point,) = CapacityReport.load(path).points
            assert condition.name in (point.name, f"{point.family.split(',')[0]}, {point.name}", point.family)
