"""States of a frozen model and their norms, the inputs of classifiers (`measure.disentangle`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from transformers import PreTrainedModel

from road_interp.arguments import check_argument
from road_interp.errors import InputError
from road_interp.measure.arguments import check_batch, check_batches
from road_interp.models.hidden_states import (
    Batch,
    Token,
    evaluation_mode,
    find_read_points,
    read_states,
    select_states,
    token_mask,
    unwrap_model,
)
from road_interp.sites.module_tree import text_config

SPLITS = ("train", "validation", "test")
DRAWS = 20  # of random directions


@dataclass(frozen=True)
class Features:
    """Inputs of the classifiers for the texts of one split.

    Attributes:
        states: one state per text, of the last block.
        chunk_norms: L2 norms of the text's state at every read point (`hidden_states.find_read_points`), in as many
            chunks of the residual stream as there are attention heads. A chunk's norm depends on the direction of the state, too.
        random_chunk_norms: the same in a random orthonormal basis, whose chunks have no meaning of their own.
        random_directions: the coordinate of the text's state at every read point along a random unit vector, in DRAWS draws.
        labels: class indices, or numbers for regression.
        place: name of the read point of `states` (`hidden_states.ReadPoint`).
    """

    states: Float[np.ndarray, "texts width"]
    chunk_norms: Float[np.ndarray, "texts places chunks"]
    random_chunk_norms: Float[np.ndarray, "texts places chunks"]
    random_directions: Float[np.ndarray, "draws texts places"]
    labels: Shaped[np.ndarray, " texts"]
    place: str = ""

    @property
    def norms(self) -> Float[np.ndarray, "texts places"]:
        """L2 norms of the whole states at every read point."""
        return np.sqrt((self.chunk_norms**2).sum(-1))


SplitFeatures = Mapping[str, Features]  # train, validation and test


def read_features(
    model: Any, batches: Iterable[Batch], token: Token, before_norm: bool = False, stack: str | None = None
) -> Features:
    """Read states and norms of all texts, in the order of the batches, with one forward pass per batch.

    A normalisation after the last block, as in Llama, is not applied, because it would remove the magnitude. A normalisation at
    the end of each block, as in BERT, sets the norm of the block's output; `before_norm` reads the input of the last one instead.
    The norms before and after it are part of `chunk_norms` and `random_chunk_norms` in either case, and so are the coordinates
    of `random_directions`.

    Args:
        model: a transformers model, or a RoadModel (with its rotations) or PEFT model around one.
        batches: tokenised texts with an attention_mask and labels.
        token: "first" for [CLS], "last" for causal models, or "mean" over the tokens.
        before_norm: whether to read the states before the normalisation at the end of the last block.
        stack: path of the block stack, for models that have two (encoder and decoder).

    Raises:
        InputError: something that is no model, a model of PEFT's prompt learning, another token, no texts, a text without tokens,
            batches without labels, a width that is not a multiple of the number of heads, or `before_norm` without a
            normalisation.
    """
    base = unwrap_model(model)
    check_argument("measure.read_features", base, PreTrainedModel, "a transformers model, a RoadModel or a PEFT model")
    if token not in ("first", "last", "mean"):
        raise InputError(f"token '{token}' has no state per text; use first, last or mean")
    states, norms, random_norms, directions, labels, points = [], [], [], [], [], None
    check_batches("read_features", batches)
    heads = getattr(text_config(base), "num_attention_heads", None)
    if heads is None:
        raise InputError(f"measure.read_features: {type(base).__name__} has no attention heads, which give the chunks of norms")
    for batch in batches:
        check_batch("read_features", batch)
        if "labels" not in batch:
            raise InputError("measure.read_features needs batches with the 'labels' of their texts, as a tensor")
        batch = {key: values.to(base.device) for key, values in batch.items()}
        if points is None:
            with evaluation_mode(base):  # without the rotations, behind which a block's output is not that of its normalisation
                points = find_read_points(base, batch, stack)
        mask = token_mask(base, points, batch)
        if not mask.any(1).all():
            raise InputError("measure.read_features: a text has no tokens, so that only padding could be read")
        if before_norm and not points[-2:][0].before_norm:
            raise InputError(f"the blocks of {type(base).__name__} do not end in a normalisation: before_norm must be False")
        with evaluation_mode(model):
            read = [select_states(each.float(), mask, token)[0] for each in read_states(base, points, batch)]
        if (width := read[-1].shape[1]) % heads:
            raise InputError(f"states of width {width} do not divide into {heads} heads")
        basis = random_basis(width).to(read[-1])
        norms.append(_chunk_norms(read, heads))
        random_norms.append(_chunk_norms([each @ basis for each in read], heads))
        drawn = torch.stack([random_basis(width, seed)[:, torch.arange(len(read)) % width] for seed in range(DRAWS)]).to(read[-1])
        directions.append(torch.einsum("ptw,dwp->dtp", torch.stack(read), drawn).cpu().numpy())
        states.append(read[-1 - before_norm].cpu().numpy())
        labels.append(batch["labels"].cpu().numpy())
    if points is None:
        raise InputError("there are no texts to read states of")
    place = points[-1 - before_norm].name
    chunk_norms, random_chunk_norms = np.concatenate(norms), np.concatenate(random_norms)
    random_directions = np.concatenate(directions, 1)
    return Features(np.concatenate(states), chunk_norms, random_chunk_norms, random_directions, np.concatenate(labels), place)


def _chunk_norms(states: Sequence[Float[Tensor, "texts width"]], heads: int) -> Float[np.ndarray, "texts places chunks"]:
    """L2 norms of the states at every read point, in as many chunks as there are heads."""
    return torch.stack([each.unflatten(1, (heads, -1)).norm(dim=-1) for each in states], 1).cpu().numpy()


@cache
def random_basis(width: int, seed: int = 0) -> Float[Tensor, "width width"]:
    """An orthonormal basis, always the same for a width and a seed."""
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)))[0]
