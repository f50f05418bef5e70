"""A GGUF file as a folder of transformers, made once: transformers parses the vocabulary in Python, again at every load."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.constants import HF_HOME
from huggingface_hub.utils.sha import sha_fileobj
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from road_interp.errors import InputError, first_line
from road_interp.files import locked

KEPT = Path(HF_HOME) / "road-interp"
FORM = 1  # of what is kept: raised when the readers change


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


def convert_gguf(file: Path, kind: str) -> Path:
    """The folder with the model or the tokeniser of a GGUF file, written at the first call and found from then on.

    It lies under `HF_HOME`, is named by the bytes of the file and the release of transformers, and may be deleted at any time.

    Args:
        kind: "causal-lm", "backbone" or "tokenizer".

    Raises:
        InputError: the file cannot be read, or the folder not written.
    """
    try:
        with file.open("rb") as content:
            digest = sha_fileobj(content).hex()[:16]
    except OSError as error:
        raise _unreadable(file, error) from None
    folder = KEPT / f"{digest}-{transformers.__version__}-{FORM}" / kind
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_room(file, error) from None
    with locked(folder.parent):
        if not folder.is_dir():  # else another process was first
            try:
                with torch.random.fork_rng(devices=[]):  # some releases draw weights that they then replace
                    whole = READERS[kind](file)
            except Exception as error:  # damaged files raise all kinds, tokenizers the bare one
                raise _unreadable(file, error) from None
            try:
                _save(whole, folder)
            except Exception as error:  # of tokenizers the bare one
                raise _no_room(file, error) from None
    return folder


def _save(whole: Any, folder: Path) -> None:
    """Write a model or tokeniser beside its folder, and then under its name; what a killed process left there goes first."""
    shutil.rmtree(fresh := folder.with_name(f".{folder.name}"), ignore_errors=True)
    try:
        whole.save_pretrained(fresh)
        for path in fresh.iterdir():
            path.chmod(0o644)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(f"'{file}' cannot be read: {first_line(error)}")


def _no_room(file: Path, error: Exception) -> InputError:
    return InputError(f"'{file.name}' cannot be unpacked under {KEPT} ({error}); set HF_HOME to a folder with room")
