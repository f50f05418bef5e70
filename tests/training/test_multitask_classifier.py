"""Several classification heads on one backbone: a tiny BERT is trained on two tasks of synthetic text, end to end."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from helpers.cli import run as run_cli
from helpers.models import save_encoder_decoder
from road_interp import plots
from road_interp.adapters.joined_names import BASE
from road_interp.adapters.modules_to_save import read_safetensors
from road_interp.data.labelled import load_labelled
from road_interp.errors import InputError
from road_interp.measure.multitask_accuracy import MultiTaskAccuracyReport, MultiTaskAccuracyStudy, active_sets
from road_interp.models.loading import load_tokenizer
from road_interp.recipes.loader import load_recipe
from road_interp.rotation.plane_maps import apply
from road_interp.runs.run import Run
from road_interp.runs.run_files import HEAD
from road_interp.training import multitask_classifier
from road_interp.training.api import evaluate, train
from road_interp.training.multitask_classifier import (
    MultiTaskClassificationExperiment,
    answers_by_task,
    load_labelled_tasks,
)
from road_interp.training.scoring import MultiTaskScorer, make_scorer

pytestmark = pytest.mark.training


def recipe_for(folder, *overrides):
    data = {"id": str(folder / "data.csv"), "validation_size": 40, "test_size": 40}
    content = {
        "kind": "multitask-classification",
        "model": {"id": str(folder / "model"), "max_length": 16},
        "tasks": {"tone": {"labels": data}, "start": {"labels": {**data, "id": str(folder / "start.csv")}}},
        "training": {"learning_rate": 0.05, "epochs": 6, "batch_size": 16, "precision": "fp32"},
    }
    return load_recipe(content, overrides)


@pytest.fixture(scope="module")
def folder(workplace):
    """Two labelled data sets: the tone of a text, and whether its first word is "w3" (early) or "w17" (late)."""
    rows = ["text,label"]
    for line in (workplace / "data.csv").read_text().splitlines()[1:]:
        text = line.split(",")[0]
        rows.append(f"w{3 if len(rows) % 2 else 17} {text},{'early' if len(rows) % 2 else 'late'}")
    (workplace / "start.csv").write_text("\n".join(rows) + "\n")
    return workplace


@pytest.fixture(scope="module")
def finished(folder):
    return train(recipe_for(folder), folder / "heads", progress=False)


def test_heads_read_states_of_half_precision(folder, tmp_path):
    run = train(recipe_for(folder, "model.dtype=bfloat16", "training.max_steps=2"), tmp_path / "half", progress=False)
    assert {*run.composition.correct} == {"tone", "start"}


def test_encoder_decoder_models_are_refused_before_anything_is_written(folder, tmp_path):
    model = save_encoder_decoder(tmp_path / "model", folder / "model")
    recipe = recipe_for(folder, f"model.id={model}", "adapter.sites=mlp", "adapter.stack=encoder.layers")
    with pytest.raises(InputError, match="kind: multitask-classification .* BartModel has an encoder and a decoder"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_task_name_that_joins_several_is_refused(folder):
    with pytest.raises(InputError, match="'a[+]b' cannot be the name of a task"):
        recipe_for(folder, f"tasks={{a+b: {{labels: {{id: {folder / 'data.csv'}}}}}}}")


def test_labels_of_other_classes_are_not_scored(folder, tmp_path):
    """The order of the classes is that of a head's outputs: with another one, the predictions would be exchanged."""
    data = tmp_path / "data"
    data.mkdir()
    text = (folder / "data.csv").read_text()
    (data / "train.csv").write_text(text)
    run = train(recipe_for(folder, f"tasks.tone.labels.id={data}", "training.max_steps=2"), tmp_path / "run", progress=False)
    (data / "train.csv").write_text(text.replace(",positive", ",another"))
    origin = json.loads((run.folder / "origin.json").read_text())
    (run.folder / "origin.json").write_text(json.dumps({**origin, "files": {}}))  # as of a data set of the Hub
    run = Run.load(run.folder)
    message = "labels of task 'tone' are another, negative now, and were negative, positive when it was trained"
    for use in (lambda: evaluate(run, progress=False), lambda: MultiTaskScorer(run), lambda: answers_by_task(run)):
        with pytest.raises(InputError, match=message):
            use()


