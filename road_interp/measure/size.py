"""Size of adapters on a model of any size, from its configuration alone: nothing is loaded, the model is on the meta device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from road_interp.arguments import check_argument, checked_list
from road_interp.errors import InputError, first_line
from road_interp.models.loading import GGUF
from road_interp.results import Result
from road_interp.rotation.plane_maps import VARIANTS, Variant, check_variant, num_parameters
from road_interp.sites.find import find_sites
from road_interp.sites.module_tree import is_linear
from road_interp.sites.site import Site
from road_interp.sources import resolve

LORA_RANK = 8
SITES = ("all-linear", "attention", "block-output")
BANK = 1000  # adapters in the bank whose size is reported
MULTIPLICATIONS = 4  # real ones per plane and token, for a 2 x 2 matrix of any variant
# Configurations as published with the models; names as on the Hugging Face Hub.
SHAPES: dict[str, dict[str, Any]] = {
    "all-MiniLM-L6-v2": {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    "bert-base": {"model_type": "bert"},
    "roberta-large": {
        "model_type": "roberta", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096, "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1,
    },
    "SmolLM2-135M": {
        "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
    },
    "gemma-3-270m": {
        "model_type": "gemma3_text", "hidden_size": 640, "num_hidden_layers": 18, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "intermediate_size": 2048, "vocab_size": 262144, "tie_word_embeddings": True,
    },
    "Llama-7B": {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "intermediate_size": 11008, "vocab_size": 32000,
    },
    "Llama-13B": {
        "model_type": "llama", "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40,
        "intermediate_size": 13824, "vocab_size": 32000,
    },
    "Llama-2-70B": {
        "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 32000,
    },
    "Mistral-7B": {
        "model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000,
    },
    "Qwen2.5-72B": {
        "model_type": "qwen2", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "intermediate_size": 29568, "vocab_size": 152064,
    },
}  # fmt: skip


@dataclass(frozen=True)
class AdapterSize:
    """The size of one kind of adapter.

    Attributes:
        sites: preset or pattern of the sites.
        variant: "road_1", "road_2" or "road_4".
        trained: number of trained values, theta and alpha (paper, table 1).
        percent: of the model's parameters.
        bytes: of one adapter in fp32.
        bank_bytes: of the values of 1,000 adapters.
        multiplications: real multiplications per token.
        lora: trained values of a LoRA of rank 8 on the same modules; None for sites that are not linear layers.
        lora_multiplications: of that LoRA, per token.
    """

    sites: str
    variant: str
    trained: int
    percent: float
    bytes: int
    bank_bytes: int
    multiplications: int
    lora: int | None
    lora_multiplications: int | None


@dataclass(frozen=True)
class SizeReport(Result):
    """Adapters of one model.

    Attributes:
        model: its name.
        parameters: number of its parameters, tied ones counted once.
        sizes: one per preset of sites and variant.
    """

    model: str
    parameters: int
    sizes: tuple[AdapterSize, ...]


def meta_model(name: str) -> PreTrainedModel:
    """A model on the meta device: one of `SHAPES`, or that of a configuration.

    Args:
        name: a name in `SHAPES`, a hub id, a folder with a config.json, or package://NAME/path of one.

    Raises:
        InputError: there is no such configuration.
    """
    try:
        if name in SHAPES:
            config = AutoConfig.for_model(**SHAPES[name])
        elif (path := Path(resolve(name))).suffix == GGUF:
            config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        else:
            config = AutoConfig.from_pretrained(str(path))
    except InputError:
        raise
    except Exception as error:  # damaged files raise many types
        known = ", ".join(SHAPES)
        raise InputError(f"'{name}' has no readable configuration ({first_line(error)}); known without one are {known}") from None
    # An encoder such as BERT has a class with a language model's head too, as a decoder.
    is_causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and getattr(config, "is_decoder", True)
    with torch.device("meta"):
        model = (AutoModelForCausalLM if is_causal else AutoModel).from_config(config)
    model.config.pad_token_id = None  # with it, a model may look for padding in the input, which has no values
    return model


def adapter_sizes(
    model: PreTrainedModel, name: str, sites: Sequence[str] = SITES, variants: Sequence[str] = VARIANTS
) -> SizeReport:
    """The sizes of adapters on `model`, whose weights are not used. Raises InputError for unknown sites and variants."""
    check_argument("measure.adapter_sizes", model, PreTrainedModel, "a model, such as load_model(id)[0]")
    sites = checked_list("measure.adapter_sizes, sites", sites, str, "presets or patterns, as in ['all-linear']")
    for variant in variants:
        check_variant(variant)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = []
    for preset in sites:
        found = find_sites(model, preset)
        rows += [_size(model, parameters, preset, found, variant) for variant in variants]
    return SizeReport(name, parameters, tuple(rows))


def _size(model: PreTrainedModel, parameters: int, preset: str, sites: Sequence[Site], variant: str) -> AdapterSize:
    trained = 2 * sum(num_parameters(site.width, cast(Variant, variant)) for site in sites)
    modules: list[Any] = [model.get_submodule(path) for path in dict.fromkeys(site.module for site in sites)]
    lora = None
    if all(is_linear(module) for module in modules):
        lora = sum(LORA_RANK * sum(module.weight.shape) for module in modules)
    multiplications = sum(MULTIPLICATIONS * site.width // 2 for site in sites)
    percent = 100 * trained / parameters
    return AdapterSize(preset, variant, trained, percent, 4 * trained, 4 * BANK * trained, multiplications, lora, lora)
