"""Interchange accuracy by depth of a stack of rotations and by number of exchanged rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from road_interp.arguments import checked_reports
from road_interp.causal.accuracy import InterchangeReport, interchange_accuracy
from road_interp.causal.arguments import check_model
from road_interp.causal.counterfactuals import Splits, check_splits
from road_interp.causal.interchange_runs import InterchangeRuns
from road_interp.causal.methods import STACKED, methods
from road_interp.causal.training import train_interchange
from road_interp.errors import InputError
from road_interp.measure.intervals import joined_seeds
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.progress import Progress, prefixed, silent
from road_interp.results import Result, columns
from road_interp.rotation import butterfly

DEPTHS, ROWS = (1, 2, 5), (1, 8, 64)  # the full depth, and one row of every plane, are measured in addition


@dataclass(frozen=True)
class DepthReport(Result):
    """Trained stacks of several depths, each with several numbers of exchanged rows; of one seed on the same test pairs.

    Attributes:
        seeds: of the initial angles and the training, and of the division of the words and the pairs.
        depths: numbers of levels; 1 is RoAd, and the last, the full depth, mixes all dimensions.
        rows: numbers of exchanged rows, spread over the planes; the last is one row of every plane.
        cells: `cells[i][j][k]` is of `seeds[i]`, `depths[j]` and `rows[k]`.
    """

    seeds: tuple[int, ...]
    depths: tuple[int, ...]
    rows: tuple[int, ...]
    cells: tuple[tuple[tuple[InterchangeReport, ...], ...], ...]

    @classmethod
    def over_seeds(cls, reports: Sequence[DepthReport]) -> DepthReport:
        """Combine reports of several seeds.

        Raises InputError if tasks, sites, spans, depths or rows differ, and for a duplicate seed.
        """
        reports = checked_reports(cls, reports)
        first = reports[0]
        if any((each.depths, each.rows, each._measured_at) != (first.depths, first.rows, first._measured_at) for each in reports):
            raise InputError("only reports of the same task, site, span, depths and rows can be combined")
        seeds = joined_seeds(
            [each.seeds for each in reports], [each.cells[0][0][0].examples * len(each.seeds) for each in reports]
        )
        return cls(seeds, first.depths, first.rows, tuple(table for each in reports for table in each.cells))

    def records(self) -> list[dict[str, Any]]:
        """A row per seed, depth and number of exchanged rows."""
        return [
            {"seed": seed, "depth": depth, "rows": count, **columns(cell)}
            for seed, table in zip(self.seeds, self.cells, strict=True)
            for depth, of_depth in zip(self.depths, table, strict=True)
            for count, cell in zip(self.rows, of_depth, strict=True)
        ]

    @property
    def task(self) -> str:
        """Name of the pairs."""
        return self.cells[0][0][0].task

    @property
    def _measured_at(self) -> tuple[str, str, str]:
        cell = self.cells[0][0][0]
        return cell.task, cell.site, cell.span


def depth_by_rows(
    model: PreTrainedModel,
    splits: Splits,
    layer: int,
    span: str,
    *,
    seed: int,
    steps: int,
    progress: Progress = silent,
) -> DepthReport:
    """Train a stack for every depth and number of rows, and measure its interchange accuracy on the test pairs.

    Args:
        model: a causal language model; it is frozen and set to evaluation mode, and stays so.
        layer: block whose output is exchanged.
        span: span whose last token is exchanged.
        seed: of the initial angles, and of the order of the pairs.
        steps: number of training steps of every stack.

    Raises:
        InputError: pairs that are not divided into `Splits`.
    """
    check_model("causal.depth_by_rows", model)
    check_splits("causal.depth_by_rows", splits)
    train, test = (InterchangeRuns(model, pairs, layer, span, progress=progress) for pairs in (splits.train, splits.test))
    width, planes, full_depth = test.site.width, test.site.width // 2, butterfly.full_depth(test.site.width)
    depths = tuple(sorted({*(min(depth, full_depth) for depth in DEPTHS), full_depth}))
    rows = tuple(sorted({*(min(count, planes) for count in ROWS), planes}))

    def cell(depth: int, count: int) -> InterchangeReport:
        name = f"depth {depth}, {count} rows"
        chosen = [2 * (number * planes // count) for number in range(count)]
        intervention = RoadInterchangeIntervention(width, depth, chosen, seed).to(model.device)
        training = methods()[STACKED].training
        train_interchange(train, intervention, steps, seed=seed, progress=prefixed(progress, name), **training)
        return interchange_accuracy(test, intervention, name)

    return DepthReport((seed,), depths, rows, (tuple(tuple(cell(depth, count) for count in rows) for depth in depths),))
