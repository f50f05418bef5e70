"""One method of fine-tuning and the outcome of every test text."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import Trainer

from helpers.recipes import recipe_for
from road_interp.data.labelled import by_length, tokenize
from road_interp.errors import InputError
from road_interp.training.api import train
from road_interp.training.classification import ClassificationExperiment
from road_interp.training.fine_tuning import train_baseline
from road_interp.training.method_outcomes import method_outcomes
from road_interp.training.trainer import RoadTrainer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("variant", ["road_1", "road_4"])
def test_a_rotation_has_the_accuracy_of_its_run(workplace, tmp_path, variant):
    recipe = recipe_for(workplace, f"adapter.variant={variant}")
    found = method_outcomes(recipe, variant, "tone")
    run = train(recipe, tmp_path / "run", progress=False)
    metrics = run.metrics
    assert np.mean(found.correct) == metrics["test"]["accuracy"]
    experiment = ClassificationExperiment(recipe)
    experiment.load_data()
    test, classes = experiment.data.test, experiment.data.classes
    predicted = [each.label for each in run.predict(list(test["text"]))]
    right = [label == classes[number] for label, number in zip(predicted, test["label"], strict=True)]
    order = by_length(tokenize(test, experiment.tokenizer, recipe.model.max_length))  # which all methods share
    assert found.correct == tuple(right[row] for row in order)
    assert found.validation == metrics["validation"]["accuracy"]
    assert (found.parameters, found.percent) == (metrics["parameters"]["adapter"], metrics["parameters"]["percent of backbone"])
    assert (found.method, found.task, found.seed) == (variant, "tone", recipe.seed)
    assert method_outcomes(recipe, variant, "tone") == found


def test_parts_of_training_texts_are_marked_in_the_order_of_the_outcomes(workplace, tmp_path):
    header, *rows = (workplace / "data.csv").read_text().splitlines()
    parts = [f"{' '.join(text.split()[:4])},{rest}" for text, _, rest in (row.partition(",") for row in rows)]
    (tmp_path / "data.csv").write_text("\n".join([header, *rows, *parts]) + "\n")
    recipe = recipe_for(workplace, f"data.id={tmp_path / 'data.csv'}", "training.max_steps=1")
    experiment = ClassificationExperiment(recipe)
    experiment.load_data()
    training, test = list(experiment.data.train["text"]), experiment.data.test
    expected = [any(f" {text} " in f" {other} " for other in training) for text in test["text"]]
    order = by_length(tokenize(test, experiment.tokenizer, recipe.model.max_length))
    found = method_outcomes(recipe, "head", "tone").contained
    assert found == tuple(expected[row] for row in order) != tuple(expected)
    assert 0 < sum(found) < len(found)


@pytest.mark.parametrize("method", ["lora-2", "full", "head"])
def test_a_baseline_has_the_accuracy_of_its_own_training(workplace, method):
    recipe = recipe_for(workplace)
    rate = recipe.training.learning_rate
    _, scores = train_baseline(recipe, method.partition("-")[0], seed=recipe.seed, learning_rate=rate, rank=2)
    found = method_outcomes(recipe, method, "tone")
    assert np.mean(found.correct) == scores["test"]["accuracy"]
    assert (found.parameters, found.percent) == (scores["parameters"]["trained"], scores["parameters"]["percent of backbone"])


def test_outputs_that_choose_no_class_are_no_answers(workplace, monkeypatch):
    """The argmax of NaN is the first class: about half of the texts would count as right."""

    def predict(self, split):
        output = Trainer.predict(self, split)
        return output._replace(predictions=np.full_like(output.predictions, np.nan))

    monkeypatch.setattr(RoadTrainer, "predict", predict, raising=False)
    with pytest.raises(InputError, match="the head's outputs are NaN for"):
        method_outcomes(recipe_for(workplace, "training.max_steps=1"), "head", "tone")


def test_fewer_training_texts_leave_the_other_splits_alone(workplace, monkeypatch):
    trained_on = []

    def seen(self, *args, **kwargs):
        trained_on.append({name: list(getattr(self.data, name)["text"]) for name in ("train", "validation", "test")})
        return make_trainer(self, *args, **kwargs)

    make_trainer = ClassificationExperiment.make_trainer
    monkeypatch.setattr(ClassificationExperiment, "make_trainer", seen)
    recipe = recipe_for(workplace, "training.max_steps=1")
    for texts in (None, 30):
        method_outcomes(recipe, "head", "tone", texts)
    whole, fewer = trained_on
    assert len(fewer["train"]) == 30
    assert set(fewer["train"]) <= set(whole["train"])
    assert (fewer["validation"], fewer["test"]) == (whole["validation"], whole["test"])


@pytest.mark.parametrize("method", ["lora", "lora-0", "lora-x", "dora", "road_3"])
def test_unknown_methods_are_refused(workplace, method):
    with pytest.raises(InputError, match=f"unknown method '{method}'; use road_1, road_2, road_4, lora-R, full or head"):
        method_outcomes(recipe_for(workplace), method, "tone")


@pytest.mark.parametrize("method", ["road_1", "head"])
def test_what_is_trained_in_memory_is_not_sharded(workplace, method):
    with pytest.raises(InputError, match="these baselines need model.shard=false"):
        method_outcomes(recipe_for(workplace, "model.shard=true"), method, "tone")
