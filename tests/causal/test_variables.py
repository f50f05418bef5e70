"""Several variables in one rotation: the multi-task loss by hand, the score, and a model with two variables."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from helpers.taught import word_tokenizer
from helpers.things import ENTITIES, PROMPTS, VALUES, VARIABLES, model_of_things, nothing
from road_interp.causal.answered_questions import answered_rightly
from road_interp.causal.bases import Columns, InBasis, Neurons
from road_interp.causal.boundless_interchange import BoundlessInterchange
from road_interp.causal.entity_task import EntityTask, draw_variable_pairs
from road_interp.causal.interchange_runs import full_swap, no_swap
from road_interp.causal.masked_interchange import MaskedInterchange
from road_interp.causal.variable_methods import SeparateInterchanges, whole_state
from road_interp.causal.variables import VariableRuns, VariablesReport, cell_weights, measure_variables, train_variables
from road_interp.causal.variables_comparison import try_methods
from road_interp.errors import InputError
from road_interp.measure.intervals import mean_interval
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.models.intervention import RoadIntervention
from road_interp.models.low_rank_interchange import LowRankInterchangeIntervention
from road_interp.models.variable_coordinates import VariableCoordinates


def test_the_loss_of_two_pairs_by_hand(runs):
    """The mean over the pairs of the cross entropy of their targets, weighted for isolation."""
    interchange = VariableCoordinates({"colour": 2, "shape": 2}).low_rank(32)
    rows = torch.tensor([0, 30])  # swaps colour and asks for it; asks for the other variable
    assert [runs.pairs.is_cause[row] for row in rows.tolist()] == [True, False]
    logits = runs.logits(rows, interchange).log_softmax(-1)
    expected = -(logits[0, runs.pairs.pairs.source_label[0]] + 3 * logits[1, runs.pairs.pairs.base_label[30]]) / 2
    assert not runs.pairs.is_cause[30]
    two = copy.copy(runs)
    two.pairs, two.targets = _subset(runs.pairs, rows.tolist()), runs.targets[rows]
    two.logits = lambda chosen, swap: runs.logits(rows[chosen], swap)
    (found,) = train_variables(two, interchange, 1, 0.0, isolation=3.0)  # a step takes both pairs eight times
    assert found == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_the_weights_of_cause_and_isolation(count):
    """Half for the causes, half for the isolations, whatever the number of variables."""
    names = tuple("abc"[:count])
    weights = cell_weights(names)
    assert sum(weights.values()) == pytest.approx(1)
    assert sum(weights[f"{name}, {name}"] for name in names) == pytest.approx(0.5)


def test_isolation_weighs_as_much_as_cause_whatever_the_number_of_pairs(runs):
    """One pair of cause beside three of isolation: the cause counts as much as the three."""
    rows = torch.tensor([0, 12, 13, 14])
    interchange = VariableCoordinates({"colour": 2, "shape": 2}).low_rank(32)
    few = copy.copy(runs)
    few.pairs, few.targets = _subset(runs.pairs, rows.tolist()), runs.targets[rows]
    assert few.pairs.is_cause == (True, False, False, False)
    few.logits = lambda chosen, swap: runs.logits(rows[chosen], swap)
    (found,) = train_variables(few, interchange, 1, 0.0)
    losses = functional.cross_entropy(runs.logits(rows, interchange), few.targets, reduction="none").detach()
    assert found == pytest.approx(float((losses[0] + losses[1:].mean()) / 4), abs=1e-5)


def _subset(pairs, rows):
    fields = {
        name: tuple(getattr(pairs, name)[row] for row in rows) for name in ("swapped", "asked", "entities", "groups", "clusters")
    }
    labels = {name: tuple(getattr(pairs.pairs, name)[row] for row in rows) for name in ("base", "base_label", "source_label")}
    return replace(pairs, pairs=replace(pairs.pairs, **labels), **fields)


def whole(base, source, subspaces):
    return full_swap(base, source)


def test_the_score_of_no_swap_is_one_half(runs):
    report = measure_variables(runs, nothing, "no swap")
    assert [(score.cause, score.isolation) for score in report.scores] == [(0.0, 1.0)] * 2
    assert report.disentangle == 0.5
    assert report.interval[0] < 0.5 < report.interval[1]
    assert report.entities == 4
    assert VariablesReport.from_json(report.to_json()) == report


def test_variables_of_other_names_or_another_order_are_refused(runs):
    """Their coordinates would be swapped and scored under each other's names."""
    width, names = runs.runs.site.width, runs.variables
    for wrong in (tuple(reversed(names)), (names[0], "taste")):
        owned = VariableCoordinates(dict.fromkeys(wrong, 2))
        for interchange in (owned.road(width), owned.low_rank(width), InBasis(owned.road(width), torch.eye(width))):
            message = f"coordinates of {', '.join(wrong)}, the runs have the variables {', '.join(names)}: give both the same"
            with pytest.raises(InputError, match=message):
                measure_variables(runs, interchange, "x")
            with pytest.raises(InputError, match=message):
                train_variables(runs, interchange, steps=1)
    measure_variables(runs, VariableCoordinates(dict.fromkeys(names, 2)).road(width), "x")
    reversed_runs = VariableRuns(runs.runs.model, runs.pairs, runs.runs.site, names[::-1], runs.runs.span)
    boundless = BoundlessInterchange(2, Neurons(width))
    separate = SeparateInterchanges(2, width, 2)
    for interchange in (MaskedInterchange(2, width, 2), boundless, separate):
        temperatures = getattr(interchange, "temperatures", None)
        train_variables(runs, interchange, steps=1, temperatures=temperatures)  # after which it has the names of the runs
        with pytest.raises(InputError, match=f"coordinates of {', '.join(names)}, the runs have"):
            measure_variables(reversed_runs, interchange, "x")
    for loaded, trained in ((BoundlessInterchange(2, Neurons(width)), boundless), (SeparateInterchanges(2, width, 2), separate)):
        loaded.load_state_dict(trained.state_dict())
        assert loaded.variables == names
    with pytest.raises(InputError, match=r"takes no subspaces, .* are causal.no_variable and causal.whole_state$"):
        measure_variables(runs, no_swap, "x")


