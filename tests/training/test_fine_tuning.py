"""Fine-tuning baselines: each trains its own parameters, improves the score, and is reproducible."""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForTokenClassification, set_seed

from helpers.models import tiny_model, token_batch
from helpers.recipes import recipe_for
from road_interp.errors import InputError
from road_interp.models.loading import load_model, load_tokenizer
from road_interp.recipes.loader import load_recipe
from road_interp.sites.find import find_sites
from road_interp.training import classification
from road_interp.training.api import evaluate, train
from road_interp.training.classification import ClassificationExperiment
from road_interp.training.fine_tuning import LoraModel, train_baseline

pytestmark = pytest.mark.training

RATES = {"full": 5e-3, "lora": 2e-2, "head": 5e-2}


@pytest.fixture(scope="module")
def backbone(workplace):
    return load_model(recipe_for(workplace).model)[0]


@pytest.fixture(scope="module")
def tuned(workplace):
    return {
        method: train_baseline(recipe_for(workplace, "training.epochs=6"), method, seed=0, learning_rate=rate, rank=2)
        for method, rate in RATES.items()
    }


@pytest.mark.parametrize("method", RATES)
def test_a_decoder_is_classified_from_its_last_token(language_workplace, method):
    content = {
        "kind": "classification",
        "model": {"id": str(language_workplace / "model"), "max_length": 16},
        "data": {"id": str(language_workplace / "reviews.csv"), "validation_size": 20, "test_size": 20},
        "training": {"epochs": 1, "batch_size": 16, "precision": "fp32"},
    }
    _, scores = train_baseline(load_recipe(content), method, seed=0, learning_rate=RATES[method], rank=2)
    assert scores["test"]["examples"] == 20


def changed_weights(model, backbone):
    """Names of the backbone weights that differ from the pretrained ones."""
    before = backbone.state_dict()
    return {name for name, weight in model.bert.state_dict().items() if not torch.equal(weight, before[name])}


def test_every_method_trains_its_own_parameters(tuned, backbone):
    sites = find_sites(backbone, "all-linear")
    everything = {name for name, _ in backbone.named_parameters()}
    changed = {method: changed_weights(model, backbone) for method, (model, _) in tuned.items()}
    assert changed["head"] == set()
    assert changed["lora"] == {f"{site.module}.weight" for site in sites}
    assert everything - changed["full"] <= {
        f"encoder.layer.{n}.attention.self.key.bias" for n in range(2)
    }  # softmax is invariant to it
    trained = {method: scores["parameters"]["trained"] for method, (_, scores) in tuned.items()}
    backbone_size = sum(parameter.numel() for parameter in backbone.parameters())
    assert trained == {"full": backbone_size, "lora": 2 * 2 * (10 * 32 + 64 + 64), "head": 0}
    for _, scores in tuned.values():
        count = scores["parameters"]
        assert (count["head"], count["backbone"]) == (66, backbone_size)
        assert count["percent of backbone"] == 100 * count["trained"] / backbone_size


def test_they_learn_and_leave_plain_models(tuned, workplace):
    frozen = train(recipe_for(workplace, "training.max_steps=1"), workplace / "tuning", progress=False).metrics
    for method, (model, scores) in tuned.items():
        assert not model.training
        assert not any(module._forward_hooks for module in model.modules())
        assert "forward" not in vars(model)  # without the wrapper of the Trainer
        assert scores["test"]["interval"][0] < scores["test"]["accuracy"]
        if method != "head":
            assert scores["validation"]["accuracy"] > frozen["validation"]["accuracy"]
            assert scores["test"]["accuracy"] > 0.9


def test_the_same_seed_gives_the_same_numbers(tuned, workplace):
    recipe = recipe_for(workplace, "training.epochs=6")
    model, scores = train_baseline(recipe, "lora", seed=0, learning_rate=RATES["lora"], rank=2)
    assert scores == tuned["lora"][1]
    assert all(map(torch.equal, model.state_dict().values(), tuned["lora"][0].state_dict().values()))
    other, _ = train_baseline(recipe_for(workplace, "training.max_steps=1"), "lora", seed=1, learning_rate=RATES["lora"], rank=2)
    assert not torch.equal(other.classifier.weight, model.classifier.weight)


