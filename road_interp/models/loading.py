"""Load models and tokenisers by id: from the Hub, a local path or an installed package."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from road_interp.adapters.storage import holds_adapter
from road_interp.arguments import check_argument
from road_interp.errors import InputError, first_line
from road_interp.files import exists, is_dir, is_file
from road_interp.models.gguf import CACHE, convert_gguf
from road_interp.recipes.schema import ModelRecipe
from road_interp.sites.module_tree import layer_stacks
from road_interp.sources import resolve

GGUF = ".gguf"
POSITIONS = ("position_embeddings", "wpe", "embed_positions")  # module names of learned position embeddings
AUTO_CLASSES = {
    "backbone": AutoModel,
    "causal-lm": AutoModelForCausalLM,
    "classifier": AutoModelForSequenceClassification,
}


def load_model(
    recipe: ModelRecipe | str | os.PathLike[str], auto_class: str = "backbone", **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """The base model, and the paths of modules that its checkpoint lacks, such as a new classification head.

    Args:
        recipe: the model section of a recipe, or an id as in `ModelRecipe.id`, such as a folder.
        auto_class: "backbone", "causal-lm" or "classifier".
        options: further settings of the configuration, such as num_labels; the precision is a `ModelRecipe`'s.

    Raises:
        InputError: the model does not exist or cannot be loaded, its checkpoint lacks weights of its blocks, it has no head over
            the vocabulary for "causal-lm", or another auto_class.
    """
    recipe = _model_recipe("load_model", recipe)
    if {"dtype", "torch_dtype"} & {*options}:
        raise InputError("load_model takes the precision in a recipe: load_model(ri.recipes.ModelRecipe(id, dtype='bfloat16'))")
    if auto_class not in AUTO_CLASSES:
        raise InputError(f"unknown auto_class {auto_class!r}; use {', '.join(AUTO_CLASSES)}")
    if recipe.attn_implementation is not None:
        options["attn_implementation"] = recipe.attn_implementation
    if recipe.device_map is not None:
        options["device_map"] = recipe.device_map
    dtype = recipe.dtype if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
    # GGUF files contain no heads other than that of a language model.
    arguments = _arguments(recipe, "causal-lm" if auto_class == "causal-lm" else "backbone")
    try:
        model, report = AUTO_CLASSES[auto_class].from_pretrained(**arguments, dtype=dtype, output_loading_info=True, **options)
    except Exception as error:  # damaged files raise many types, tokenizers raises Exception itself
        if "ignore_mismatched_sizes" in str(error):
            raise InputError(
                f"model '{recipe.id}' cannot be loaded: its checkpoint has weights of other shapes, such as a head of other "
                "classes; AutoModel.from_pretrained(id).save_pretrained(folder) leaves the head out"
            ) from None
        raise InputError(f"model '{recipe.id}' cannot be loaded: {first_line(error)}{_hint(recipe)}") from None
    if (path := Path(resolve(recipe.id))).suffix == GGUF:  # name the file, not the converted folder
        model.name_or_path = model.config.name_or_path = str(path.parent)
    _check_blocks(model, recipe, report["missing_keys"])
    paths = {key.rpartition(".")[0] for key in report["missing_keys"]}
    missing = [name for name, _ in model.named_modules() if name in paths]
    if auto_class == "causal-lm" and (head := model.get_output_embeddings()) is not None:
        lacking = [name for name in missing if model.get_submodule(name) in set(head.modules())]
        if lacking:
            raise InputError(f"model '{recipe.id}' is no language model: its checkpoint lacks {lacking[0]}")
    return model, missing


def _check_blocks(model: PreTrainedModel, recipe: ModelRecipe, missing: Collection[str]) -> None:
    """Raise InputError for a checkpoint without some weights of the blocks: they would be those of a random initialisation."""
    stacks = tuple(f"{path}." for path in layer_stacks(model))
    lacking = [name for name, _ in model.named_parameters() if name in missing and name.startswith(stacks)]
    if lacking:
        others = f" and {len(lacking) - 1} others" if len(lacking) > 1 else ""
        raise InputError(
            f"model '{recipe.id}' cannot be loaded: its checkpoint has no weights for {lacking[0]}{others}; save it with "
            "save_pretrained from a plain transformers model (after merge_and_unload of PEFT, and not compiled)"
        )


def find_device(device: str | None) -> torch.device:
    """The named device; for None, CUDA if torch finds it and the CPU otherwise. Raises InputError."""
    if device not in (None, "cpu", "cuda"):
        raise InputError(f"device '{device}' is not known; use cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' is not available: torch finds no CUDA device")
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def on_device(model: Any, device: torch.device) -> Any:
    """The model moved to a device, unless accelerate has distributed it over several."""
    return model if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1 else model.to(device)


def check_length(model: PreTrainedModel, recipe: ModelRecipe) -> None:
    """Raise InputError if the recipe's `max_length` exceeds the number of positions that the model has learned."""
    for name, table in model.named_modules():
        if name.rpartition(".")[2] in POSITIONS and isinstance(table, nn.Embedding):
            # RoBERTa's positions start after the padding index, OPT's at an offset.
            first = getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1
            if recipe.max_length > (limit := table.num_embeddings - first):
                raise InputError(f"model.max_length {recipe.max_length} is more than the {limit} positions of '{recipe.id}'")


