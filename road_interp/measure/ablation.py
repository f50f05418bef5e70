"""Ablation of a trained adapter: accuracy without its angles or magnitudes, without layers or modules, and with few planes.

The interventional counterpart of the paper's pilot studies: components of the adapter are reset to the identity, and the task is
scored again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Shaped

from road_interp.adapters.road_adapter import RoadAdapter, Source
from road_interp.arguments import check_callable, checked_reports
from road_interp.errors import InputError
from road_interp.from_mapping import FieldError
from road_interp.measure.angles import kinds_by_stack, layers_by_stack
from road_interp.measure.intervals import joined_seeds, mean_over_divisions, mean_over_seeds, same_counts
from road_interp.progress import Progress, silent
from road_interp.results import Result, entry

Group = Literal["components", "components, head refitted", "trained alone", "layer", "kind", "most rotated", "random planes"]
# Whether the model with an adapter is right, for every test example.
ScoreFn = Callable[[RoadAdapter], Bool[np.ndarray, " examples"]]


class Scorer(Protocol):
    """Scores a model with another adapter in place of its trained one (`ri.make_scorer`).

    Attributes:
        task: name of the data.
        metric: name of the score, used as axis label.
        same_examples: whether runs of other seeds have the same test examples; if it is left out, they have.
        refitted: as calling the scorer, but with the head refitted to the states under the adapter; None if there is no head.
    """

    task: str
    metric: str

    @property
    def refitted(self) -> ScoreFn | None: ...

    def __call__(self, adapter: RoadAdapter) -> Bool[np.ndarray, " examples"]:
        """Whether the model with this adapter is right, for every test example."""


BOTH, ANGLES, MAGNITUDES, NEITHER = "both", "angles only", "magnitudes only", "neither"
COMPONENTS: dict[str, Callable[[RoadAdapter], RoadAdapter]] = {
    BOTH: lambda adapter: adapter,
    ANGLES: RoadAdapter.angles_only,
    MAGNITUDES: RoadAdapter.magnitudes_only,
    NEITHER: RoadAdapter.identity_like,
}
SHARES = (0.01, 0.03, 0.1, 0.3)
BY = ("layer", "kind", "planes")


@dataclass(frozen=True)
class Ablation:
    """One ablated adapter and its outcomes.

    Attributes:
        group: which planes were ablated: all planes ("components", scored with the trained head, or with a refitted one), those
            of one "layer" or one module "kind", or all planes except a fraction of them ("most rotated" or "random planes").
            "trained alone" is not an ablation but another adapter, of which only that component was trained.
        what: "all planes", the layer, the module kind, or the fraction of planes that are kept. Where several block stacks have
            sites, a layer is preceded by the name of its stack; so is a kind that several have.
        component: polar component that the ablated planes keep: both, one or neither.
        correct: whether each test example is right, concatenated over seeds.
    """

    group: Group
    what: str
    component: str
    correct: tuple[bool, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """Key of the row: no two rows of a report share it."""
        return self.group, self.what, self.component


@dataclass(frozen=True)
class AblationReport(Result):
    """Outcomes of ablated adapters on the same test examples.

    Attributes:
        model, task: names of the base model and the data.
        variant: of the adapter.
        seeds: of the trainings.
        rows: one per ablated adapter; the first is the unchanged adapter.
        metric: name of the score, used as axis label.
        same_examples: whether the test examples of all seeds are the same.
        contained: whether each test example, the same of all seeds, stands word by word in a training text; empty where that was
            not looked at.
    """

    model: str
    task: str
    variant: str
    seeds: tuple[int, ...]
    rows: tuple[Ablation, ...]
    metric: str = "accuracy"
    same_examples: bool = True
    contained: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows or not same_counts([row.correct for row in self.rows], self.seeds):
            raise FieldError("rows", "must hold as many outcomes for each ablated adapter and seed, one at least")
        if self.contained and not (self.same_examples and len(self.contained) * len(self.seeds) == len(self.rows[0].correct)):
            raise FieldError("contained", "must have as many values as there are test examples, the same of all seeds")

    def of(self, group: Group, what: str, component: str) -> Ablation:
        """The row of one ablated adapter. Raises InputError if there is none."""
        return entry({": ".join(row.key): row for row in self.rows}, ": ".join((group, what, component)), "ablation")

    def with_trained_alone(self, component: str, correct: Sequence[bool]) -> AblationReport:
        """Add the outcomes of an adapter of the same seed of which only `component` (ANGLES or MAGNITUDES) was trained.

        Raises InputError for another number of examples, and for another component or one that the report already has.
        """
        if component not in (ANGLES, MAGNITUDES):
            raise InputError(f"'{component}' is not trained alone: use '{ANGLES}' or '{MAGNITUDES}'")
        row = Ablation("trained alone", "all planes", component, tuple(map(bool, correct)))
        if len(row.correct) != len(self.rows[0].correct):
            count = len(self.rows[0].correct)
            raise InputError(f"{component}: {len(row.correct)} outcomes, but the other rows have {count}")
        if row.key in {each.key for each in self.rows}:
            raise InputError(f"duplicate result for {component}")
        return replace(self, rows=(*self.rows, row))

    def accuracy(self, row: Ablation) -> tuple[float, float, float]:
        """Accuracy of a row with its 95% interval over seeds and examples: (value, low, high), fractions."""
        return self._mean(np.asarray(row.correct), paired=False)

    def loss(self, row: Ablation) -> tuple[float, float, float]:
        """Accuracy of the unchanged adapter minus that of a row, with the 95% interval of the paired difference."""
        return self.contrast(self.rows[0], row)

    def contrast(self, row: Ablation, other: Ablation, contained: bool | None = None) -> tuple[float, float, float]:
        """Accuracy of one row minus that of another, with the 95% interval of the paired difference.

        With `contained`, of the test examples that stand in a training text, or of the others; InputError if there are none.
        """
        lost = np.asarray(row.correct, float) - np.asarray(other.correct)
        if contained is not None:
            if contained not in self.contained:
                raise InputError("the test examples cannot be divided by whether they are in a training text")
            lost = lost[np.tile(np.asarray(self.contained) == contained, len(self.seeds))]
        return self._mean(lost, paired=True)

    def _mean(self, outcomes: Shaped[np.ndarray, " examples"], paired: bool) -> tuple[float, float, float]:
        mean = mean_over_seeds if self.same_examples else mean_over_divisions
        return mean(outcomes, len(self.seeds), paired)

    def summary(self) -> list[dict[str, object]]:
        """Accuracy and loss of accuracy of every row, with intervals."""
        return [
            {
                "group": row.group,
                "what": row.what,
                "component": row.component,
                "accuracy": self.accuracy(row),
                "loss": self.loss(row),
            }
            for row in self.rows
        ]

    def records(self) -> list[dict[str, object]]:
        """A row per ablated adapter."""
        return self.summary()

    @classmethod
    def over_seeds(cls, reports: Sequence[AblationReport]) -> AblationReport:
        """Combine reports of several seeds. Raises InputError if model, task, metric, variant or rows differ."""
        reports = checked_reports(cls, reports)
        first = reports[0]
        for each in reports:
            same = replace(each, seeds=first.seeds, rows=first.rows) == first
            if not same or [row.key for row in each.rows] != [row.key for row in first.rows]:
                raise InputError("only ablations of one model, task, metric and variant with the same rows can be combined")
        seeds = joined_seeds([each.seeds for each in reports], [len(each.rows[0].correct) for each in reports])
        rows = tuple(
            replace(same[0], correct=tuple(right for row in same for right in row.correct))
            for same in zip(*(each.rows for each in reports), strict=True)
        )
        return replace(first, seeds=seeds, rows=rows, provenance=None)


def ablation(
    adapter: Source,
    scorer: Scorer,
    *,
    model: str,
    seed: int,
    by: Collection[str] = BY,
    refit: bool = True,
    progress: Progress = silent,
) -> AblationReport:
    """Score a trained adapter and its ablations, in which polar components of planes are reset to the identity.

    Args:
        adapter: a trained adapter of any variant, or what `RoadAdapter.of` takes.
        scorer: scores the model with an adapter in place of the trained one.
        model: name of the base model.
        seed: of the adapter's training, and of the random planes.
        by: ablations in addition to those of all planes: of every "layer", of every module "kind", and of all planes except a few
            ("planes": the fractions SHARES of all planes, the most rotated ones and as many random ones).
        refit: whether to score the ablations of all planes also with a refitted head, if the scorer has one.

    Raises:
        InputError: an unknown name in `by`, a value without an adapter, or a scorer that cannot be called.
    """
    adapter = RoadAdapter.of(adapter)
    check_callable("measure.ablation", "scorer", scorer, "make_scorer(run)")
    for name in ("task", "metric", *(["refitted"] if refit else [])):
        if not hasattr(scorer, name):
            raise InputError(f"measure.ablation: the scorer has no '{name}': give make_scorer(run)")
    if isinstance(by, str) or not isinstance(by, Collection) or not all(isinstance(each, str) for each in by):
        raise InputError(f"by must be a list of names, as in ['layer'], not {by!r}")
    if unknown := set(by) - set(BY):
        raise InputError(f"by '{min(unknown)}' is not known; use {', '.join(BY)}")
    refitted = scorer.refitted if refit else None
    ablated = list(_ablated(adapter, seed, by, refitted is not None))
    rows = []
    for number, (group, what, component, each) in enumerate(ablated):
        progress(f"{group}: {what}", number, len(ablated))
        score: ScoreFn | None = refitted if group == "components, head refitted" else scorer
        assert score is not None
        rows.append(Ablation(group, what, component, tuple(map(bool, score(each)))))
    same_examples = getattr(scorer, "same_examples", True)
    return AblationReport(model, scorer.task, adapter.variant, (seed,), tuple(rows), scorer.metric, same_examples)


def _ablated(adapter: RoadAdapter, seed: int, by: Collection[str], refit: bool) -> Iterator[tuple[Group, str, str, RoadAdapter]]:
    """The unchanged adapter and all ablated ones, each with the key of its row."""
    components = {name: take(adapter) for name, take in COMPONENTS.items()}
    for name, each in components.items():
        yield "components", "all planes", name, each
    if refit:
        for name, each in components.items():
            yield "components, head refitted", "all planes", name, each
    groups: dict[Group, dict[str, str]] = {"layer": layers_by_stack(adapter.sites), "kind": kinds_by_stack(adapter.sites)}
    for name in (ANGLES, MAGNITUDES, NEITHER):
        for group, labels in groups.items():
            whats = list(dict.fromkeys(labels.values()))
            for what in whats if group in by and len(whats) > 1 else ():
                names = {site for site, label in labels.items() if label == what}
                yield group, what, name, adapter.with_sites_of(components[name], lambda site, names=names: site.name in names)
    for share in SHARES if "planes" in by else ():
        yield "most rotated", f"{share:g}", BOTH, keep_planes(adapter, share)
        yield "random planes", f"{share:g}", BOTH, keep_planes(adapter, share, np.random.default_rng(seed))


def keep_planes(adapter: RoadAdapter, share: float, generator: np.random.Generator | None = None) -> RoadAdapter:
    """The adapter restricted to a fraction of all its planes, at least one: those with the largest |angle|, or random ones with
    `generator`."""
    angles = torch.cat([adapter.angles(site).abs() for site in adapter.sites])
    count = max(1, round(share * len(angles)))
    order = (
        angles.argsort(descending=True, stable=True)
        if generator is None
        else torch.from_numpy(generator.permutation(len(angles)))
    )
    kept = torch.zeros(len(angles), dtype=torch.bool)
    kept[order[:count]] = True
    masks = kept.split([site.width // 2 for site in adapter.sites])
    return adapter.restrict({site.name: mask for site, mask in zip(adapter.sites, masks, strict=True)})
