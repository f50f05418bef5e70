"""Several variables in one rotation: RAVEL's data, the multi-task loss by hand, the score, and a model with two variables."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from helpers.models import random_adapter, tiny_model
from helpers.taught import word_tokenizer
from road_interp import plots
from road_interp.causal import variable_methods
from road_interp.causal.answered_questions import answered_rightly, next_tokens, with_best_prompts
from road_interp.causal.bases import Columns, InBasis, principal_components, whitening
from road_interp.causal.entity_task import EntityTask, draw_variable_pairs, load_ravel
from road_interp.causal.interchange_runs import full_swap, no_swap
from road_interp.causal.masked_interchange import MaskedInterchange
from road_interp.causal.noun_task import number_and_gender
from road_interp.causal.variable_methods import (
    METHODS,
    SHARED,
    WHITENED,
    MethodInputs,
    Trained,
    Trial,
    VariablesComparison,
    compare_variables,
    disentangle_over_seeds,
    no_variable,
    try_methods,
)
from road_interp.causal.variables import VariableRuns, VariablesReport, cell_weights, measure_variables, train_variables
from road_interp.errors import InputError
from road_interp.measure.intervals import cluster_means, mean_interval, wilson
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.models.intervention import RoadIntervention
from road_interp.models.low_rank_interchange import LowRankInterchangeIntervention
from road_interp.models.road_model import RoadModel
from road_interp.models.variable_coordinates import VariableCoordinates
from road_interp.sites.find import find_sites

VARIABLES = ("colour", "shape")
# Entities and values are words of the tokeniser.
ENTITIES = [
    "baker",
    "banker",
    "barber",
    "beggar",
    "builder",
    "buyer",
    "captain",
    "carpenter",
    "coach",
    "cousin",
    "cyclist",
    "dancer",
]
SPLIT = {entity: ("train", "val", "test")[number // 4] for number, entity in enumerate(ENTITIES)}
VALUES = {"colour": ("is", "was"), "shape": ("he", "she")}
PROMPTS = {"colour": ("The %s has", "because %s cried"), "shape": ("The %s had",)}


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.fixture(scope="module")
def task():
    values = {
        entity: {name: VALUES[name][number // 2**bit % 2] for bit, name in enumerate(VARIABLES)}
        for number, entity in enumerate(ENTITIES)
    }
    return EntityTask("thing", values, PROMPTS, SPLIT)


@pytest.fixture(scope="module")
def taught(task, tokenizer):
    """A tiny model that answers every question of the task rightly."""
    model = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    model.model.layers[0].self_attn.o_proj.weight.data.zero_()  # the entity leaves its token in the second block only
    questions = list(task.questions())
    texts = [question.prompt.replace("%s", question.entity) for question in questions]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    answers = torch.tensor([tokenizer(task.answer(question))["input_ids"][0] for question in questions])
    last = batch["attention_mask"].sum(1) - 1
    trained = [each for name, each in model.named_parameters() if name != "model.layers.0.self_attn.o_proj.weight"]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(150):
        logits = model(batch["input_ids"], batch["attention_mask"]).logits[torch.arange(len(answers)), last]
        loss = functional.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01
    assert (logits.argmax(1) == answers).all()
    return model.eval()


@pytest.fixture(scope="module")
def runs(taught, task, tokenizer):
    return runs_of(taught, task, tokenizer, "train")


def runs_of(model, task, tokenizer, split):
    right = answered_rightly(model, tokenizer, task, task.questions())
    return VariableRuns(model, draw_variable_pairs(task, right, tokenizer, split, 12), 0, VARIABLES)


def test_questions_that_are_answered_rightly(taught, task, tokenizer):
    questions = list(task.questions())
    assert len(questions) == 12 * 3
    assert answered_rightly(taught, tokenizer, task, []) == []
    assert answered_rightly(taught, tokenizer, task, questions, batch_size=5) == questions
    wrong = replace(task, values={entity: {"colour": "are", "shape": "they"} for entity in ENTITIES})
    assert answered_rightly(taught, tokenizer, wrong, questions) == []


def test_the_prompts_that_are_answered_best(taught, task, tokenizer):
    """A prompt of words that the model was not taught is the last choice."""
    more = replace(task, prompts={**task.prompts, "colour": ("%s cried cried", *task.prompts["colour"])})
    chosen = with_best_prompts(taught, tokenizer, more, 2)
    assert set(chosen.prompts["colour"]) == set(task.prompts["colour"])
    assert chosen.prompts["shape"] == task.prompts["shape"]


def test_texts_that_begin_alike_give_the_same_tokens(taught, tokenizer):
    """The beginning is computed once; also where one text is the beginning of another."""
    texts = ["The baker cried because", "The baker cried", "The baker has", "The baker had"]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    alone = [taught(torch.tensor([each])).logits[0, -1].argmax().item() for each in ids]
    assert next_tokens(taught, ids) == alone
    assert next_tokens(taught, ids[:1]) == alone[:1]


def test_pairs_swap_one_variable_and_ask_for_one(task, tokenizer):
    pairs = draw_variable_pairs(task, list(task.questions()), tokenizer, "train", 6)
    assert len(pairs) == 4 * 6
    for number, (base, source) in enumerate(pairs.entities):
        asked = pairs.asked[number]
        values = [task.values[entity][asked] for entity in (base, source)]
        assert values[0] != values[1]
        target = values[1] if pairs.is_cause[number] else values[0]
        assert tokenizer.decode([pairs.targets[number]]) == target
        assert base in pairs.pairs.base[number]
        swapped = pairs.swapped[number]
        assert len({task.values[entity][swapped] for entity in (base, source)}) == 2
    assert sum(pairs.is_cause) == 12
    again = draw_variable_pairs(task, list(task.questions()), tokenizer, "train", 6)
    assert again == pairs
    assert len({(base, source) for base, source in zip(pairs.pairs.base[:6], pairs.pairs.source[:6], strict=True)}) == 6
    known = [question for question in task.questions() if question.entity != "baker" or question.attribute != "shape"]
    known = draw_variable_pairs(task, known, tokenizer, "train", 4)
    sources = {source for (_, source), asked in zip(known.entities, known.asked, strict=True) if asked == "shape"}
    assert "baker" not in sources  # the model could not give its shape
    assert "baker" in {source for _, source in known.entities}
    with pytest.raises(InputError, match="0 pairs of 2 that swap colour and ask for colour: too few test questions"):
        draw_variable_pairs(task, list(task.questions("train")), tokenizer, "test", 2)


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


def nothing(base, source, subspaces):
    return base


def test_the_score_of_no_swap_is_one_half(runs):
    report = measure_variables(runs, nothing, "no swap")
    assert [(score.cause, score.isolation) for score in report.scores] == [(0.0, 1.0)] * 2
    assert report.disentangle == 0.5
    assert report.interval == (0.5, 0.5)
    assert report.entities == 4
    assert VariablesReport.from_json(report.to_json()) == report


def test_variables_of_other_names_or_another_order_are_refused(runs):
    """Their coordinates would be swapped and scored under each other's names."""
    width, names = runs.runs.site.width, runs.variables
    for wrong in (tuple(reversed(names)), (names[0], "taste")):
        owned = VariableCoordinates(dict.fromkeys(wrong, 2))
        for interchange in (owned.road(width), owned.low_rank(width)):
            message = f"coordinates of {', '.join(wrong)}, the runs have the variables {', '.join(names)}: give both the same"
            with pytest.raises(InputError, match=message):
                measure_variables(runs, interchange, "x")
            with pytest.raises(InputError, match=message):
                train_variables(runs, interchange, steps=1)
    measure_variables(runs, VariableCoordinates(dict.fromkeys(names, 2)).road(width), "x")
    with pytest.raises(InputError, match=r"takes no subspaces, .* are causal.no_variable and causal.whole_state$"):
        measure_variables(runs, no_swap, "x")


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


