"""Classification runs: a tiny BERT on synthetic text end to end, and MiniLM for a few steps."""

from __future__ import annotations

import importlib.metadata
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from tokenizers import processors
from transformers import TrainerCallback, TrainingArguments, XLNetConfig, XLNetModel, default_data_collator
from transformers.utils import logging

from helpers.models import random_adapter, save_encoder_decoder, tiny_model
from helpers.recipes import recipe_for
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.data import labelled
from road_interp.errors import InputError
from road_interp.models.loading import load_tokenizer, on_device
from road_interp.models.road_model import RoadModel
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.schema import TrainingRecipe
from road_interp.runs.answers import answers_of
from road_interp.runs.run import Run
from road_interp.sites.find import find_sites
from road_interp.training import arguments
from road_interp.training.api import evaluate, train
from road_interp.training.classification import ClassificationExperiment
from road_interp.training.kinds import experiment_kind
from road_interp.training.scoring import make_scorer
from road_interp.training.trainer import RoadTrainer, checkpoint_errors, last_checkpoint

pytestmark = pytest.mark.training


def test_tokens_without_an_embedding_are_refused(workplace, tmp_path):
    shutil.copytree(workplace / "model", tmp_path / "model")
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    tokenizer.add_tokens(["splendid"])
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data.csv").write_text((workplace / "data.csv").read_text() + "splendid,positive\n" * 20)
    recipe = recipe_for(workplace, f"model.id={tmp_path / 'model'}", f"data.id={tmp_path / 'data.csv'}", "training.max_steps=1")
    token = len(tokenizer) - 1
    with pytest.raises(InputError, match=f"the texts have token {token}, and the model has {token} embeddings: call its resize"):
        train(recipe, tmp_path / "run", progress=False)


def test_a_run_folder_holds_everything_and_learns(finished, workplace):
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {
        "recipe.yaml",
        "classes.json",
        "adapter",
        "head.safetensors",
        "metrics.json",
        "log.jsonl",
        "environment.json",
        "origin.json",
    }
    assert finished.metrics["test"]["accuracy"] > 0.9
    assert finished.metrics["test"]["interval"][0] < finished.metrics["test"]["accuracy"]
    assert [finished.metrics[split]["examples"] for split in ("validation", "test")] == [40, 40]
    assert finished.metrics["parameters"]["adapter"] == 2 * (5 * 32 + 64)
    assert finished.metrics["parameters"]["head"] == 66
    assert finished.classes == ("negative", "positive")
    assert max(finished.adapter.angles(site).abs().max() for site in finished.adapter.sites) > 0.01
    environment = json.loads((finished.folder / "environment.json").read_text())
    assert environment["seed"] == 0
    assert environment["versions"]["torch"] == importlib.metadata.version("torch")
    log = [json.loads(line) for line in (finished.folder / "log.jsonl").read_text().splitlines()]
    assert [entry for entry in log if "loss" in entry]
    scores = [entry["eval_accuracy"] for entry in log if "eval_accuracy" in entry][:3]
    assert finished.metrics["kept epoch"] == 1 + scores.index(max(scores))
    assert not list(finished.folder.rglob("*.bin"))


def test_the_kept_epoch_of_a_training_that_ends_inside_an_epoch(workplace):
    run = train(recipe_for(workplace, "training.max_steps=17", "training.learning_rate=0.05"), workplace / "part", progress=False)
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    scores = {entry["epoch"]: entry["eval_accuracy"] for entry in log if "eval_accuracy" in entry}
    best = min(epoch for epoch, score in scores.items() if score == max(scores.values()))
    assert len(scores) == 3
    assert run.metrics["kept epoch"] == math.ceil(best)


def test_two_runs_with_one_seed_are_identical(finished, workplace):
    again = train(recipe_for(workplace), workplace / "again", progress=False)
    assert again.metrics == finished.metrics
    for site in finished.adapter.sites:
        assert torch.equal(again.adapter.theta[site.name], finished.adapter.theta[site.name])
    other = train(recipe_for(workplace, "seed=1"), workplace / "other", progress=False)
    assert other.adapter.distance(finished.adapter) > 0.01


def test_evaluate_from_the_files_gives_the_stored_numbers(finished, workplace):
    scores = evaluate(Run.load(finished.folder), progress=False)
    assert scores == finished.metrics["test"]
    more = evaluate(finished, str(workplace / "data.csv"), progress=False)
    assert more["examples"] == 200
    assert more["accuracy"] > 0.9


