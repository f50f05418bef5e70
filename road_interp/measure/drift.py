"""Drift of hidden states between two models, in direction and magnitude (paper, pilot study 1, figures 2 and B.1)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import erf, ndtri
from torch import Tensor, distributed
from transformers import PreTrainedModel

from road_interp.adapters.base_model import model_name
from road_interp.arguments import check_argument
from road_interp.errors import InputError
from road_interp.measure.arguments import check_batch, check_batches
from road_interp.measure.drift_sums import DriftSums, Mean
from road_interp.measure.intervals import bootstrap_means, interval
from road_interp.models.hidden_states import (
    Batch,
    ReadPoint,
    Token,
    evaluation_mode,
    find_read_points,
    read_states,
    select_states,
    token_mask,
    unwrap_model,
)
from road_interp.models.road_model import RoadModel
from road_interp.models.vocabulary import vocabulary_of
from road_interp.progress import Progress, silent
from road_interp.results import Result, columns
from road_interp.sources import readable_name

DEVIATES = ndtri((np.arange(2001) + 0.5) / 2001)  # of the normal distribution, equally likely


@dataclass(frozen=True)
class ReadPointDrift:
    """Drift of the states at one read point.

    Attributes:
        layer: index of the block, counted from 0.
        before_norm: whether the states are the input of the normalisation at the end of the block.
        norm_is_pinned: whether the states are the output of such a normalisation. It sets the norm and then scales the
            dimensions, so dM depends on the direction and these scales only, not on the magnitude that the block computed
            (unless a rotation acts on the block's output).
        dM: relative change of the norm, | ||x|| - ||x0|| | / ||x0||, a factor.
        signed: the same with its sign: positive if the norm grew.
        dD: cosine between the states, cos(x, x0).
        angle: between the states, degrees.
        correlation: of dM and angle over states; None if either is constant.
        points: (dD, dM) of one state of at most 500 texts, both drawn at random, the same at every read point. dM and the
            distance of dD from 1 have four significant digits.
        width: number of dimensions of the states; None in files of 0.1.
    """

    layer: int
    before_norm: bool
    norm_is_pinned: bool
    dM: Mean
    signed: Mean
    dD: Mean
    angle: Mean
    correlation: float | None
    points: tuple[tuple[float, float], ...]
    width: int | None = None

    def null_at(self, direction: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The expected dM of adding a random vector that turns a state by an angle with the cosine `direction`, above 0.

        Most of the vector is orthogonal to the state. With its part along the state, which is z / sqrt(width) of it for a normal
        deviate z, the state becomes 1 / (cos(angle) - sin(angle) z / sqrt(width)) as long. To first order in z that is normal
        around the secant of the angle with standard deviation sin(angle) / cos(angle)^2 / sqrt(width), which is most of the
        change below about 5 degrees in 384 dimensions, and dM is folded normal. Without a `width` z is left out. Beyond 60
        degrees it is too large, by a fifth at 80 degrees in 384 dimensions.
        """
        longer, deviation = 1 / direction - 1, self._along(direction) / direction**2
        ratio = np.divide(longer, deviation, out=np.full_like(longer, np.inf), where=deviation > 0)
        return deviation * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) + longer * erf(ratio / np.sqrt(2))

    def _along(self, direction: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Standard deviation of the part along the state of the random vector of `null_at`, over the length of the new state."""
        return np.sqrt(np.maximum(1 - direction**2, 0) / (self.width or np.inf))

    @property
    def null(self) -> float | None:
        """Mean dM over `points` that a random change with the same angles would have (`null_at`).

        None if one of them turned by 90 degrees or more, which no such change does.
        """
        direction = self._direction
        return float(self.null_at(direction).mean()) if (direction > 0).all() else None

    @property
    def over_null(self) -> Mean | None:
        """Mean dM over `points` divided by `null`, with the 95% bootstrap interval over texts.

        None without a null above 0, and where a LayerNorm sets the norm.
        """
        return self._over(self.null_at(self._direction)) if self._has_null else None

    @property
    def chance_as_large(self) -> float | None:
        """Probability of a mean dM over `points` that is as large, if one random vector changes all texts.

        The texts of one training may change alike. The random parts along their states (`null_at`) are then one normal deviate
        in place of one for every text, so that even many texts say little: that is the least that they can say. None where
        there is no `over_null`.
        """
        expected = self._means_if_shared
        return None if expected is None else _chance(expected >= np.array(self.points)[:, 1].mean())

    @property
    def chance_as_small(self) -> float | None:
        """As `chance_as_large`, of a mean that is as small."""
        expected = self._means_if_shared
        return None if expected is None else _chance(expected <= np.array(self.points)[:, 1].mean())

    @property
    def _means_if_shared(self) -> Float[np.ndarray, " deviates"] | None:
        """The mean dM over `points` for every deviate of one random vector."""
        if not self._has_null:
            return None
        inverse = self._direction - self._along(self._direction) * DEVIATES[:, None]  # of the new length
        length = np.divide(1, inverse, out=np.full_like(inverse, np.inf), where=inverse > 0)
        return np.abs(length - 1).mean(1)

    @property
    def over_turn(self) -> Mean | None:
        """Mean dM over `points` divided by the mean displacement by the turn alone, 2 sin(angle / 2), with its 95% interval.

        Below 1 a state moves further by its turn than by its length. None without a turn, and where a LayerNorm sets the norm.
        """
        turn = np.sqrt(np.maximum(2 - 2 * self._direction, 0))
        return self._over(turn) if turn.any() and not self.norm_is_pinned else None

    @property
    def _has_null(self) -> bool:
        return bool(self.null) and not self.norm_is_pinned

    @property
    def _direction(self) -> Float[np.ndarray, " texts"]:
        return np.array(self.points)[:, 0]

    def _over(self, expected: Float[np.ndarray, " texts"]) -> Mean:
        """Mean dM over the mean of an expected dM of every text, with the 95% bootstrap interval over texts."""
        magnitude = np.array(self.points)[:, 1]
        samples = bootstrap_means(np.stack([magnitude, expected]))
        changed, turned = samples[:, samples[1] > 0]  # where few texts change, a bootstrap sample may have none of them
        return (float(magnitude.mean() / expected.mean()), *interval(changed / turned))

    @property
    def name(self) -> str:
        """Name in figures and tables, such as "block 3, after its LayerNorm (which sets the norm)"."""
        after = ", after its LayerNorm (which sets the norm)" if self.norm_is_pinned else ""
        return f"block {self.layer}" + (", before its LayerNorm" if self.before_norm else after)


def _chance(beyond: Bool[np.ndarray, " deviates"]) -> float:
    return max(float(beyond.mean()), 1 / len(DEVIATES))


@dataclass(frozen=True)
class DriftReport(Result):
    """Drift of the states of the same texts between two models.

    Attributes:
        base, tuned: names of the models.
        token: which states were compared: of the first or last token, their mean over tokens, or of all tokens.
        texts, states: numbers of texts and states.
        places: read points: the output of every block, and the input of the normalisation at its end, if there is one.
    """

    base: str
    tuned: str
    token: Token
    texts: int
    states: int
    places: tuple[ReadPointDrift, ...]

    @property
    def layers(self) -> list[int]:
        """Block numbers, sorted."""
        return sorted({place.layer for place in self.places})

    def place(self, layer: int, before_norm: bool = False) -> ReadPointDrift:
        """The read point of a block; negative layers count from the last. Raises InputError if there is none."""
        index = layer % len(self.layers) if -len(self.layers) <= layer < 0 else layer
        for place in self.places:
            if (place.layer, place.before_norm) == (index, before_norm):
                return place
        what = "does not end in a normalisation" if before_norm and index in self.layers else "does not exist"
        raise InputError(f"block {layer} {what}; there are {len(self.layers)} blocks")


@dataclass(frozen=True)
class DriftStudy(Result):
    """Several comparisons, such as of methods and seeds with one pretrained model.

    Attributes:
        reports: those of one method and several seeds have the same names.
        scores: by report, the scores of the training of its tuned model; empty if it was not trained.
    """

    reports: tuple[DriftReport, ...]
    scores: tuple[Mapping[str, Any], ...]

    def records(self) -> list[dict[str, Any]]:
        """A row per comparison and read point."""
        return [
            {"base": report.base, "tuned": report.tuned, **columns(place)} for report in self.reports for place in report.places
        ]


@dataclass(frozen=True)
class _Side:
    """One of the two models and its read points."""

    model: Any
    name: str
    places: tuple[ReadPoint, ...]

    def states(self, batch: Batch, token: Token) -> tuple[list[Float[Tensor, "states width"]], Int[Tensor, " states"]]:
        """States at every read point in double precision, and the row of the batch of each state."""
        with evaluation_mode(self.model) as model:
            inputs = _on(model.device, batch)
            read, mask = read_states(model, self.places, inputs), token_mask(model, self.places, inputs)
        selected = [select_states(states.double(), mask, token) for states in read]
        for place, (states, _) in zip(self.places, selected, strict=True):
            norms = states.norm(dim=-1)
            if bad := norms[~(norms.isfinite() & (norms > 0))].tolist():
                raise InputError(f"{self.name}, {place.name}: a state has norm {bad[0]:g}, and so no direction")
        return [states for states, _ in selected], selected[0][1]


def check_token(token: str) -> None:
    """Raise InputError unless the states of this token can be compared."""
    if token not in get_args(Token):
        raise InputError(f"token '{token}' is not known; use {', '.join(get_args(Token))}")


def drift(
    base: Any,
    tuned: Any,
    batches: Iterable[Batch],
    token: Token = "first",
    *,
    stack: str | None = None,
    base_name: str | None = None,
    tuned_name: str | None = None,
    progress: Progress = silent,
) -> DriftReport:
    """Compare the states of two models on the same texts, at every read point, in one pass over the texts.

    Intervals are percentiles of a bootstrap over texts, and too narrow for a few of them: in simulations with normal values they
    held the mean in .51 of the cases with two texts, and in .93 with ten.

    If a process group of torch.distributed is initialised, every process must be given the same batches. It computes its share
    of them, and all processes return the report of all texts.

    Args:
        base, tuned: transformers models, RoadModels or PEFT models of the same depth and width. Where one is a PEFT model
            around the base model of the other, its adapter is disabled while the other is read.
        batches: model inputs with an attention_mask.
        token: as in DriftReport; "last" for causal models, whose first token does not depend on the rest of the text.
        stack: path of the block stack, for models that have two (encoder and decoder).
        base_name, tuned_name: names for the report; by default those of the models.
        progress: called before every batch with the number of finished texts.

    Raises:
        InputError: something that is no model, a model of PEFT's prompt learning, texts in place of batches, models that differ
            in blocks or width, an unknown token, fewer than two texts, a text without tokens, or a state whose norm is 0 or not
            finite.
    """
    check_token(token)
    _check_models(base, tuned)
    check_batches("drift", batches)
    names = (base_name or _name(base), tuned_name or _name(tuned))
    process, processes = _share()
    sides: tuple[_Side, _Side] | None = None
    sums: DriftSums | None = None
    texts = 0
    for number, batch in enumerate(batches):
        check_batch("drift", batch)
        rows = len(batch["attention_mask"])
        progress("texts", texts)
        for model, name in zip((base, tuned), names, strict=True):
            _check_tokens(unwrap_model(model), name, batch)
        if sides is None:
            sides = _pair(base, tuned, batch, names, stack)
            sums = DriftSums.of(np.zeros((0, len(sides[0].places), 7)), np.zeros(0, int), range(0))
        if number % processes == process:
            masks = [mask for name, mask in batch.items() if name in ("attention_mask", "decoder_attention_mask")]
            if not all(mask.any(1).all() for mask in masks):
                raise InputError(f"a text among {texts} to {texts + rows - 1} has no tokens")
            assert sums is not None
            sums = sums.merge(DriftSums.of(*_compare(*sides, batch, token), range(texts, texts + rows)))
        texts += rows
    if sides is None or sums is None:
        raise InputError("there are no texts to compare states on")
    if texts < 2:
        raise InputError("measure.drift needs two texts at least: its intervals are over texts")
    report = _report(sides, _over_processes(sums), token)
    if token == "first" and all(len({*place.points}) == 1 and place.angle[0] > 0 for place in report.places):
        warnings.warn(
            f"the state of the first token changes alike in all {report.texts} texts, as that of a BOS token does, so that "
            "intervals over texts say nothing: give token='last' for a causal model",
            stacklevel=2,
        )
    return report


def _check_models(base: Any, tuned: Any) -> None:
    """Raise InputError for something that is no model, and where both have the same weights, with rotations merged into them."""
    for model in (base, tuned):
        check_argument("measure.drift", unwrap_model(model), PreTrainedModel, "a model, such as run.load_model()")
    rotates = isinstance(tuned, RoadModel) and not tuned.is_merged
    merged = any(isinstance(each, RoadModel) and each.is_merged for each in (base, tuned))
    if merged and not rotates and unwrap_model(base) is unwrap_model(tuned):
        raise InputError("measure.drift: the rotations are merged into the weights of both: call unmerge first")


def _name(model: Any) -> str:
    """The readable name of a model, and whether rotations or another adapter change it."""
    inner = unwrap_model(model)
    name = readable_name(model_name(inner))
    return name if model is inner else f"{name}, {'with rotations' if isinstance(model, RoadModel) else 'with an adapter'}"


def _pair(base: Any, tuned: Any, batch: Batch, names: tuple[str, str], stack: str | None) -> tuple[_Side, _Side]:
    """Both models with their read points. Raises InputError if these are not at the same blocks."""
    points = []
    for model in (base, tuned):
        with evaluation_mode(unwrap_model(model)) as inner:
            points.append(find_read_points(inner, _on(inner.device, batch), stack))
    keys = [[(point.layer, point.before_norm) for point in each] for each in points]
    if keys[0] != keys[1]:
        depths = [len({layer for layer, _ in each}) for each in keys]
        kinds = "" if depths[0] != depths[1] else ", and the blocks of only one end in a normalisation"
        raise InputError(f"{names[0]} has {depths[0]} blocks, {names[1]} {depths[1]}{kinds}: their states cannot be paired")
    return _Side(base, names[0], points[0]), _Side(tuned, names[1], points[1])


def _check_tokens(model: PreTrainedModel, name: str, batch: Batch) -> None:
    """Raise InputError for a token that a model does not know."""
    if "input_ids" in batch:
        largest, known = int(batch["input_ids"].max()), vocabulary_of(model)
        if known is not None and largest >= known:
            raise InputError(f"the texts have token {largest}, {name} knows {known}: both models must read the same tokens")


def _compare(
    base: _Side, tuned: _Side, batch: Batch, token: Token
) -> tuple[Float[np.ndarray, "states places 7"], Int[np.ndarray, " states"]]:
    """The quantities of every state for `DriftSums.of`, and the row of the batch of each state."""
    with _without_adapter(base.model, tuned.model):
        before, rows = base.states(batch, token)
    with _without_adapter(tuned.model, base.model):
        after, _ = tuned.states(batch, token)
    values = []
    for old, new in zip(before, after, strict=True):
        if old.shape != new.shape:
            widths = f"{base.name} has width {old.shape[-1]}, {tuned.name} {new.shape[-1]}"
            raise InputError(f"{widths}: their states cannot be compared")
        values.append(_changes(old, new.to(old.device)).cpu().numpy())
    return np.stack(values, axis=1), rows.cpu().numpy()


def _changes(before: Float[Tensor, "states width"], after: Float[Tensor, "states width"]) -> Float[Tensor, "states 7"]:
    """The quantities of `DriftSums.totals` for every state.

    The angle is twice the arctangent of |u - v| / |u + v| for unit vectors u and v (Kahan 2006). This is accurate near 0, where
    the arccosine of a rounded cosine is not.
    """
    old, new = before.norm(dim=-1, keepdim=True), after.norm(dim=-1, keepdim=True)
    u, v = before / old, after / new
    radians = 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))
    signed = (new / old - 1).squeeze(-1)
    dM, angle = signed.abs(), radians.rad2deg()
    return torch.stack([dM, signed, radians.cos(), angle, dM**2, angle**2, dM * angle], dim=-1)


def _report(sides: tuple[_Side, _Side], sums: DriftSums, token: Token) -> DriftReport:
    normalised = {place.layer for place in sides[0].places if place.before_norm}
    places = []
    for index, place in enumerate(sides[0].places):
        pinned = place.layer in normalised and not place.before_norm
        points = tuple((1 - _rounded(1 - direction), _rounded(magnitude)) for direction, magnitude in sums.points[:, index])
        dM, signed, dD, angle = sums.means(index)
        correlation, where = sums.correlation(index), (place.layer, place.before_norm, pinned)
        places.append(ReadPointDrift(*where, dM, signed, dD, angle, correlation, points, place.width))
    return DriftReport(sides[0].name, sides[1].name, token, sums.texts, sums.states, tuple(places))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _without_adapter(model: Any, other: Any) -> AbstractContextManager[Any]:
    """Disable the adapter of `other` while `model` is read, if only `other` is a PEFT model, around the same base model."""
    only_other = hasattr(other, "disable_adapter") and not hasattr(model, "disable_adapter")
    return other.disable_adapter() if only_other and unwrap_model(other) is unwrap_model(model) else nullcontext()


def _on(device: torch.device, batch: Batch) -> dict[str, Tensor]:
    return {key: value.to(device) for key, value in batch.items()}


def _share() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _over_processes(sums: DriftSums) -> DriftSums:
    """The sums over the texts of all processes, which are the same in every process."""
    processes = _share()[1]
    if processes == 1:
        return sums
    gathered: list[Any] = [None] * processes
    distributed.all_gather_object(gathered, sums)
    return reduce(DriftSums.merge, gathered)
