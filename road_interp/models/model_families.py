"""Kinds of models by what they do with the axes and the outputs of their modules."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

# Models whose blocks compute with tokens on the first axis and rows on the second; and those whose attention does.
BLOCKS_TOKENS_FIRST = frozenset({"fsmt", "xlnet"})
TOKENS_FIRST = BLOCKS_TOKENS_FIRST | {"bridgetower", "led", "longformer", "wavlm"}
# Models whose blocks put several streams on the first axis and rows on the second.
STREAMS_FIRST = frozenset({"gemma3n", "gemma3n_text"})
# Models that change the outputs of some of their modules in place, as by `+=`; the fast gradient of road_1 reads them afterwards.
CHANGES_OUTPUTS = frozenset({"deberta", "falcon", "flaubert", "llama4", "llama4_text", "xlm"})
# Ends of the names of transformers' classes whose rows have several choices.
OF_CHOICES = ("ForMultipleChoice", "DoubleHeadsModel")


def has_choices(model: nn.Module) -> bool:
    """Whether a row of a model's inputs has several choices, also where its class is a user's."""
    return any(each.__name__.endswith(OF_CHOICES) for each in type(model).__mro__)


def model_types(model: PreTrainedModel) -> set[str]:
    """The types of a model and of the models inside it, by its config."""
    inside = (value for value in vars(model.config).values() if isinstance(value, PreTrainedConfig))
    return {model.config.model_type, *(config.model_type for config in inside)}
