"""Figure 5 of the paper, with scores: two tasks on disjoint planes of one hidden state, alone and together, with controls.

    road-interp study composition                                 # all conditions, three seeds: about a day on two cores
    road-interp study composition --only closing-alone            # one condition

The figure shows the main condition; every condition and seed has its own file in results/composition.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from road_interp import plots
from road_interp.adapters.bank import BASE
from road_interp.cli.app import main_of
from road_interp.measure.composition import CompositionReport
from road_interp.plots import export
from road_interp.training.composition_baselines import instruction, low_rank, multiplied, trained, with_lora
from road_interp.training.study import Condition, Described, Piece, Pieces, Study, with_interval

MAIN = "label-closing_coact-0.5"
PAIRS = ("closing+label", "label-only+closing", "label-comment+closing", "greeting+closing", "label+question", "german+closing",
         "capitals+label")  # fmt: skip
RATES = {"LoRA": 1e-3, "LoReFT": 2e-3}  # learning rates of the baselines, chosen on the spare reviews of the recipe


def tasks(*names: str) -> str:
    """Overrides for these tasks: 2,400 examples in all, as in the recipe; three shares for tasks that name the label."""
    shares = [3 if name.startswith("label") else 1 for name in names]
    examples = [2400 * share // sum(shares) for share in shares]
    each = (f"{name}: {{behaviour: {name}, examples: {count}}}" for name, count in zip(names, examples, strict=True))
    return "tasks={" + ", ".join(each) + "}"


def conditions() -> dict[str, Condition]:
    """All conditions by slug, the most important first."""
    found = {
        f"label-closing_coact-{p:g}": Condition(f"label+closing, co-activation {p:g}", (f"co_activation={p}",))
        for p in (0.5, 0.0)
    }
    found["label-closing_instruction"] = Condition("label+closing, instruction in the prompt", (), instruction)
    found |= {f"{name}-alone": Condition(f"{name} alone", (tasks(name),)) for name in ("label", "closing")}
    found["label-closing_multiplied"] = Condition("label+closing, trained separately and multiplied", (), multiplied)
    for method, rate in RATES.items():
        for p in (0.5, 0.0):
            changes = (f"co_activation={p}", f"training.learning_rate={rate}")
            slug, name = f"label-closing_{method.lower()}_coact-{p:g}", f"label+closing, {method}, co-activation {p:g}"
            found[slug] = Condition(name, changes, partial(low_rank, method=method))
    found["label-closing_with-lora"] = Condition("label+closing, with a LoRA for both tasks", (), with_lora)
    for pair in PAIRS:
        for p in (0.5, 0.0):
            changes = (tasks(*pair.split("+")), f"co_activation={p}", "scoring.max_new_tokens=32")
            found[f"{pair.replace('+', '-')}_coact-{p:g}"] = Condition(f"{pair}, co-activation {p:g}", changes)
    three = tasks("label", "closing", "greeting")
    found["label-closing-greeting_coact-0.5"] = Condition("label+closing+greeting, co-activation 0.5", (three,))
    for p in (0.25, 1.0):
        found[f"label-closing_coact-{p:g}"] = Condition(f"label+closing, co-activation {p:g}", (f"co_activation={p}",))
    for split in ("alternating", "layers"):
        found[f"label-closing_{split}"] = Condition(f"label+closing, {split}", (f"planes={split}",))
    linear = ("adapter.sites=all-linear", "adapter.layers=10-20")
    found["label-closing_all-linear"] = Condition("label+closing, all linear layers", linear)
    for component in ("angles", "magnitudes"):
        changes = (f"adapter.trainable={component}",)
        found[f"label-closing_{component}-only"] = Condition(f"label+closing, {component} only", changes)
    paper = ("adapter.layers=[15]", "adapter.positions=last")
    found["label-closing_last-prompt-token"] = Condition("label+closing, one block at the last prompt token", paper)
    return found


def measure(piece: Piece) -> CompositionReport:
    return trained(piece)


def report(pieces: Pieces) -> CompositionReport:
    """The main condition over its seeds, or the first available one."""
    slug = MAIN if MAIN in pieces else next(iter(pieces))
    return replace(CompositionReport.over_seeds(pieces[slug]), method=STUDY.conditions[slug].name)


def draw(found: CompositionReport, folder: Path) -> list[Path]:
    return [export.save_figure(plots.composition(found), found.compact(), folder, "composition")]


def describe(found: CompositionReport) -> Described:
    together = "+".join(found.tasks)
    joint = (found.rate(together, found.tasks), *found.interval(together, found.tasks))
    rows = [
        (f"{'nothing' if score.active == BASE else score.active} active: {task}", with_interval((rate, *interval)))
        for score in found.scores
        for task in found.tasks
        for rate, interval in [(found.rate(score.active, [task]), found.interval(score.active, [task]))]
    ]
    rows += [(f"{task}: lost to the others' planes", with_interval(found.cost(task))) for task in found.tasks]
    return f"With all tasks active {with_interval(joint)} of the answers show all of them ({found.method}).", rows


STUDY = Study(
    name="composition",
    title="Two behaviours in one answer",
    recipe="composition-smollm2",
    conditions=conditions(),
    measure=measure,
    report=report,
    result=CompositionReport,
    draw=draw,
    describe=describe,
    minutes=1300,
    quick=("training.max_steps=2", "scoring.test=4", "scoring.validation=4", "scoring.max_new_tokens=4"),
    quick_conditions=1,
)

if __name__ == "__main__":
    main_of(STUDY)