def load_tokenizer(recipe: ModelRecipe | str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The model's tokeniser, by recipe or id. Raises InputError if it cannot be loaded.

    It has a padding token, which ends no text if there is another special token.
    """
    recipe = _model_recipe("load_tokenizer", recipe)
    arguments = _arguments(recipe, "tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(**arguments)
    except Exception as error:  # damaged files raise many types, tokenizers raises Exception itself
        raise InputError(f"the tokeniser of '{recipe.id}' cannot be loaded: {first_line(error)}{_hint(recipe)}") from None
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise InputError(f"the tokeniser of '{recipe.id}' cannot be loaded: it has no vocabulary")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise InputError(f"the tokeniser of '{recipe.id}' has no token for padding, and no end of text to take in its place")
    if _ends_in_padding(tokenizer):
        tokenizer.pad_token = _other_padding(tokenizer)
    return tokenizer


def load_text_tokenizer(recipe: ModelRecipe) -> PreTrainedTokenizerBase:
    """The model's tokeniser for texts that are read, not continued. Raises InputError if it cannot be loaded.

    It pads on the right: behind padding on the left, learned positions would be counted from it. XLNet's positions are relative,
    and its head reads the last place, so that its tokeniser pads on the left.
    """
    tokenizer = load_tokenizer(recipe)
    tokenizer.padding_side = "left" if _reads_last_place(recipe) else "right"
    return tokenizer


def _reads_last_place(recipe: ModelRecipe) -> bool:
    if resolve(recipe.id).endswith(GGUF):  # a decoder, whose head reads the last token that is not padding
        return False
    try:
        config = AutoConfig.from_pretrained(**_arguments(recipe, "backbone"))
    except Exception as error:  # damaged files raise many types
        raise InputError(f"model '{recipe.id}' cannot be loaded: {first_line(error)}{_hint(recipe)}") from None
    return config.model_type == "xlnet" and config.summary_type == "last"


def _ends_in_padding(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokeniser adds its padding token at the end of a text; the text here is a token that every vocabulary has."""
    encoded = tokenizer(tokenizer.pad_token, return_special_tokens_mask=True)
    return encoded["special_tokens_mask"][-1:] == [1] and encoded["input_ids"][-1:] == [tokenizer.pad_token_id]


def _other_padding(tokenizer: PreTrainedTokenizerBase) -> str:
    """Another special token, if there is one. Tokens that were added to the vocabulary may have no embedding: they come last."""
    others = [token for token in tokenizer.all_special_tokens if token != tokenizer.pad_token]
    named = {tokenizer.bos_token, tokenizer.unk_token, tokenizer.sep_token, tokenizer.cls_token}
    ranked = sorted(others, key=lambda token: (token not in named, tokenizer.convert_tokens_to_ids(token)))
    return next(iter(ranked), tokenizer.pad_token)


def pad_as(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> PreTrainedModel:
    """The model, told which token the tokeniser pads with: a classifier of a decoder reads the last token that is not padding.

    Raises InputError for a tokeniser that ends its texts with that token, and for a token without an embedding.
    """
    whose = f"the tokeniser of '{model.name_or_path}'" if model.name_or_path else "the tokeniser"
    if _ends_in_padding(tokenizer):
        raise InputError(
            f"{whose} ends texts with {tokenizer.pad_token!r} and pads with it, so that a classifier would not read their last "
            "token: give it another pad_token"
        )
    if tokenizer.pad_token_id >= (size := getattr(model.config.get_text_config(), "vocab_size", None) or math.inf):
        raise InputError(
            f"{whose} pads with {tokenizer.pad_token!r}, token {tokenizer.pad_token_id}, and the model has {size} embeddings: "
            "give it another pad_token"
        )
    for config in {id(each): each for each in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = tokenizer.pad_token_id
    return model


def _model_recipe(function: str, recipe: ModelRecipe | str | os.PathLike[str]) -> ModelRecipe:
    if isinstance(recipe, str | os.PathLike):
        return ModelRecipe(os.fspath(recipe))
    check_argument(function, recipe, ModelRecipe, "the id of a model, its folder, or the section recipe.model")
    return recipe


def _arguments(recipe: ModelRecipe, kind: str) -> dict[str, Any]:
    """The arguments of `from_pretrained` for the model or its tokeniser; `kind` as in `convert_gguf`."""
    path = Path(resolved := resolve(recipe.id))
    if path.suffix == GGUF:
        if not is_file(path):
            raise InputError(f"model '{recipe.id}' does not exist")
        resolved = str(convert_gguf(path, kind))
    elif exists(expanded := os.path.expanduser(resolved)):
        resolved = expanded
    if resolved.startswith((".", "/", "~")) and not is_dir(resolved):
        raise InputError(f"model folder '{recipe.id}' does not exist")
    revision = recipe.revision or "main"
    return {"pretrained_model_name_or_path": resolved, "revision": revision, "trust_remote_code": recipe.trust_remote_code}


def _hint(recipe: ModelRecipe) -> str:
    if is_file(Path(recipe.id) / "recipe.yaml"):
        return f"; it is the folder of a run: Run.load('{recipe.id}').load_model()"
    if holds_adapter(Path(recipe.id)):
        return f"; it is the folder of an adapter: load its base model, and use RoadModel(base, '{recipe.id}')"
    if recipe.id.endswith(GGUF):
        return f" (converted under {CACHE}; delete that folder to convert the file again)"
    return "" if exists(os.path.expanduser(resolve(recipe.id))) else f"; there is no folder '{recipe.id}' either"


def process_state(device: torch.device) -> PartialState:
    """accelerate's state of this process among those that torchrun or accelerate started."""
    return PartialState(cpu=device.type == "cpu")
