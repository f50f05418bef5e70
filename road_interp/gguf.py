"""A GGUF file as a folder of transformers, made once: read as it is, its vocabulary alone takes half a minute."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.constants import HF_HOME
from huggingface_hub.utils.sha import sha_fileobj
from safetensors import SafetensorError
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from road_interp.errors import InputError

KEPT = Path(HF_HOME) / "road-interp"
READERS: dict[str, Any] = {"causal-lm": AutoModelForCausalLM, "backbone": AutoModel, "tokenizer": AutoTokenizer}


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
    whole: Any = READERS[kind].from_pretrained(file.parent, gguf_file=file.name)
    if (quantizer := getattr(whole, "hf_quantizer", None)) is not None:  # older releases leave none
        quantizer.remove_quantization_config(whole)
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