def test_recipes_and_runs_are_given_by_path_or_content(finished, workplace):
    path, quick = workplace / "small.yaml", "training.max_steps=1"
    path.write_text(recipe_for(workplace, quick).to_yaml())
    for number, recipe in enumerate((str(path), path, yaml.safe_load(path.read_text()))):
        assert train(recipe, workplace / f"by-{number}", progress=False).recipe == recipe_for(workplace, quick)
    with pytest.raises(InputError, match="no recipe 'sentiment-minilms'.*did you mean 'sentiment-minilm'"):
        train("sentiment-minilms")
    for folder in (finished.folder, str(finished.folder)):
        assert evaluate(folder, workplace / "data.csv", progress=False)["examples"] == 200


def test_the_frozen_backbone_control_sees_no_rotation(workplace):
    recipe = recipe_for(workplace, "training.max_steps=1")
    run = train(recipe, workplace / "one", progress=False)
    other = train(recipe_for(workplace, "training.max_steps=1", "adapter.sites=fc1"), workplace / "two", progress=False)
    name = "frozen backbone, trained head"
    assert run.metrics[name] == other.metrics[name]


def test_the_frozen_backbone_and_the_scorer_show_progress(workplace, capsys):
    train(recipe_for(workplace, "training.max_steps=1"), workplace / "shown")
    shown = capsys.readouterr().err
    for step in ("frozen backbone: train texts", "frozen backbone: validation texts", "frozen backbone, linear heads"):
        assert step in shown
    train(recipe_for(workplace, "training.max_steps=1"), workplace / "silent", progress=False)
    assert "frozen backbone" not in capsys.readouterr().err
    steps = []
    make_scorer(Run.load(workplace / "silent"), progress=lambda what, done=0, total=None: steps.append(what))
    assert steps == [f"loading model and data of {workplace / 'silent'}"]


def test_regression_with_text_pairs(workplace):
    overrides = ["data.problem_type=regression", "data.label=score", "data.text_pair=text", "training.epochs=4"]
    run = train(recipe_for(workplace, *overrides), workplace / "regression", progress=False)
    assert run.classes is None
    assert run.metrics["test"]["pearson"] > 0.8
    assert evaluate(run, progress=False) == run.metrics["test"]


@pytest.mark.parametrize(
    ("variant", "sites", "positions"), [("road_2", "block-output", "all"), ("road_4", "attention-qk", "first")]
)
def test_other_recipes_train(workplace, variant, sites, positions):
    overrides = [f"adapter.variant={variant}", f"adapter.sites={sites}", f"adapter.positions={positions}"]
    run = train(recipe_for(workplace, *overrides, "training.epochs=1"), workplace / variant, progress=False)
    assert run.adapter.variant == variant
    assert any(run.adapter.angles(site).abs().max() > 0 for site in run.adapter.sites)