@pytest.mark.parametrize("kind", ["road", "low_rank", "mask"])
def test_training_separates_the_variables(runs, kind):
    coordinates = VariableCoordinates({"colour": 4, "shape": 4})
    torch.manual_seed(0)
    interchange = {
        "road": lambda: coordinates.road(32, depth=5, spread=3.0),
        "low_rank": lambda: coordinates.low_rank(32),
        "mask": lambda: MaskedInterchange(2, 32, 4, Columns(torch.randn(32, 32), trained=True)),
    }[kind]()
    options = {"temperatures": (1.0, 0.1)} if kind == "mask" else {}
    losses = train_variables(runs, interchange, 120, 0.05, **options)
    if kind == "mask":
        interchange.harden()
    report = measure_variables(runs, interchange, kind, 4)
    assert losses[-1] < losses[0] / 2
    assert report.disentangle > 0.8


def test_hardened_masks_own_disjoint_coordinates():
    """The coordinates with the largest sum of claims, also where a low temperature makes all claims equal to 1."""
    masked = MaskedInterchange(2, 6, 2)
    masked.set_temperature(0.05)
    with torch.no_grad():
        masked.logits.copy_(torch.tensor([[5.0, 8, 9, 0, 0, 0], [0, 8.5, 0, 6, 5, 0], [0, 0, 0, 0, 9, 9]]))
    masked.harden()
    assert masked.owners.tolist() == [0, 1, 0, 1, -1, -1]
    base, source = torch.zeros(3, 6), torch.ones(3, 6)
    assert masked(base, source, subspaces=[[0], [1], [0, 1]]).tolist() == [
        [1, 0, 1, 0, 0, 0],
        [0, 1, 0, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
    ]
    again = MaskedInterchange(2, 6, 2)
    again.load_state_dict(masked.state_dict())
    assert torch.equal(again(base, source, subspaces=[[0], [1], [0, 1]]), masked(base, source, subspaces=[[0], [1], [0, 1]]))


@pytest.mark.parametrize(("temperature", "tolerance"), [(1.0, 1e-4), (0.05, 0.15)])
@pytest.mark.parametrize("coordinates", [1, 5, 30])
def test_the_proportions_of_a_mask_add_up_to_its_number_of_coordinates(coordinates, temperature, tolerance):
    masked = MaskedInterchange(2, 100, coordinates)
    torch.nn.init.normal_(masked.logits, generator=torch.Generator().manual_seed(0))
    masked.set_temperature(temperature)
    with torch.no_grad():
        swapped = masked(torch.zeros(3, 100), torch.ones(3, 100), subspaces=[[0], [1], [0, 1]])
    assert swapped.sum(1).tolist() == pytest.approx([coordinates, coordinates, 2 * coordinates], rel=tolerance)
    assert ((swapped >= 0) & (swapped <= 1)).all()
    masked.harden()
    assert [int((masked.owners == index).sum()) for index in range(2)] == [coordinates, coordinates]


def test_masks_own_their_number_where_all_training_pointed_elsewhere():
    masked = MaskedInterchange(2, 9, 2)
    with torch.no_grad():
        masked.logits[2] = 50.0
    masked.harden()
    assert sorted(masked.owners.tolist()) == [-1] * 5 + [0, 0, 1, 1]


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="2 variables of 5 coordinates do not fit into the 9 of the basis"):
        MaskedInterchange(2, 9, 5)


