"""Checks of models, tokenisers and interchanges, which most functions of `road_interp.causal` take."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from road_interp.arguments import check_argument, check_callable
from road_interp.errors import InputError, first_line
from road_interp.models.intervention import pyvene
from road_interp.models.open_contexts import shared_context
from road_interp.models.road_model import RoadModel
from road_interp.models.vocabulary import vocabulary_of
from road_interp.sites.module_tree import check_transformers_model


def check_model(function: str, model: object) -> None:
    """Raise InputError unless `model` is a transformers model."""
    check_transformers_model(function, model, "a causal language model, such as load_model(id, 'causal-lm')[0]")


def check_tokenizer(function: str, tokenizer: object) -> None:
    """Raise InputError unless `tokenizer` is a tokeniser of transformers that returns offsets."""
    check_argument(function, tokenizer, PreTrainedTokenizerBase, "load_tokenizer(id)")
    if not tokenizer.is_fast:  # type: ignore[attr-defined]
        raise InputError(f"{function}: {type(tokenizer).__name__} does not return token offsets; load the fast tokeniser")


def check_reads_source(interchange: object) -> None:
    """Raise InputError for a pyvene intervention that has no source."""
    if getattr(interchange, "is_source_constant", False):
        raise InputError(
            f"a {type(interchange).__name__} reads no source state, so it exchanges nothing: give an interchange, such as "
            "RoadInterchangeIntervention or full_swap"
        )


def warn_of_soft_mask(function: str, interchange: object) -> None:
    """Warn of a learned mask that is measured before `harden`: it swaps every coordinate in part."""
    if getattr(interchange, "has_soft_mask", False):
        warnings.warn(
            f"{function}: the mask of this {type(interchange).__name__} is not hardened, so that every coordinate is swapped in "
            "part: call its harden() before it is measured",
            stacklevel=3,
        )


def check_language_model(function: str, model: Any) -> None:
    """Raise InputError unless `model` is a transformers decoder with a head over the vocabulary, not a wrapper of one, and
    without rotations that differ by row: texts are run once each, by length."""
    check_model(function, model)
    if isinstance(model, pyvene.IntervenableModel):
        what = "an IntervenableModel of pyvene: give model.model, without the interventions"
        if isinstance(model, RoadModel):
            what = "a RoadModel: use `with model.attached() as base:` and give base, in that statement"
        raise InputError(f"{function} needs the transformers model, not {what}")
    head: Any = getattr(model, "get_output_embeddings", lambda: None)
    if head() is None:
        raise InputError(
            f"{function} needs a causal language model; {type(model).__name__} has no head over the vocabulary: load it "
            'with load_model(id, "causal-lm")'
        )
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise InputError(
            f"{function} needs a model that continues its text; {type(model).__name__} is an encoder and decoder, which answer "
            "in a text of their own"
        )
    if (context := shared_context(model)) is not None and context.by_row:
        raise InputError(
            f"{function}: {context.name} has rotations or tokens for every row of a call, but the rows here are the different "
            "texts, by length: attach one adapter, and positions as text"
        )


def check_vocabulary(model: Any, texts: Iterable[Sequence[int]]) -> None:
    """Raise InputError for token ids of a larger vocabulary than the model's."""
    vocabulary = vocabulary_of(model)
    if vocabulary is not None and (largest := max(map(max, texts))) >= vocabulary:
        raise InputError(
            f"the texts contain token {largest}, and {type(model).__name__} has {vocabulary} tokens: encode them with the "
            "tokeniser of this model"
        )


def check_numbers(values: Tensor, what: str) -> None:
    """Raise InputError for values, named `what`, that are NaN or infinite in some row."""
    if broken := int((~values.isfinite()).flatten(1).any(1).sum()):
        raise InputError(
            f"{what} are NaN or infinite for {broken} of {len(values)} texts: use bfloat16 or float32, or an "
            "interchange that was trained with a smaller learning rate"
        )


def check_interchange(function: str, interchange: Any, base: Tensor, source: Tensor, **options: Any) -> None:
    """Raise InputError unless an interchange turns one state of base and one of source, `(1, width)` each, into such a state.

    Args:
        options: further arguments of the interchange, such as subspaces.
    """
    width = base.shape[-1]
    if isinstance(interchange, type):
        raise InputError(f"{function} needs an interchange, not a class: give an instance, RoadInterchangeIntervention({width})")
    check_callable(
        function,
        "interchange",
        interchange,
        f"a function of the states of base and source, or an intervention such as RoadInterchangeIntervention({width})",
    )
    check_reads_source(interchange)
    try:
        with torch.no_grad():
            state = interchange(base.clone(), source.clone(), **options)  # it may write into them
    except torch.OutOfMemoryError:
        raise
    except (InputError, RuntimeError, TypeError, IndexError) as error:
        if "unexpected keyword argument 'subspaces'" in str(error):
            raise InputError(
                f"{function}: the interchange takes no subspaces, which say the variables to swap in every row; the swap "
                "of none and that of the whole state are causal.no_variable and causal.whole_state"
            ) from error
        if (made_for := getattr(interchange, "width", width)) != width:
            raise InputError(f"{function}: the interchange is made for states of width {made_for}, these have {width}") from error
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{function}: the interchange cannot be applied to states of width {width}: {first_line(error)}"
        ) from error
    if not isinstance(state, Tensor) or state.shape != base.shape:
        found = f"a tensor of shape {tuple(state.shape)}" if isinstance(state, Tensor) else type(state).__name__
        raise InputError(f"{function}: the interchange returns {found} for states of shape {tuple(base.shape)}")