def test_a_run_cut_short_resumes_to_the_same_end(finished, workplace, monkeypatch):
    real, calls = RoadTrainer._save_checkpoint, []

    def interrupted(self, *args, **kwargs):
        real(self, *args, **kwargs)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(RoadTrainer, "_save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe_for(workplace), workplace / "cut", progress=False)
    monkeypatch.setattr(RoadTrainer, "_save_checkpoint", real)
    with pytest.raises(InputError, match="has not finished; go on with --resume"):
        Run.load(workplace / "cut")
    with pytest.raises(InputError, match="not empty"):
        train(recipe_for(workplace), workplace / "cut", progress=False)
    with pytest.raises(InputError, match="was started with: training.epochs is 3.0 there, 2.0 here; seed is 0 there, 3 here"):
        train(recipe_for(workplace, "seed=3", "training.epochs=2"), workplace / "cut", resume=True, progress=False)
    checkpoints = workplace / "cut" / "checkpoints"
    whole = max(checkpoints.iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    for number, state in ((98, None), (99, (whole / "trainer_state.json").read_text()[:-9])):  # incomplete checkpoints
        (checkpoints / f"checkpoint-{number}").mkdir()
        if state is not None:
            (checkpoints / f"checkpoint-{number}" / "trainer_state.json").write_text(state)
    (checkpoints / "checkpoint-97.bad").mkdir()
    assert last_checkpoint(checkpoints) == whole
    resumed = train(recipe_for(workplace), workplace / "cut", resume=True, progress=False)
    assert resumed.metrics == finished.metrics
    for site in finished.adapter.sites:
        assert torch.equal(resumed.adapter.alpha[site.name], finished.adapter.alpha[site.name])
    with pytest.raises(InputError, match="has finished"):
        train(recipe_for(workplace), workplace / "cut", resume=True, progress=False)


def test_the_best_epoch_is_kept_where_a_finished_training_is_moved(workplace, monkeypatch):
    recipe = recipe_for(workplace, "training.learning_rate=0.2", "training.epochs=4")
    whole = train(recipe, workplace / "whole", progress=False)
    assert whole.metrics["kept epoch"] < 4
    score = ClassificationExperiment.score

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(ClassificationExperiment, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, workplace / "before", progress=False)
    monkeypatch.setattr(ClassificationExperiment, "score", score)
    moved = (workplace / "before").rename(workplace / "behind")
    lost = Path(shutil.copytree(moved, workplace / "lost"))
    resumed = train(recipe, moved, resume=True, progress=False)
    assert resumed.metrics == whole.metrics
    assert (moved / "head.safetensors").read_bytes() == (whole.folder / "head.safetensors").read_bytes()
    state = json.loads(next((lost / "checkpoints").glob("*/trainer_state.json")).read_text())
    shutil.rmtree(lost / "checkpoints" / Path(state["best_model_checkpoint"]).name)
    with pytest.raises(InputError, match="the best checkpoint up to .* is missing"):
        train(recipe, lost, resume=True, progress=False)


def test_a_best_checkpoint_that_goes_missing_is_an_error(workplace, monkeypatch):
    """The scores would be those of the last epoch."""
    real = RoadTrainer._load_best_model

    def without(self):
        shutil.rmtree(self.state.best_model_checkpoint)
        real(self)

    monkeypatch.setattr(RoadTrainer, "_load_best_model", without)
    with pytest.raises(InputError, match=r"checkpoint-\d+, the best checkpoint, is missing: train again in another folder"):
        train(recipe_for(workplace), workplace / "gone", progress=False)
    assert not (workplace / "gone" / "metrics.json").exists()


def assert_read_alone_as_together(run, texts):
    alone = run.predict(texts[:1])[0].probability
    assert run.predict(texts)[0].probability == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("kind", ["classification", "multitask-classification"])
def test_learned_positions_are_not_counted_from_padding(language_workplace, tmp_path, kind):
    """A tokeniser that pads on the left is common: generation needs one."""
    folder = Path(shutil.copytree(language_workplace / "model", tmp_path / "model"))
    tokenizer = load_tokenizer(folder)
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(folder)
    tiny_model("GPT2", "causal-lm", vocab_size=len(tokenizer), initializer_range=0.3).save_pretrained(folder)
    rows = [f"{'good' if n % 2 else 'bad'} {'film ' * (n % 10)}{n},{n % 2}" for n in range(80)]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    data = {"id": str(tmp_path / "reviews.csv"), "validation_size": 20, "test_size": 40}
    model = {"id": str(folder), "max_length": 16}
    content = {
        "kind": kind,
        "model": model,
        "training": {"max_steps": 2, "precision": "fp32"},
        **({"data": data} if kind == "classification" else {"tasks": {"tone": {"labels": data}}}),
    }
    run, texts = train(load_recipe(content), tmp_path / "run", progress=False), ["bad film", "good film " * 6]
    scorer = make_scorer(run)
    if kind == "classification":
        assert_read_alone_as_together(run, texts)
        answers = answers_of(run)
        assert [run.classes[row] for row in answers.rotated] == [each.label for each in run.predict(answers.texts)]
    assert scorer._tokenizer.padding_side == experiment_kind(run.recipe)(run.recipe).tokenizer.padding_side == "right"


def test_xlnet_reads_the_last_place_and_is_padded_on_the_left(workplace, tmp_path):
    folder = Path(shutil.copytree(workplace / "model", tmp_path / "model"))
    tokenizer = load_tokenizer(folder)
    special = [("[CLS]", tokenizer.cls_token_id), ("[SEP]", tokenizer.sep_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A [SEP] [CLS]", special_tokens=special)
    tokenizer.save_pretrained(folder)
    sizes = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 32, "initializer_range": 0.3}
    XLNetModel(XLNetConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)).save_pretrained(folder)
    run = train(recipe_for(workplace, f"model.id={folder}", "training.max_steps=2"), tmp_path / "run", progress=False)
    assert_read_alone_as_together(run, ["fine w1", "poor " * 12])


def test_a_text_without_tokens_is_refused(language_workplace, tmp_path):
    """BERT's has [CLS], a decoder's has none: its head would read padding."""
    text = (language_workplace / "reviews.csv").read_text()
    (tmp_path / "reviews.csv").write_text(text.replace("bad film number 8,", ","))
    content = {
        "kind": "classification",
        "model": {"id": str(language_workplace / "model"), "max_length": 16},
        "data": {"id": str(tmp_path / "reviews.csv"), "validation_size": 20, "test_size": 20},
    }
    with pytest.warns(match="1 texts are empty"), pytest.raises(InputError, match="makes no token of the text ''; leave out"):
        train(load_recipe(content), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("padding", [None, 3])
def test_a_decoder_reads_its_last_token_whatever_its_config_pads_with(language_workplace, tmp_path, padding):
    folder = Path(shutil.copytree(language_workplace / "model", tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": padding}))
    content = {
        "kind": "classification",
        "model": {"id": str(folder), "max_length": 16},
        "data": {"id": str(language_workplace / "reviews.csv"), "validation_size": 20, "test_size": 20},
        "training": {"learning_rate": 0.05, "epochs": 1, "batch_size": 16, "precision": "fp32"},
    }
    run = train(load_recipe(content), tmp_path / "run", progress=False)
    longer = "a good film with many more words than the other text has, and then some more"
    alone, together = run.predict(["bad film"])[0], run.predict(["bad film", longer])[0]
    assert alone.label == together.label
    assert alone.probability == pytest.approx(together.probability, abs=1e-5)


def test_the_last_token_is_rotated_where_texts_end_with_the_token_of_padding(language_workplace, tmp_path):
    folder = Path(shutil.copytree(language_workplace / "model", tmp_path / "model"))
    tokenizer = load_tokenizer(folder)
    special = [(tokenizer.pad_token, tokenizer.pad_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        f"$A {tokenizer.pad_token}", special_tokens=special
    )
    tokenizer.save_pretrained(folder)
    content = {
        "kind": "classification",
        "model": {"id": str(folder), "max_length": 16},
        "data": {"id": str(language_workplace / "reviews.csv"), "validation_size": 20, "test_size": 20},
        "adapter": {"positions": "last"},
        "training": {"max_steps": 3, "precision": "fp32"},
    }
    run = train(load_recipe(content), tmp_path / "run", progress=False)
    assert run.adapter.distance(run.adapter.identity_like()) > 0


def test_labels_of_other_classes_are_not_scored(workplace, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    text = (workplace / "data.csv").read_text()
    (data / "train.csv").write_text(text)
    run = train(recipe_for(workplace, f"data.id={data}", "training.max_steps=2"), tmp_path / "run", progress=False)
    (data / "train.csv").write_text(text.replace(",positive", ",another"))
    origin = json.loads((run.folder / "origin.json").read_text())
    (run.folder / "origin.json").write_text(json.dumps({**origin, "files": {}}))  # as of a data set of the Hub
    run = Run.load(run.folder)
    for use in (lambda: evaluate(run, progress=False), lambda: make_scorer(run), lambda: answers_of(run)):
        with pytest.raises(InputError, match="labels of its data are another, negative now, and were negative, positive when it"):
            use()


def test_encoder_decoder_models_are_refused(workplace, tmp_path):
    folder = save_encoder_decoder(tmp_path / "model", workplace / "model")
    recipe = recipe_for(workplace, f"model.id={folder}", "adapter.sites=mlp", "adapter.stack=model.encoder.layers")
    with pytest.raises(InputError, match="BartForSequenceClassification has an encoder and a decoder"):
        train(recipe, tmp_path / "run", progress=False)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (2, 1), (10, 1), (11, 2)])
def test_the_warmup_leaves_a_step_that_trains(workplace, steps, warmup):
    recipe = recipe_for(workplace, "training.warmup_ratio=0.1")
    options = arguments.training_arguments(recipe, workplace / "warm", torch.device("cpu"), False)
    assert options.get_warmup_steps(steps) == warmup


def test_accelerate_may_place_the_model(finished, workplace):
    run = train(recipe_for(workplace, "model.device_map=auto"), workplace / "placed", device="cpu", progress=False)
    assert run.metrics == finished.metrics
    base = tiny_model("Bert")
    base.hf_device_map = {"embeddings": 0, "encoder": 1}
    model = RoadModel(base, RoadAdapter.identity(find_sites(base, "fc1")))
    options = arguments.training_arguments(recipe_for(workplace), workplace / "placed", torch.device("cpu"), False)
    assert RoadTrainer(model=model, args=options).is_model_parallel
    on_device(model, torch.device("meta"))
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("accumulated", [2, 4])
def test_accumulated_steps_train_as_one_batch(tmp_path, accumulated):
    """Loss and gradient are those of one batch of eight."""
    ids = torch.randint(3, 60, (8, 7), generator=torch.Generator().manual_seed(0)).tolist()
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 7] * 8, "labels": [0, 1] * 4})

    def first_step(steps):
        base = tiny_model("Bert", "classifier", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model = RoadModel(base, random_adapter(find_sites(base, "all-linear")))
        options = {"per_device_train_batch_size": 8 // steps, "gradient_accumulation_steps": steps, "max_steps": 1}
        quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "use_cpu": True}
        settings = TrainingArguments(str(tmp_path), remove_unused_columns=False, **options, **quiet)
        trainer = RoadTrainer(model=model, args=settings, train_dataset=data, data_collator=default_data_collator)
        trainer.train()
        return next((entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "grad_norm" in entry)

    assert first_step(accumulated) == pytest.approx(first_step(1), rel=1e-3)


def test_missing_memory_is_not_a_damaged_checkpoint():
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        with pytest.raises(type(error)), checkpoint_errors("checkpoint-2"):
            raise error
    with pytest.raises(InputError, match=r"c-2 cannot be read \(damaged\); delete it"), checkpoint_errors("c-2"):
        raise ValueError("damaged")


@pytest.mark.parametrize("progress", [True, False])
def test_the_bars_of_the_libraries_are_hidden_with_the_progress(finished, capfd, progress):
    logging.enable_progress_bar()  # commands of other tests of this process have hidden it
    evaluate(finished, progress=progress)
    assert ("Loading weights" in capfd.readouterr().err) == progress
    assert logging.is_progress_bar_enabled()


def test_divergence_stops_the_run(workplace):
    recipe = recipe_for(
        workplace, "training.learning_rate=1e30", "training.max_grad_norm=1e30", "training.scheduler=constant_with_warmup"
    )
    with pytest.raises(
        FloatingPointError,
        match=r"loss is nan.* at step \d+: restart with a lower training.learning_rate; there is no checkpoint",
    ):
        train(recipe, workplace / "diverged", progress=False)
    assert not (workplace / "diverged" / "metrics.json").exists()


@pytest.mark.parametrize(("value", "what"), [(0.0, "plane 3, is singular"), (torch.nan, "holds a value that is not finite")])
def test_an_invalid_rotation_stops_the_run_before_it_is_saved(finished, workplace, monkeypatch, value, what):
    real = RoadTrainer.training_step

    def invalidated(self, *args, **kwargs):
        loss = real(self, *args, **kwargs)
        if self.state.global_step >= 12:  # of 48 steps, with a checkpoint after every eighth
            site, intervention = list(self.model.by_site())[5]
            intervention.alpha.data[3], intervention.alpha.grad = value, None
            assert site.name == "bert.encoder.layer.0.output.dense"
        return loss

    monkeypatch.setattr(RoadTrainer, "training_step", invalidated)
    folder = workplace / f"invalid-{value}"
    with pytest.raises(FloatingPointError, match=f"site 'bert.encoder.layer.0.output.dense'.*{what}.* at step 1.*checkpoint-8$"):
        train(recipe_for(workplace), folder, progress=False)
    assert last_checkpoint(folder / "checkpoints").name == "checkpoint-8"
    monkeypatch.undo()
    assert train(recipe_for(workplace), folder, resume=True, progress=False).metrics == finished.metrics


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")]
)
def test_a_full_disk_leaves_the_last_checkpoint(finished, workplace, monkeypatch, error):
    real, calls = torch.save, []

    def full(content, path, *args, **kwargs):
        calls.append(1)
        if len(calls) == 7:  # a checkpoint has about four such files: fail within the second checkpoint
            Path(path).write_bytes(b"half of it")
            raise error
        real(content, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    folder = workplace / f"full-{type(error).__name__}"
    with pytest.raises(
        OSError, match=r"no checkpoint could be written.*(No space left|failed writing).*last good.*checkpoint-\d+$"
    ):
        train(recipe_for(workplace), folder, progress=False)
    monkeypatch.undo()
    (kept,) = (folder / "checkpoints").iterdir()
    assert last_checkpoint(folder / "checkpoints") == kept
    assert train(recipe_for(workplace), folder, resume=True, progress=False).metrics == finished.metrics


def test_a_run_without_a_checkpoint_starts_over(finished, workplace):
    (workplace / "early").mkdir()
    (workplace / "early" / "recipe.yaml").write_text(recipe_for(workplace).to_yaml())
    assert train(recipe_for(workplace), workplace / "early", resume=True, progress=False).metrics == finished.metrics


BAD_RECIPES = {
    "no module of BertForSequenceClassification matches 'nowhere'": "adapter.sites=nowhere",
    "not divisible by group_size 48": "adapter.group_size=48",
    "no column 'txt'": "data.text=txt",
    "layers 0 to 1": "adapter.layers=7",
    "does not exist": "model.id=./nowhere",
}


@pytest.mark.parametrize("message", BAD_RECIPES)
def test_nothing_is_written_when_the_input_is_wrong(workplace, message):
    with pytest.raises(InputError, match=message):
        train(recipe_for(workplace, BAD_RECIPES[message]), workplace / "never", progress=False)
    assert not (workplace / "never").exists()


def test_folders_and_devices_are_checked(workplace, finished):
    recipe = recipe_for(workplace)
    with pytest.raises(InputError, match="is a file"):
        train(recipe, workplace / "data.csv")
    with pytest.raises(InputError, match="holds no run to resume"):
        train(recipe, workplace / "nowhere", resume=True)
    with pytest.raises(InputError, match="device 'tpu' is not known"):
        train(recipe, workplace / "nowhere", device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device"):
            train(recipe, workplace / "nowhere", device="cuda")
    for folder, message in (("nowhere", "does not exist"), ("model", "not a finished run")):
        with pytest.raises(InputError, match=message):
            Run.load(workplace / folder)


@pytest.mark.slow
def test_the_real_model_learns_in_a_few_steps(tmp_path):
    whole = load_recipe("sentiment-minilm", ["data.validation_size=200", "data.test_size=8000"])
    task = labelled.load_labelled(whole.data)
    assert len(task.train) == 330
    small_file = tmp_path / "small.csv"
    task.train.to_csv(str(small_file))
    quick = load_recipe(
        "sentiment-minilm",
        [f"data.id={small_file}", "data.filter={}", "training.max_steps=8", "data.validation_size=32", "data.test_size=64"],
    )
    run = train(quick, tmp_path / "run", progress=False)
    losses = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert run.metrics["parameters"] == {
        "adapter": 20736,
        "head": 770,
        "backbone": 22713216,
        "percent of backbone": pytest.approx(0.0912949, abs=1e-6),
    }
    assert any(entry.get("train_loss", 9) < 0.72 for entry in losses)
    assert all((run.adapter.angles(site) != 0).any() for site in run.adapter.sites)
    assert evaluate(run, progress=False) == run.metrics["test"]
    assert RoadAdapter.load(run.folder / "adapter").distance(run.adapter) == 0


@pytest.mark.parametrize(("trainable", "moves", "stays"), [("angles", "theta", "alpha"), ("magnitudes", "alpha", "theta")])
def test_angles_or_magnitudes_can_be_trained_alone(workplace, trainable, moves, stays):
    recipe = recipe_for(workplace, f"adapter.trainable={trainable}", "training.epochs=2")
    run = train(recipe, workplace / f"only-{trainable}", progress=False)
    start = {"theta": 0, "alpha": 1}
    for site in run.adapter.sites:
        assert (getattr(run.adapter, stays)[site.name] == start[stays]).all()
        assert (getattr(run.adapter, moves)[site.name] != start[moves]).any()
    assert run.metrics["parameters"]["adapter"] == run.adapter.num_parameters // 2


@pytest.mark.parametrize("output", ["hidden_states", "attentions"])
def test_further_outputs_that_a_config_asks_for_are_no_predictions(workplace, tmp_path, output):
    folder = Path(shutil.copytree(workplace / "model", tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, f"output_{output}": True}))
    options = (f"model.id={folder}", "model.attn_implementation=eager", "training.max_steps=1")
    run = train(recipe_for(workplace, *options), tmp_path / "run", progress=False)
    assert evaluate(run, progress=False) == run.metrics["test"]


@pytest.mark.parametrize("sites", ["fc1", ".*output.LayerNorm"])
def test_weight_decay_is_of_all_rotations(workplace, tmp_path, sites):
    recipe = recipe_for(workplace, f"adapter.sites={sites}", "training.weight_decay=5", "training.epochs=2")
    adapter = train(recipe, tmp_path / "run", progress=False).adapter
    assert max(alpha.abs().mean() for alpha in adapter.alpha.values()) < 0.5


def test_the_training_is_reported_to_trackers(workplace, monkeypatch):
    entries = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            entries.append(logs)

    monkeypatch.setitem(arguments.INTEGRATION_TO_CALLBACK, "trackio", Tracker)
    recipe = recipe_for(workplace, "training.report_to=[trackio]", "training.max_steps=1")
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", list)
    with pytest.raises(InputError, match="training.report_to: 'trackio' is not installed; try: pip install trackio"):
        train(recipe, workplace / "tracked", progress=False)
    assert not (workplace / "tracked").exists()
    with pytest.raises(InputError, match="'wanb' is not known; did you mean 'wandb'"):
        train(recipe_for(workplace, "training.report_to=[wanb]"), workplace / "tracked", progress=False)
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: ["trackio"])
    tracked = train(recipe, workplace / "tracked", progress=False)
    assert any("train_loss" in logs for logs in entries)
    seen = len(entries)
    evaluate(tracked, progress=False)
    assert len(entries) == seen


@pytest.mark.parametrize(("instructions", "expected"), [("avx512_bf16", "fp32"), ("amx_tile", "bf16"), (None, "fp32")])
def test_auto_precision_depends_on_the_processor(instructions, expected, monkeypatch):
    for name in ("avx512_bf16", "amx_tile"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name == instructions, raising=False)
    assert arguments.forward_precision(TrainingRecipe(), torch.device("cpu")) == expected
    assert arguments.forward_precision(TrainingRecipe(precision="bf16"), torch.device("cpu")) == "bf16"


def test_fp16_needs_a_gpu_to_train_and_none_to_be_scored(finished, workplace, tmp_path):
    with pytest.raises(InputError, match="training.precision: fp16 needs a GPU; use bf16 or fp32"):
        train(recipe_for(workplace, "training.precision=fp16"), tmp_path / "new", device="cpu", progress=False)
    folder = Path(shutil.copytree(finished.folder, tmp_path / "trained"))
    recipe, environment = (folder / name for name in ("recipe.yaml", "environment.json"))
    recipe.write_text(recipe.read_text().replace("precision: fp32", "precision: fp16"))
    for device in ("cuda", "cpu"):  # a CPU is what older releases wrote where they had trained in fp32
        environment.write_text(json.dumps({**json.loads(environment.read_text()), "precision": "fp16", "device": device}))
        run = Run.load(folder)
        assert run.trained_recipe("cuda").training.precision == "fp16"
        assert evaluate(run, device="cpu", progress=False) == finished.metrics["test"]


def test_the_precision_is_that_of_the_recipe_whatever_accelerate_is_told(finished, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as `accelerate launch` does
    assert evaluate(finished, progress=False) == finished.metrics["test"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_is_scored_in_the_precision_of_its_training(workplace, precision, monkeypatch):
    """Whatever "auto" would be on the machine that scores it."""
    recipe = recipe_for(workplace, "training.max_steps=1", "training.precision=auto")
    monkeypatch.setattr(arguments, "_processor_has_amx", lambda: precision == "bf16")
    run = train(recipe, workplace / f"in-{precision}", progress=False)
    monkeypatch.setattr(arguments, "_processor_has_amx", lambda: precision != "bf16")
    assert evaluate(run, progress=False)["loss"] == run.metrics["test"]["loss"]
    assert make_scorer(run)._precision == precision
    assert run.trained_recipe("cuda") == run.recipe