def test_the_parameters_are_those_that_are_trained(folder, finished, tmp_path):
    options = ("adapter.trainable=angles", "training.max_steps=1")
    angles = train(recipe_for(folder, *options), tmp_path / "angles", progress=False)
    assert finished.metrics["parameters"] == {"adapter": finished.adapter.num_parameters, "heads": 132}
    assert angles.metrics["parameters"] == {"adapter": finished.adapter.num_parameters // 2, "heads": 132}


def test_two_tasks_are_learned_on_one_state(folder, finished):
    report = MultiTaskAccuracyReport.from_json((finished.folder / "multitask-accuracy.json").read_text())
    assert report.tasks == ("tone", "start")
    for task in report.tasks:
        assert report.accuracy(task, task)[0] > 0.8
        assert len(report.correct[task][task]) == 40
        cost, low, high = report.cost(task)
        assert low <= cost <= high
        assert cost == pytest.approx(report.accuracy(task, task)[0] - report.accuracy(task, "tone+start")[0])
    assert report.summary() == finished.metrics["test"]


def test_a_run_is_loaded_from_its_files(finished):
    again = Run.load(finished.folder)
    assert again.planes.tasks == ("tone", "start")
    assert evaluate(again) == finished.metrics["test"]
    assert json.loads((finished.folder / "classes.json").read_text())["start"] == ["early", "late"]


def test_a_run_of_several_heads_has_no_predictions(finished, tmp_path):
    with pytest.raises(InputError, match="is a run of multitask-classification; predict is for kind: classification"):
        finished.predict(["grand"])
    with pytest.raises(InputError, match="predictions are written for kind: classification"):
        evaluate(finished, predictions=tmp_path / "p.csv", progress=False)


def test_a_resumed_run_gives_the_same_bits(folder, finished, monkeypatch):
    save = multitask_classifier.MultiTaskClassifierTrainer._save_checkpoint

    def interrupt(self, *arguments, **options):
        save(self, *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(multitask_classifier.MultiTaskClassifierTrainer, "_save_checkpoint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(recipe_for(folder), folder / "stopped", progress=False)
    monkeypatch.undo()
    other_planes = replace(recipe_for(folder), tasks=dict(reversed(recipe_for(folder).tasks.items())))
    with pytest.raises(InputError, match=r"order of tasks is \('tone', 'start'\) there, \('start', 'tone'\) here"):
        train(other_planes, folder / "stopped", resume=True, progress=False)
    resumed = train(recipe_for(folder), folder / "stopped", resume=True, progress=False)
    assert resumed.metrics == finished.metrics


def test_scores_are_those_of_the_evaluation_also_after_training_in_half_precision(folder):
    run = train(recipe_for(folder, "training.precision=bf16", "training.epochs=1"), folder / "half", progress=False)
    assert evaluate(run) == run.metrics["test"]


def test_a_head_alone_does_not_depend_on_the_others_planes(folder, finished):
    recipe = finished.recipe
    data, tokenizer = multitask_classifier.load_labelled_tasks(recipe), load_tokenizer(recipe.model)
    model = multitask_classifier.load_multitask_classifier(finished, data, tokenizer)
    batch = tokenizer(["fine w1 w2", "poor w3"], padding=True, return_tensors="pt")
    alone = model(dict(batch), ["tone", "tone"])["tone"]
    with torch.no_grad():
        for site in finished.planes.sites:
            intervention = dict(model.road.by_site())[site]
            intervention.theta[finished.planes.owned["start"][site.name]] += 1
    assert torch.equal(model(dict(batch), ["tone", "tone"])["tone"], alone)
    assert not torch.allclose(model(dict(batch), ["tone+start"] * 2)["tone"], alone)


def test_a_head_is_scored_with_any_adapter(finished):
    report = MultiTaskAccuracyReport.from_json((finished.folder / "multitask-accuracy.json").read_text())
    for task in report.tasks:
        score = MultiTaskScorer(finished, task=task)
        assert tuple(score(finished.adapter)) == report.correct[task]["tone+start"]
        assert tuple(score(finished.adapter**0)) == report.correct[task]["__base__"]
        assert tuple(score(finished.adapter.restrict(finished.planes.of(task)))) == report.correct[task][task]
    with pytest.raises(InputError, match="heads' has no head for 'tune'"):
        MultiTaskScorer(finished, task="tune")


def test_a_run_of_one_head_is_diagnosed_and_is_a_control(folder, finished, monkeypatch, capsys):
    def diagnosed(*arguments):
        code, out, err = run_cli(capsys, monkeypatch, "diagnose", *arguments, "--limit", 10, "--json")
        assert code == 0, err
        return json.loads(out)["checks"]

    alone = recipe_for(folder, "training.max_steps=2")
    run = train(replace(alone, tasks={"tone": alone.tasks["tone"]}), folder / "tone alone", progress=False)
    report = MultiTaskAccuracyReport.from_json((run.folder / "multitask-accuracy.json").read_text())
    scorer = make_scorer(run)
    assert isinstance(scorer, MultiTaskScorer)
    assert tuple(scorer(run.adapter)) == report.correct["tone"]["tone"]
    assert len(make_scorer(run, limit=10)(run.adapter)) == 10
    relies, hurts = diagnosed(run.folder, "--control", run.folder)
    assert relies["question"] == "Does the adapter rely on its magnitudes?"
    assert (hurts["question"], "all layers" in hurts["numbers"]) == ("Do the rotated planes hurt other features?", True)
    assert [check["question"] for check in diagnosed(finished.folder)] == ["Do the tasks fail to compose?"]


def test_the_tables_of_the_command_line(finished, monkeypatch, capsys):
    code, printed, err = run_cli(capsys, monkeypatch, "evaluate", finished.folder)
    assert code == 0, err
    assert "cost: own minus all" in " ".join(printed.split())
    assert all(f"{rate:.3f} [" in printed for rate, _, _ in finished.metrics["test"]["accuracy"]["start"].values())


def test_the_page_has_the_answers_of_every_head(finished, monkeypatch, capsys, tmp_path):
    tone, start = answers_by_task(finished)
    report = MultiTaskAccuracyReport.from_json((finished.folder / "multitask-accuracy.json").read_text())
    for found in (tone, start):
        assert (found.labels == found.rotated).tolist() == list(report.correct[found.task][found.task])
        assert (found.labels == found.without).tolist() == list(report.correct[found.task][BASE])
    run_cli(capsys, monkeypatch, "report", finished.folder, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    tables = re.findall(r'<table class="scores confusion">(.*?)</table>', page, re.DOTALL)
    assert [sum(int(count) for count in re.findall(r"<td>(\d+)</td>", table)) for table in tables] == [40, 40]
    assert "early</th>" in tables[1]
    assert "Answers to the test texts of start</h2>" in page
    heads = json.loads(re.search(r"const heads = (.*?);  // states", page).group(1))
    assert [head["classes"] for head in heads] == [["negative", "positive"], ["early", "late"]]
    assert [len(head["labels"]) for head in heads] == [40, 40]
    planes = json.loads(re.search(r"const planes = (.*?);  // by site", page).group(1))
    sites = zip(finished.adapter.sites, planes, strict=True)
    shown = [[start.states[site.name][:, plane] for plane, *_ in here[:8]] for site, here in sites]
    np.testing.assert_allclose(np.array(heads[1]["states"]) @ [1, 1j], np.array(shown), atol=1e-3)


def test_the_states_of_every_head_are_those_in_front_of_the_rotations_of_all_tasks(finished):
    data, tokenizer = load_labelled_tasks(finished.recipe), load_tokenizer(finished.recipe.model)
    for found in answers_by_task(finished):
        texts = [data[found.task].test["text"][row] for row in found.read]
        behind = {}

        def keep(name, module, args, output, behind=behind):
            behind[name] = output

        with finished.load_model().attached(tasks=["tone+start"] * len(texts)) as model, torch.no_grad():
            for site in finished.adapter.sites:
                module = model.get_submodule(site.module)
                module.register_forward_hook(partial(keep, site.name))
            model(**tokenizer(texts, padding=True, return_tensors="pt"))
        for site in finished.adapter.sites:
            before = torch.view_as_real(torch.from_numpy(found.states[site.name])).flatten(-2)
            rotated = apply(finished.adapter.plane_maps(site), before, finished.adapter.group_size)
            torch.testing.assert_close(rotated, behind[site.name][:, 0], rtol=1e-4, atol=1e-4)


def test_reports_of_seeds_are_joined_and_active_sets_are_listed():
    assert active_sets("a", "ab") == ["__base__", "a", "a+b"]
    assert active_sets("a", "a") == ["__base__", "a"]
    correct = {"a": {"a": (True, False), "a+b": (False, False)}, "b": {"b": (True, True), "a+b": (True, True)}}
    both = MultiTaskAccuracyReport.over_seeds(
        [MultiTaskAccuracyReport("m", "x", ("a", "b"), (seed,), correct) for seed in (0, 1)]
    )
    assert both.seeds == (0, 1)
    assert both.cost("a")[0] == 0.5
    assert both.cost("b")[0] == 0
    assert MultiTaskAccuracyReport.from_json(both.to_json()) == both
    with pytest.raises(InputError, match="one model and method"):
        MultiTaskAccuracyReport.over_seeds([both, MultiTaskAccuracyReport("m", "y", ("a", "b"), (0,), correct)])
    with pytest.raises(InputError, match="the JSON of MultiTaskAccuracyReport must hold one object"):
        MultiTaskAccuracyReport.from_json("[]")


def study():
    """Trained alone both heads are right; trained together the first head is right on half of its examples."""

    def report(method, tasks, correct):
        return MultiTaskAccuracyReport("m", method, tasks, (0, 1), correct)

    yes, half = (True,) * 8, (True, False) * 4
    joint = report("joint", ("a", "b"), {"a": {"a": yes, "a+b": half}, "b": {"b": yes, "a+b": yes}})
    alone = {task: report("alone", (task,), {task: {task: yes}}) for task in "ab"}
    own = {"a": report("own", ("a", "b"), {"a": {"a": (True,) * 6 + (False,) * 2, "a+b": yes}})}
    return MultiTaskAccuracyStudy((joint,), alone, own)


def test_the_gap_to_training_alone_is_paired():
    (joint,) = study().together
    gap, low, high = study().gap("a", joint)
    assert gap == 0.5
    assert -1 <= low < 0.5 < high <= 1
    assert study().gap("b", joint)[0] == 0
    parts = (study().lost_to_fewer_planes("a"), study().lost_to_joint_training("a", joint), joint.cost("a"))
    assert [each[0] for each in parts] == [0.25, -0.25, 0.5]
    with pytest.raises(InputError, match="no training alone on its planes of 'b'; there are a"):
        study().lost_to_fewer_planes("b")
    assert MultiTaskAccuracyStudy.from_json(study().to_json()) == study()
    with pytest.raises(InputError, match="they cannot be paired"):
        study().gap("a", replace(joint, seeds=(0, 2)))
    with pytest.raises(InputError, match="'together' is missing"):
        MultiTaskAccuracyStudy.from_json("{}")


def test_what_a_variant_of_the_training_saves_is_paired():
    (joint,) = study().together
    with pytest.raises(InputError, match="no variant 'more epochs'"):
        study().gap_closed("a", "joint", "more epochs")
    right = {"a": {"a": (True,) * 8, "a+b": (True,) * 8}, "b": joint.correct["b"]}
    variant = replace(study(), together=(replace(joint, correct=right),))
    both = replace(study(), variants={"more epochs": variant})
    assert [both.gap_closed(task, "joint", "more epochs")[0] for task in "ab"] == [0.5, 0]
    assert both.summary()["more epochs"]["gap closed"]["joint"]["a"] == both.gap_closed("a", "joint", "more epochs")
    methods = [row["method"] for row in both.records()]
    assert len(methods) == 2 * len(study().records())
    assert methods.count("joint, more epochs") == methods.count("joint") == 4
    other = replace(variant, together=(replace(joint, seeds=(0, 2)),))
    with pytest.raises(InputError, match="they cannot be paired"):
        replace(both, variants={"more epochs": other}).gap_closed("a", "joint", "more epochs")
    assert MultiTaskAccuracyStudy.from_json(both.to_json()) == both


def test_the_study_is_drawn():
    ax = plots.heads(study())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "trained alone",
        "trained alone on its planes",
        "joint: its planes",
        "joint: all planes",
    ]
    assert ax.containers[1].lines[0].get_ydata().tolist() == [0.75]  # of the task that was
    assert ax.containers[3].lines[0].get_ydata().tolist() == [0.5, 1]


def test_texts_of_equal_length_and_balanced_classes(tmp_path):
    rows = [f"{' '.join(['word'] * (n % 5 + 1))},{'odd' if n % 3 else 'rare'}" for n in range(60)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows]) + "\n")

    def data(**options):
        content = {"id": str(tmp_path / "data.csv"), "validation_size": 4, "test_size": 4, **options}
        return load_recipe({"kind": "classification", "model": {"id": "m"}, "data": content}).data

    task = load_labelled(data(words=3, per_class=10))
    assert {len(text.split()) for text in task.train["text"]} == {3}
    labels = [*task.train["label"], *task.validation["label"], *task.test["label"]]
    assert (labels.count(0), labels.count(1)) == (10, 10)
    with pytest.raises(InputError, match="no text has 9 words"):
        load_labelled(data(words=9))
    with pytest.raises(InputError, match="only 20 examples are of class rare; data.per_class is 21"):
        load_labelled(data(per_class=21))


def test_data_sets_that_share_texts_hold_out_the_same(tmp_path):
    rows = [f"{' '.join(f'w{n % 97}{k}' for k in range(12))} end{n},{n % 2}" for n in range(300)]
    (tmp_path / "all.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (tmp_path / "some.csv").write_text("\n".join(["text,label", *rows[:150]]) + "\n")
    texts = {}
    for name, options in (("all", {}), ("some", {"words": 9})):
        content = {"id": str(tmp_path / f"{name}.csv"), "split_by_text": True, **options}
        task = load_labelled(load_recipe({"kind": "classification", "model": {"id": "m"}, "data": content}).data)
        texts[name] = {
            split: {" ".join(text.split()[:8]) for text in getattr(task, split)["text"]}
            for split in ("train", "validation", "test")
        }
    for split in ("train", "validation", "test"):
        assert texts["some"][split] <= texts["all"][split]
        assert not texts["all"][split] & {text for other in texts["all"] if other != split for text in texts["all"][other]}


def test_test_texts_that_another_task_is_trained_on_are_warned_of(tmp_path):
    rows = [f"w{n} w{n},{'ab'[n % 2]},{'cd'[n // 2 % 2]}" for n in range(200)]
    (tmp_path / "both.csv").write_text("\n".join(["text,tone,start", *rows]) + "\n")

    def recipe(**options):
        labels = {"id": str(tmp_path / "both.csv"), **options}
        tasks = {name: {"labels": {**labels, "label": name}} for name in ("tone", "start")}
        return load_recipe({"kind": "multitask-classification", "model": {"id": "m"}, "tasks": tasks})

    with pytest.warns(UserWarning, match="18 test texts of task 'tone' are training texts of task 'start': split_by_text"):
        load_labelled_tasks(recipe())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_labelled_tasks(recipe(split_by_text=True))


def test_heads_need_accuracy(folder):
    recipe = recipe_for(folder, "tasks.tone.labels.metric=matthews")
    with pytest.raises(InputError, match="task 'tone' is scored by matthews"):
        multitask_classifier.load_labelled_tasks(recipe)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks.tone={behaviour: label}", "unknown key 'tasks.tone.behaviour'; known are labels"),
        ("tasks.tone.behaviour=label", "unknown key 'tasks.tone.behaviour'; known are labels"),
        ("tasks.tone.labels.problem_type=regression", "'tasks.tone.labels.problem_type' must be classification"),
        ("tasks.tone.labels.split_by_text=true", "'tasks.tone.labels.validation_size' must be a fraction"),
        ("reviews={id: x.csv}", "unknown key 'reviews'; known are model, tasks, kind"),
        (
            "tasks.tone.labels={id: x.csv, split_by_text: true, validation_size: .2, test_size: .2, words: 6}",
            "'tasks.tone.labels.words' must be at least 8 with split_by_text",
        ),
        ("tasks.tone.labels.words=0", "'tasks.tone.labels.words' must be at least 1"),
        ("kind=multitask-generation", "unknown key 'tasks.tone.labels'"),
        ("tasks.tone=3", "tasks.tone must be a mapping, not 3"),
        ("tasks={}", "'tasks' must be a mapping of at least one task"),
    ],
)
def test_wrong_heads_are_refused(folder, override, message):
    with pytest.raises(InputError, match=message):
        recipe_for(folder, override)


