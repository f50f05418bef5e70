"""Convert a GGUF file to a transformers folder once: transformers would parse the vocabulary in Python at every load."""

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

CACHE = Path(HF_HOME) / "road-interp"
CACHE_FORMAT = 1  # increased when the readers change


def read_model(auto_class: Any, file: Path) -> PreTrainedModel:
    """A model whose weights are dequantised, so that it can be saved. Raises ValueError for a file that lacks some of them."""
    model, found = auto_class.from_pretrained(file.parent, gguf_file=file.name, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"it has no weights for {missing[0]}" + (f" and {len(missing) - 1} others" if len(missing) > 1 else ""))
    if (quantizer := getattr(model, "hf_quantizer", None)) is not None:  # older releases of transformers set none
        quantizer.remove_quantization_config(model)
    return model


def read_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """A tokeniser of the general fast class: a model-specific class may change when it is saved and loaded (transformers 5.0)."""
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    settings = {name: getattr(tokenizer, name) for name in ("chat_template", "padding_side", "model_max_length")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **tokenizer.special_tokens_map, **settings)


READERS: dict[str, Callable[[Path], Any]] = {
    "causal-lm": partial(read_model, AutoModelForCausalLM),
    "backbone": partial(read_model, AutoModel),
    "tokenizer": read_tokenizer,
}


def convert_gguf(file: Path, kind: str) -> Path:
    """The folder with the model or the tokeniser of a GGUF file, written at the first call and reused afterwards.

    The folder is under `HF_HOME`, its name depends on the content of the file and the version of transformers, and it may be
    deleted at any time.

    Args:
        kind: "causal-lm", "backbone" or "tokenizer".

    Raises:
        InputError: the file cannot be read, or the folder cannot be written.
    """
    try:
        with file.open("rb") as opened:
            digest = sha_fileobj(opened).hex()[:16]
    except OSError as error:
        raise _cannot_read(file, error) from None
    folder = CACHE / f"{digest}-{transformers.__version__}-{CACHE_FORMAT}" / kind
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(file, error) from None
    with locked(folder.parent):
        if not folder.is_dir():  # otherwise another process has written it
            try:
                with torch.random.fork_rng(devices=[]):  # some releases draw random weights before they load those of the file
                    content = READERS[kind](file)
            except Exception as error:  # damaged files raise many types, tokenizers raises Exception itself
                raise _cannot_read(file, error) from None
            try:
                _save(content, folder)
            except Exception as error:  # tokenizers raises Exception itself
                raise _cannot_write(file, error) from None
    return folder


def _save(content: Any, folder: Path) -> None:
    """Write a model or tokeniser into a temporary folder, cleared of leftovers, and rename it to `folder`."""
    shutil.rmtree(temporary := folder.with_name(f".{folder.name}"), ignore_errors=True)
    try:
        content.save_pretrained(temporary)
        for path in temporary.iterdir():
            path.chmod(0o644)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _cannot_read(file: Path, error: Exception) -> InputError:
    return InputError(f"'{file}' cannot be read: {first_line(error)}")


def _cannot_write(file: Path, error: Exception) -> InputError:
    return InputError(f"'{file.name}' cannot be converted under {CACHE} ({error}); set HF_HOME to a folder with free space")
