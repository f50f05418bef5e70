"""What a classification run answers to its test texts, with its rotations and without, and the states that it rotates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Complex
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.data.head_outputs import chosen_classes
from road_interp.data.labelled import load_labelled
from road_interp.measure.answers import Answers, in_turn
from road_interp.models.hidden_states import text_token, token_index
from road_interp.models.loading import find_device, load_text_tokenizer, on_device
from road_interp.models.model_families import TOKENS_FIRST, model_types
from road_interp.models.road_model import RoadModel
from road_interp.progress import Progress, silent
from road_interp.recipes.schema import ClassificationRecipe
from road_interp.runs.prediction import Text, compute_logits, padded_batch
from road_interp.runs.run import Run
from road_interp.sites.module_tree import hidden_of, hooked
from road_interp.sites.positions import position_mask
from road_interp.sites.site import Site

READ_TEXTS = 60  # texts whose states are kept


def answers_of(run: Run, progress: Progress = silent) -> Answers | None:
    """The answers of a run; None for a run that does not choose between classes."""
    if not isinstance(run.recipe, ClassificationRecipe) or run.classes is None:
        return None
    progress(f"loading model and data of {run.folder}")
    run.check_data()
    data = load_labelled(run.recipe.data)
    run.check_classes(data.classes)
    test = data.test
    texts = texts_of(test)
    model, tokenizer = on_device(run.load_model(), find_device(None)), load_text_tokenizer(run.recipe.model)
    length = run.recipe.model.max_length
    rotated = chosen_classes(compute_logits(model, tokenizer, texts, length, progress, "test texts with the rotations"))
    labels = np.asarray(test["label"][:])
    read = in_turn(range(len(texts)), labels)[:READ_TEXTS]
    with model.attached() as base:
        states = states_before(base, run.adapter, tokenizer, [texts[row] for row in read], length)
    unrotated = RoadModel(model.model, run.adapter.identity_like())
    without = chosen_classes(compute_logits(unrotated, tokenizer, texts, length, progress, "test texts without the rotations"))
    return Answers(texts, tuple(run.classes), labels, rotated, without, tuple(read), states)


def texts_of(data: Dataset) -> tuple[Text, ...]:
    """The texts of labelled data, or the pairs of texts."""
    if "text_pair" not in data.column_names:
        return tuple(data["text"][:])
    return tuple(zip(data["text"][:], data["text_pair"][:], strict=True))


@torch.no_grad()
def states_before(
    rotated: PreTrainedModel, adapter: RoadAdapter, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int
) -> dict[str, Complex[np.ndarray, "texts planes"]]:
    """The states in front of every rotation, from those behind it in the rotated model; 0 where a rotation has no inverse.

    Of every text the state of [CLS] is read, or of the last token where the tokeniser does not put [CLS] first; at sites behind a
    pooler, the only state.
    """
    if len(texts) > 1 and not TOKENS_FIRST.isdisjoint(model_types(rotated)):  # whose rows cannot be told from tokens
        alone = [states_before(rotated, adapter, tokenizer, [text], max_length) for text in texts]
        return {site.name: np.concatenate([states[site.name] for states in alone]) for site in adapter.sites}
    batch = padded_batch(tokenizer, texts, max_length).to(rotated.device)
    token = token_index(batch["attention_mask"], text_token(tokenizer))
    rows = torch.arange(len(token))
    is_rotated = position_mask(adapter.positions, batch["attention_mask"])[rows, token].cpu()[:, None]
    found: dict[str, np.ndarray] = {}

    def read(site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = hidden_of(output)
            hidden = hidden if site.output_slice is None else site.output_slice.select(hidden)
            if len(rows) == 1 or hidden.ndim == 2:  # with tokens on the first axis; of a pooler, or of all tokens in a row
                hidden = hidden.reshape(len(rows), -1, site.width)
            states = hidden[rows, token if hidden.shape[1] > 1 else 0]
            pairs = states.float().unflatten(-1, (-1, 2, adapter.group_size // 2))
            behind = torch.complex(*pairs.unbind(-2)).flatten(-2).cpu()
            maps = adapter.plane_maps(site)
            a, b = maps.a.cpu(), torch.zeros(()) if maps.b is None else maps.b.cpu()
            before = (a.conj() * behind - b * behind.conj()) / (a.abs() ** 2 - b.abs() ** 2)
            found[site.name] = torch.where(is_rotated, before.nan_to_num(0, 0, 0), behind).numpy()

        return hook

    modules = [(rotated.get_submodule(site.module), site) for site in adapter.sites]
    with hooked([(module.register_forward_hook, read(site), {}) for module, site in modules]):
        rotated(**batch)
    return found
