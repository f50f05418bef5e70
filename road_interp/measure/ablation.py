"""What of a trained adapter does the work: its angles or its magnitudes, which layers and modules, how many planes.

The counterpart of the paper's pilot studies that intervenes: parts of a trained adapter are set back to the identity and the task
is scored again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool

from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.measure.intervals import check_seeds, interval, redrawn

Group = Literal["parts", "parts, head refitted", "trained alone", "layer", "kind", "most turned", "random planes"]
# For every test example whether the model with that adapter is right.
Score = Callable[[RoadAdapter], Bool[np.ndarray, " examples"]]

BOTH, ANGLES, MAGNITUDES, NEITHER = "both", "angles only", "magnitudes only", "neither"
PARTS: dict[str, Callable[[RoadAdapter], RoadAdapter]] = {
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
        group: what was changed: the "parts" of all planes (scored with the trained head, or with one refitted to the changed
            states), those of one "layer" or one module "kind" with all else as trained, or all planes but the "most turned" or
            "random planes", which are kept. "trained alone" is no change but another adapter, which learned that part only.
        what: the part, the layer, the kind, or the fraction of planes kept.
        part: what the changed planes keep.
        correct: example by example, those of one seed behind those of another.
    """

    group: Group
    what: str
    part: str
    correct: tuple[bool, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """What distinguishes it from the others."""
        return self.group, self.what, self.part


@dataclass(frozen=True)
class AblationReport:
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

    def of(self, group: Group, what: str, part: str) -> Ablation:
        """The row of one changed adapter."""
        for row in self.rows:
            if row.key == (group, what, part):
                return row
        raise InputError(f"no ablation '{group}: {what}, {part}'; there are {', '.join(':'.join(row.key) for row in self.rows)}")

    def with_trained_alone(self, part: str, correct: Sequence[bool]) -> AblationReport:
        """The report with the outcomes of an adapter of the same seed that learned ANGLES or MAGNITUDES alone.

        Raises InputError for outcomes on other examples, and for a part that is there already.
        """
        row = Ablation("trained alone", "all planes", part, tuple(map(bool, correct)))
        if len(row.correct) != len(self.rows[0].correct):
            count = len(self.rows[0].correct)
            raise InputError(f"{part}: outcomes on {len(row.correct)} examples do not stand beside those on {count}")
        if row.key in {each.key for each in self.rows}:
            raise InputError(f"an adapter that learned {part} stands there already")
        return replace(self, rows=(*self.rows, row))

    def accuracy(self, row: Ablation) -> tuple[float, float, float]:
        """Fraction of right answers and its 95% bootstrap interval, over seeds and examples."""
        outcomes = np.asarray([row.correct])
        return (float(outcomes.mean()), *interval(redrawn(outcomes, len(self.seeds))[0]))

    def loss(self, row: Ablation) -> tuple[float, float, float]:
        """What the change costs: accuracy of the whole adapter minus that of the row; 95% interval of the paired difference."""
        outcomes = np.asarray([self.rows[0].correct, row.correct])
        whole, changed = redrawn(outcomes, len(self.seeds))
        return (float(outcomes[0].mean() - outcomes[1].mean()), *interval(whole - changed))

    def summary(self) -> list[dict[str, object]]:
        """Accuracy and loss of every row, with intervals."""
        return [
            {"group": row.group, "what": row.what, "part": row.part, "accuracy": self.accuracy(row), "loss": self.loss(row)}
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
        return replace(first, seeds=tuple(seed for each in reports for seed in each.seeds), rows=rows)

    def to_json(self) -> str:
        """All outcomes as JSON text, with the summary beside them."""
        return json.dumps({**asdict(self), "summary": self.summary()})

    @classmethod
    def from_json(cls, text: str) -> AblationReport:
        """The report that `to_json` wrote."""
        try:
            content = json.loads(text)
            rows = tuple(Ablation(row["group"], row["what"], row["part"], tuple(row["correct"])) for row in content["rows"])
            return cls(
                content["model"],
                content["task"],
                content["variant"],
                tuple(content["seeds"]),
                rows,
                content.get("metric", "accuracy"),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"this is not the JSON of an ablation ({error})") from None


def ablation(
    adapter: RoadAdapter,
    score: Score,
    *,
    model: str,
    task: str,
    seed: int,
    metric: str = "accuracy",
    refitted: Score | None = None,
    by: Collection[str] = BY,
    shares: Sequence[float] = SHARES,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> AblationReport:
    """Score an adapter and what is left of it when parts are set back to the identity.

    Args:
        adapter: a trained one, of any variant; general blocks are taken apart by their polar factors.
        score: outcomes of the model with an adapter in place of the trained one.
        refitted: the same after the head was fitted again to the states that the adapter gives.
        by: what is scored beside the parts of all planes: those of every "layer", of every "kind" of module, and adapters of few
            "planes".
        shares: fractions of all planes to keep, the most turned ones and as many random ones.
        seed: of the adapter's training, and of the random planes.
        metric: what `score` counts as right, as axes are labelled.
        progress: told what is scored next, how many are done and how many there are.

    Raises:
        InputError: another word in `by`.
    """
    if unknown := set(by) - set(BY):
        raise InputError(f"by '{min(unknown)}' is not known; use {', '.join(BY)}")
    changed = list(_changed(adapter, seed, by, shares, refitted is not None))
    rows = []
    for number, (group, what, part, each) in enumerate(changed):
        progress(f"{group}: {what}", number, len(changed))
        scored = refitted if group == "parts, head refitted" else score
        assert scored is not None
        rows.append(Ablation(group, what, part, tuple(map(bool, scored(each)))))
    return AblationReport(model, task, adapter.variant, (seed,), tuple(rows), metric)


def _changed(
    adapter: RoadAdapter, seed: int, by: Collection[str], shares: Sequence[float], refit: bool
) -> Iterator[tuple[Group, str, str, RoadAdapter]]:
    parts = {name: take(adapter) for name, take in PARTS.items()}
    for name, each in parts.items():
        yield "parts", "all planes", name, each
    if refit:
        for name, each in parts.items():
            yield "parts, head refitted", "all planes", name, each
    layers = sorted({site.layer for site in adapter.sites if site.layer is not None})
    kinds = list(dict.fromkeys(site.kind for site in adapter.sites))
    for name in (ANGLES, MAGNITUDES, NEITHER):
        for layer in layers if "layer" in by and len(layers) > 1 else ():
            yield "layer", str(layer), name, adapter.with_sites_of(parts[name], lambda site, layer=layer: site.layer == layer)
        for kind in kinds if "kind" in by and len(kinds) > 1 else ():
            yield "kind", kind, name, adapter.with_sites_of(parts[name], lambda site, kind=kind: site.kind == kind)
    for share in shares if "planes" in by else ():
        yield "most turned", f"{share:g}", BOTH, keep_planes(adapter, share)
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