def test_intervals_draw_clusters():
    """Ten examples of one word count once: the interval is that of the words."""
    outcomes = np.repeat([1.0, 0.0, 1.0, 0.0], 10)
    words = np.repeat(["a", "b", "c", "d"], 10).tolist()
    drawn = cluster_means(outcomes, [(word,) for word in words], ["x"] * 40, {"x": 1.0})
    assert np.std(drawn) == pytest.approx(np.sqrt(0.25 / 4), rel=0.1)
    independent = cluster_means(outcomes, [(str(number),) for number in range(40)], ["x"] * 40, {"x": 1.0})
    assert np.std(independent) == pytest.approx(np.sqrt(0.25 / 40), rel=0.1)
    repeated = cluster_means(outcomes, [(word, word) for word in words])
    assert np.array_equal(repeated, drawn)  # a cluster counts once
    crossed = [(f"base {number // 10}", f"source {number % 10}") for number in range(40)]
    assert np.std(cluster_means(outcomes, crossed, ["x"] * 40, {"x": 1.0})) > np.std(independent)


def test_ravels_files(tmp_path):
    files = {
        "entity_attributes": {"Oslo": {"Country": "Norway", "Continent": "Europe"}, "Lima": {"Country": "Peru", "Continent": ""}},
        "attribute_to_prompts": {
            "Country": ["%s is in", "%s and %s", "in %s, of"],
            "Continent": ['{"city": "%s", "continent": "'],
        },
        "entity_to_split": {"Oslo": "train", "Lima": "val"},
        "prompt_to_split": {
            "%s is in": "train",
            "%s and %s": "train",
            '{"city": "%s", "continent": "': "train",
            "in %s, of": "val",
        },
    }
    for name, content in files.items():
        (tmp_path / f"ravel_city_{name}.json").write_text(json.dumps(content))
    task = load_ravel(tmp_path, "city", ["Country", "Continent"])
    assert task.attributes == ("Country", "Continent")
    assert [question.prompt for question in task.questions("train")] == ["%s is in", '{"city": "%s", "continent": "']
    assert [task.answer(question) for question in task.questions()] == [" Norway", "Europe"]  # Lima has no continent
    by_country = load_ravel(tmp_path, "city", ["Country", "Continent"], "Country")
    assert (task.cluster, by_country.cluster) == ({}, {"Oslo": "Norway"})
    with pytest.raises(InputError, match="cluster 'Mayor' is not among the attributes Country, Continent"):
        load_ravel(tmp_path, "city", ["Country", "Continent"], "Mayor")
    with pytest.raises(InputError, match="'Mayor' is not an attribute of city; there are Country, Continent"):
        load_ravel(tmp_path, "city", ["Mayor"])
    with pytest.raises(InputError, match=r"ravel_verb_entity_attributes\.json' does not exist"):
        load_ravel(tmp_path, "verb", ["Definition"])
    (tmp_path / "ravel_city_entity_attributes.json").write_text('{"Oslo": 3}')
    with pytest.raises(InputError, match="not in RAVEL's format"):
        load_ravel(tmp_path, "city", ["Country"])


