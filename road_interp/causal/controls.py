"""Controls for interchange accuracy: untrained swaps, other methods, a model with random weights, and arbitrary answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from road_interp.causal.accuracy import InterchangeReport, interchange_accuracy
from road_interp.causal.counterfactuals import Splits
from road_interp.causal.interchange_runs import Interchange, InterchangeRuns, full_swap, no_swap
from road_interp.causal.training import train_interchange
from road_interp.errors import InputError
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.models.intervention import pyvene
from road_interp.progress import Progress, silent
from road_interp.results import Result
from road_interp.rotation import butterfly
from road_interp.sites.site import Site

STACKED, PLANES = "stacked RoAd, one row", "RoAd, a row of every plane"


class Method(NamedTuple):
    """A constructor of an interchange from a width, and the arguments with which `train_interchange` trains it."""

    make: Callable[[int], nn.Module]
    training: dict[str, Any]


def methods(seed: int = 0, spread: float = 0.1) -> dict[str, Method]:
    """The trained interchanges that are compared, by name: those of RoAd and those of pyvene.

    Args:
        seed: of the initial values.
        spread: of RoAd's initial angles (radians), as in RoadInterchangeIntervention.
    """

    def stacked(width: int) -> nn.Module:
        return RoadInterchangeIntervention(width, butterfly.full_depth(width), [0], seed, spread)

    def planes(width: int) -> nn.Module:
        return RoadInterchangeIntervention(width, seed=seed, spread=spread)

    def low_rank(rank: int) -> Callable[[int], nn.Module]:
        return lambda width: _seeded(
            seed, lambda: pyvene.LowRankRotatedSpaceIntervention(embed_dim=width, low_rank_dimension=rank)
        )

    def boundless(width: int) -> nn.Module:
        return _seeded(seed, lambda: pyvene.BoundlessRotatedSpaceIntervention(embed_dim=width))

    return {
        STACKED: Method(stacked, {"learning_rate": 0.05}),
        PLANES: Method(planes, {"learning_rate": 0.05}),
        "low-rank DAS, rank 1": Method(low_rank(1), {"learning_rate": 0.01}),
        "low-rank DAS, rank 8": Method(low_rank(8), {"learning_rate": 0.01}),
        "boundless DAS": Method(boundless, {"learning_rate": 1e-3, "temperatures": (50.0, 0.1)}),
    }


@dataclass(frozen=True)
class ControlReport(Result):
    """All methods and controls for one task at one site, on the same test pairs."""

    seed: int
    rows: tuple[InterchangeReport, ...]

    def of(self, method: str) -> InterchangeReport:
        """The row of a method. Raises InputError if there is none."""
        for row in self.rows:
            if row.method == method:
                return row
        raise InputError(f"no row '{method}'; the rows are {', '.join(row.method for row in self.rows)}")

    @property
    def selectivity(self) -> float:
        """Log odds ratio of the stacked rotation minus that for arbitrary answers (nats; Hewitt & Liang 2019)."""
        return self.of(STACKED).log_odds - self.of(f"{STACKED}, arbitrary answers").log_odds


def controls(
    model: PreTrainedModel,
    splits: Splits,
    site: Site | int,
    span: str,
    seed: int = 0,
    steps: int = 200,
    progress: Progress = silent,
) -> ControlReport:
    """Train and test every interchange of `methods`, and these controls:

    - no swap and the full swap of the state, which have no parameters;
    - the RoAd interchanges with random angles, untrained;
    - swaps along the difference of class means and along the normal of a linear probe, both fitted to the training pairs;
    - the stacked rotation on a model of the same architecture with random weights, and with arbitrary answers.

    Args:
        site, span: where states are exchanged, as in InterchangeRuns.
        steps: number of training steps of every trained interchange.
    """
    train, test = (InterchangeRuns(model, pairs, site, span) for pairs in (splits.train, splits.test))
    rows = [interchange_accuracy(test, swap, name) for name, swap in (("no swap", no_swap), ("full swap", full_swap))]
    for name, method in methods(seed).items():
        if name in (STACKED, PLANES):
            random = methods(seed, spread=torch.pi)[name].make(test.site.width).to(model.device)
            rows.append(interchange_accuracy(test, random, f"{name}, random angles"))
        rows.append(_trained(train, test, name, method, seed, steps, progress))
    for name, direction in (("difference of means", mean_difference(train)), ("linear probe", probe_direction(train))):
        rows.append(interchange_accuracy(test, swap_along(direction), name))
    stacked = methods(seed)[STACKED]
    untrained = untrained_like(model, seed)
    control = "random weights"
    train, test = (InterchangeRuns(untrained, pairs, site, span) for pairs in (splits.train, splits.test))
    rows.append(interchange_accuracy(test, no_swap, f"no swap, {control}"))
    rows.append(_trained(train, test, f"{STACKED}, {control}", stacked, seed, steps, progress))
    control, vocabulary = "arbitrary answers", model.config.get_text_config().vocab_size
    arbitrary = [pairs.with_arbitrary_labels(vocabulary, seed) for pairs in (splits.train, splits.test)]
    train, test = (InterchangeRuns(model, pairs, site, span) for pairs in arbitrary)
    rows.append(interchange_accuracy(test, no_swap, f"no swap, {control}"))
    rows.append(_trained(train, test, f"{STACKED}, {control}", stacked, seed, steps, progress))
    return ControlReport(seed, tuple(rows))


def _trained(
    train: InterchangeRuns, test: InterchangeRuns, name: str, method: Method, seed: int, steps: int, progress: Progress
) -> InterchangeReport:
    """Train an interchange on `train` and measure it on `test`."""
    interchange = method.make(test.site.width).to(test.model.device)
    train_interchange(
        train,
        interchange,
        steps,
        seed=seed,
        progress=lambda what, done=0, total=None: progress(f"{name}, {what}", done, total),
        **method.training,
    )
    return interchange_accuracy(test, interchange, name)


def swap_along(basis: Float[Tensor, "width k"]) -> Interchange:
    """The interchange that replaces the coordinates along the orthonormal columns of `basis` by those of the source."""
    return lambda base, source: base + ((source - base).to(basis.dtype) @ basis @ basis.T).to(base.dtype)


def mean_difference(runs: InterchangeRuns) -> Float[Tensor, "width 1"]:
    """Unit vector from the mean state of the first class to that of the second.

    Raises InputError unless there are two classes.
    """
    states, second = _states_by_class(runs)
    return nn.functional.normalize(states[second].mean(0) - states[~second].mean(0), dim=0).unsqueeze(1)


def probe_direction(runs: InterchangeRuns) -> Float[Tensor, "width 1"]:
    """Unit normal of the boundary between two classes found by logistic regression on standardised states.

    Raises InputError unless there are two classes.
    """
    states, second = _states_by_class(runs)
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(states.cpu().numpy(), second.cpu().numpy())
    normal = fitted[1].coef_[0] / fitted[0].scale_
    return torch.as_tensor(normal / np.linalg.norm(normal), dtype=states.dtype, device=states.device).unsqueeze(1)


def _states_by_class(runs: InterchangeRuns) -> tuple[Tensor, Tensor]:
    """States at the span from base and source runs `(2 * pairs, width)`, fp32, and whether each is of the second class."""
    labels = [*runs.pairs.base_class, *runs.pairs.source_class]
    classes = sorted(set(labels))
    if len(classes) != 2:
        raise InputError(f"a direction needs two classes; {runs.pairs.name} has {len(classes)} ({', '.join(classes[:5])})")
    states = torch.cat((runs.bases, runs.sources)).float()
    return states, torch.tensor([label == classes[1] for label in labels], device=states.device)


def untrained_like(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """A causal language model of the same configuration, dtype and device with random weights."""
    untrained: Any = _seeded(seed, lambda: AutoModelForCausalLM.from_config(model.config, dtype=model.dtype))
    return untrained.to(model.device)


def _seeded(seed: int, make: Callable[[], Any]) -> Any:
    """Call `make` with torch's global generator seeded, and restore the generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
