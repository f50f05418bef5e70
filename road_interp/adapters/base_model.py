"""The base model an adapter was learned on, as far as it can be told from a configuration."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class BaseModelSignature:
    """What an adapter remembers of its base.

    Attributes:
        name: the last part of where the model came from. Only told: checkpoints of one shape may share an adapter.
        model_type: transformers' word for the architecture.
        hidden_size, num_hidden_layers: of its configuration; None where it has none.
    """

    name: str
    model_type: str
    hidden_size: int | None
    num_hidden_layers: int | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> BaseModelSignature:
        """The fingerprint of a model."""
        config = model.config
        name = str(model.name_or_path).removesuffix("/model").rpartition("/")[2]
        shape = (getattr(config, key, None) for key in ("hidden_size", "num_hidden_layers"))
        return cls(name, config.model_type, *shape)

    def difference(self, other: BaseModelSignature) -> str:
        """What differs, such as "hidden_size is 576, not 384"; empty for models of one shape."""
        pairs = (
            (field.name, getattr(other, field.name), getattr(self, field.name)) for field in fields(self) if field.name != "name"
        )
        return ", ".join(f"{name} is {found!r}, not {wanted!r}" for name, found, wanted in pairs if found != wanted)
