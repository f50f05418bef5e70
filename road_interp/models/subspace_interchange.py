"""SubspaceInterchange: what interchanges along orthonormal directions have in common, as pyvene interventions with a source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from road_interp.errors import InputError
from road_interp.models.intervention import check_all_dimensions, check_keywords, move_only, pyvene
from road_interp.models.subspaces import expanded_parts


class SubspaceInterchange(pyvene.TrainableIntervention, pyvene.DistributedRepresentationIntervention):
    """An interchange along orthonormal directions of a state, in subspaces that a call can select.

    Args:
        embed_dim: width of the hidden state, as pyvene names it.
        kwargs: the other arguments of pyvene.

    Attributes:
        width: of the states.
        subspace_partition: the entries of every subspace, as in pyvene; None where every direction is one.
        variables: the names of the subspaces, if they are those of VariableCoordinates.
        instead: what to give in place of pyvene's `interchange_dim`, for errors.
    """

    width: int
    variables: tuple[str, ...] | None
    instead: ClassVar[str]

    def __init__(self, embed_dim: int, **kwargs: Any) -> None:
        check_keywords(type(self), kwargs)
        if kwargs.get("source_representation") is not None:  # pyvene does not give it to trainable interventions
            raise InputError(
                f"{type(self).__name__} takes its source from every call, not from the config: model(batch, "
                "source_representations={key: states})"
            )
        parts = expanded_parts(kwargs.pop("subspace_partition", None))
        super().__init__(embed_dim=embed_dim, keep_last_dim=True, **kwargs)
        self.subspace_partition, self.variables = parts, None
        self._made_by_pyvene = "component" in kwargs  # from a config of types, which may lack the settings of a subclass

    def basis(self) -> Float[Tensor, "width k"]:
        """Orthonormal columns: the directions in which base and source are swapped; without a gradient."""
        raise NotImplementedError

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Nothing: `_load_from_state_dict` has read it, before the tensors whose shapes may depend on it."""

    def set_interchange_dim(self, interchange_dim: Any) -> None:
        """pyvene's number of leading dimensions: all of them. Raises InputError for fewer."""
        check_all_dimensions(interchange_dim, self.width, self.instead)
        super().set_interchange_dim(interchange_dim)

    def _check_states(self, base: Tensor, source: Tensor) -> None:
        """Raise InputError for states of another width, and for states of a source that do not have the axes of the base's: torch
        would spread rows over tokens."""
        if base.shape[-1] != self.width:
            raise InputError(
                f"an interchange of width {self.width} got states of width {base.shape[-1]}: give it embed_dim={base.shape[-1]}; "
                "pyvene takes a wrong width for keys and values that several queries share"
            )
        axes = zip(source.shape, base.shape, strict=False)
        is_spread = source.ndim == base.ndim and all(own in (1, whole) for own, whole in axes)
        if source.shape[-1:] != base.shape[-1:] or not (is_spread or source.numel() == self.width):
            raise InputError(
                f"the source has states of shape {tuple(source.shape)}, the base of shape {tuple(base.shape)}: give both the "
                "same axes, which are (rows, tokens, width) in pyvene, or one state for all"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SubspaceInterchange:
        """Move with the model to its device, but keep the dtype."""
        return super()._apply(move_only(fn), recurse)
