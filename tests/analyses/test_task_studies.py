"""What the studies of several tasks measure, with fakes for what is slow, and what their commands say about it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.compositions import composition_report, scripted, with_both_tasks
from helpers.models import random_adapter, tiny_model
from helpers.studies import pieces_of, script_of
from road_interp.errors import InputError
from road_interp.measure import CompositionReport, InterferenceReport, StrengthReport
from road_interp.measure.multitask_accuracy import MultiTaskAccuracyReport
from road_interp.recipes import load_recipe
from road_interp.sites.find import find_sites
from road_interp.training import composition_baselines
from road_interp.training.study import StudyOptions
from road_interp.training.study_pieces import read_study, run_study


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


def test_three_adapters_by_name_and_differences_by_division(known):
    """The bank takes both tasks from the undivided adapter of its loss, all else from the adapters trained apart."""
    study = known["composition"]
    divisions = [composition_report(seed) for seed in (0, 1)]
    apart = composition_report(0, lambda prompts, active: scripted(prompts, "__base__" if "+" in active else active))
    both = [composition_report(seed, with_both_tasks) for seed in (0, 1)]
    pieces = {"planes_coact-0.5": divisions, "multiplied": [apart], "undivided_own-loss": both}
    numbers = dict(study.describe(study.report(pieces))[1])
    by_name = {row.partition("division 0: ")[2]: value[:5] for row, value in numbers.items() if "by name, division 0" in row}
    assert by_name == dict.fromkeys(("mean over sets", "label", "closing", "label+closing"), "1.000")
    assert numbers["m, three adapters by name minus planes: mean over sets"].startswith("0.075 [")  # .3 in one of four sets
    name = "m, undivided, loss of own tokens minus planes: label+closing"
    assert numbers[f"{name}, by division"] == "above in 2 of 2 divisions (0.300, 0.300)"
    assert numbers[f"{name}, over reviews"].startswith("0.300 [")
    del pieces["multiplied"]
    assert not any("by name" in row for row, _ in study.describe(study.report(pieces))[1])


def test_rates_are_compared_with_planes_of_the_same_model_and_tasks(known):
    study = known["composition"]
    slow, fast = composition_report(0), composition_report(0, with_both_tasks)
    other_slow, other_fast = (replace(report, model="n") for report in (fast, slow))
    pieces = {"planes_coact-0.5": [slow], "planes_coact-0.5_rate-0.01": [fast], "undivided_own-loss_rate-0.01": [fast]}
    pieces |= {f"3-tasks_{slug}": [other] for slug, other in zip(pieces, (other_slow, other_fast), strict=False)}
    numbers = dict(study.describe(study.report(pieces))[1])
    differences = {row: value[:6] for row, value in numbers.items() if row.endswith(("planes: label", "rate: label"))}
    assert differences == {
        "m, planes, co-activation 0.5, rate 0.01 minus planes: label": "-1.000",
        "m, undivided, loss of own tokens, rate 0.01 minus planes: label": "-1.000",
        "m, undivided, loss of own tokens, rate 0.01 minus planes at that rate: label": "0.000 ",
        "n, 3 tasks: planes, co-activation 0.5, rate 0.01 minus planes: label": "1.000 ",
    }


def test_conditions_of_the_composition(known, monkeypatch, tmp_path):
    """One step for every eight examples; low ranks, and conditions that name one, have learning rates of their own."""
    study = known["composition"]
    recipes = {}
    for slug in study.conditions:
        (piece,) = pieces_of(study, StudyOptions(seeds=(0,), only=(slug,), results=tmp_path))
        recipes[slug] = piece.recipe
    main = recipes["planes_coact-0.5"]
    for slug, recipe in recipes.items():
        examples = sum(task.examples for task in recipe.tasks.values())
        rate = {"lora": 1e-3, "loreft": 2e-3}.get(re.split("_", slug)[0], 3e-3)
        rate = float(re.split("_rate-|_rising", slug)[1]) if "_rate-" in slug else rate
        assert recipe.training == replace(main.training, learning_rate=rate, max_steps=examples // 8), slug
        assert recipe.co_activation_warmup == (0.5 if slug.endswith("_rising") else 0)
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


def test_rates_of_the_composition(known, monkeypatch, tmp_path):
    """Every method has the same grid, and the best rate is that of the highest mean over the sets."""
    study = known["composition-rates"]
    grid = script_of(study)["GRID"]
    tried = {}
    for slug in study.conditions:
        method, _, rate = slug.rpartition("_")
        (piece,) = pieces_of(study, StudyOptions(seeds=(0,), only=(slug,), results=tmp_path))
        assert (piece.recipe.training.learning_rate, piece.recipe.co_activation) == (float(rate), 0.5)
        tried.setdefault(method, []).append(float(rate))
    assert tried == {method: list(grid) for method in ("planes", "undivided_own-loss", "lora", "loreft")}
    fair, poor = composition_report(), composition_report(generate=lambda prompts, active: scripted(prompts, "__base__"))
    assert fair.mean_control() > poor.mean_control()
    pieces = {"planes_0.0003": [poor], "planes_0.001": [fair], "planes_0.003": [fair], "lora_0.01": [poor]}
    assert study.describe(study.report(pieces))[0].endswith("The best rates: no grid is complete yet.")
    found = study.report(pieces | {"planes_0.01": [poor]})
    assert found.best == {"planes": 0.001}
    undivided = composition_report(generate=with_both_tasks)
    grid_of = {f"undivided_own-loss_{rate:g}": [fair] for rate in (0.0003, 0.001, 0.01)}
    both = study.report(grid_of | {"undivided_own-loss_0.003": [undivided]})
    assert undivided.mean_control() < fair.mean_control()
    assert both.best == {"undivided_own-loss": 0.003}  # judged by the answers with both tasks
    sentence, numbers = study.describe(found)
    assert sentence.endswith("The best rates: planes 0.001.")
    assert dict(numbers)["planes, rate 0.001: closing"].startswith("1.000")


def test_multitask_accuracy(known, command, monkeypatch, tmp_path):
    trained = []

    def scripted(piece):
        recipe, tasks = piece.recipe, tuple(piece.recipe.tasks)
        trained.append((piece.condition, tasks, recipe.co_activation, recipe.training.epochs))
        assert recipe.training.max_steps == 2
        correct = {task: dict.fromkeys(("__base__", task, "+".join(tasks)), (True, False)) for task in tasks}
        if piece.condition == "coact-0.5-longer":
            correct["source"]["sentiment+source"] = (False, False)
        return SimpleNamespace(composition=MultiTaskAccuracyReport("m", "x", tasks, (recipe.seed,), correct))

    monkeypatch.setitem(script_of(known["multitask-accuracy"]), "run_of", scripted)
    output = command("multitask-accuracy", "--quick")
    both = ("sentiment", "source")
    assert [each[:2] for each in trained] == [
        ("coact-0.5", both),
        ("coact-0", both),
        *((f"{task}-alone", (task,)) for task in both),
        *((f"{task}-own-planes", both) for task in both),
        ("coact-0.5-longer", both),
        *((f"{task}-alone-longer", (task,)) for task in both),
        ("coact-0.5-tuned", both),
        *((f"{task}-alone-tuned", (task,)) for task in both),
    ]
    assert [each[2] for each in trained] == [0.5, 0, 0.5, 0.5, 0, 0] + [0.5] * 6
    assert [each[3] for each in trained] == [2] * 6 + [4] * 3 + [2] * 3
    content = json.loads((tmp_path / "figures" / "multitask-accuracy.json").read_text())
    assert [each["method"] for each in content["together"]] == ["co-activation 0.5", "co-activation 0"]
    assert list(content["alone"]) == list(content["own_planes"]) == list(both)
    for lost in ("against training alone", "to fewer planes", "to joint training", "to the other active task"):
        assert output["numbers"][f"co-activation 0: source, lost {lost}"].startswith("0.000")
    assert output["numbers"]["four epochs: co-activation 0.5: source, lost against training alone"].startswith("0.500")
    closed = output["numbers"]["co-activation 0.5: source, lost minus lost with four epochs"]
    assert closed.startswith("-0.500")
    longer = json.loads((tmp_path / "figures" / "multitask-accuracy-longer.json").read_text())
    of_study = content["variants"]["four epochs"]
    assert longer == of_study | {key: longer[key] for key in set(longer) - set(of_study)}
    assert (tmp_path / "figures" / "multitask-accuracy-tuned.png").is_file()
    assert output["numbers"]["co-activation 0.5: source, lost minus lost with own rates"].startswith("0.000")
    command("multitask-accuracy", "--quick", "--redraw")
    assert len(trained) == 12


def test_the_rates_of_two_heads_are_those_that_validation_finds(known):
    """The tuned conditions have the best rates of the stored pieces; source alone has that of the recipe."""
    study, stored = known["multitask-accuracy"], known["multitask-accuracy-rates"]
    best = read_study(stored, StudyOptions()).best
    joint, *alone = (
        load_recipe(study.recipe, study.conditions[f"{slug}-tuned"].overrides)
        for slug in ("coact-0.5", "sentiment-alone", "source-alone")
    )
    assert {f"{name}, both tasks": task.learning_rate for name, task in joint.tasks.items()} | {
        f"{name} alone": recipe.training.learning_rate for name, recipe in zip(joint.tasks, alone, strict=True)
    } == best


def test_a_rate_of_two_heads_is_judged_with_all_planes_active(known, tmp_path):
    study = known["multitask-accuracy-rates"]
    right, wrong, half = (True, True), (False, False), (True, False)

    def found(sentiment, source):
        correct = {"sentiment": {"sentiment": right, "sentiment+source": sentiment}}
        correct["source"] = {"source": wrong, "sentiment+source": source}
        return [MultiTaskAccuracyReport("m", "x", ("sentiment", "source"), (6,), correct)]

    pieces = {f"coact-0.5_{rate}": found(*each) for rate, each in (("0.001", (half, wrong)), ("0.003", (right, right)))}
    report = study.report(pieces)
    assert report.scores == {"sentiment, both tasks": {0.001: 0.5, 0.003: 1}, "source, both tasks": {0.001: 0, 0.003: 1}}
    assert report.best == {}
    pieces |= {f"coact-0.5_{rate}": found(right, wrong) for rate in ("0.01", "0.03")}
    report = study.report(pieces)
    assert report.best == {"sentiment, both tasks": 0.003, "source, both tasks": 0.003}
    assert study.describe(report)[0].endswith("The best: sentiment, both tasks 0.003, source, both tasks 0.003.")
    (path,) = study.draw(report, tmp_path)
    assert path.is_file()


def test_multitask_accuracy_without_all_longer_trainings(known):
    study = known["multitask-accuracy"]
    report = MultiTaskAccuracyReport("m", "co-activation 0.5", ("a", "b"), (0,), {})
    some = {slug: [report] for slug in ("coact-0.5", "sentiment-alone", "source-alone")}
    assert study.report(some).variants == {}
    with pytest.raises(InputError, match="needs the conditions sentiment-alone-longer, source-alone-longer: measure them"):
        study.report({**some, "coact-0.5-longer": [report]})


def test_a_task_alone_on_its_planes_has_few_texts_of_the_other(known):
    study = known["multitask-accuracy"]
    recipe = load_recipe(study.recipe, study.conditions["sentiment-own-planes"].overrides)
    assert (recipe.co_activation, recipe.tasks["source"].labels.per_class) == (0, 50)
    joint = load_recipe(study.recipe)
    assert recipe.task_names == joint.task_names
    assert recipe.tasks["sentiment"] == joint.tasks["sentiment"]


def test_strength(known, command, monkeypatch, tmp_path):
    report = StrengthReport("m", "<closing>", (0.0, 1.0), ((False, False), (True, False)), (2.0, 3.0))
    asked = []

    def scripted(piece):
        asked.append((list(piece.recipe.tasks), piece.recipe.scoring.test, piece.seed))
        return report

    monkeypatch.setitem(known, "strength", replace(known["strength"], measure=scripted))
    output = command("strength", "--quick")
    assert asked == [(["closing"], 4, 0)]  # one seed
    assert list(output["numbers"]) == ["strength 0", "strength 1", "strength 0, perplexity", "strength 1, perplexity"]
    assert output["numbers"]["strength 1, perplexity"] == "3"
    assert StrengthReport.load(tmp_path / "figures" / "strength.json") == report
    command("strength", "--quick", "--redraw", "--out", tmp_path / "again")
    assert StrengthReport.load(tmp_path / "again" / "strength.json") == report
    command("--redraw", "--quick")
    assert "&#39;&lt;closing&gt;&#39;" in (tmp_path / "figures" / "index.html").read_text()


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