@pytest.mark.slow
def test_methods_are_compared_on_the_same_pairs(taught, task, tokenizer):
    splits = [runs_of(taught, task, tokenizer, split) for split in ("train", "val", "test")]
    trials, reports = compare_variables(*splits, VARIABLES, 2, rates=dict.fromkeys(METHODS, (1e-7, 0.05)), steps=60, seed=3)
    assert [(trial.method, trial.rate) for trial in trials] == [(name, rate) for name in METHODS for rate in (1e-7, 0.05)]
    by_name = {report.method: report for report in reports}
    assert list(by_name) == ["no swap", "whole state", "random subspace", *METHODS]
    assert {report.seed for report in reports} == {3}
    assert by_name["no swap"].disentangle == 0.5
    assert (by_name["random subspace"].parameters, by_name["random subspace"].validation) == (0, None)
    assert by_name["DAS of each variable"].parameters == by_name[SHARED].parameters == 32 * 4
    for name in (SHARED, "DAS of each variable"):
        assert by_name[name].rate == 0.05  # at the other nothing is learned
        assert by_name[name].validation > 0.6
    with pytest.raises(InputError, match="the entity or group '.*' is in two splits"):
        compare_variables(splits[0], splits[1], splits[0], VARIABLES, 2)


def test_seeds_are_pooled_over_the_groups_that_they_share():
    """Two seeds with opposite outcomes of every group: over both nothing is left to vary."""
    pairs = [(cell, (group, group)) for cell in cell_weights(VARIABLES) for group in "abcdef"]
    cells, groups = zip(*pairs, strict=True)
    right = [group[0] in "abc" for group in groups]

    def comparison(outcomes):
        value, counts = float(np.mean(outcomes)), ((1, 1, 1), (1, 1, 1))
        report = VariablesReport("x", "s", "m", 1, 1, 0, 0.1, 0.5, 6, (), value, (0.0, 1.0), tuple(outcomes))
        return VariablesComparison("m", "x", VARIABLES, 0, 1, 1, 0, *counts, cells, groups, (), (report,))

    one, other = comparison(right), comparison([not each for each in right])
    value, low, high = disentangle_over_seeds([one], "m")
    assert value == 0.5
    assert low < 0.3
    assert high > 0.7
    assert disentangle_over_seeds([one, other], "m") == pytest.approx((0.5, 0.5, 0.5))
    assert disentangle_over_seeds([one, one], "m") == pytest.approx((value, low, high))
    for changed in ({"model": "other"}, {"task": "other"}, {"layer": 5}, {"coordinates": 2}, {"steps": 9}):
        with pytest.raises(InputError, match="only comparisons of one model, task, layer"):
            disentangle_over_seeds([one, replace(other, **changed)], "m")
    with pytest.raises(InputError, match="plots.variables draws comparisons of one model, task and layer"):
        plots.variables([one, replace(other, layer=5)])


