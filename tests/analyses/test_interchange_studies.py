"""What the studies of interchanges measure, with fakes for what is slow, and what their commands say about it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from helpers.cli import run
from helpers.models import tiny_model
from helpers.studies import script_of
from helpers.taught import word_tokenizer
from road_interp import plots
from road_interp.causal.controls import ControlReport
from road_interp.causal.cost import CostReport
from road_interp.causal.depth_sweep import DepthReport
from road_interp.causal.entity_task import SPLITS
from road_interp.causal.method_scores import TaskScores
from road_interp.causal.methods import DAS, STACKED
from road_interp.causal.noun_task import number_and_gender
from road_interp.causal.variables import cell_weights
from road_interp.causal.variables_comparison import VariablesComparison, disentangle_over_seeds, number_clusters
from road_interp.errors import InputError
from road_interp.measure.intervals import mean_interval, mean_of_seeds, value_interval
from road_interp.progress import silent
from road_interp.training import study_runs
from road_interp.training.study import Piece, with_interval

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"


@pytest.fixture
def tiny_language_model(monkeypatch):
    """A random Llama with one token for every word of the pairs in the place of SmolLM2."""
    loaded = []

    def load(identity, head):
        loaded.append(identity)
        return tiny_model("Llama", head, vocab_size=400), []

    monkeypatch.setattr(study_runs, "load_model", load)
    monkeypatch.setattr(study_runs, "load_tokenizer", lambda identity: word_tokenizer())
    study_runs.language_model.cache_clear()
    yield loaded
    study_runs.language_model.cache_clear()


def test_interchange_beside_its_controls(command, tiny_language_model, tmp_path):
    output = command("controls", "layer=0", "steps=2", "--quick")
    assert "(1 on agreement)" in output["sentence"]
    assert "agreement, full swap" in output["numbers"]
    (path,) = (tmp_path / "results" / "quick").glob("controls-*/*/*.json.gz")
    assert path.parent.name == "agreement"
    report = ControlReport.load(path)
    assert {(row.task, row.span, row.layer) for row in report.rows if hasattr(row, "layer")} <= {("agreement", "subject", 0)}
    output = command("controls", "layer=0", "steps=2", "--quick", "--only", "gender", "--results", tmp_path / "gender")
    assert "1 on gender)" in output["sentence"]
    assert [Path(path).name for path in output["figures"]] == ["controls.png"]
    assert len(tiny_language_model) == 1  # the model is loaded once
    command("controls", "layer=0", "steps=2", "--quick", "--redraw")
    assert len(tiny_language_model) == 1


def test_log_odds_of_controls_have_intervals_over_words(known, command, tiny_language_model, tmp_path):
    """Selectivity is a paired difference; the log odds ratios of no swap are all 0, and those of older results not known."""
    numbers = command("controls", "layer=0", "steps=2", "--quick")["numbers"]
    (path,) = (tmp_path / "results" / "quick").glob("controls-*/*/*.json.gz")
    report = ControlReport.load(path)
    full, control = (np.array(report.of(each).log_odds_by_pair) for each in (DAS, f"{DAS}, arbitrary answers"))
    low, high = value_interval(full - control, report.words)
    assert numbers[f"agreement, {DAS}, selectivity"] == with_interval((report.selectivity(DAS), low, high), 2)
    assert re.search(r"log odds ratio -?0\.00$", numbers["agreement, no swap"])
    script = script_of(known["controls"])
    second = replace(report, seed=1)
    mean, *both = script["ControlStudy"]({"agreement": (report, second)}).log_odds("agreement", DAS)
    assert (mean, *both) == pytest.approx((full.mean(), *value_interval(full, report.words)), abs=2e-4)
    told = dict(script["describe_controls"](script["ControlStudy"]({"agreement": (report, second)}))[1])
    assert f"agreement, {STACKED} minus {DAS}, over divisions" not in told  # equal divisions say nothing about others
    other = replace(second, rows=tuple(replace(row, accuracy=float(row.method == STACKED)) for row in report.rows))
    told_of_both = dict(script["describe_controls"](script["ControlStudy"]({"agreement": (report, other)}))[1])
    apart = report.of(STACKED).accuracy - report.of(DAS).accuracy
    expected = with_interval(mean_of_seeds([apart, 1.0]), 4)
    assert told_of_both[f"agreement, {STACKED} minus {DAS}, over divisions"] == expected
    assert f"agreement, {DAS}, trained values with effect" in told
    older = replace(report, rows=tuple(replace(row, log_odds_by_pair=(), effective=None) for row in report.rows))
    told = dict(script["describe_controls"](script["ControlStudy"]({"agreement": (older,)}))[1])
    assert told[f"agreement, {DAS}, selectivity"] == f"{report.selectivity(DAS):.2f}"
    assert not [name for name in told if name.endswith("with effect")]


def test_scan_and_depth_of_an_interchange(command, tiny_language_model, tmp_path):
    output = command("scan", "--quick")
    assert [Path(path).name for path in output["figures"]] == ["scan-agreement.png"]
    assert re.search(r"is highest at block 0 \(\w+\)(, block \d \(\w+\))*\.$", output["sentence"])
    output = command("depth", "layer=0", "--quick")
    assert [Path(path).name for path in output["figures"]] == ["depth-agreement.png"]
    assert all(name.startswith("depth ") for name in output["numbers"])
    (path,) = (tmp_path / "results" / "quick").glob("depth-*/agreement/seed-0.json.gz")
    assert len(DepthReport.load(path).cells) == 1
    assert len(tiny_language_model) == 1


def test_cost_of_an_interchange(command, no_model, tmp_path):
    output = command("cost", "--quick")
    report = CostReport.load(tmp_path / "results" / "quick" / "cost" / "width-2048" / "seed-0.json.gz")
    assert report.width == 64
    assert len(output["numbers"]) == 2 * 11  # time and trained values of every method
    assert [Path(path).name for path in output["figures"]] == ["cost.png"]


def test_causalgyms_table(known, command, tiny_language_model, monkeypatch, tmp_path):
    """The tasks of the file, whatever else CausalGym has."""
    script = script_of(known["causalgym"])
    loaded = tiny_model("Llama", "causal-lm", vocab_size=400), word_tokenizer()
    monkeypatch.setitem(script, "language_model", lambda model: loaded)
    built_in = json.loads((ROOT / "road_interp" / "causal" / "templates.json").read_text())
    (tmp_path / "tasks.json").write_text(json.dumps({"agr_sv_num_pp": built_in["agreement"], "agr_gender": built_in["gender"]}))
    output = command("causalgym", f"templates={tmp_path / 'tasks.json'}", "layers=[0, 1]", "steps=2", "pairs=[32, 8, 16]")
    assert output["sentence"].startswith("Log odds ratio (nats) and its selectivity, at the block of 0, 1 with the highest")
    found = [TaskScores.load(path) for path in (tmp_path / "results").glob("causalgym-*/*/seed-0.json.gz")]
    full, trained = ([each.of(method).test.log_odds for each in found] for method in ("full swap", DAS))
    assert len(full) == 2
    assert output["numbers"]["mean of 2 tasks, full swap, log odds ratio"].startswith(f"{np.mean(full):.2f} [")
    apart = np.subtract(trained, full)
    difference = with_interval((apart.mean(), *stats.ttest_1samp(apart, 0).confidence_interval()), 2)
    assert output["numbers"][f"{DAS} minus full swap, log odds ratio"] == difference
    (path,) = (tmp_path / "results").glob("causalgym-*/agr_gender/seed-0.json.gz")
    whole = TaskScores.load(path)
    das, stacked = (np.array(whole.of(method).test.log_odds_by_pair) for method in (DAS, STACKED))
    difference = with_interval((das.mean() - stacked.mean(), *value_interval(das - stacked, whole.words)), 2)
    assert output["numbers"][f"agr_gender, {DAS} minus {STACKED}, log odds ratio"] == difference
    older = replace(whole, scores=tuple(score for score in whole.scores if score.test.method != "k-means"))
    table = script["CausalGymTable"]({"agr_gender": (whole,), "agr_sv_num_pp": (older,)})
    assert set(table.methods) == {score.test.method for score in older.scores}  # k-means is not in every task
    assert all("k-means" not in name for name, _ in script["describe"](table)[1] if not name.startswith("agr_gender"))


@pytest.mark.parametrize("condition", ["smollm2_city_16", "smollm2_physical_object_16", "gemma-3-270m_city_16"])
def test_later_seeds_of_several_variables_take_the_rates_that_the_first_chose(known, condition):
    """Those of the stored comparison of seed 0, by validation."""
    script = script_of(known["variables"])
    settings, grid, methods = script["Settings"], script["RATES"], script["METHODS"]
    first = VariablesComparison.load(RESULTS / f"variables/{condition}/seed-0.json.gz")
    tried = {method: [each for each in first.trials if each.method == method] for method in methods}
    assert {tuple(each.rate for each in trials) for trials in tried.values()} == {grid}
    chosen = {
        method: (min(trials, key=lambda each: (-round(each.validation, 9), each.rate)).rate,) for method, trials in tried.items()
    }
    assert {report.method: (report.rate,) for report in first.reports if report.rate} == chosen
    model, _, entities = condition.removesuffix("_16").partition("_")
    identity, layer, _ = script["MODELS"][model]
    variables = script["ENTITIES"][entities]
    first_seed = settings(model=identity, layer=layer, entities=entities, variables=variables, rates=grid)
    assert script["rates_of"](replace(first_seed, seed=1)) == chosen
    assert script["rates_of"](first_seed) == dict.fromkeys(methods, grid)
    assert script["rates_of"](replace(first_seed, coordinates=4)) == chosen
    assert script["rates_of"](replace(first_seed, seed=1, model="other")) == dict.fromkeys(methods, grid)
    for changed in ({"layer": layer + 1}, {"variables": variables[:1]}):  # for which no seed has chosen
        assert script["rates_of"](replace(first_seed, seed=1, **changed)) == dict.fromkeys(methods, grid)
    assert script["rates_of"](replace(first_seed, seed=1, rates=(1e-4,))) == dict.fromkeys(methods, (1e-4,))
    assert script["rates_of"](settings(seed=1)) is None
    if condition == "smollm2_city_16":
        _check_rates_of_boundless_forms(script, replace(first_seed, seed=1))
    white = script["rates_of"](replace(first_seed, seed=1, methods=(*script["WHITENED"],)))
    assert white == dict.fromkeys(script["WHITENED"], grid)  # which no stored comparison has chosen


def _check_rates_of_boundless_forms(script, second_seed):
    """Those of the stored comparison with learned borders."""
    found = VariablesComparison.load(RESULTS / "variables-boundless/smollm2_city_16/seed-0.json.gz")
    chosen = {report.method: (report.rate,) for report in found.reports if report.rate}
    assert {*chosen} == {script["SHARED"], *script["BOUNDLESS"]}
    assert script["rates_of"](replace(second_seed, methods=(*chosen,))) == chosen


def test_no_swap_has_no_interval_in_the_figure_either(known, monkeypatch, tmp_path):
    found, drawn = VariablesComparison.load(RESULTS / "variables/smollm2_physical_object_16/seed-0.json.gz"), {}
    script, study = script_of(known["variables"]), known["variables"]
    means = script["plots"].means
    monkeypatch.setattr(
        script["plots"], "means", lambda series, **options: drawn.update(*series.values()) or means(series, **options)
    )
    study.draw(study.report({"smollm2_physical_object_16": [found]}), tmp_path)
    assert drawn["no swap"] == (0.5, 0.5, 0.5)
    assert drawn["deep RoAd"] == pytest.approx((found.of("deep RoAd").disentangle, *found.of("deep RoAd").interval))


def test_differences_have_the_interval_of_other_trainings_too(known):
    script = script_of(known["variables"])
    found = [VariablesComparison.load(RESULTS / f"variables/smollm2_physical_object_16/seed-{seed}.json.gz") for seed in range(3)]
    rows = dict(script["values_of"](found, "stacked RoAd", "multi-task DAS"))
    name = "SmolLM2-135M, physical object, 16 per variable, stacked RoAd minus multi-task DAS"
    each = [one.of("stacked RoAd").disentangle - one.of("multi-task DAS").disentangle for one in found]
    assert rows[f"{name}, over seeds"] == with_interval(mean_of_seeds(each))
    assert len(script["values_of"](found[:1], "stacked RoAd", "multi-task DAS")) == 1
    equal = [found[0], replace(found[0], seed=1)]
    assert f"{name}, over seeds" not in dict(script["values_of"](equal, "stacked RoAd", "multi-task DAS"))
    assert script["losses_of"](found, "deep RoAd") == [
        next(trial.loss for trial in one.trials if (trial.method, trial.rate) == ("deep RoAd", 0.1)) for one in found
    ]
    assert script["losses_of"](found, "full swap") == []
    tied = VariablesComparison.load(
        RESULTS / "variables/smollm2_city_16/seed-0.json.gz"
    )  # whose rates validate alike but for rounding
    assert script["losses_of"]([tied], "deep RoAd") == [
        next(trial.loss for trial in tied.trials if (trial.method, trial.rate) == ("deep RoAd", 0.02))
    ]


def test_every_rotation_is_compared_with_multi_task_das(known):
    found = VariablesComparison.load(RESULTS / "variables/smollm2_physical_object_16/seed-0.json.gz")
    rows = dict(known["variables"].describe(known["variables"].report({"smollm2_physical_object_16": [found]}))[1])
    rotations = [report.method for report in found.reports if "RoAd" in report.method and "masked" not in report.method]
    assert len(rotations) == 4
    for method in rotations:
        shown = with_interval(disentangle_over_seeds([found], method, "multi-task DAS"))
        assert rows[f"SmolLM2-135M, physical object, 16 per variable, {method} minus multi-task DAS"] == shown


def test_the_most_frequent_group_and_the_scores_without_it(known):
    script = script_of(known["variables"])
    found = VariablesComparison.load(RESULTS / "variables/smollm2_physical_object_16/seed-0.json.gz")
    name = "SmolLM2-135M, physical object, 16 per variable"
    rows = dict(script["frequent_clusters"]([found]))
    with_lagoon = sum("lagoon" in pair for pair in found.clusters)
    assert rows[f"{name}, most frequent"].startswith(f"lagoon is in {with_lagoon} of 384 pairs")
    of_size = [pair for pair, cell in zip(found.clusters, found.cells, strict=True) if cell.endswith(", Size")]
    either = sum("lagoon" in pair or "beer" in pair for pair in of_size)
    assert rows[f"{name}, most frequent about Size"] == f"lagoon or beer is in {either} of 192 pairs"
    less = found.without("lagoon")
    assert len(less.clusters) == len(less.cells) == len(less.of("deep RoAd").outcomes) == 384 - with_lagoon
    assert rows[f"{name}, deep RoAd, without lagoon"].startswith(f"{less.of('deep RoAd').disentangle:.3f} [")
    for report in less.reports:
        low, high = report.interval
        assert low <= report.disentangle <= high
        assert disentangle_over_seeds([less], report.method) == pytest.approx((report.disentangle, low, high))
    with pytest.raises(InputError, match="no test pair has an entity of the cluster 'lagon'"):
        found.without("lagon")
    with pytest.raises(InputError, match="these comparisons have no cause by variable, as after `without`"):
        plots.variables([less], quantity="cause")
    one_cell = in_clusters(found, [("x", "x") if cell == found.cells[0] else ("y", "y") for cell in found.cells])
    assert np.isnan([one_cell.without("x").of("deep RoAd").disentangle, *one_cell.without("x").of("deep RoAd").interval]).all()
    for kept in (one_cell.without("x"), in_clusters(found, [("x", "y") for _ in found.cells]).without("x")):
        assert np.isnan(disentangle_over_seeds([kept], "deep RoAd", "no swap")).all()


def in_clusters(found, clusters):
    """The comparison with the clusters of its test pairs replaced."""
    names, numbers = number_clusters(clusters)
    changed = replace(found, cluster_names=names, cluster_numbers=numbers)
    assert changed.clusters == tuple(clusters)
    return changed


def test_the_texts_of_another_model_have_its_own_prefix(known, monkeypatch):
    script, prefixes = script_of(known["controls"]), []
    monkeypatch.setitem(script, "language_model", lambda model: (None, None))
    monkeypatch.setitem(script, "load_pairs", lambda *given: prefixes.append(given[-1]))
    for settings in (script["Settings"](), script["Settings"](model="other", prefix="")):
        script["model_and_pairs"](settings)
    assert prefixes == ["<|endoftext|>", ""]


@pytest.fixture
def nouns(known, monkeypatch):
    """Overrides of small studies of nouns with a tiny model; every question is taken as answered rightly."""
    script, task = script_of(known["variables"]), number_and_gender()
    words = [text for prompts in task.prompts.values() for prompt in prompts for text in prompt.replace(":", " : ").split()]
    tokenizer = word_tokenizer(*task.values, *(word.strip(";.") for word in words), ";", ".")
    loaded = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer)), tokenizer
    monkeypatch.setitem(script, "language_model", lambda model: loaded)
    monkeypatch.setitem(script, "answered", lambda settings, task, piece: (list(task.questions()), 7))
    return "layer=0", "prefix=''", "steps=2", "pairs=[8, 8, 8]", "methods=[stacked RoAd, masked components]"


def test_several_variables(command, nouns, tmp_path):
    slugs = ("--only", "smollm2_number-gender_1", "--only", "smollm2_number-gender_2")
    output = command("variables", *nouns, *slugs)
    assert [Path(path).name for path in output["figures"]] == ["variables-smollm2-number-gender.png"]
    assert len(output["numbers"]) == 2 * (1 + 2 * (3 + 2))  # the data; the mean and the values by seed of controls and methods
    data = output["numbers"]["SmolLM2-135M, number and gender, 2 per variable, data"]
    assert data == "448 of 7 questions, about 112 entities, are answered rightly; 32 test pairs"
    (path,) = (tmp_path / "results").glob("variables-*/smollm2_number-gender_2/seed-0.json.gz")
    found = VariablesComparison.load(path)
    assert (found.coordinates, found.answered, found.pairs) == (2, (112, 448, 7), (32, 32, 32))
    no_swap = found.of("no swap")
    assert no_swap.disentangle == no_swap.scores[0].isolation / 2 + no_swap.scores[0].cause / 2
    trained = ["stacked RoAd", "masked components"]
    assert [each.method for each in found.trials] == trained
    assert [each.method for each in found.reports] == ["no swap", "whole state", "random subspace", *trained]


def test_scores_bear_the_names_of_their_variables(command, nouns, tmp_path):
    """Nouns have their variables in one order, whatever the settings say."""
    command("variables", *nouns, "variables=[gender, number]", "--only", "smollm2_number-gender_2", "--seeds", "0")
    (path,) = (tmp_path / "results").glob("variables-*/smollm2_number-gender_2/seed-0.json.gz")
    found = VariablesComparison.load(path)
    assert found.variables == ("number", "gender")
    assert {tuple(score.variable for score in report.scores) for report in found.reports} == {found.variables}


def test_intervals_over_cities_are_over_countries(known, command, monkeypatch, tmp_path):
    """The stored clusters are those of the task, of which no city is independent of the others in its country."""
    places = {"Norway": "Europe", "Italy": "Europe", "Peru": "America", "Chile": "America", "Japan": "Asia", "Laos": "Asia"}
    cities = {f"{split}{country}{number}": country for split in SPLITS for country in places for number in range(2)}
    prompts = {"Country": ["in the land of %s there is"], "Continent": ["around %s there is"]}
    files = {
        "entity_attributes": {city: {"Country": of, "Continent": places[of]} for city, of in cities.items()},
        "attribute_to_prompts": prompts,
        "entity_to_split": {city: next(split for split in SPLITS if city.startswith(split)) for city in cities},
        "prompt_to_split": {text: "train" for texts in prompts.values() for text in texts},
    }
    for name, content in files.items():
        (tmp_path / f"ravel_city_{name}.json").write_text(json.dumps(content))
    tokenizer = word_tokenizer(*cities, *places, *places.values(), *["in", "the", "land", "of", "there", "is", "around"])
    loaded = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer)), tokenizer
    script = script_of(known["variables"])
    monkeypatch.setitem(script, "language_model", lambda model: loaded)
    monkeypatch.setitem(script, "answered", lambda settings, task, piece: (list(task.questions()), 7))
    options = ("layer=0", "prefix=''", "steps=2", "pairs=[8, 8, 8]", "methods=[stacked RoAd]", "rates=[0.1]")
    command("variables", f"ravel={tmp_path}", *options, "--only", "smollm2_city_1", "--seeds", "0")
    (path,) = (tmp_path / "results").glob("variables-*/smollm2_city_1/seed-0.json.gz")
    found = VariablesComparison.load(path)
    assert {country for both in found.clusters for country in both} == {*places}
    report = found.of("stacked RoAd")
    weights = cell_weights(found.variables)
    assert report.interval == pytest.approx(mean_interval(np.array(report.outcomes), found.clusters, list(found.cells), weights))


def test_stored_comparisons_of_cities_have_countries_as_clusters():
    stored = [VariablesComparison.load(path) for path in sorted(RESULTS.glob("variables*/*_city_*/seed-*.json.gz"))]
    assert len(stored) > 10
    countries = {country for both in stored[0].clusters for country in both}
    assert {"China", "Italy"} <= countries
    for found in stored:
        groups = {country for both in found.clusters for country in both}
        assert len(groups & countries) > len(groups) / 2, found.seed  # the test cities of another seed may be of other countries


def test_an_interrupted_comparison_goes_on_where_it_was(known, command, nouns, monkeypatch, tmp_path):
    """Finished methods are not trained again, and the numbers are those of a comparison in one go."""
    slug, tried = ("--seeds", "0", "--only", "smollm2_number-gender_2"), []
    whole = command("variables", *nouns, *slug)["numbers"]
    script = script_of(known["variables"])
    compare = script["compare_variables"]

    def interrupted(*runs_and_sizes, methods, **options):
        tried.append(methods)
        if len(tried) == 3:
            raise InputError("the machine was switched off")
        return compare(*runs_and_sizes, methods=methods, **options)

    monkeypatch.setitem(script, "compare_variables", interrupted)
    again = ("--runs", tmp_path / "again", "--results", tmp_path / "again-results")
    with pytest.raises(AssertionError, match="switched off"):
        command("variables", *nouns, *slug, *again)
    (folder,) = (tmp_path / "again").glob("smollm2_number-gender_2-*")
    assert sorted(path.stem for path in folder.iterdir()) == ["controls", "stacked-RoAd"]
    assert command("variables", *nouns, *slug, *again)["numbers"] == whole
    assert tried == [(), ("stacked RoAd",), ("masked components",), ("masked components",)]
    shutil.rmtree(tmp_path / "again-results")
    assert command("variables", *nouns, *slug, *again)["numbers"] == whole
    assert tried[4:] == [(), ("stacked RoAd",), ("masked components",)]  # a finished comparison leaves nothing to go on from


@pytest.mark.parametrize(("local", "asked_again"), [(True, 2), (False, 1)])
def test_answers_of_other_weights_under_the_same_path_are_not_taken(known, monkeypatch, tmp_path, local, asked_again):
    """Neither those to the questions, nor the methods that an interrupted comparison has finished."""
    script, asked, folders = script_of(known["variables"]), [], set()

    def interrupted(*rest, **options):
        raise KeyboardInterrupt

    monkeypatch.setitem(script, "language_model", lambda model: (None, None))
    monkeypatch.setitem(script, "with_best_prompts", lambda model, tokenizer, task, *rest, **options: task)
    monkeypatch.setitem(script, "answered_rightly", lambda *rest, **options: asked.append(rest) or [])
    monkeypatch.setitem(script, "runs_of", lambda *rest: ([], (0, 0, 0)))
    monkeypatch.setitem(script, "compare_variables", interrupted)
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    settings = script["Settings"](model=str(weights.parent) if local else "package://llm/model.gguf")
    piece = Piece(settings, "nouns", 0, tmp_path / "runs", silent)
    for content in ("first", None, "second"):
        if content is not None:
            weights.write_text(content)
        script["answered"](settings, script["task_of"](settings), piece)
        with pytest.raises(KeyboardInterrupt):
            script["measure"](piece)
        folders |= {path for path in piece.runs.iterdir() if path.is_dir()}
    assert len(asked) == len(folders) == asked_again


def test_entities_need_a_folder(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, monkeypatch, "study", "variables", "--only", "smollm2_city_1")
    assert code == 2
    assert "entities 'city' need ravel=FOLDER" in err.splitlines()[-1]


def test_a_task_without_a_span_of_its_own(capsys, monkeypatch, tiny_language_model, tmp_path):
    built_in = json.loads((ROOT / "road_interp" / "causal" / "templates.json").read_text())
    (tmp_path / "tasks.json").write_text(json.dumps({"filler_gap": built_in["agreement"]}))
    given = ("task=filler_gap", f"templates={tmp_path / 'tasks.json'}", "--quick", "--results", str(tmp_path))
    code, _, err = run(capsys, monkeypatch, "study", "depth", *given)
    assert code == 2
    assert "task 'filler_gap': the tasks of this study are agreement, gender" in err.splitlines()[-1]
