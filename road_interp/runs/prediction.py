"""Predictions of a trained classification or regression head on texts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import softmax
from transformers import BatchEncoding, PreTrainedTokenizerBase

from road_interp.arguments import lone_surrogate
from road_interp.data.batches import batches_by_length
from road_interp.data.head_outputs import check_logits
from road_interp.data.labelled import check_max_length
from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel
from road_interp.progress import Progress, silent

BATCH_SIZE = 32
Text = str | tuple[str, str]


@dataclass(frozen=True)
class Prediction:
    """The prediction for one text.

    Attributes:
        text: the text, or both texts of a pair.
        label: the predicted class, as it is in the data; the predicted number for regression.
        probability: of the predicted class; None for regression.
    """

    text: Text
    label: Any
    probability: float | None


def checked_texts(texts: Iterable[Text], pairs: bool) -> list[Text]:
    """The texts as a list. Raises InputError unless they are texts, or pairs of texts, of whole characters."""
    if isinstance(texts, str):
        raise InputError("one text is given; put it into a list: predict([text])")
    if not isinstance(texts, Iterable):
        raise InputError(f"predict needs a list of texts, not {type(texts).__name__}")
    for row, text in enumerate(listed := list(texts)):
        parts = text if isinstance(text, tuple | list) else (text,)
        if len(parts) != 1 + pairs or isinstance(text, str) == pairs or not all(isinstance(part, str) for part in parts):
            what = "a pair of texts, such as (text, second text)" if pairs else "a text"
            raise InputError(f"texts, row {row}: the run was trained on {'pairs' if pairs else 'single texts'}; give {what}")
        if lone := lone_surrogate("".join(parts)):
            raise InputError(f"texts, row {row}: {lone} is half of a character; leave it out")
    return listed


@torch.no_grad()
def compute_logits(
    model: RoadModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    max_length: int,
    progress: Progress = silent,
    what: str = "texts",
) -> Float[np.ndarray, "texts num_labels"]:
    """The outputs of the head, in the order of `texts`; a batch holds texts of similar length.

    `progress(what, done, total)` counts texts.
    """
    lengths = [len(text) if isinstance(text, str) else sum(map(len, text)) for text in texts]
    logits: dict[int, np.ndarray] = {}
    for rows in batches_by_length(lengths, BATCH_SIZE):
        progress(what, len(logits), len(texts))
        batch = padded_batch(tokenizer, [texts[row] for row in rows], max_length).to(model.model.device)
        if empty := [row for row, mask in zip(rows, batch["attention_mask"], strict=True) if not mask.any()]:
            raise InputError(f"texts, row {empty[0]}: the tokeniser makes no token of {texts[empty[0]]!r}; leave it out")
        logits.update(zip(rows, model(base=dict(batch))[1].logits.float().cpu().numpy(), strict=True))
    return np.stack([logits[row] for row in range(len(texts))])


def padded_batch(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int) -> BatchEncoding:
    """Texts, or pairs of texts, as one batch of tensors, truncated to `max_length` tokens and padded.

    Raises InputError as `check_max_length`.
    """
    check_max_length(tokenizer, max_length, not isinstance(texts[0], str))
    columns = zip(*((text,) if isinstance(text, str) else text for text in texts), strict=True)
    return tokenizer(*map(list, columns), truncation=True, max_length=max_length, padding=True, return_tensors="pt")


def predictions_of(
    texts: Sequence[Text], logits: Float[np.ndarray, "texts num_labels"], classes: Sequence[Any] | None
) -> tuple[Prediction, ...]:
    """One prediction per row of the logits; `classes` is None for regression. Raises InputError as `check_logits`."""
    check_logits(logits)
    if classes is None:
        return tuple(
            Prediction(text, float(number), None) for text, number in zip(texts, logits.reshape(len(texts)), strict=True)
        )
    found, probabilities = logits.argmax(1), softmax(logits.astype(float), axis=1).max(1)
    rows = zip(texts, found, probabilities, strict=True)
    return tuple(Prediction(text, classes[index], float(probability)) for text, index, probability in rows)


def predictions_csv(predictions: Sequence[Prediction], labels: Sequence[Any] | None = None) -> str:
    """CSV with the columns text (for pairs also text_pair), label, prediction and probability (empty for regression).

    Args:
        labels: the labels of the data, in the same order; None leaves their column out.
    """
    pairs = bool(predictions) and not isinstance(predictions[0].text, str)
    lines = [_csv_line(["text", *["text_pair"] * pairs, *["label"] * (labels is not None), "prediction", "probability"])]
    for row, each in enumerate(predictions):
        texts = [each.text] if isinstance(each.text, str) else each.text
        known = [] if labels is None else [labels[row]]
        lines.append(_csv_line([*texts, *known, each.label, "" if each.probability is None else f"{each.probability:.6f}"]))
    return "".join(lines)


def _csv_line(cells: Sequence[Any]) -> str:
    """A line of CSV. A cell with any of the two characters of the csv module's own line end, "\\r\\n", is quoted."""
    file = io.StringIO()
    csv.writer(file).writerow(cells)
    return file.getvalue().removesuffix("\r\n") + "\n"
