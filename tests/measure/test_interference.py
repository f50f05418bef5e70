"""Interference between adapters whose relation is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.interferences import SITES, close_to, halves, measured
from helpers.models import random_adapter
from road_interp import RoadAdapter, measure, plots
from road_interp.errors import InputError
from road_interp.measure.interference import NOTHING, InterferenceReport
from road_interp.measure.intervals import mean_over_divisions, mean_over_seeds


def test_disjoint_planes_do_not_cost_anything_and_the_same_planes_do():
    found = measured()
    assert found.accuracy("first")[0] == 1
    assert found.cost("first", "second")[0] == 0
    assert found.cost("first", "strong")[::2] == (1, 1)


def test_unknown_tasks_and_adapters_are_refused():
    for use, message in (
        (lambda: measured().cost("first", "x"), "no outcomes of 'first' with 'x'"),
        (lambda: measured().accuracy("x"), "no outcomes of 'x'"),
    ):
        with pytest.raises(InputError, match=message):
            use()


def test_seeds_with_examples_of_their_own_have_the_interval_of_divisions():
    """Example 3 of one division is not example 3 of another, as the scorers of studies with divisions say."""

    class Scorer:
        same_examples = False

        def __init__(self, right):
            self.right = right

        def __call__(self, adapter):
            return np.arange(100) < self.right

    found = [
        measure.interference(halves(), {"first": Scorer(right)}, model="m", seed=seed) for seed, right in enumerate((90, 50, 70))
    ]
    report = InterferenceReport.over_seeds(found)
    outcomes = np.concatenate([np.arange(100) < right for right in (90, 50, 70)])
    assert report.accuracy("first") == mean_over_divisions(outcomes.astype(float), 3) != mean_over_seeds(outcomes, 3)
    assert InterferenceReport.from_json(report.to_json()) == report
    with pytest.raises(InputError, match="tasks and choice of examples can be combined"):
        InterferenceReport.over_seeds([found[0], replace(found[1], same_examples=True)])


def test_overlap_and_angle_between_maps():
    found = measured()
    first, second, strong = range(3)
    assert found.overlap[first][strong] == found.overlap[first][first] == 1
    assert found.overlap[first][second] == 0
    few = random_adapter(SITES).restrict({SITES[0].name: [0]}), random_adapter(SITES).restrict({SITES[1].name: [0]})
    assert measure.interference(dict(zip("ab", few, strict=True)), {}, model="m", seed=0).overlap[0][1] == 0
    assert found.angle[first][strong] == pytest.approx(0, abs=0.1)
    assert found.angle[first][second] == pytest.approx(90, abs=0.1)
    opposite = measure.interference(
        {"a": halves()["first"], "b": halves()["first"].inverse(), "none": RoadAdapter.identity(SITES)}, {}, model="m", seed=0
    )
    assert opposite.angle[0][1] == pytest.approx(180, abs=0.1)
    assert opposite.angle[0][2] == 90
    both = InterferenceReport.over_seeds([opposite, replace(opposite, seeds=(1,))])  # of adapters without scored tasks
    assert (both.seeds, both.angle, both.correct) == ((0, 1), opposite.angle, {})
    with pytest.raises(InputError, match="duplicate seed"):
        InterferenceReport.over_seeds([opposite, opposite])


def test_the_overlap_is_of_the_most_rotated_tenth_of_the_planes():
    """Of 80 planes these are eight, of which the adapters share four; of the others, all rotated alike, they share all."""
    first, second = RoadAdapter.identity(SITES), RoadAdapter.identity(SITES)
    for adapter, largest in ((first, slice(0, 8)), (second, slice(4, 12))):
        for theta in adapter.theta.values():
            theta[:] = 0.1
        adapter.theta[SITES[0].name][largest] = -1.0
    assert sum(values.numel() for values in first.theta.values()) == 80
    found = measure.interference({"a": first, "b": second}, {}, model="m", seed=0)
    assert found.overlap[0][1] == found.overlap[1][0] == 0.5


def test_outcomes_of_an_unknown_adapter_are_refused():
    for correct in ({"c": {NOTHING: (True,)}}, {"a": {NOTHING: (True,), "c": (True,)}}):
        with pytest.raises(InputError, match="has outcomes of 'c', which is not one of the adapters"):
            InterferenceReport("m", ("a", "b"), (0,), (), (), correct)


def test_outcomes_are_compared_with_those_of_no_other_adapter():
    correct = {"a": {"b": (True, False), NOTHING: (True, True)}}
    found = InterferenceReport("m", ("a", "b"), (0,), (), (), correct)
    assert found.summary()["a"].keys() == {"b"}
    assert found.summary()["a"]["b"][0] == 0.5
    for rows, message in (
        ({"b": (True,)}, "has no outcomes of 'a' with 'nothing'"),
        ({NOTHING: (True, True), "b": (True,)}, "as many outcomes of 'a' for each seed and adapter"),
        ({NOTHING: (), "b": ()}, "as many outcomes of 'a' for each seed and adapter"),
    ):
        with pytest.raises(InputError, match=message):
            InterferenceReport("m", ("a", "b"), (0,), (), (), {"a": rows})
    with pytest.raises(InputError, match="as many outcomes of 'a' for each seed and adapter"):
        InterferenceReport("m", ("a", "b"), (0, 1, 2), (), (), correct)


def test_every_seed_counts_alike_however_reports_are_combined():
    seeds = [replace(measured(), seeds=(seed,), overlap=((float(seed == 2),),), angle=((60.0 * seed,),)) for seed in range(3)]
    nested = InterferenceReport.over_seeds([InterferenceReport.over_seeds(seeds[:2]), seeds[2]])
    assert nested.overlap[0][0] == pytest.approx(1 / 3)
    assert nested.angle[0][0] == pytest.approx(60)


def test_planes_are_compared_by_site_whatever_the_order_of_the_sites():
    adapter, other = random_adapter(SITES), random_adapter(SITES, seed=1)
    turned = replace(adapter, sites=adapter.sites[::-1])
    found = measure.interference({"a": adapter, "b": turned, "c": other}, {}, model="m", seed=0)
    assert found.overlap[0][1] == 1
    assert found.angle[0][1] == pytest.approx(0, abs=1e-3)
    assert (found.overlap[0][2], found.angle[0][2]) == (found.overlap[1][2], found.angle[1][2])


def test_seeds_go_together_and_json_keeps_everything():
    both = InterferenceReport.over_seeds([measured(0), measured(1)])
    assert both.seeds == (0, 1)
    assert len(both.correct["first"][NOTHING]) == 40
    assert both.overlap == measured().overlap
    assert InterferenceReport.from_json(both.to_json()) == both
    with pytest.raises(InputError, match="duplicate seed"):
        InterferenceReport.over_seeds([measured(), measured()])
    with pytest.raises(InputError, match="the JSON of InterferenceReport must hold one object"):
        InterferenceReport.from_json("[]")


def test_what_cannot_be_compared_is_refused():
    adapters = halves()
    with pytest.raises(InputError, match="at least two adapters, not 1"):
        measure.interference({"first": adapters["first"]}, {}, model="m", seed=0)
    with pytest.raises(InputError, match="task 'third' has no adapter; the adapters are first, second, strong"):
        measure.interference(adapters, {"third": close_to(adapters["first"])}, model="m", seed=0)
    with pytest.raises(InputError, match="different sites"):
        measure.interference({"a": adapters["first"], "b": random_adapter(SITES[:1])}, {}, model="m", seed=0)
    with pytest.raises(InputError, match="an adapter cannot be named 'nothing'"):
        measure.interference({"nothing": adapters["first"], "b": adapters["second"]}, {}, model="m", seed=0)
    flat = RoadAdapter(SITES, adapters["first"].theta, {site.name: 0 * adapters["first"].alpha[site.name] for site in SITES})
    with pytest.raises(InputError, match="magnitude 0"):
        measure.interference({"a": adapters["first"], "b": flat}, {}, model="m", seed=0)


def test_the_matrix_shows_the_costs():
    ax = plots.interference(measured())
    cells = ax.images[0].get_array()
    assert cells.mask.tolist() == [[True, False, False]]
    assert cells[0, 1:].tolist() == [0, 100]


def test_every_task_has_as_many_examples_in_every_seed():
    longer = measured(1)
    last = list(longer.correct)[-1]
    changed = {**longer.correct, last: {name: each * 2 for name, each in longer.correct[last].items()}}
    with pytest.raises(InputError, match="the seeds have different numbers of examples"):
        InterferenceReport.over_seeds([measured(0), replace(longer, correct=changed)])
