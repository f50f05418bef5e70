"""Controls for interchange accuracy, on a tiny model trained on a task."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf

from helpers.models import tiny_model
from road_interp.causal.accuracy import interchange_accuracy
from road_interp.causal.controls import UNRELATED, ControlReport, controls, divergences, untrained_like
from road_interp.causal.counterfactuals import Pair, Splits, encode_pairs
from road_interp.causal.directions import cluster_direction, discriminant_direction, mean_difference, probe_direction, swap_along
from road_interp.causal.interchange_runs import InterchangeRuns, full_swap, no_swap
from road_interp.causal.methods import DAS, PLANES, STACKED, methods, train_method
from road_interp.causal.variable_methods import SeparateInterchanges
from road_interp.errors import InputError


def test_every_control_stands_beside_every_method(taught, tokenizer, monkeypatch):
    model, pairs = taught
    told, trained = [], {}

    def recorded(train, name, method, **training):
        trained[name] = train_method(train, name, method, **training)
        return trained[name]

    monkeypatch.setattr(sys.modules[controls.__module__], "train_method", recorded)

    passes = set()

    def progress(what, done=0, total=None):
        name, is_training, loss = what.rpartition(", loss ")
        if is_training:
            told.append((name, done, total, float(loss)))
        else:
            passes.add(what)

    report = controls(model, tokenizer, Splits(pairs, pairs, pairs), 0, "name", steps=60, progress=progress)
    names = [row.method for row in report.rows]
    assert len(set(names)) == len(names) == 17
    assert set(methods()) < set(names)
    assert report.of("no swap").accuracy == 0
    assert report.of("full swap").accuracy == 1
    assert report.of(f"{STACKED}, random angles").accuracy < 0.3
    assert report.of(STACKED).accuracy > 0.9
    assert 0.3 < report.of("no swap, random weights").accuracy < 0.7  # chance; that of the taught model is 0
    assert report.of(f"{DAS}, random weights").log_odds < 1
    assert report.selectivity(DAS) > 5
    rows = (replace(report.of(STACKED), log_odds=3.0), replace(report.of(f"{STACKED}, arbitrary answers"), log_odds=0.5))
    assert replace(report, rows=rows).selectivity() == 2.5
    assert (report.of("DAS, rank 8").parameters, report.of(STACKED).parameters) == (8 * 32, 5 * 16)
    assert (report.of(STACKED).effective, report.of("full swap").effective) == (1 + 2 + 4 + 8 + 16, 0)
    assert report.words == pairs.clusters("name")
    unrelated = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in UNRELATED]
    continued, every = InterchangeRuns(model, pairs.continued(unrelated), 0, "name"), torch.arange(len(pairs))
    plain, swapped = (continued.logits(every, swap).log_softmax(-1) for swap in (no_swap, full_swap))
    assert report.divergences["full swap"] == pytest.approx(float((plain.exp() * (plain - swapped)).sum(1).mean()), rel=1e-3)
    assert report.divergences["no swap"] == 0
    assert 0 < report.divergences[STACKED] < report.divergences["full swap"]
    assert set(report.directions) == {PLANES, DAS, "DAS, rank 8", "difference of means", "linear probe"}
    runs = InterchangeRuns(model, pairs, 0, "name")
    bases = {name: trained[name].basis().detach() for name in (STACKED, PLANES, DAS, "DAS, rank 8")}
    bases |= {"difference of means": mean_difference(runs), "linear probe": probe_direction(runs)}
    stacked = bases.pop(STACKED)
    for name, basis in bases.items():
        nearest = basis @ torch.linalg.lstsq(basis, stacked).solution  # in the subspace
        assert report.directions[name] == pytest.approx(float(torch.cosine_similarity(nearest, stacked, dim=0)), abs=1e-4)
    assert report.directions[DAS] > 1 / 32**0.5  # the cosine of random directions
    assert [name for name, step, *_ in told if step == 60] == list(dict.fromkeys(name for name, *_ in told))
    assert {total for _, _, total, _ in told} == {60}
    assert passes == {"source texts", "base texts", "stored keys", "interchanges", "unrelated continuations"}
    assert ControlReport.from_json(report.to_json()) == report
    with pytest.raises(InputError, match="no row 'DAS'; there are no swap"):
        report.of("DAS")
    with pytest.raises(InputError, match="the JSON of ControlReport must hold one object"):
        ControlReport.from_json("[]")


def test_directions_part_the_classes(taught):
    model, pairs = taught
    runs = InterchangeRuns(model, pairs, 0, "name")
    for direction in (mean_difference(runs), discriminant_direction(runs), probe_direction(runs)):
        assert direction.shape == (32, 1)
        assert direction.norm() == pytest.approx(1)
        base = (runs.bases @ direction).squeeze(1)
        second = torch.tensor([each == "she" for each in pairs.base_class])
        assert base[second].mean() > base[~second].mean()
        assert interchange_accuracy(runs, swap_along(direction), "direction").log_odds > 1


def test_a_discriminant_is_the_shrunk_covariance_inverse_times_the_difference_of_means(taught):
    model, pairs = taught
    runs = InterchangeRuns(model, pairs, 0, "name")
    states = torch.cat((runs.bases, runs.sources)).double().numpy()
    second = np.array([each == "she" for each in (*pairs.base_class, *pairs.source_class)])
    classes = [states[~second], states[second]]
    shrunk = [np.outer(each.std(0), each.std(0)) * ledoit_wolf(each / each.std(0))[0] for each in classes]
    covariance = np.average(shrunk, axis=0, weights=[len(each) for each in classes])
    expected = np.linalg.solve(covariance, classes[1].mean(0) - classes[0].mean(0))
    found = discriminant_direction(runs).squeeze(1).numpy()
    assert found @ expected / np.linalg.norm(expected) == pytest.approx(1, abs=1e-3)


def test_a_discriminant_of_classes_that_do_not_vary_is_the_difference_of_means(taught):
    model, pairs = taught
    runs = copy.copy(InterchangeRuns(model, pairs, 0, "name"))
    one, other = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    runs.bases, runs.sources = (
        torch.stack([other if each == "she" else one for each in classes]) for classes in (pairs.base_class, pairs.source_class)
    )
    expected = torch.nn.functional.normalize(other - one, dim=0)
    torch.testing.assert_close(discriminant_direction(runs).squeeze(1), expected)


def test_a_probe_of_classes_with_the_same_states_is_no_direction(taught):
    """As at a word before the one that decides, which varies over the pairs, but is the same in base and source."""
    model, pairs = taught
    runs = copy.copy(InterchangeRuns(model, pairs, 0, "name"))
    states = torch.randint(-3, 4, (2, 32), generator=torch.Generator().manual_seed(0)).float()  # whose sums are exact
    runs.bases = runs.sources = states[torch.arange(len(pairs)) % 2]
    for direction in (probe_direction, discriminant_direction, mean_difference):
        assert not direction(runs).any()


def test_clusters_part_the_states_that_differ_most(taught):
    """Two far groups of states, whatever their classes."""
    model, pairs = taught
    runs = copy.copy(InterchangeRuns(model, pairs, 0, "name"))
    apart = torch.nn.functional.normalize(torch.arange(32.0), dim=0)
    runs.bases, runs.sources = runs.bases + 100 * apart, runs.sources - 100 * apart
    direction = cluster_direction(runs, seed=0)
    assert direction.shape == (32, 1)
    assert abs(float(apart @ direction.squeeze(1))) == pytest.approx(1, abs=1e-3)
    assert torch.equal(direction, cluster_direction(runs, seed=0))


def test_swapping_along_a_whole_basis_is_the_full_swap():
    base, source = torch.randn(3, 8), torch.randn(3, 8)
    basis = torch.linalg.qr(torch.randn(8, 8)).Q
    torch.testing.assert_close(swap_along(basis)(base, source), source)


def test_swaps_keep_states_of_fp64():
    base, basis = torch.randn(3, 8, dtype=torch.float64), torch.linalg.qr(torch.randn(8, 2)).Q
    assert torch.equal(swap_along(basis)(base, base), base)
    separate = SeparateInterchanges(2, 8, 1, seed=0)
    assert torch.equal(separate(base, torch.randn_like(base), subspaces=[[]] * 3), base)


def test_an_untrained_model_is_the_same_for_a_seed_and_leaves_the_generator_alone(taught):
    model, _ = taught
    before = torch.random.get_rng_state()
    one, again, other = (untrained_like(model, seed).model.layers[0].mlp.up_proj.weight for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, model.model.layers[0].mlp.up_proj.weight)
    assert torch.equal(before, torch.random.get_rng_state())


def test_directions_need_two_classes(taught, tokenizer):
    texts = [("Basil cried because", " he"), ("Ida cried because", " she"), ("Otto cried because", " because")]
    pairs = [Pair(one, other, first, second) for one, first in texts for other, second in texts if first != second]
    runs = InterchangeRuns(taught[0], encode_pairs(pairs, tokenizer), 0, "last")
    with pytest.raises(InputError, match="needs two classes; pairs has 3"):
        mean_difference(runs)


def test_the_tokeniser_is_checked_before_the_trainings(taught):
    model, pairs = taught
    with pytest.raises(InputError, match="causal.controls needs PreTrainedTokenizerBase, not str"):
        controls(model, "a tokeniser", Splits(pairs, pairs, pairs), 0, "name")


def test_states_that_do_not_differ_have_no_direction(tokenizer):
    pairs = [Pair({"the": "The", "who": f" {one}"}, {"the": "The", "who": f" {other}"}, " he", " she") for one, other in NAMES]
    runs = InterchangeRuns(tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer)), encode_pairs(pairs, tokenizer), 0, "the")
    for direction in (mean_difference, probe_direction, discriminant_direction, lambda runs: cluster_direction(runs, 0)):
        with pytest.raises(InputError, match="the states at 'the' do not differ"):
            direction(runs)


NAMES = [("Basil", "Ida"), ("Otto", "Ivy")]


def test_the_random_numbers_of_the_gpus_are_left_alone(taught, monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    untrained_like(taught[0], 0)
    methods()["boundless DAS"].make(32)
    assert not seeded


def test_divergences_are_numbers_of_interchanges_in_evaluation_mode(taught):
    runs = InterchangeRuns(*taught, 0, "name")
    with pytest.raises(InputError, match="with this interchange the model's logits"):
        divergences(runs, {"nan": lambda base, source: base * torch.nan})

    class Noisy(torch.nn.Module):
        def forward(self, base, source):
            return torch.nn.functional.dropout(source, 0.5, self.training)

    first, second = (divergences(runs, {"noisy": Noisy().train(), "full swap": full_swap}) for _ in range(2))
    assert first == second
    assert first["noisy"] == pytest.approx(first["full swap"])


def test_a_direction_is_swapped_in_the_precision_of_its_basis():
    """As by the low-rank intervention with the same basis, beside which it is scored in half precision."""
    basis = torch.linalg.qr(torch.randn(64, 3, generator=torch.Generator().manual_seed(0)))[0]
    base, source = torch.randn(2, 500, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    wide = base.double() + (source.double() - base.double()) @ basis.double() @ basis.T.double()
    assert (swap_along(basis)(base, source).double() - wide).abs().max() <= 2**-8 * wide.abs().max()
    torch.testing.assert_close(swap_along(basis)(base, source), wide.bfloat16(), rtol=2**-7, atol=1e-5)