def test_of_equal_trainings_the_one_with_the_smallest_rate_is_tested(taught, task, tokenizer, monkeypatch):
    splits = [runs_of(taught, task, tokenizer, split) for split in ("train", "val", "test")]
    scores = {0.1: 0.5 + 1e-16, 0.02: 0.5, 0.3: 0.4}

    def try_methods(*runs, **options):
        for rate in scores:
            yield Trained(Trial(SHARED, rate, 0.0, scores[rate]), no_variable)

    monkeypatch.setattr(variable_methods, "try_methods", try_methods)
    trials, reports = compare_variables(*splits, VARIABLES, 2, controls=False)
    assert [report.rate for report in reports] == [0.02]
    assert len(trials) == 3


def test_the_figure_has_a_line_per_method_and_a_level_per_control(runs):
    def comparison(count, seed, cause):
        report = measure_variables(runs, nothing, "no swap", 0, seed)
        scores = tuple(replace(score, cause=cause) for score in report.scores)
        trained = replace(report, method=SHARED, coordinates=count, scores=scores, disentangle=(1 + cause) / 2)
        counts, pairs = ((1, 1, 1), (1, 1, 1)), (tuple(runs.pairs.cells), runs.pairs.groups)
        return VariablesComparison("m", "x", VARIABLES, 0, count, 1, seed, *counts, *pairs, (), (report, trained))

    found = [comparison(1, 0, 0.2), comparison(1, 1, 0.4), comparison(4, 0, 0.8)]
    ax = plots.variables(found, quantity="cause")
    (line,) = [each for each in ax.get_lines() if each.get_marker() == "o"]
    assert line.get_xdata().tolist() == [1, 4]
    assert line.get_ydata() == pytest.approx([0.3, 0.8])
    (level,) = [each for each in ax.get_lines() if each.get_label() == "no swap"]
    assert level.get_ydata() == pytest.approx([found[0].of("no swap").scores[0].cause] * 2)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "4"]
    assert plots.variables(found).get_lines()[0].get_ydata() == pytest.approx([0.65, 0.9])
    for seeds, expected in ((found[:1], 0.1), (found[:2], 0.15)):
        value, low, high = disentangle_over_seeds(seeds, SHARED, "no swap")
        assert value == pytest.approx(expected)
        bound = wilson(0, len({name for both in runs.pairs.groups for name in both}) // 2)[1]  # base and source are two
        assert (low, high) == (-bound, bound)  # of reports with equal outcomes
    assert VariablesComparison.from_json(found[0].to_json()) == found[0]
    with pytest.raises(InputError, match="no report of 'DAS'; there are no swap, multi-task DAS"):
        found[0].of("DAS")


@pytest.mark.parametrize("name", [*METHODS, *WHITENED])
def test_every_method_swaps_nothing_of_an_equal_source(name):
    states = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    interchange = (METHODS | WHITENED)[name].make(MethodInputs(32, VARIABLES, 2, states, seed=1))
    torch.testing.assert_close(interchange(states, states.clone(), subspaces=[[0], [1]] * 20), states, rtol=0, atol=1e-5)
    assert not torch.allclose(interchange(states, states.flip(0), subspaces=[[0], [1]] * 20), states, atol=1e-2)


def test_principal_components_are_ordered_and_orthonormal():
    spread = torch.tensor([5.0, 3.0, 1.0])
    states = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * spread + 7
    basis = principal_components(states)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3), rtol=0, atol=1e-5)
    assert (basis[:, 0].abs().argmax(), basis[:, 1].abs().argmax()) == (0, 1)


def test_a_whitened_state_has_the_identity_as_covariance():
    spread = torch.tensor([0.5, 3.0, 1.0, 2.0])
    states = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0)) * spread + 7
    columns, deviations = whitening(states)
    torch.testing.assert_close(columns.T @ columns, torch.eye(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cov((states @ columns / deviations).T), torch.eye(4), rtol=0, atol=0.01)
    assert deviations == pytest.approx(torch.tensor([3.0, 2.0, 1.0, 0.5]), rel=0.02)
    assert whitening(states[:3])[1].min() > 0.1  # with fewer states than dimensions, too


def test_an_interchange_of_a_whitened_state_swaps_coordinates_in_units_of_their_deviation():
    states = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9, 8)
    columns, deviations = whitening(states)
    base, source = states[:100], states[100:]
    rotation = VariableCoordinates({"colour": 4, "shape": 4}).road(8, depth=3, seed=1, spread=1.0)
    inside = InBasis(rotation, columns, deviations)
    torch.testing.assert_close(inside(base, source, [[0, 1]] * 100), source, rtol=0, atol=1e-5)  # all coordinates
    white = [each @ columns / deviations for each in (base, source)]
    expected = rotation(*white, subspaces=[[1]] * 100) * deviations @ columns.T
    torch.testing.assert_close(inside(base, source, [[1]] * 100), expected, rtol=0, atol=1e-4)
    plain = InBasis(rotation, columns)(base, source, [[1]] * 100)
    assert not torch.allclose(plain, expected, atol=0.1)


