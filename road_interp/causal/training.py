"""Training of an interchange."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from road_interp.arguments import check_argument, check_count
from road_interp.causal.arguments import check_interchange
from road_interp.causal.interchange_runs import InterchangeRuns
from road_interp.errors import InputError
from road_interp.models.seeding import generator_of
from road_interp.progress import Progress, silent

BATCH_SIZE = 16  # pairs per step
RATE_OF_BOUNDARIES = 10  # of pyvene's boundless DAS, times that of its rotation, as in its tutorial
BOUNDARIES = "intervention_boundaries"  # its name there


def train_interchange(
    runs: InterchangeRuns,
    interchange: nn.Module,
    steps: int = 200,
    learning_rate: float = 0.02,
    *,
    seed: int = 0,
    temperatures: tuple[float, float] | None = None,
    progress: Progress = silent,
) -> tuple[float, ...]:
    """Train an interchange, in place, so that the model gives the source's answer after the base text.

    The loss is the cross entropy of the source's answer among all answers of the task. The optimizer is Adam, with a learning
    rate that decays linearly to zero; that of the boundary of pyvene's boundless DAS is ten times as large.

    Args:
        interchange: a pyvene intervention with a source, or a module called with the states of base and source.
        steps: number of steps of BATCH_SIZE pairs.
        learning_rate: that of the first step.
        seed: of the order of the pairs.
        temperatures: of a learned mask (`set_temperature`), at the first and the last step; interpolated geometrically.

    Returns:
        The loss of every step (nats).

    Raises:
        InputError: an interchange that cannot be applied to the states of `runs` or has nothing to train, or no steps.
    """
    check_argument("causal.train_interchange", runs, InterchangeRuns, "InterchangeRuns(model, pairs, layer, span)")
    check_interchange("causal.train_interchange", interchange, runs.bases[:1], runs.sources[:1])
    runs.check_model()
    answers = runs.tensor(runs.pairs.label_tokens)
    targets = torch.searchsorted(answers, runs.source_label)

    def loss(rows: Tensor) -> Tensor:
        return functional.cross_entropy(runs.logits(rows, interchange)[:, answers].float(), targets[rows])

    return run_steps(
        interchange,
        loss,
        len(targets),
        targets.device,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        temperatures=temperatures,
        progress=progress,
    )


def run_steps(
    interchange: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    rows: int,
    device: torch.device,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    temperatures: tuple[float, float] | None,
    progress: Progress,
) -> tuple[float, ...]:
    """Minimise a loss of batches of rows by Adam, with a learning rate that decays linearly to zero.

    Args:
        loss_of: the loss of a batch, from its row numbers.
        rows: their number.
        device: of the row numbers that `loss_of` is given.

    Returns:
        The loss of every step.

    Raises:
        InputError: no steps, a learning rate that is no finite number of at least 0, temperatures that are not above 0 or of no
            mask, or nothing to train.
    """
    _check_training(interchange, steps, learning_rate, temperatures)
    optimizer = torch.optim.Adam(
        [
            {"params": [each], "lr": float(learning_rate) * (RATE_OF_BOUNDARIES if name.endswith(BOUNDARIES) else 1)}
            for name, each in interchange.named_parameters()
            if each.requires_grad
        ]
    )
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses = []
    for step, batch in enumerate(_shuffled_rows(rows, BATCH_SIZE, steps, seed, device)):
        if temperatures is not None:
            first, last = temperatures
            set_temperature: Any = interchange.set_temperature
            set_temperature(torch.tensor(first * (last / first) ** (step / max(1, steps - 1)), device=device))
        loss = loss_of(batch)
        if not loss.requires_grad:
            raise InputError(
                f"nothing that is trained enters the loss of a {type(interchange).__name__}: a hardened mask is fixed"
            )
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise InputError(
                f"the loss of step {step + 1} is {losses[-1]}: use bfloat16 or float32, or a smaller learning rate than "
                f"{learning_rate:g}"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        progress(f"loss {losses[-1]:.3g}", step + 1, steps)
    return tuple(losses)


def _check_training(interchange: nn.Module, steps: object, learning_rate: Any, temperatures: tuple[float, float] | None) -> None:
    check_count("the training", "steps", steps)
    if not isinstance(learning_rate, Real) or isinstance(learning_rate, bool) or not 0 <= float(learning_rate) < math.inf:
        raise InputError(f"learning_rate must be a finite number of at least 0, not {learning_rate!r}")
    check_argument("the training", interchange, nn.Module, "a module with parameters, such as RoadInterchangeIntervention")
    if not torch.is_grad_enabled():
        raise InputError("the training needs gradients: leave torch.no_grad() or torch.inference_mode() first")
    if not any(parameter.requires_grad for parameter in interchange.parameters()):
        raise InputError(f"a {type(interchange).__name__} without trainable parameters cannot be trained")
    if temperatures is None and hasattr(interchange, "set_temperature") and getattr(interchange, "has_soft_mask", True):
        warnings.warn(
            f"{type(interchange).__name__} swaps in part at its present temperature, which this training would not lower: "
            f"give temperatures, as in {getattr(interchange, 'temperatures', (50.0, 0.1))}",
            stacklevel=4,
        )
    if temperatures is not None:
        if not hasattr(interchange, "set_temperature") or not getattr(interchange, "has_soft_mask", True):
            raise InputError(
                f"this {type(interchange).__name__} has no learned mask whose temperature could change: leave temperatures out"
            )
        are_two = isinstance(temperatures, tuple | list) and len(temperatures) == 2
        if not are_two or not all(isinstance(each, Real) and 0 < float(each) < math.inf for each in temperatures):
            raise InputError(
                f"temperatures must be two finite numbers above 0, at the first and the last step, not {temperatures!r}"
            )


def _shuffled_rows(count: int, size: int, steps: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    """`steps` batches of `size` row numbers; all `count` rows are used once before any is repeated."""
    generator = generator_of(seed)
    rows = torch.cat([torch.randperm(count, generator=generator) for _ in range(-(-steps * size // count))])
    yield from rows[: steps * size].to(device).split(size)
