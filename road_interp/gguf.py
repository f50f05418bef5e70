"""A GGUF file as a folder of transformers, made once: read as it is, its vocabulary alone takes half a minute."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.constants import HF_HOME
from huggingface_hub.utils.sha import sha_fileobj
from safetensors import SafetensorError
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from road_interp.errors import InputError

KEPT = Path(HF_HOME) / "road-interp"


def read_model(auto_class: Any, file: Path) -> PreTrainedModel:
    """A model whose weights are plain tensors, which can be saved."""
    model = auto_class.from_pretrained(file.parent, gguf_file=file.name)
    if (quantizer := getattr(model, "hf_quantizer", None)) is not None:  # older releases leave none
        quantizer.remove_quantization_config(model)
    return model


def read_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """A tokeniser of the general class: one of its own may build itself otherwise when it is loaded (transformers 5.0)."""
    found = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    kept = {name: getattr(found, name) for name in ("chat_template", "padding_side", "model_max_length")}
    return PreTrainedTokenizerFast(tokenizer_object=found.backend_tokenizer, **found.special_tokens_map, **kept)


READERS: dict[str, Callable[[Path], Any]] = {
    "causal-lm": partial(read_model, AutoModelForCausalLM),
    "backbone": partial(read_model, AutoModel),
    "tokenizer": read_tokenizer,
}


def unpacked(file: Path, kind: str) -> Path:
    """The folder with the model or the tokeniser of a GGUF file, written at the first call and found from then on.

    It lies under `HF_HOME`, is named by the bytes of the file and the release of transformers, and may be deleted at any time.

    Args:
        kind: "causal-lm", "backbone" or "tokenizer".

    Raises:
        InputError: the folder cannot be written.
        OSError, ValueError and others of transformers: the file cannot be read.
    """
    with file.open("rb") as content:
        folder = KEPT / f"{sha_fileobj(content).hex()[:16]}-{transformers.__version__}" / kind
    if folder.is_dir():
        return folder
    whole = READERS[kind](file)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
            whole.save_pretrained(fresh := Path(temporary) / kind)
            try:
                fresh.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was first
                    raise
    except (OSError, SafetensorError) as error:
        raise InputError(f"'{file.name}' cannot be unpacked under {KEPT} ({error}); set HF_HOME to a folder with room") from None
    return folder