def test_the_best_epoch_is_kept_and_nothing_stays_on_disk(workplace, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    make_trainer = ClassificationExperiment.make_trainer

    def falling(*arguments, **options):
        trainer, scores = make_trainer(*arguments, **options), iter((0.9, 0.5, 0.5, 0.5, 0.5))
        trainer.compute_metrics = lambda prediction: {"accuracy": next(scores)}
        return trainer

    monkeypatch.setattr(ClassificationExperiment, "make_trainer", falling)
    constant = ["training.scheduler=constant_with_warmup", "training.warmup_ratio=0"]
    once, thrice = (
        train_baseline(recipe_for(workplace, f"training.epochs={count}", *constant), "full", seed=0, learning_rate=RATES["full"])[
            0
        ]
        for count in (1, 3)
    )
    assert all(map(torch.equal, thrice.state_dict().values(), once.state_dict().values()))
    assert list(tmp_path.iterdir()) == []


def test_a_merged_lora_gives_the_output_of_the_unmerged_one(backbone):
    model = copy.deepcopy(backbone)
    lora = LoraModel(model, find_sites(model, "all-linear"), rank=2, seed=0).eval()
    batch = token_batch()
    batch["input_ids"] %= model.config.vocab_size
    before = lora(batch)[1].last_hidden_state
    torch.testing.assert_close(before, backbone(**batch).last_hidden_state)
    with torch.no_grad():
        for adapter in lora.lora.adapters:
            adapter.up += 0.3 * torch.randn_like(adapter.up)
    unmerged = lora(batch)[1].last_hidden_state
    assert not torch.allclose(unmerged, before, atol=1e-2)
    lora.merge()
    torch.testing.assert_close(model(**batch).last_hidden_state, unmerged, atol=1e-4, rtol=1e-4)


def test_the_head_of_a_checkpoint_is_trained(workplace, tmp_path):
    checkpoint, _ = load_model(str(workplace / "model"), "classifier", num_labels=2)
    checkpoint.save_pretrained(tmp_path)
    load_tokenizer(str(workplace / "model")).save_pretrained(tmp_path)
    recipe = recipe_for(workplace, f"model.id={tmp_path}", "training.max_steps=2")
    tuned, scores = train_baseline(recipe, "head", seed=0, learning_rate=0.05)
    assert scores["parameters"]["head"] == 66
    assert not torch.equal(tuned.classifier.weight, checkpoint.classifier.weight)
    run = train(recipe, tmp_path / "run", progress=False)
    assert run.metrics["parameters"]["head"] == 66
    assert not torch.equal(run.load_model().model.classifier.weight, checkpoint.classifier.weight)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_head_is_trained_in_float32_on_a_model_of_half_precision(workplace, tmp_path, dtype):
    """In bfloat16, an update of 1e-4 of a weight of 0.25 would be rounded to none."""

    def moved(dtype):
        recipe = recipe_for(workplace, f"model.dtype={dtype}", "training.learning_rate=1e-4")
        set_seed(recipe.seed)
        experiment = ClassificationExperiment(recipe)
        experiment.load_data()
        new = experiment.build_model(torch.device("cpu")).model.classifier.weight.detach().float()
        run = train(recipe, tmp_path / dtype, progress=False)
        assert evaluate(run, progress=False) == run.metrics["test"]
        head = run.load_model().model.classifier.weight
        assert head.dtype == torch.float32
        return (head - new).abs().mean().item()

    assert moved(dtype) > 0.8 * moved("float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_head_that_is_partly_new_is_trained_as_a_whole(workplace, tmp_path, dtype):
    """A checkpoint for tokens has a classifier that fits, and lacks the pooler in front of it, which is in the backbone."""
    folder = Path(shutil.copytree(workplace / "model", tmp_path / "model"))
    checkpoint = BertForTokenClassification(BertConfig.from_pretrained(folder))
    checkpoint.save_pretrained(folder)
    run = train(recipe_for(workplace, f"model.id={folder}", f"model.dtype={dtype}"), tmp_path / "run", progress=False)
    model = run.load_model().model
    assert run.metrics["parameters"]["head"] == 66 + 32 * 33
    assert (model.classifier.weight - checkpoint.classifier.weight).abs().max() > 1e-3
    assert model.classifier.weight.dtype == torch.float32
    assert model.bert.pooler.dense.weight.dtype == getattr(torch, dtype)
    assert evaluate(run, progress=False) == run.metrics["test"]
    experiment = ClassificationExperiment(run.recipe)
    experiment.load_data()
    trained = experiment.load_classifier()[0]
    assert [each.dtype for each in trained.parameters()] == [each.dtype for each in model.parameters()]


def test_a_model_without_a_head_outside_its_backbone_is_refused(workplace, monkeypatch):
    """Perceiver's decoder, which classifies, is in its backbone."""
    model = tiny_model("Bert", "classifier")
    monkeypatch.setattr(model, "base_model_prefix", "")
    monkeypatch.setattr(classification, "load_model", lambda *arguments, **options: (model, []))
    experiment = ClassificationExperiment(recipe_for(workplace))
    experiment.load_data()
    with pytest.raises(InputError, match="BertForSequenceClassification has no head that can be trained"):
        experiment.load_classifier()


def test_blocks_are_not_sharded_for_baselines(workplace):
    with pytest.raises(InputError, match="these baselines need model.shard=false"):
        train_baseline(recipe_for(workplace, "model.shard=true"), "head", seed=0, learning_rate=0.1)


def test_lora_needs_linear_layers(workplace):
    with pytest.raises(InputError, match="LoRA needs whole linear layers; site 'bert.encoder.layer.0' is not one"):
        train_baseline(recipe_for(workplace, "adapter.sites=block-output"), "lora", seed=0, learning_rate=1e-3)
