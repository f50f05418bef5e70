"""BaseModelSignature: the properties of its base model that an adapter records."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class BaseModelSignature:
    """Architecture and shape of the base model that an adapter was trained on.

    Attributes:
        name: last component of the model's path or hub id. For display only; checkpoints of one shape may share an adapter.
        model_type: the architecture, as in transformers' configuration.
        hidden_size, num_hidden_layers: as in the configuration; None where it lacks them.
    """

    name: str
    model_type: str
    hidden_size: int | None
    num_hidden_layers: int | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> BaseModelSignature:
        """The signature of a model."""
        config = model.config
        shape = (getattr(config, key, None) for key in ("hidden_size", "num_hidden_layers"))
        return cls(_last_component(model), config.model_type, *shape)

    @property
    def title(self) -> str:
        """The name in quotes, or the architecture of a model without a name."""
        return f"'{self.name}'" if self.name else f"an unnamed {self.model_type}"

    def difference(self, other: BaseModelSignature) -> str:
        """A description of the differences, such as "hidden_size is 576, not 384"; empty for models of one shape."""
        pairs = (
            (field.name, getattr(other, field.name), getattr(self, field.name)) for field in fields(self) if field.name != "name"
        )
        return ", ".join(f"{name} is {theirs!r}, not {ours!r}" for name, theirs, ours in pairs if theirs != ours)


def model_name(model: PreTrainedModel) -> str:
    """Last component of the model's path or hub id; of a model without one, its class."""
    return _last_component(model) or type(model).__name__


def _last_component(model: PreTrainedModel) -> str:
    return str(model.name_or_path).rstrip("/").removesuffix("/model").rpartition("/")[2]
