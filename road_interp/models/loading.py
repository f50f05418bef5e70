"""Models, tokenisers and files by id: hub, local path, or inside an installed package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from road_interp.errors import InputError, first_line
from road_interp.models.gguf import KEPT, convert_gguf
from road_interp.recipes.schema import ModelRecipe
from road_interp.sources import resolve

GGUF = ".gguf"
POSITIONS = ("position_embeddings", "wpe", "embed_positions")  # what models call their table of learned positions
AUTO_CLASSES = {
    "backbone": AutoModel,
    "causal-lm": AutoModelForCausalLM,
    "classifier": AutoModelForSequenceClassification,
}


def load_model(recipe: ModelRecipe, auto_class: str = "backbone", **options: Any) -> tuple[PreTrainedModel, list[str]]:
    """The base model, and the modules that its checkpoint did not contain (a fresh classification head).

    Args:
        auto_class: "backbone", "causal-lm" or "classifier".
        options: further settings of the configuration, such as num_labels.
    """
    if recipe.attn_implementation is not None:
        options["attn_implementation"] = recipe.attn_implementation
    if recipe.device_map is not None:
        options["device_map"] = recipe.device_map
    dtype = recipe.dtype if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
    # A GGUF file has no head but that of a language model.
    arguments = _arguments(recipe, "causal-lm" if auto_class == "causal-lm" else "backbone")
    try:
        model, report = AUTO_CLASSES[auto_class].from_pretrained(**arguments, dtype=dtype, output_loading_info=True, **options)
    except Exception as error:  # damaged files raise all kinds, tokenizers the bare one
        raise InputError(f"model '{recipe.id}' cannot be loaded: {first_line(error)}{_remedy(recipe)}") from None
    if (path := Path(resolve(recipe.id))).suffix == GGUF:  # it goes by the file's place, not by that of the unpacked folder
        model.name_or_path = model.config.name_or_path = str(path.parent)
    fresh = {key.rpartition(".")[0] for key in report["missing_keys"]}
    return model, [name for name, _ in model.named_modules() if name in fresh]


def find_device(device: str | None) -> torch.device:
    """The device of that name, or what torch finds."""
    if device not in (None, "cpu", "cuda"):
        raise InputError(f"device '{device}' is not known; use cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for, but torch finds no CUDA device")
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def on_device(model: Any, device: torch.device) -> Any:
    """The model on a device, unless accelerate has laid it over several."""
    return model if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1 else model.to(device)


def check_length(model: PreTrainedModel, recipe: ModelRecipe) -> None:
    """Raise InputError where texts of the recipe's `max_length` would have more tokens than the model has learned positions."""
    for name, table in model.named_modules():
        if name.rpartition(".")[2] in POSITIONS and isinstance(table, nn.Embedding):
            # RoBERTa's begin behind the padding, OPT's at an offset.
            first = getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1
            if recipe.max_length > (most := table.num_embeddings - first):
                raise InputError(f"model.max_length {recipe.max_length} is more than the {most} positions of '{recipe.id}'")


def load_tokenizer(recipe: ModelRecipe) -> PreTrainedTokenizerBase:
    """The model's tokeniser, with a padding token."""
    arguments = _arguments(recipe, "tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(**arguments)
    except Exception as error:  # damaged files raise all kinds, tokenizers the bare one
        raise InputError(f"the tokeniser of '{recipe.id}' cannot be loaded: {first_line(error)}{_remedy(recipe)}") from None
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise InputError(f"the tokeniser of '{recipe.id}' cannot be loaded: it has no vocabulary")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _arguments(recipe: ModelRecipe, kind: str) -> dict[str, Any]:
    """Where transformers finds the model or its tokeniser; `kind` as in `convert_gguf`."""
    path = Path(resolved := resolve(recipe.id))
    if path.suffix == GGUF:
        if not path.is_file():
            raise InputError(f"model '{recipe.id}' does not exist")
        resolved = str(convert_gguf(path, kind))
    elif path.expanduser().exists():
        resolved = str(path.expanduser())
    if resolved.startswith((".", "/", "~")) and not Path(resolved).is_dir():
        raise InputError(f"model folder '{recipe.id}' does not exist")
    revision = recipe.revision or "main"
    return {"pretrained_model_name_or_path": resolved, "revision": revision, "trust_remote_code": recipe.trust_remote_code}


def _remedy(recipe: ModelRecipe) -> str:
    return f" (unpacked under {KEPT}; delete that to unpack it again)" if recipe.id.endswith(GGUF) else ""


def process_state(device: torch.device) -> PartialState:
    """The processes that torchrun or accelerate started, this one among them; alone it is one."""
    return PartialState(cpu=device.type == "cpu")