def test_a_variable_that_is_named_twice_is_refused(runs):
    names = (*runs.variables, runs.variables[0])
    with pytest.raises(InputError, match=f"the variable '{names[0]}' is named twice"):
        VariableRuns(runs.runs.model, runs.pairs, runs.runs.site, names, runs.runs.span)


def test_a_training_at_one_temperature_is_warned_of(runs):
    width = runs.runs.site.width
    for interchange in (BoundlessInterchange(2, Neurons(width)), MaskedInterchange(2, width, 2)):
        with pytest.warns(UserWarning, match=r"swaps in part at its present temperature.*: give temperatures, as in \(\d"):
            train_variables(runs, interchange, steps=1)


def test_pairs_and_runs_are_shown_in_one_line(runs):
    shown = f"VariablePairs({runs.pairs.pairs.name}, {len(runs.pairs)} pairs of {', '.join(runs.variables)})"
    assert repr(runs.pairs) == shown
    assert repr(runs) == f"VariableRuns({shown} at {runs.runs.site.name}, span entity)"
    pairs = runs.pairs.pairs
    assert repr(pairs) == f"CounterfactualPairs({pairs.name}, {len(pairs)} pairs, spans {', '.join(pairs.positions)})"
    assert repr(runs.runs) == f"InterchangeRuns({pairs!r} at {runs.runs.site.name}, span entity)"


def test_a_full_swap_causes_everything(runs):
    report = measure_variables(runs, whole, "full swap")
    assert all(score.cause > 0.9 and score.isolation < 0.1 for score in report.scores)


@pytest.mark.parametrize("kind", ["road", "low_rank", "mask", "borders"])
def test_training_separates_the_variables(runs, kind):
    coordinates = VariableCoordinates({"colour": 4, "shape": 4})
    torch.manual_seed(0)
    interchange = {
        "road": lambda: coordinates.road(32, depth=5, spread=3.0),
        "low_rank": lambda: coordinates.low_rank(32),
        "mask": lambda: MaskedInterchange(2, 32, 4, Columns(torch.randn(32, 32), trained=True)),
        "borders": lambda: BoundlessInterchange(2, Columns(torch.randn(32, 32), trained=True)),
    }[kind]()
    learned = kind in ("mask", "borders")
    losses = train_variables(runs, interchange, 120, 0.05, temperatures=interchange.temperatures if learned else None)
    if learned:
        interchange.harden()
    report = measure_variables(runs, interchange, kind, 4)
    assert losses[-1] < losses[0] / 2
    assert report.disentangle > 0.8