FEW_STEPS = ("training.max_steps=4", "training.max_grad_norm=0", "co_activation=0.0")


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_a_task_with_its_own_learning_rate_is_trained_as_with_that_rate_for_all(folder, tmp_path, variant):
    """The other task is trained as if all had its rate: without co-activation their updates do not depend on each other."""
    few = (*FEW_STEPS, f"adapter.variant={variant}")
    own, slow, fast = (
        train(recipe_for(folder, *few, *overrides), tmp_path / name, progress=False)
        for name, *overrides in (
            ("own", "tasks.start.learning_rate=0.01"),
            ("slow", "training.learning_rate=0.01"),
            ("fast", "training.learning_rate=0.05"),
        )
    )
    for index, (task, same, other) in enumerate((("tone", fast, slow), ("start", slow, fast))):
        planes = own.planes.of(task)
        found, expected, different = (run.adapter.restrict(planes) for run in (own, same, other))
        for values in ("theta", "alpha"):
            for name, value in getattr(found, values).items():
                torch.testing.assert_close(value, getattr(expected, values)[name], rtol=1e-4, atol=1e-6)
                assert not torch.allclose(value, getattr(different, values)[name], rtol=1e-2)
        heads, expected_heads, different_heads = (read_safetensors(run.folder / HEAD) for run in (own, same, other))
        for name in (name for name in heads if f"heads.{index}." in name):
            torch.testing.assert_close(heads[name], expected_heads[name], rtol=1e-4, atol=1e-6)
            assert not torch.allclose(heads[name], different_heads[name], rtol=1e-2)


def test_the_learning_rate_of_a_task_is_positive(folder):
    with pytest.raises(InputError, match=re.escape("'tasks.tone.learning_rate' must be positive, not -1.0")):
        recipe_for(folder, "tasks.tone.learning_rate=-1.0")


def test_planes_that_belong_to_no_task_have_no_rate_of_a_task(folder, tmp_path):
    experiment = MultiTaskClassificationExperiment(recipe_for(folder, "tasks.tone.learning_rate=0.01"))
    experiment.load_data()
    model = experiment.build_model(cpu := torch.device("cpu"))
    model.road.planes = None
    with pytest.raises(InputError, match="tasks.tone.learning_rate is of the planes of 'tone', and this model has no planes"):
        experiment.make_trainer(model, tmp_path, cpu, progress=False)