def test_number_and_gender_needs_no_files():
    task = number_and_gender()
    assert task.attributes == ("number", "gender")
    assert task.values["queens"] == {"number": "plural", "gender": "female"}
    assert all(task.split[noun] == task.split[group] for noun, group in task.group.items())
    assert [noun for noun, group in task.group.items() if group == "monk"] == ["monk", "monks", "nun", "nuns"]
    assert set(task.split.values()) == {"train", "val", "test"}
    assert len(task.values) == 4 * 28
    words = {word.strip(":;-") for prompts in task.prompts.values() for prompt in prompts for word in prompt.split()}
    assert not words & set(task.values)  # no answer stands in a prompt
    assert not [
        noun
        for noun in task.values
        for other in task.values
        if noun != other and noun.endswith(other) and task.group[noun] != task.group[other]
    ]


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


def test_intervals_resample_clusters_of_entities(taught, task, tokenizer):
    """All entities of one cluster: a single draw, of which nothing is known."""
    right = answered_rightly(taught, tokenizer, task, task.questions())

    def pairs_of(cluster):
        return draw_variable_pairs(replace(task, cluster=cluster), right, tokenizer, "train", 12)

    alone, together = pairs_of({}), pairs_of(dict.fromkeys(ENTITIES, "all"))
    assert alone.clusters == alone.groups == alone.entities
    assert (together.clusters, together.groups) == ((("all", "all"),) * len(together), alone.groups)
    found = [measure_variables(VariableRuns(taught, each, 0, VARIABLES), at_random, "m") for each in (alone, together)]
    assert found[0].outcomes == found[1].outcomes
    assert found[1].interval == (0, 1)
    assert 0 < found[0].interval[0] < found[0].interval[1] < 1


def at_random(base, source, subspaces):
    """The source for every second pair."""
    return torch.where(torch.arange(len(base)).unsqueeze(1) % 2 == 0, source, base)


def test_every_combination_of_variables_is_needed_for_a_score(runs):
    rows = [row for row, cell in enumerate(runs.pairs.cells) if cell != "colour, shape"]
    few = copy.copy(runs)
    few.pairs, few.targets = _subset(runs.pairs, rows), runs.targets[rows]
    few.hits = lambda swap: torch.ones(len(rows), dtype=torch.bool)
    with pytest.raises(InputError, match="no pair swaps 'colour' and asks for 'shape'"):
        measure_variables(few, nothing, "none")


# ---------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": {**PROMPTS, "shape": "The %s had"}}, "EntityTask needs a list of str, not str: give the prompts of 'shape'"),
        (
            {"prompts": {**PROMPTS, "shape": ("The had",)}},
            "thing: the prompt 'The had' must have one %s, the place of the entity",
        ),
        ({"split": {**SPLIT, "baker": "valid"}}, "thing: the split of 'baker' is 'valid'; use train, val, test"),
        ({"split": {key: SPLIT[key] for key in SPLIT if key != "baker"}}, "thing: the split of 'baker' is None"),
        ({"values": {"baker": {"colour": "is"}}}, "thing: the shape of 'baker' must be a text, not None"),
        ({"values": {"baker": {"colour": "is", "shape": 3}}}, "thing: the shape of 'baker' must be a text, not 3"),
    ],
)
def test_tasks_that_are_incomplete_are_refused(task, changed, message):
    with pytest.raises(InputError, match=message):
        replace(task, **changed)


