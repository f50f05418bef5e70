"""Tiny random models of many architectures, built from configurations: no download, no weights on disk."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")

import datasets
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.recipes.loader import load_recipe
from road_interp.sites.site import Site
from road_interp.training.api import train

needs_compiler = pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 cannot compile transformers' own forward")


@pytest.fixture(autouse=True)
def figures_are_closed():
    """What a test has drawn goes with it."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 60,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
SPECIAL = {"vocab_size": 60, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
CONFIGS = {
    "Bert": SMALL,
    "Roberta": SMALL,
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, **SPECIAL},
    "Electra": {**SMALL, "embedding_size": 16},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, **SPECIAL},
    "GPTNeoX": SMALL,
    "OPT": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        **SPECIAL,
    },
    "Llama": GROUPED,
    "Mistral": GROUPED,
    "Qwen2": GROUPED,
    "Qwen3": {**GROUPED, "head_dim": 8},
    "Gemma2": {**GROUPED, "head_dim": 8},
    "Phi3": GROUPED,
    "T5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0, **SPECIAL},
    "ViT": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 16,
        "patch_size": 8,
    },
}
GOOD, BAD, OTHER = ["fine", "grand", "lovely"], ["poor", "dull", "awful"], [f"w{n}" for n in range(20)]
HEADS = {"backbone": AutoModel, "causal-lm": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}


def tiny_model(architecture: str, head: str = "backbone", seed: int = 0, **options: object) -> PreTrainedModel:
    """A random model in evaluation mode."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{architecture}Config")(**{**CONFIGS[architecture], **options})
    return HEADS[head].from_config(config).eval()


def random_adapter(
    sites: tuple[Site, ...], variant: str = "road_1", group_size: int = 2, spread: float = 0.3, seed: int = 0
) -> RoadAdapter:
    """Angles and scales drawn around the identity."""
    generator = torch.Generator().manual_seed(seed)
    blank = RoadAdapter.identity(sites, variant, group_size)
    noisy = [
        {name: values + spread * torch.randn(values.shape, generator=generator) for name, values in tensors.items()}
        for tensors in (blank.theta, blank.alpha)
    ]
    return RoadAdapter(sites, noisy[0], noisy[1], variant, group_size)


def token_batch(rows: int = 3, length: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random token ids above the special ones, without padding."""
    ids = torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def padded_batch(lengths: tuple[int, ...], side: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random rows of different lengths, padded on the left or right."""
    batch = token_batch(len(lengths), max(lengths), seed)
    for row, length in enumerate(lengths):
        padding = slice(length, None) if side == "right" else slice(0, max(lengths) - length)
        batch["input_ids"][row, padding] = 2
        batch["attention_mask"][row, padding] = 0
    return batch


@pytest.fixture
def llama() -> PreTrainedModel:
    return tiny_model("Llama", "causal-lm")


@pytest.fixture
def bert() -> PreTrainedModel:
    return tiny_model("Bert")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a tiny BERT, its tokeniser and 200 labelled sentences."""
    folder = tmp_path_factory.mktemp("workplace")
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


def recipe_for(workplace, *overrides):
    content = {
        "model": {"id": str(workplace / "model"), "max_length": 16},
        "data": {"id": str(workplace / "data.csv"), "validation_size": 40, "test_size": 40},
        "training": {"learning_rate": 0.05, "epochs": 6, "batch_size": 16, "precision": "fp32"},
    }
    return load_recipe(content, overrides)


@pytest.fixture(scope="module")
def finished(workplace):
    return train(recipe_for(workplace), workplace / "run", progress=False)
