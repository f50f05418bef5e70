"""Ablations of adapters for which the component that matters is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.models import random_adapter
from helpers.scorers import SITES, FunctionScorer, moved_adapter, needs, taken_apart
from road_interp import measure, plots
from road_interp.errors import InputError
from road_interp.measure.ablation import ANGLES, BOTH, MAGNITUDES, NEITHER, AblationReport, keep_planes
from road_interp.measure.intervals import mean_over_divisions, mean_over_seeds, wilson
from road_interp.plots import export
from road_interp.sites.site import Site
from road_interp.training.scoring import GenerationScorer


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
@pytest.mark.parametrize(("what", "kept", "lost"), [("angles", ANGLES, MAGNITUDES), ("magnitudes", MAGNITUDES, ANGLES)])
def test_the_part_that_does_the_work_is_found(variant, what, kept, lost):
    report = taken_apart(needs(what), variant)
    rates = {
        part: report.accuracy(report.of("components", "all planes", part))[0] for part in (BOTH, ANGLES, MAGNITUDES, NEITHER)
    }
    assert rates == {BOTH: 1, kept: 1, lost: 0.5, NEITHER: 0.5}
    loss, low, high = report.loss(report.of("components", "all planes", lost))
    assert loss == 0.5
    assert 0.1 < low < 0.5 < high < 0.9
    assert report.loss(report.of("components", "all planes", kept)) == (0, -wilson(0, 10)[1], wilson(0, 10)[1])


def test_the_layer_and_the_kind_that_do_the_work_are_found():
    report = taken_apart(needs("angles", lambda site: (site.layer, site.kind) == (1, "fc1")))
    losses = {(row.group, row.what): report.loss(row)[0] for row in report.rows if row.component == MAGNITUDES}
    assert losses == {
        ("components", "all planes"): 0.5, ("layer", "0"): 0, ("layer", "1"): 0.5, ("kind", "query"): 0, ("kind", "fc1"): 0.5,
    }  # fmt: skip


def test_layers_and_kinds_of_encoder_and_decoder_are_ablated_apart():
    kinds = {"encoder": ("self_attn.q_proj", "fc1"), "decoder": ("self_attn.q_proj", "encoder_attn.q_proj")}
    sites = [
        Site(f"{stack}.layers.{layer}.{kind}", 8, layer, kind) for stack in kinds for layer in (0, 1) for kind in kinds[stack]
    ]
    chosen = "decoder.layers.1.self_attn.q_proj"
    scorer = FunctionScorer(needs("angles", lambda site: site.name == chosen))
    report = measure.ablation(random_adapter(tuple(sites)), scorer, model="m", seed=0, by=["layer", "kind"])
    losses = {(row.group, row.what): report.loss(row)[0] for row in report.rows[4:] if row.component == MAGNITUDES}
    assert losses == {
        ("layer", "encoder.layers 0"): 0, ("layer", "encoder.layers 1"): 0, ("layer", "decoder.layers 0"): 0,
        ("layer", "decoder.layers 1"): 0.5, ("kind", "encoder.layers: self_attn.q_proj"): 0, ("kind", "fc1"): 0,
        ("kind", "decoder.layers: self_attn.q_proj"): 0.5, ("kind", "encoder_attn.q_proj"): 0,
    }  # fmt: skip


def test_the_most_rotated_planes_are_kept_and_as_many_random_ones():
    whole = moved_adapter()
    angles = torch.cat([whole.angles(site) for site in SITES])
    for share in (0.01, 0.25, 1.0):
        kept = torch.cat([keep_planes(whole, share).angles(site) for site in SITES])
        random = torch.cat([keep_planes(whole, share, np.random.default_rng(0)).angles(site) for site in SITES])
        count = max(1, int(16 * share))  # at least one
        assert (kept != 0).sum() == (random != 0).sum() == count
        torch.testing.assert_close(kept[kept != 0].sort().values, angles.sort().values[len(angles) - count :])


def test_the_seed_draws_the_random_planes():
    kept: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for seed, adapters in kept.items():

        def score(adapter, adapters=adapters):
            adapters.append(torch.cat([adapter.angles(site) for site in SITES]))
            return np.ones(10, bool)

        rows = taken_apart(score, seed=seed).rows
        adapters[:] = [angles for row, angles in zip(rows, adapters, strict=True) if row.group == "random planes"]
    assert kept[0]
    assert not all(map(torch.equal, *kept.values()))


def test_a_refitted_head_is_scored_beside_the_trained_one():
    report = taken_apart(needs("angles"), refitted=lambda adapter: np.ones(10, bool))
    rows = [row for row in report.rows if row.group == "components, head refitted"]
    assert [row.component for row in rows] == [BOTH, ANGLES, MAGNITUDES, NEITHER]
    assert all(all(row.correct) for row in rows)


def test_seeds_go_together_and_json_keeps_everything():
    first, second = taken_apart(needs("angles")), taken_apart(needs("magnitudes"), seed=1)
    both = AblationReport.over_seeds([first, second])
    assert both.seeds == (0, 1)
    assert both.accuracy(both.of("components", "all planes", ANGLES))[0] == 0.75
    assert AblationReport.from_json(both.to_json()) == both
    with pytest.raises(InputError, match="only ablations of one model, task, metric and variant"):
        AblationReport.over_seeds([first, taken_apart(needs("angles"), "road_2", seed=1)])
    with pytest.raises(InputError, match="duplicate seed"):
        AblationReport.over_seeds([first, first])
    with pytest.raises(InputError, match="'model' is missing"):
        AblationReport.from_json("{}")
    with pytest.raises(InputError, match="no ablation 'layer: 7: neither'"):
        first.of("layer", "7", "neither")


def test_rows_have_the_same_numbers_of_outcomes():
    found = taken_apart(needs("angles"))
    shorter = replace(found.rows[1], correct=found.rows[1].correct[1:])
    for rows in ((), (found.rows[0], shorter), (replace(found.rows[0], correct=()),)):
        with pytest.raises(InputError, match="'rows' must hold as many outcomes for each ablated adapter and seed"):
            replace(found, rows=rows)
    text = found.to_json().replace('"correct":"', '"correct":"1', 1)
    with pytest.raises(InputError, match="'rows' must hold as many outcomes"):
        AblationReport.from_json(text)


def test_examples_are_divided_by_whether_they_stand_in_a_training_text():
    """The first four of ten do, and one component loses all of them, the other all others."""
    mask = np.arange(10) < 4
    first, second = (replace(taken_apart(needs("angles"), seed=seed), contained=tuple(mask.tolist())) for seed in (0, 1))
    report = AblationReport.over_seeds([first, second])
    (both, angles), seeds = (report.of("components", "all planes", each) for each in (BOTH, ANGLES)), 2
    missed = replace(both, correct=(False,) * 20)
    only = replace(both, correct=tuple(mask.tolist()) * seeds)
    assert report.contrast(only, missed, contained=True) == mean_over_seeds(np.ones(8), seeds, paired=True)
    assert report.contrast(only, missed, contained=False) == mean_over_seeds(np.zeros(12), seeds, paired=True)
    assert report.contrast(only, missed)[0] == pytest.approx(0.4)
    assert AblationReport.from_json(report.to_json()) == report
    with pytest.raises(InputError, match="cannot be divided by whether they are in a training text"):
        taken_apart(needs("angles")).contrast(both, angles, contained=True)
    with pytest.raises(InputError, match="cannot be divided"):
        replace(report, contained=(True,) * 10).contrast(both, angles, contained=False)
    for wrong in ({"contained": (True,) * 9}, {"same_examples": False}):
        with pytest.raises(InputError, match="'contained' must have as many values as there are test examples, the same of all"):
            replace(report, **wrong)


def test_seeds_with_examples_of_their_own_have_wider_intervals():
    """Example 3 of one division is not example 3 of another."""
    rates = (0.9, 0.5, 0.7)
    scored = [lambda adapter, rate=rate: np.arange(100) < 100 * rate for rate in rates]
    same, own = (
        AblationReport.over_seeds([replace(taken_apart(each, seed=seed), same_examples=kept) for seed, each in enumerate(scored)])
        for kept in (True, False)
    )
    outcomes = np.concatenate([each(None) for each in scored])
    assert same.accuracy(same.rows[0]) == mean_over_seeds(outcomes, 3)
    assert own.accuracy(own.rows[0]) == mean_over_divisions(outcomes, 3)
    assert AblationReport.from_json(own.to_json()) == own
    assert not GenerationScorer.same_examples
    with pytest.raises(InputError, match="only ablations of one model"):
        AblationReport.over_seeds([taken_apart(scored[0]), replace(taken_apart(scored[1], seed=1), same_examples=False)])


def test_an_adapter_that_learned_one_part_alone_is_drawn_above_that_part():
    report = taken_apart(needs("angles")).with_trained_alone(MAGNITUDES, [True] * 9 + [False])
    assert AblationReport.from_json(report.to_json()) == report
    drawn = plots.ablation(report).containers[1]
    assert drawn.get_label() == "trained alone"
    (point,) = drawn.lines[0].get_xydata()
    assert point == pytest.approx([2.08, 0.9])  # third bar of: both, angles only, magnitudes only, neither
    with pytest.raises(InputError, match="duplicate result for magnitudes only"):
        report.with_trained_alone(MAGNITUDES, [True] * 10)
    with pytest.raises(InputError, match="angles only: 9 outcomes, but the other rows have 10"):
        report.with_trained_alone(ANGLES, [True] * 9)
    with pytest.raises(InputError, match="'both' is not trained alone: use 'angles only' or 'magnitudes only'"):
        report.with_trained_alone(BOTH, [True] * 10)


def test_drawings_show_what_was_measured():
    report = taken_apart(needs("angles"), refitted=needs("magnitudes"))
    labels = [label.get_text().replace("\n", " ") for label in plots.ablation(report).get_xticklabels()]
    assert labels == [BOTH, ANGLES, MAGNITUDES, NEITHER]
    assert [label.get_text() for label in plots.ablation_by(report, group="kind").get_xticklabels()] == ["query", "fc1"]
    curve = plots.ablation_curve(report)
    assert {text.get_text() for text in curve.get_legend().get_texts()} == {"most rotated", "random planes", "all", "none"}


@pytest.mark.parametrize("sites", [SITES[:1], SITES[:2], SITES[::2]])
def test_one_layer_or_one_kind_is_drawn_without_the_panel_that_has_nothing(sites, tmp_path):
    report = measure.ablation(random_adapter(sites), FunctionScorer(lambda adapter: np.ones(10, bool)), model="m", seed=0)
    assert export.draw_ablation(report, tmp_path).is_file()


@pytest.mark.parametrize("by", [(), ("layer",), ("kind",), ("planes",), ("kind", "layer")])
def test_what_is_scored_beside_the_parts_can_be_chosen(by, tmp_path):
    report = taken_apart(needs("angles"), by=by)
    groups = {"layer": {"layer"}, "kind": {"kind"}, "planes": {"most rotated", "random planes"}}
    assert {row.group for row in report.rows} == {"components"}.union(*(groups[each] for each in by))
    assert set(report.rows) <= set(taken_apart(needs("angles")).rows)
    assert export.draw_ablation(report, tmp_path).is_file()


def test_an_adapter_of_other_positions_is_taken_apart():
    adapter = replace(moved_adapter(), positions="last")
    report = measure.ablation(adapter, FunctionScorer(needs("angles")), model="m", seed=0)
    assert report.accuracy(report.of("components", "all planes", NEITHER))[0] == 0.5
