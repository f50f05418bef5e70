"""A GGUF file of a tiny Llama, without a tokeniser."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFWriter
from transformers import PreTrainedModel

PARTS = {
    "embed_tokens": "token_embd",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{each}_proj": f"attn_{'output' if each == 'o' else each}" for each in "qkvo"},
    **{f"mlp.{each}_proj": f"ffn_{each}" for each in ("gate", "up", "down")},
}


def write_gguf(model: PreTrainedModel, path: Path, without: str | None = None) -> None:
    """Write the backbone of a Llama; `without` is the name in GGUF of a tensor that is left out."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for name, weight in model.model.state_dict().items():
        named = "output_norm.weight" if name == "norm.weight" else name.replace("layers.", "blk.")
        for old, new in PARTS.items():
            named = named.replace(f"{old}.", f"{new}.")
        if named != without:
            writer.add_tensor(named, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