def test_training_separates_three_variables():
    words = VALUES | {"size": ("small", "large")}
    values = {
        entity: {name: words[name][number >> bit & 1] for bit, name in enumerate(words)}
        for number, entity in enumerate(ENTITIES[:8])
    }
    prompts = PROMPTS | {"size": ("The %s may be",)}
    task, tokenizer = EntityTask("thing", values, prompts, dict.fromkeys(values, "train")), word_tokenizer("may be small large")
    model = model_of_things(task, tokenizer)
    pairs = draw_variable_pairs(task, answered_rightly(model, tokenizer, task, task.questions()), tokenizer, "train", 12)
    runs = VariableRuns(model, pairs, 0, tuple(words))
    interchange = VariableCoordinates(dict.fromkeys(words, 4)).road(32, depth=5, spread=3.0)
    train_variables(runs, interchange, 200, 0.05)
    report = measure_variables(runs, interchange, "stacked RoAd", 4)
    assert [score.variable for score in report.scores] == ["colour", "shape", "size"]
    assert all(score.cause > 0.8 and score.isolation > 0.8 for score in report.scores)


def test_a_single_variable_has_no_score(runs):
    one = copy.copy(runs)
    one.pairs = replace(runs.pairs, swapped=("colour",) * len(runs.pairs))
    with pytest.raises(InputError, match="a score of one variable has no isolation"):
        measure_variables(one, nothing, "none")


def test_an_interchange_that_gives_no_numbers_has_no_score(runs):
    def broken(base, source, subspaces):
        return torch.where(torch.arange(len(base)).unsqueeze(1) == 1, torch.nan, base)

    with pytest.raises(InputError, match="the model's logits are NaN or infinite for 1 of 48 texts: use bfloat16 or float32"):
        measure_variables(runs, broken, "broken")
    stack = VariableCoordinates(dict.fromkeys(VARIABLES, 2)).road(32)
    stack.theta.data.fill_(torch.nan)
    with pytest.raises(InputError, match="the loss of step 1 is nan: use bfloat16 or float32, or a smaller learning rate than 1"):
        train_variables(runs, stack, 3, 1.0)


@pytest.mark.parametrize("make", [RoadInterchangeIntervention, LowRankInterchangeIntervention])
def test_an_interchange_needs_as_many_subspaces_as_there_are_variables(runs, make):
    """Single entries would be swapped otherwise, however many the variables are thought to own."""

    def of(count, **options):
        return make(
            32, **({"rows": range(count)} if make is RoadInterchangeIntervention else {"low_rank_dimension": count}), **options
        )

    for wrong, count in ((of(16), 16), (of(16, subspace_partition=[[0, 4], [4, 8], [8, 16]]), 3)):
        with pytest.raises(
            InputError, match=f"the interchange has {count} subspaces, the runs have 2 variables: give one of Var"
        ):
            measure_variables(runs, wrong, "m", 16)
        with pytest.raises(InputError, match=f"the interchange has {count} subspaces"):
            train_variables(runs, wrong, 1, 0.1)
    wrapped = InBasis(of(16), torch.eye(32)), MaskedInterchange(3, 32, 2)
    for wrong, count in zip(wrapped, (16, 3), strict=True):
        with pytest.raises(InputError, match=f"the interchange has {count} subspaces, the runs have 2 variables"):
            measure_variables(runs, wrong, "m")
    for right in (of(2), of(16, subspace_partition=[[0, 4], [4, 16]])):
        assert len(measure_variables(runs, right, "m").outcomes) == len(runs.pairs)


def test_intervals_are_over_clusters_of_entities(taught_things, task, tokenizer):
    """Of a single cluster nothing is known."""
    right = answered_rightly(taught_things, tokenizer, task, task.questions())

    def pairs_of(cluster):
        return draw_variable_pairs(replace(task, cluster=cluster), right, tokenizer, "train", 12)

    alone, together = pairs_of({}), pairs_of(dict.fromkeys(ENTITIES, "all"))
    assert alone.clusters == alone.groups == alone.entities
    assert (together.clusters, together.groups) == ((("all", "all"),) * len(together), alone.groups)
    found = []
    for each in (alone, together):
        runs = VariableRuns(taught_things, each, 0, VARIABLES)
        runs.hits = lambda swap: torch.arange(len(alone)) > 0  # all but one are right
        found.append(measure_variables(runs, whole, "m"))
    assert found[0].outcomes == found[1].outcomes
    assert found[1].interval == (0, 1)
    assert found[0].interval[0] > 0.5


def test_every_combination_of_variables_is_needed_for_a_score(runs):
    rows = [row for row, cell in enumerate(runs.pairs.cells) if cell != "colour, shape"]
    few = copy.copy(runs)
    few.pairs, few.targets = _subset(runs.pairs, rows), runs.targets[rows]
    few.hits = lambda swap: torch.ones(len(rows), dtype=torch.bool)
    with pytest.raises(InputError, match="no pair swaps 'colour' and asks for 'shape'"):
        measure_variables(few, nothing, "none")


