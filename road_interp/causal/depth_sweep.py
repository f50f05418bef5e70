"""How deep a stack of rotations has to be, and how many rows have to be swapped, to exchange a variable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from road_interp.causal.accuracy import InterchangeReport, interchange_accuracy
from road_interp.causal.controls import STACKED, methods
from road_interp.causal.counterfactuals import Splits
from road_interp.causal.interchange_runs import InterchangeRuns
from road_interp.causal.training import train_interchange
from road_interp.errors import InputError
from road_interp.measure.intervals import check_seeds
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.progress import Progress, silent
from road_interp.results import Result
from road_interp.rotation import butterfly

DEPTHS, ROWS = (1, 2, 5), (1, 8, 64)  # beside the full depth and every plane


@dataclass(frozen=True)
class DepthReport(Result):
    """Trained stacks of several depths, each with several numbers of swapped rows, on the same test pairs.

    Attributes:
        seeds: of the starting angles and the training.
        depths: numbers of levels; 1 is RoAd, the last mixes every dimension with every other.
        rows: numbers of swapped rows, spread over the planes; the last is one of every plane.
        cells: `cells[i][j][k]` is of `seeds[i]`, `depths[j]` and `rows[k]`.
    """

    seeds: tuple[int, ...]
    depths: tuple[int, ...]
    rows: tuple[int, ...]
    cells: tuple[tuple[tuple[InterchangeReport, ...], ...], ...]

    @classmethod
    def over_seeds(cls, reports: Sequence[DepthReport]) -> DepthReport:
        """The reports of several seeds as one. Raises InputError if depths, rows, task or place differ, or for a seed twice."""
        first = reports[0]
        if any((each.depths, each.rows, each._what) != (first.depths, first.rows, first._what) for each in reports):
            raise InputError("only reports of the same task, place, depths and rows can be put together")
        check_seeds([each.seeds for each in reports], [each.cells[0][0][0].examples * len(each.seeds) for each in reports])
        seeds = tuple(seed for each in reports for seed in each.seeds)
        return cls(seeds, first.depths, first.rows, tuple(table for each in reports for table in each.cells))

    @property
    def task(self) -> str:
        """What is exchanged."""
        return self.cells[0][0][0].task

    @property
    def _what(self) -> tuple[str, str, str]:
        cell = self.cells[0][0][0]
        return cell.task, cell.site, cell.span


def depth_by_rows(
    model: PreTrainedModel,
    splits: Splits,
    layer: int,
    span: str,
    seed: int,
    steps: int,
    progress: Progress = silent,
) -> DepthReport:
    """Train a stack for every depth and number of rows, and exchange the test pairs with it.

    Args:
        layer, span: the block whose output is exchanged, and the token there.
        steps: of every training.
    """
    train, test = (InterchangeRuns(model, pairs, layer, span) for pairs in (splits.train, splits.test))
    width, planes, deepest = test.site.width, test.site.width // 2, butterfly.full_depth(test.site.width)
    depths = tuple(sorted({*(min(depth, deepest) for depth in DEPTHS), deepest}))
    rows = tuple(sorted({*(min(count, planes) for count in ROWS), planes}))

    def cell(depth: int, count: int) -> InterchangeReport:
        name = f"depth {depth}, {count} rows"
        chosen = [2 * (number * planes // count) for number in range(count)]
        intervention = RoadInterchangeIntervention(width, depth, chosen, seed).to(model.device)
        training = methods()[STACKED].training

        def told(what: str, done: int = 0, total: int | None = None) -> None:
            progress(f"{name}, {what}", done, total)

        train_interchange(train, intervention, steps, seed=seed, progress=told, **training)
        return interchange_accuracy(test, intervention, name)

    return DepthReport((seed,), depths, rows, (tuple(tuple(cell(depth, count) for count in rows) for depth in depths),))
