"""Many adapters on one model: the memory of a bank, and training several in one pass.

road-interp study bank              # 10,000 adapters at the block outputs of SmolLM2-135M
road-interp study joint-training    # 1 to 8 adapters of SmolLM2-135M; on a GPU where torch finds one
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from road_interp import plots
from road_interp.cli.app import main_of
from road_interp.from_mapping import FieldError
from road_interp.measure.bank_cost import BankCostReport, bank_cost
from road_interp.measure.joint_training import JointTrainingReport, joint_training
from road_interp.models.loading import find_device, load_model
from road_interp.plots import export
from road_interp.recipes.schema import ModelRecipe
from road_interp.sources import SMOLLM2, readable_name
from road_interp.training.study import Condition, Described, Piece, Study, only_result


@dataclass(frozen=True)
class BankSettings:
    """Settings of the bank study."""

    adapters: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of the joint-training study."""

    model: str = SMOLLM2
    most: int = 8
    batch: int = 8
    length: int = 32
    rounds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.most < 1:
            raise FieldError("most", "must be at least 1")


def measure_training(piece: Piece) -> JointTrainingReport:
    settings = piece.recipe
    base = load_model(ModelRecipe(settings.model), "causal-lm")[0].to(find_device(None))
    counts = [2**power for power in range(settings.most.bit_length())]
    return joint_training(base, counts, settings.batch, settings.length, settings.rounds, settings.seed, piece.progress)


def draw_bank(found: BankCostReport, folder: Path) -> list[Path]:
    added = {"first hundred adapters": found.first, "last hundred adapters": found.last}
    milliseconds = {name: tuple(np.percentile(seconds, (50, 25, 75)) * 1e3) for name, seconds in added.items()}
    ax = plots.means({"": milliseconds}, label="time to add an adapter (ms, median and quartiles)")
    return [export.save_figure(ax, found, folder, "bank")]


def describe_bank(found: BankCostReport) -> Described:
    sentence = f"A bank of {found.adapters:,} adapters of {found.values:,} numbers each, added one by one."
    return sentence, [
        ("resident memory", f"{found.resident_bytes / 1e6:,.0f} MB"),
        ("over its numbers in fp32", f"{found.overhead:.3f}"),
        ("time to add one of the last hundred", f"{np.median(found.last) * 1e3:.2f} ms"),
        ("over one of the first hundred", f"{found.slowdown:.2f}"),
    ]


def describe_training(found: JointTrainingReport) -> Described:
    rows = []
    for each in found.steps:
        median, low, high = each.ratio
        memory = f"{each.together_bytes / 2**20:,.0f} MiB beside {each.apart_bytes / 2**20:,.0f}"
        rows.append((f"{each.adapters} adapters", f"{median:.3f} [{low:.3f}, {high:.3f}]; peak memory {memory}"))
    sentence = (
        f"Time of a training step of several adapters in one pass over one step of each, {readable_name(found.model)}, "
        f"{found.batch} x {found.length} tokens per adapter, {found.device}, {found.threads} thread(s): median and quartiles."
    )
    return sentence, rows


BANK = Study(
    name="bank",
    title="A bank of ten thousand adapters",
    question="What memory does a bank of ten thousand adapters take, and how long does it take to add one?",
    caveat=(
        "One measurement, of block outputs of one small model, in which all adapters have the same sites and no forward pass is "
        "made."
    ),
    recipe=BankSettings,
    conditions={"block-outputs": Condition("block outputs of SmolLM2-135M", seeds=1)},
    measure=lambda piece: bank_cost(adapters=piece.recipe.adapters, progress=piece.progress),
    report=only_result,
    result=BankCostReport,
    draw=draw_bank,
    describe=describe_bank,
    minutes=1,
    quick=("adapters=200",),
)
JOINT_TRAINING = Study(
    name="joint-training",
    title="Training several adapters in one pass",
    question="Does training several adapters in one pass save time over one pass for each?",
    caveat=(
        "One small model, one batch size and length, on one machine. It does not say whether adapters that are trained together "
        "become better or worse."
    ),
    recipe=TrainingSettings,
    conditions={"smollm2": Condition("SmolLM2-135M", seeds=1)},
    measure=measure_training,
    report=only_result,
    result=JointTrainingReport,
    draw=lambda found, folder: [export.save_figure(plots.joint_training(found), found, folder, "joint-training")],
    describe=describe_training,
    minutes=10,
    quick=("most=2", "batch=1", "length=4", "rounds=1"),
)

if __name__ == "__main__":
    main_of(JOINT_TRAINING)
