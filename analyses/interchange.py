"""Interchange with stacked rotations: every method and control, by task and seed; depth against rows; layers against spans; cost.

python analyses/interchange.py --out figures/interchange            # SmolLM2-135M; hours on two cores, and it resumes
python analyses/interchange.py --templates causalgym.json --tasks agreement npi_any_subj-relc agr_gender
python analyses/interchange.py --quick --out figures/interchange
python analyses/interchange.py --redraw docs/interchange --out figures   # tables and figures from the parts that are there

Every part writes its own JSON file into the folder; parts that are there are not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from road_interp import plots
from road_interp.causal.accuracy import ScanReport, scan
from road_interp.causal.controls import ControlReport, controls
from road_interp.causal.cost import DEEP, FULL, LOW_RANK, SHALLOW, CostReport, cost
from road_interp.causal.counterfactuals import Splits
from road_interp.causal.depth_sweep import DepthReport, depth_by_rows
from road_interp.causal.interchange_runs import full_swap
from road_interp.causal.templates import load_pairs
from road_interp.errors import InputError, exit_on_error
from road_interp.files import read_text, write_atomically
from road_interp.models.loading import load_model, load_tokenizer
from road_interp.plots import export
from road_interp.recipes.schema import ModelRecipe
from road_interp.sources import SMOLLM2

LAYER = 15
SPANS = {"agreement": "subject", "gender": "name", "agr_gender": "name", "agr_sv_num_pp": "subject"}
BUILT_IN = ("agreement", "gender")
PREFIX = "<|endoftext|>"  # what stood between SmolLM2's training texts
Part = tuple[str, Callable[[Callable[..., None]], Any]]  # file name, and how to measure it, given whom to tell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures/interchange"))
    parser.add_argument("--templates", type=Path, help="tasks in CausalGym's format, beside the built-in ones")
    parser.add_argument("--tasks", nargs="+", default=BUILT_IN, help="NAME, or NAME:SPAN to choose the token that is exchanged")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--layer", type=int, default=LAYER)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="one seed, few steps and pairs, small widths")
    parser.add_argument("--redraw", type=Path, help="draw what an earlier run has left here instead of measuring")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.redraw is None:
        measure(options)
    show(options.redraw or options.out, options.out)


def measure(options: argparse.Namespace) -> None:
    """Run the parts whose files are missing."""
    recipe = ModelRecipe(SMOLLM2)
    model, tokenizer = load_model(recipe, "causal-lm")[0], load_tokenizer(recipe)
    missing = [part for part in parts(options, model, tokenizer) if not (options.out / part[0]).exists()]
    with Progress(console=Console(stderr=True)) as bars:
        bar = bars.add_task("", total=len(missing))
        for name, run in missing:

            def tell(what: Any, *numbers: Any, name: str = name) -> None:
                bars.update(bar, description=f"{name}: {what} {' '.join(f'{number:.3g}' for number in numbers)}")

            write_atomically(options.out / name, run(tell).to_json())
            bars.advance(bar)


def parts(options: argparse.Namespace, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[Part]:
    """Cost; the controls by seed and task; for the first task layers against spans, and depth against rows by seed."""
    steps, counts = (3, (32, 8, 16)) if options.quick else (options.steps, (512, 128, 400))
    width, rounds = (64, 2) if options.quick else (2048, 3)
    yield "cost.json", lambda tell: cost(width, rounds=rounds, progress=tell)
    seeds = options.seeds[: 1 if options.quick else None]
    places = {}
    for task in options.tasks:
        name, _, span = task.partition(":")
        templates = None if name in BUILT_IN else options.templates
        splits = load_pairs(name, tokenizer, counts, templates=templates, prefix=PREFIX)
        places[name] = splits, options.layer, span or SPANS[name]
    for seed in seeds:
        for name, place in places.items():
            yield f"controls-{name}-{seed}.json", lambda tell, p=place, s=seed: controls(model, *p, s, steps, tell)
    first, place = next(iter(places.items()))
    yield f"scan-{first}.json", lambda tell: full_scan(model, place[0], tell)
    for seed in seeds:
        yield f"depth-{first}-{seed}.json", lambda tell, s=seed: depth_by_rows(model, *place, s, steps, tell)


def full_scan(model: PreTrainedModel, splits: Splits, tell: Callable[..., None]) -> ScanReport:
    """Where the variable is: full swaps at every other block output and every span; the validation pairs are enough to see it."""
    layers = range(0, model.config.num_hidden_layers, 2)
    spans = list(splits.validation.positions)
    splits = splits._replace(test=splits.validation)
    return scan(model, splits, layers, spans, lambda width: full_swap, "full swap", lambda layer, span: tell(span, layer))


def show(folder: Path, out: Path) -> None:
    """Tables of everything measured so far in a folder, and the figures. Raises InputError where there is nothing."""
    if not any(folder.glob("*.json")):
        raise InputError(f"'{folder}' holds nothing that was measured")
    console = Console()
    for file in sorted(folder.glob("controls-*.json")):
        report = ControlReport.from_json(read_text(file))
        table = Table("", "parameters", "accuracy", "95%", "flipped", "log odds", title=file.stem)
        for row in report.rows:
            low, high = row.interval
            numbers = (f"{row.accuracy:.3f}", f"{low:.3f} {high:.3f}", f"{row.flipped:.3f}", f"{row.log_odds:.2f}")
            table.add_row(row.method, str(row.parameters), *numbers)
        console.print(table)
    if (folder / "cost.json").exists():
        report = CostReport.from_json(read_text(folder / "cost.json"))
        for slower, faster in ((LOW_RANK, SHALLOW), (FULL, SHALLOW), (FULL, DEEP)):
            console.print(f"width {report.width}: {slower} takes {report.ratio(slower, faster):.0f} times as long as {faster}")
    for file in sorted(folder.glob("scan-*.json")):
        report = ScanReport.from_json(read_text(file))
        console.print(str(export.save_figure(plots.interchange_scan(report), report, out, file.stem)))
    depths: dict[str, list[DepthReport]] = {}
    for file in sorted(folder.glob("depth-*.json")):
        report = DepthReport.from_json(read_text(file))
        depths.setdefault(report.task, []).append(report)
    for task, reports in depths.items():
        together = DepthReport.over_seeds(reports)
        console.print(str(export.save_figure(plots.interchange_depth(together), together, out, f"depths-{task}")))


if __name__ == "__main__":
    with exit_on_error(Path(__file__).name):
        main()