def test_questions_of_another_split_or_task_are_refused(task, taught, tokenizer):
    with pytest.raises(InputError, match="unknown split 'valid'; use train, val, test"):
        list(task.questions("valid"))
    nouns = list(number_and_gender().questions("train"))
    for ask in (
        lambda: answered_rightly(taught, tokenizer, task, nouns),
        lambda: draw_variable_pairs(task, nouns, tokenizer, "train", 2),
    ):
        with pytest.raises(InputError, match="thing has no number of '.*': the question is of another task"):
            ask()


def test_the_model_answers_without_dropout(task, tokenizer):
    model = tiny_model("GPT2", "causal-lm", vocab_size=len(tokenizer), resid_pdrop=0.5, embd_pdrop=0.5).train()
    word = next_tokens(model.eval(), [tokenizer("The baker has")["input_ids"]])[0]
    told = replace(task, values={entity: dict.fromkeys(VARIABLES, tokenizer.decode(word).strip()) for entity in ENTITIES})
    model.train()
    answers = {tuple(answered_rightly(model, tokenizer, told, told.questions())) for _ in range(4)}
    assert len(answers) == 1
    assert answers != {()}
    assert model.training
    for other, message in (
        (tiny_model("Bert"), "has no head over the vocabulary"),
        (RoadModel(model, random_adapter(find_sites(model, "block-output"))), "use `with model.attached"),
    ):
        with pytest.raises(InputError, match=message):
            answered_rightly(other, tokenizer, task, task.questions())


def test_what_reads_no_source_is_neither_scored_nor_trained(runs):
    rotation = RoadIntervention(32)
    for use in (lambda: measure_variables(runs, rotation, "a rotation"), lambda: train_variables(runs, rotation)):
        with pytest.raises(InputError, match="a RoadIntervention reads no source state, so it exchanges nothing"):
            use()


def test_masks_of_fewer_variables_are_refused(runs):
    for use in (lambda mask: measure_variables(runs, mask, "masks"), lambda mask: train_variables(runs, mask)):
        with pytest.raises(InputError, match="the interchange has 1 subspaces, the runs have 2 variables"):
            use(MaskedInterchange(1, 32, 2))


def test_settings_of_a_training_are_checked(runs):
    masks = MaskedInterchange(2, 32, 2)
    for temperatures in ((1.0, 0.0), (1.0, -1.0), (float("nan"), 1.0), (1.0,)):
        with pytest.raises(InputError, match="temperatures must be two finite numbers above 0, at the first and the last step"):
            train_variables(runs, masks, 1, temperatures=temperatures)
    low_rank = VariableCoordinates(dict.fromkeys(VARIABLES, 2)).low_rank(32)
    with pytest.raises(InputError, match="has no learned mask, whose temperature could change"):
        train_variables(runs, low_rank, 1, temperatures=(1.0, 0.1))
    for isolation in (float("nan"), -1.0, "1"):
        with pytest.raises(InputError, match="isolation must be a finite weight of at least 0"):
            train_variables(runs, low_rank, 1, isolation=isolation)
    masks.harden()
    with pytest.raises(InputError, match="a hardened mask is fixed"):
        train_variables(runs, masks, 1)
    for options in ({"methods": ["DAS"]}, {"rates": {"DAS": (0.1,)}}):
        with pytest.raises(InputError, match="unknown method 'DAS'"):
            next(try_methods(runs, runs, VARIABLES, 2, **options))


def test_an_interval_of_too_few_examples_is_the_whole_range():
    """With one example per cell nearly every sample leaves a cell empty."""
    clusters = [(f"a{number}", f"b{number}") for number in range(16)]
    cells = [str(number) for number in range(16)]
    outcomes = np.array([0, 1] * 8)
    assert mean_interval(outcomes, clusters, cells) == (0.0, 1.0)
    assert mean_interval(outcomes - 0.5, clusters, cells, paired=True) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("subspaces", "message"),
    [
        ([[0]], "subspaces list 1 rows, but the batch has 4"),
        ([[-1]] * 4, "subspace -1 does not exist: subspaces are 0 to 1"),
        ([[2]] * 4, "subspace 2 does not exist: subspaces are 0 to 1"),
    ],
)
def test_a_mask_checks_its_subspaces(subspaces, message):
    mask, states = MaskedInterchange(2, 32, 2), torch.randn(2, 4, 32)
    with pytest.raises(InputError, match=message):
        mask(*states, subspaces=subspaces)
    torch.testing.assert_close(mask(*states, subspaces=[[0, 0]] * 4), mask(*states, subspaces=[[0]] * 4))
