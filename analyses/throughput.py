"""Figure 4 of the paper: generation with a different adapter in every row, RoAd beside LoRA and the bare model.

python analyses/throughput.py --out figures            # SmolLM2-135M, 25 minutes on two slow cores
python analyses/throughput.py --quick --out figures
python analyses/throughput.py --redraw figures/throughput.json --out figures
"""

from __future__ import annotations

import argparse
from pathlib import Path

from road_interp import figures
from road_interp.bench import BenchReport, bench
from road_interp.cli import SMOLLM2
from road_interp.pretrained import load_model
from road_interp.recipe import ModelRecipe

# rounds, requests, new tokens, lengths, ranks
FULL = (5, (1, 2, 4, 8, 16), 16, (8, 32), (1, 4, 16))
QUICK = (1, (1, 4), 4, (2, 4), (1, 8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--quick", action="store_true", help="one round of few sizes")
    parser.add_argument("--redraw", type=Path, help="draw from the JSON of an earlier run instead of timing")
    options = parser.parse_args()
    if options.redraw is not None:
        report = BenchReport.from_json(options.redraw.read_text())
    else:
        base, _ = load_model(ModelRecipe(SMOLLM2), "causal-lm")
        settings = QUICK if options.quick else FULL
        report = bench(base, *settings, progress=lambda task, report: print(task))
    print(figures.draw_bench(report, options.out))


if __name__ == "__main__":
    main()
