"""Fixtures: tiny models, a folder to work in, a finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from helpers.models import tiny_model
from helpers.recipes import recipe_for
from road_interp.models.loading import load_tokenizer
from road_interp.recipes.schema import ModelRecipe
from road_interp.runs.run import Run
from road_interp.sources import SMOLLM2
from road_interp.training.api import train

GOOD, BAD, OTHER = ["fine", "grand", "lovely"], ["poor", "dull", "awful"], [f"w{n}" for n in range(20)]


@pytest.fixture
def llama() -> PreTrainedModel:
    return tiny_model("Llama", "causal-lm")


@pytest.fixture
def bert() -> PreTrainedModel:
    return tiny_model("Bert")


@pytest.fixture(scope="session")
def first_workplace(tmp_path_factory):
    """What `workplace` is a copy of: a folder with a tiny BERT, its tokeniser and 200 labelled sentences."""
    folder = tmp_path_factory.mktemp("first") / "workplace"
    datasets.disable_progress_bars()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *OTHER]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", [("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "model")
    tiny_model("Bert", vocab_size=len(words), initializer_range=0.3).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    rows = ["text,label,score"]
    for n in range(200):
        chosen = [*rng.choice(OTHER, rng.integers(1, 4)), *rng.choice(GOOD if n % 2 else BAD, 5)]
        rng.shuffle(chosen)
        rows.append(f"{' '.join(chosen)},{['negative', 'positive'][n % 2]},{round(n % 2 + rng.normal() / 10, 3)}")
    (folder / "data.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def first_run(first_workplace):
    """What `finished` is a copy of: a trained run, which takes seconds."""
    return train(recipe_for(first_workplace), first_workplace.parent / "run", progress=False)


@pytest.fixture(scope="module")
def workplace(first_workplace, tmp_path_factory):
    """A folder with a tiny BERT, its tokeniser and 200 labelled sentences."""
    return Path(shutil.copytree(first_workplace, tmp_path_factory.mktemp("workplace") / "files"))


@pytest.fixture(scope="module")
def finished(first_workplace, first_run, workplace):
    """A finished run on the model and the data of `workplace`."""
    folder = Path(shutil.copytree(first_run.folder, workplace / "run"))
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(first_workplace), str(workplace)))
    return Run.load(folder)


@pytest.fixture(scope="module")
def language_workplace(tmp_path_factory):
    """A folder with a tiny Llama, SmolLM2's tokeniser, 60 reviews, and 12 prompts with answers."""
    folder = tmp_path_factory.mktemp("language")
    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(ModelRecipe(SMOLLM2))
    tokenizer.save_pretrained(folder / "model")
    tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(
        folder / "model"
    )
    rows = [f"{'good' if n % 2 else 'bad'} film number {n},{n % 2}" for n in range(60)]
    (folder / "reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    pairs = [{"question": f"What is {n}?", "reply": {"text": f"It is {n}."}} for n in range(12)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    return folder
