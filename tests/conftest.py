"""Fixtures: tiny models, a folder to work in, a finished run."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("MKL_DISABLE_FAST_MM", "1")  # MKL's own allocator can loop forever in a forked worker of a DataLoader

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


def pytest_collection_finish(session):
    """Freeze what imports and collection made: garbage collection, which engines call when they stop, need not look at it."""
    gc.collect()
    gc.freeze()


SKIPS = Path(__file__).with_name("skips.txt")  # a file and a reason per line: the skips that are known


def pytest_terminal_summary(terminalreporter):
    """Print the skips that are not in the inventory."""
    skipped = terminalreporter.stats.get("skipped", [])
    found = {f"{each.nodeid.partition('::')[0]}: {each.longrepr[2].removeprefix('Skipped: ')}" for each in skipped}
    if new := found - set(SKIPS.read_text().splitlines()):
        terminalreporter.section("skips that are not in tests/skips.txt")
        terminalreporter.write_line("\n".join(sorted(new)))


@pytest.fixture(autouse=True)
def figures_are_closed():
    """What a test has drawn goes with it."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(autouse=True)
def figures_are_not_rendered(request, monkeypatch):
    """Figures are drawn, but neither fitted nor rendered, which is slow, unless a test is marked `rendered`."""
    if not request.node.get_closest_marker("rendered"):
        monkeypatch.setattr("road_interp.plots.style.fit", lambda ax: None)
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **options: file.write(b"drawn"))


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
        rows.append(f"{' '.join(chosen)},{['negative', 'positive'][n % 2]},{n % 2 + rng.normal() / 10:.3f}")
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
