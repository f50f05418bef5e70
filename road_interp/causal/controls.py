"""Controls for interchange accuracy: untrained swaps, other methods, a model with random weights, and arbitrary answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from road_interp.causal.accuracy import InterchangeReport, interchange_accuracy
from road_interp.causal.arguments import check_model, check_numbers, check_tokenizer
from road_interp.causal.counterfactuals import Splits, check_splits
from road_interp.causal.directions import mean_difference, probe_direction, swap_along
from road_interp.causal.interchange_runs import Interchange, InterchangeRuns, full_swap, in_evaluation, no_swap
from road_interp.causal.methods import DAS, PLANES, STACKED, learning_rates, methods, train_method
from road_interp.models.seeding import seeded
from road_interp.models.subspace_interchange import SubspaceInterchange
from road_interp.progress import Progress, silent
from road_interp.results import Result, columns, entry
from road_interp.sites.site import Site

# Continuations that have nothing to do with the variable of any task: what follows them should not depend on a swap.
UNRELATED = (". The capital of France is", ". Two plus two makes", ". In winter the weather is", ". Once upon a time, there")


@dataclass(frozen=True)
class ControlReport(Result):
    """All methods and controls for one task at one site, on the same test pairs.

    Attributes:
        seed: of the trainings, of the division of words and of the pairs.
        steps: of every training; None in results of 0.1.0.
        rows: one per method and control.
        words: words of base and source of every test pair, as in `CounterfactualPairs.clusters`.
        divergences: by method, the mean KL(without || with the interchange) of the next token after unrelated continuations
            (nats).
        directions: by method, the cosine of the angle between the stacked rotation's direction and the method's subspace; for
            methods of one direction the absolute cosine of both.
        learning_rates: of the first step, by trained method; empty in older results.
    """

    seed: int
    steps: int | None
    rows: tuple[InterchangeReport, ...]
    words: tuple[tuple[str, str], ...]
    divergences: Mapping[str, float]
    directions: Mapping[str, float]
    learning_rates: Mapping[str, float] = field(default_factory=dict)

    def of(self, method: str) -> InterchangeReport:
        """The row of a method. Raises InputError if there is none."""
        return entry({row.method: row for row in self.rows}, method, "row")

    def records(self) -> list[dict[str, Any]]:
        """A row per method and control; a divergence and a cosine (`directions`) where they were measured."""
        other = {"divergence": self.divergences, "cosine": self.directions}
        return [columns(row) | {name: values.get(row.method) for name, values in other.items()} for row in self.rows]

    def selectivity(self, method: str = STACKED) -> float:
        """Log odds ratio of a method minus that for arbitrary answers (nats; Hewitt & Liang 2019)."""
        return self.of(method).log_odds - self.of(f"{method}, arbitrary answers").log_odds


def controls(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: Splits,
    site: Site | int,
    span: str,
    *,
    seed: int = 0,
    steps: int = 200,
    progress: Progress = silent,
) -> ControlReport:
    """Train and test every interchange of `methods`, and these controls:

    - no swap and the full swap of the state, which have no parameters;
    - the RoAd interchanges with random angles, untrained;
    - swaps along the difference of class means and along the normal of a linear probe, both fitted to the training pairs;
    - the stacked rotation and DAS of rank 1 on a model of the same architecture with random weights, and with arbitrary answers.

    Args:
        model: a causal language model; it is frozen and set to evaluation mode, and stays so.
        tokenizer: of the model, for unrelated continuations of the test pairs' bases.
        site, span: where states are exchanged, as in InterchangeRuns.
        steps: number of training steps of every trained interchange.

    Raises:
        InputError: an argument of a wrong type, or pairs that are not divided into `Splits`.
    """
    check_model("causal.controls", model)
    check_tokenizer("causal.controls", tokenizer)
    check_splits("causal.controls", splits)
    unrelated = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in UNRELATED]
    train, test = (InterchangeRuns(model, pairs, site, span, progress=progress) for pairs in (splits.train, splits.test))
    directions = {"difference of means": mean_difference(train), "linear probe": probe_direction(train)}
    swaps: dict[str, Interchange] = {"no swap": no_swap, "full swap": full_swap}
    for name, method in methods(seed).items():
        if name in (STACKED, PLANES):
            random = methods(seed, spread=torch.pi)[name].make(test.site.width)
            swaps[f"{name}, random angles"] = random.requires_grad_(False).to(model.device)
        swaps[name] = trained = train_method(train, name, method, seed=seed, steps=steps, progress=progress)
        if isinstance(trained, SubspaceInterchange):
            directions[name] = trained.basis()
    swaps |= {name: swap_along(directions[name]) for name in ("difference of means", "linear probe")}
    continued = InterchangeRuns(model, splits.test.continued(unrelated), site, span, progress=progress)
    rows = [interchange_accuracy(test, swap, name) for name, swap in swaps.items()]
    stacked = directions[STACKED].squeeze(1)
    return ControlReport(
        seed,
        steps,
        (*rows, *_of_chance(train, test, site, seed, steps, progress)),
        splits.test.clusters(span),
        divergences(continued, swaps),
        {name: float((basis.T @ stacked).norm()) for name, basis in directions.items() if name != STACKED},
        learning_rates(*methods()),
    )


def _of_chance(
    train: InterchangeRuns, test: InterchangeRuns, site: Site | int, seed: int, steps: int, progress: Progress
) -> list[InterchangeReport]:
    """What one direction reaches on a model with random weights, and with arbitrary answers."""
    untrained = untrained_like(train.model, seed)
    vocabulary = train.model.config.get_text_config().vocab_size
    conditions = {
        "random weights": [InterchangeRuns(untrained, runs.pairs, site, runs.span, progress=progress) for runs in (train, test)],
        "arbitrary answers": [runs.relabelled(runs.pairs.with_arbitrary_labels(vocabulary, seed)) for runs in (train, test)],
    }
    rows = []
    for control, (train_runs, test_runs) in conditions.items():
        rows.append(interchange_accuracy(test_runs, no_swap, f"no swap, {control}"))
        for name in (STACKED, DAS):
            label, method = f"{name}, {control}", methods(seed)[name]
            swap = train_method(train_runs, label, method, seed=seed, steps=steps, progress=progress)
            rows.append(interchange_accuracy(test_runs, swap, label))
    return rows


@torch.no_grad()
def divergences(runs: InterchangeRuns, swaps: Mapping[str, Interchange]) -> dict[str, float]:
    """By interchange, the mean over pairs of KL(without || with it) of the next token (nats)."""
    totals = dict.fromkeys(swaps, 0.0)
    for rows in runs.batches("unrelated continuations"):
        plain = runs.logits(rows, no_swap).float().log_softmax(-1)
        for name, swap in swaps.items():
            with in_evaluation(swap):
                logits = runs.logits(rows, swap).float()
            check_numbers(logits, "with this interchange the model's logits")
            totals[name] += float(functional.kl_div(logits.log_softmax(-1), plain, reduction="sum", log_target=True))
    return {name: total / len(runs.pairs) for name, total in totals.items()}


def untrained_like(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """A causal language model of the same configuration, dtype and device with random weights."""
    with seeded(seed):
        untrained: Any = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
    return untrained.to(model.device)