def test_an_attribute_that_no_pair_swaps_has_no_isolation(runs):
    rows = [row for row, swapped in enumerate(runs.pairs.swapped) if swapped == "colour" or row % 2]
    asked = tuple("size" if row % 3 == 0 else asked for row, asked in enumerate(runs.pairs.asked) if row in rows)
    few = copy.copy(runs)
    few.pairs, few.targets = replace(_subset(runs.pairs, rows), asked=asked), runs.targets[rows]
    few.hits = lambda swap: torch.ones(len(rows), dtype=torch.bool)
    with pytest.raises(InputError, match="no pair swaps 'size' and asks for "):
        measure_variables(few, nothing, "none")


def test_names_of_variables_may_have_commas(runs):
    names = {"colour": "colour, bright", "shape": "shape"}
    few = copy.copy(runs)
    few.pairs = replace(runs.pairs, swapped=tuple(names[each] for each in runs.pairs.swapped), asked=("shape",) * len(runs.pairs))
    few.hits = lambda swap: torch.ones(len(runs.pairs), dtype=torch.bool)
    with pytest.raises(InputError, match="no pair swaps 'colour, bright' and asks for 'colour, bright'"):
        measure_variables(few, nothing, "none")


def test_what_reads_no_source_is_neither_scored_nor_trained(runs):
    rotation = RoadIntervention(32)
    for use in (lambda: measure_variables(runs, rotation, "a rotation"), lambda: train_variables(runs, rotation)):
        with pytest.raises(InputError, match="a RoadIntervention reads no source state, so it exchanges nothing"):
            use()


def test_settings_of_a_training_are_checked(runs, monkeypatch):
    masks = MaskedInterchange(2, 32, 2)
    for temperatures in ((1.0, 0.0), (1.0, -1.0), (float("nan"), 1.0), (1.0,), 0.5):
        with pytest.raises(InputError, match="temperatures must be two finite numbers above 0, at the first and the last step"):
            train_variables(runs, masks, 1, temperatures=temperatures)
    low_rank, rotation = (getattr(VariableCoordinates(dict.fromkeys(VARIABLES, 2)), kind)(32) for kind in ("low_rank", "road"))
    hardened = MaskedInterchange(2, 32, 2)
    hardened.harden()
    for without in (low_rank, rotation, hardened):
        with pytest.raises(InputError, match="has no learned mask whose temperature could change: leave temperatures out"):
            train_variables(runs, without, 1, temperatures=(1.0, 0.1))
    for seed in ("0", None, 0.0, 2**64):
        with pytest.raises(InputError, match="a seed must be a whole number of 64 bits, not"):
            train_variables(runs, low_rank, 1, seed=seed)
    for isolation in (float("nan"), -1.0, "1"):
        with pytest.raises(InputError, match="isolation must be a finite weight of at least 0"):
            train_variables(runs, low_rank, 1, isolation=isolation)
    with monkeypatch.context() as patch:
        patch.setattr(type(runs.pairs), "is_cause", [False] * len(runs.pairs))
        with pytest.raises(InputError, match="no pair asks for the variable that is swapped"):
            train_variables(runs, low_rank, 1)
    masks.harden()
    with pytest.raises(InputError, match="a hardened mask is fixed"):
        train_variables(runs, masks, 1)
    for options in ({"methods": ["DAS"]}, {"rates": {"DAS": (0.1,)}}):
        with pytest.raises(InputError, match="unknown method 'DAS'"):
            next(try_methods(runs, runs, 2, **options))


def test_an_interval_of_too_few_examples_is_the_whole_range():
    """With one example per cell nearly every sample leaves a cell empty."""
    clusters = [(f"a{number}", f"b{number}") for number in range(16)]
    cells = [str(number) for number in range(16)]
    outcomes = np.array([0, 1] * 8)
    assert mean_interval(outcomes, clusters, cells) == (0.0, 1.0)
    assert mean_interval(outcomes - 0.5, clusters, cells, paired=True) == (-1.0, 1.0)


class DroppedSource(torch.nn.Dropout):
    """The source's state, of which training drops the most."""

    def forward(self, base, source, subspaces):
        return super().forward(source)


def test_an_interchange_is_measured_in_evaluation_mode(runs):
    assert torch.equal(runs.hits(DroppedSource(0.9)), runs.hits(whole_state))
