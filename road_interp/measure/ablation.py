"""What of a trained adapter does the work: its angles or its magnitudes, which layers and modules, how many planes.

The counterpart of the paper's pilot studies that intervenes: parts of a trained adapter are set back to the identity and the task
is scored again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Bool

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.measure.intervals import bootstrap_means, check_seeds, interval
from road_interp.progress import Progress, silent
from road_interp.results import Result

Group = Literal["components", "components, head refitted", "trained alone", "layer", "kind", "most rotated", "random planes"]
ScoreFn = Callable[
    [RoadAdapter], Bool[np.ndarray, " examples"]
]  # for every test example whether the model is right with an adapter


class Scorer(Protocol):
    """Scores adapters in the place of a run's own (`road_interp.training.scoring`).

    Attributes:
        task: what is scored.
        metric: what counts as right, as axes are labelled.
        refitted: outcomes after the head was fitted again to the states that an adapter gives; None where there is no head.
    """

    task: str
    metric: str

    @property
    def refitted(self) -> ScoreFn | None: ...

    def __call__(self, adapter: RoadAdapter) -> Bool[np.ndarray, " examples"]:
        """Test example by test example, whether the model is right with this adapter."""


BOTH, ANGLES, MAGNITUDES, NEITHER = "both", "angles only", "magnitudes only", "neither"
COMPONENTS: dict[str, Callable[[RoadAdapter], RoadAdapter]] = {
    BOTH: lambda adapter: adapter,
    ANGLES: RoadAdapter.angles_only,
    MAGNITUDES: RoadAdapter.magnitudes_only,
    NEITHER: lambda adapter: RoadAdapter.identity(adapter.sites, group_size=adapter.group_size),
}
SHARES = (0.01, 0.03, 0.1, 0.3)
BY = ("layer", "kind", "planes")


@dataclass(frozen=True)
class Ablation:
    """One changed adapter and its outcomes.

    Attributes:
        group: what was changed: the "components" of all planes (scored with the trained head, or with one refitted to the changed
            states), those of one "layer" or one module "kind" with all else as trained, or all planes but the "most rotated" or
            "random planes", which are kept. "trained alone" is no change but another adapter, which learned that component only.
        what: the part, the layer, the kind, or the fraction of planes kept.
        component: what the changed planes keep: both polar components, one, or neither.
        correct: example by example, those of one seed behind those of another.
    """

    group: Group
    what: str
    component: str
    correct: tuple[bool, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """What distinguishes it from the others."""
        return self.group, self.what, self.component


@dataclass(frozen=True)
class AblationReport(Result):
    """An adapter taken apart, on the same test examples throughout.

    Attributes:
        model, task: names of the base model and the data.
        variant: of the adapter.
        seeds: of the trainings.
        rows: one per changed adapter; the first is the whole adapter.
        metric: what is counted as right, as axes are labelled.
    """

    model: str
    task: str
    variant: str
    seeds: tuple[int, ...]
    rows: tuple[Ablation, ...]
    metric: str = "accuracy"

    def of(self, group: Group, what: str, component: str) -> Ablation:
        """The row of one changed adapter."""
        for row in self.rows:
            if row.key == (group, what, component):
                return row
        raise InputError(
            f"no ablation '{group}: {what}, {component}'; there are {', '.join(':'.join(row.key) for row in self.rows)}"
        )

    def with_trained_alone(self, component: str, correct: Sequence[bool]) -> AblationReport:
        """The report with the outcomes of an adapter of the same seed that learned ANGLES or MAGNITUDES alone.

        Raises InputError for outcomes on other examples, and for a component that is there already.
        """
        row = Ablation("trained alone", "all planes", component, tuple(map(bool, correct)))
        if len(row.correct) != len(self.rows[0].correct):
            count = len(self.rows[0].correct)
            raise InputError(f"{component}: outcomes on {len(row.correct)} examples do not stand beside those on {count}")
        if row.key in {each.key for each in self.rows}:
            raise InputError(f"duplicate result for {component}")
        return replace(self, rows=(*self.rows, row))

    def accuracy(self, row: Ablation) -> tuple[float, float, float]:
        """Fraction of right answers and its 95% bootstrap interval, over seeds and examples."""
        outcomes = np.asarray([row.correct])
        return (float(outcomes.mean()), *interval(bootstrap_means(outcomes, len(self.seeds))[0]))

    def loss(self, row: Ablation) -> tuple[float, float, float]:
        """What the change costs: accuracy of the whole adapter minus that of the row; 95% interval of the paired difference."""
        outcomes = np.asarray([self.rows[0].correct, row.correct])
        whole, changed = bootstrap_means(outcomes, len(self.seeds))
        return (float(outcomes[0].mean() - outcomes[1].mean()), *interval(whole - changed))

    def summary(self) -> list[dict[str, object]]:
        """Accuracy and loss of every row, with intervals."""
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

    @classmethod
    def over_seeds(cls, reports: Sequence[AblationReport]) -> AblationReport:
        """The reports of several seeds as one: same model, task, variant and rows."""
        first = reports[0]
        for each in reports:
            same = replace(each, seeds=(), rows=()) == replace(first, seeds=(), rows=())
            if not same or [row.key for row in each.rows] != [row.key for row in first.rows]:
                raise InputError("only ablations of one model, task, metric and variant, taken apart alike, can be put together")
        check_seeds([each.seeds for each in reports], [len(each.rows[0].correct) for each in reports])
        rows = tuple(
            replace(same[0], correct=tuple(right for row in same for right in row.correct))
            for same in zip(*(each.rows for each in reports), strict=True)
        )
        seeds = tuple(seed for each in reports for seed in each.seeds)
        return replace(first, seeds=seeds, rows=rows, provenance=None)


def ablation(
    adapter: RoadAdapter,
    scorer: Scorer,
    *,
    model: str,
    seed: int,
    by: Collection[str] = BY,
    refit: bool = True,
    progress: Progress = silent,
) -> AblationReport:
    """Score an adapter and what is left of it when parts are set back to the identity.

    Args:
        adapter: a trained one, of any variant; general plane maps are taken apart by their polar factors.
        scorer: outcomes of the model with an adapter in place of the trained one.
        model: name of the base model.
        seed: of the adapter's training, and of the random planes.
        by: what is scored beside the components of all planes: those of every "layer", of every "kind" of module, and adapters of
            few "planes" (fractions `SHARES` of all planes, the most rotated ones and as many random ones).
        refit: whether the components are scored with a refitted head too, where the scorer has one.

    Raises:
        InputError: another word in `by`.
    """
    if unknown := set(by) - set(BY):
        raise InputError(f"by '{min(unknown)}' is not known; use {', '.join(BY)}")
    refitted = scorer.refitted if refit else None
    changed = list(_changed(adapter, seed, by, refitted is not None))
    rows = []
    for number, (group, what, component, each) in enumerate(changed):
        progress(f"{group}: {what}", number, len(changed))
        score: ScoreFn | None = refitted if group == "components, head refitted" else scorer
        assert score is not None
        rows.append(Ablation(group, what, component, tuple(map(bool, score(each)))))
    return AblationReport(model, scorer.task, adapter.variant, (seed,), tuple(rows), scorer.metric)


def _changed(adapter: RoadAdapter, seed: int, by: Collection[str], refit: bool) -> Iterator[tuple[Group, str, str, RoadAdapter]]:
    components = {name: take(adapter) for name, take in COMPONENTS.items()}
    for name, each in components.items():
        yield "components", "all planes", name, each
    if refit:
        for name, each in components.items():
            yield "components, head refitted", "all planes", name, each
    layers = sorted({site.layer for site in adapter.sites if site.layer is not None})
    kinds = list(dict.fromkeys(site.kind for site in adapter.sites))
    for name in (ANGLES, MAGNITUDES, NEITHER):
        for layer in layers if "layer" in by and len(layers) > 1 else ():
            yield (
                "layer",
                str(layer),
                name,
                adapter.with_sites_of(components[name], lambda site, layer=layer: site.layer == layer),
            )
        for kind in kinds if "kind" in by and len(kinds) > 1 else ():
            yield "kind", kind, name, adapter.with_sites_of(components[name], lambda site, kind=kind: site.kind == kind)
    for share in SHARES if "planes" in by else ():
        yield "most rotated", f"{share:g}", BOTH, keep_planes(adapter, share)
        yield "random planes", f"{share:g}", BOTH, keep_planes(adapter, share, np.random.default_rng(seed))


def keep_planes(adapter: RoadAdapter, share: float, generator: np.random.Generator | None = None) -> RoadAdapter:
    """The adapter on a fraction of all its planes: those with the largest |angle|, or random ones drawn by a generator."""
    angles = torch.cat([adapter.angles(site).abs() for site in adapter.sites])
    count = round(share * len(angles))
    order = (
        angles.argsort(descending=True, stable=True)
        if generator is None
        else torch.from_numpy(generator.permutation(len(angles)))
    )
    kept = torch.zeros(len(angles), dtype=torch.bool)
    kept[order[:count]] = True
    masks = kept.split([site.width // 2 for site in adapter.sites])
    return adapter.restrict({site.name: mask for site, mask in zip(adapter.sites, masks, strict=True)})
