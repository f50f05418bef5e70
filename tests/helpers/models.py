"""Tiny random models of many architectures, built from configurations without downloads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BartModel,
    PreTrainedModel,
)

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.sites.site import Site

CAN_COMPILE = torch.__version__ >= "2.7"
needs_compiler = pytest.mark.skipif(not CAN_COMPILE, reason="torch 2.6 cannot compile transformers' own forward")

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
    "Gemma3Text": {**GROUPED, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
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
HEADS = {
    "backbone": AutoModel,
    "causal-lm": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "classifier": AutoModelForSequenceClassification,
}


def tiny_model(architecture: str, head: str = "backbone", seed: int = 0, **options: object) -> PreTrainedModel:
    """A random model in evaluation mode."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{architecture}Config")(**{**CONFIGS[architecture], **options})
    return HEADS[head].from_config(config).eval()


def save_encoder_decoder(folder: Path, tokenizer: Path) -> Path:
    """A random BART in a folder, with the tokeniser of another one. Returns the folder."""
    shutil.copytree(tokenizer, folder)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(vocab_size=40, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, **sizes)
    BartModel(config).save_pretrained(folder)
    return folder


def random_adapter(
    sites: tuple[Site, ...], variant: str = "road_1", group_size: int = 2, spread: float = 0.3, seed: int = 0
) -> RoadAdapter:
    """An adapter with random angles and scales around the identity."""
    generator = torch.Generator().manual_seed(seed)
    identity = RoadAdapter.identity(sites, variant, group_size)
    noisy = [
        {name: values + spread * torch.randn(values.shape, generator=generator) for name, values in tensors.items()}
        for tensors in (identity.theta, identity.alpha)
    ]
    return RoadAdapter(sites, noisy[0], noisy[1], variant, group_size)


def token_batch(rows: int = 3, length: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random token ids above the special ones, without padding."""
    ids = torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def padded_batch(lengths: tuple[int, ...], side: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random rows of different lengths, padded on the left or on the right."""
    batch = token_batch(len(lengths), max(lengths), seed)
    for row, length in enumerate(lengths):
        padding = slice(length, None) if side == "right" else slice(0, max(lengths) - length)
        batch["input_ids"][row, padding] = 2
        batch["attention_mask"][row, padding] = 0
    return batch
