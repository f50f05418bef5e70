"""Figure 4 of the paper: generation with a different adapter in every row, RoAd beside LoRA and the bare model.

python analyses/throughput.py --out figures            # SmolLM2-135M, 25 minutes on two slow cores
python analyses/throughput.py --quick --out figures
python analyses/throughput.py --redraw figures/throughput.json --out figures
"""

from __future__ import annotations

import argparse
from pathlib import Path

from road_interp.errors import exit_on_error
from road_interp.files import read_text
from road_interp.measure.throughput import ThroughputReport, run_throughput_recipe
from road_interp.plots import export
from road_interp.recipes.loader import load_recipe
from road_interp.recipes.schema import ThroughputRecipe

QUICK = ["rounds=1", "requests=[1, 4]", "new_tokens=4", "lengths=[2, 4]", "ranks=[1, 8]"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--quick", action="store_true", help="one round of few sizes")
    parser.add_argument("--redraw", type=Path, help="draw from the JSON of an earlier run instead of timing")
    options = parser.parse_args()
    if options.redraw is not None:
        report = ThroughputReport.from_json(read_text(options.redraw))
    else:
        recipe = load_recipe("throughput-smollm2", QUICK if options.quick else [])
        assert isinstance(recipe, ThroughputRecipe)
        report = run_throughput_recipe(recipe, progress=lambda task, report: print(task))
    print(export.draw_bench(report, options.out))


if __name__ == "__main__":
    with exit_on_error(Path(__file__).name):
        main()
