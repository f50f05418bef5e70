"""Drift of states: 0 without a change, known angles and scales, and numbers that do not depend on the batches."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import warnings
from dataclasses import replace
from functools import reduce
from importlib import import_module

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import XLNetConfig, XLNetModel

from helpers.cli import run as run_cli
from helpers.cli import run_two_processes
from helpers.models import padded_batch, random_adapter, tiny_model, token_batch
from helpers.recipes import recipe_for
from helpers.road_models import road_model
from road_interp import RoadAdapter, RoadModel, find_sites, measure, plots
from road_interp.errors import InputError
from road_interp.measure.drift import DriftReport, DriftStudy
from road_interp.measure.drift_sums import DRAWS, SAMPLE, DriftSums
from road_interp.models.hidden_states import find_read_points, read_states
from road_interp.plots import export
from road_interp.training.api import train

file = import_module("road_interp.measure.drift")  # the attribute `drift` of the package is the function
NAMES = {"base_name": "before", "tuned_name": "after"}


def shifted(model, spread=0.02):
    """A copy with noise on all weights, except those of the normalisations."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            if "norm" not in name.lower():
                parameter += spread * torch.randn(parameter.shape, generator=generator)
    return moved


def rotated(model, layer, angle, scale, stack=None):
    """A RoadModel that rotates every plane of one block's output by `angle` and scales it."""
    sites = find_sites(model, "block-output", layer, stack)
    blank = RoadAdapter.identity(sites)
    theta = {name: torch.full_like(values, angle) for name, values in blank.theta.items()}
    alpha = {name: torch.full_like(values, scale) for name, values in blank.alpha.items()}
    return RoadModel(model, RoadAdapter(sites, theta, alpha))


def numbers(report):
    return np.array([[*place.dM, *place.signed, *place.dD, *place.angle] for place in report.places])


@pytest.mark.parametrize("architecture", ["Bert", "Llama"])
@pytest.mark.parametrize("token", ["first", "last", "mean", "all"])
def test_the_identity_moves_nothing_at_all(architecture, token):
    base = tiny_model(architecture)
    road = RoadModel(base, RoadAdapter.identity(find_sites(base, "all-linear")))
    report = measure.drift(base, road, [padded_batch((3, 7, 5), "right")], token, **NAMES)
    assert (report.texts, report.states) == (3, 15 if token == "all" else 3)
    for place in report.places:
        assert (place.dM, place.signed, place.angle, place.dD) == ((0, 0, 0), (0, 0, 0), (0, 0, 0), (1, 1, 1))
        assert place.correlation is None
        assert place.points == ((1, 0),) * 3


@pytest.mark.parametrize("token", ["first", "mean", "all"])
def test_a_known_rotation_comes_out_at_its_place(token):
    base = tiny_model("Llama")
    report = measure.drift(base, rotated(base, 1, 0.5, 0.8), [token_batch(), token_batch(seed=1)], token, **NAMES)
    before, place = report.places
    assert (before.angle, before.dM) == ((0, 0, 0), (0, 0, 0))
    assert place.angle == pytest.approx((np.degrees(0.5),) * 3, rel=1e-5)
    assert place.dD == pytest.approx((np.cos(0.5),) * 3, rel=1e-5)
    assert place.dM == pytest.approx((0.2,) * 3, rel=1e-5)
    assert place.signed == pytest.approx((-0.2,) * 3, rel=1e-5)
    back = measure.drift(rotated(base, 1, 0.5, 0.8), base, [token_batch()], token, **NAMES)
    assert back.places[1].signed[0] == pytest.approx(0.25, rel=1e-5)
    assert base(**token_batch()).last_hidden_state.isfinite().all()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())


def test_behind_a_norm_the_norm_cannot_move():
    base = tiny_model("Bert", initializer_range=0.3)
    report = measure.drift(base, shifted(base, 0.2), [token_batch(8)], **NAMES)
    assert [(place.layer, place.before_norm) for place in report.places] == [(0, True), (0, False), (1, True), (1, False)]
    for place in report.places:
        assert place.norm_is_pinned == (not place.before_norm)
        assert ("sets the norm" in place.name) == place.norm_is_pinned
        assert (place.dM[0] < 1e-5) == place.norm_is_pinned
        assert place.angle[0] > 5
    assert not any(place.norm_is_pinned for place in measure.drift(*(2 * [tiny_model("Llama")]), [token_batch()], **NAMES).places)


def test_means_and_correlation_are_those_of_the_states():
    base = tiny_model("Bert", initializer_range=0.3)
    tuned, batch = shifted(base, 0.1), token_batch(40)
    report = measure.drift(base, tuned, [batch], **NAMES)
    places = find_read_points(base, batch)
    for place, before, after in zip(report.places, *(read_states(model, places, batch) for model in (base, tuned)), strict=True):
        x0, x = before[:, 0].double().numpy(), after[:, 0].double().numpy()
        norms = np.linalg.norm(x0, axis=1), np.linalg.norm(x, axis=1)
        cosine, dM = (x0 * x).sum(1) / norms[0] / norms[1], abs(norms[1] - norms[0]) / norms[0]
        angle = np.degrees(np.arccos(cosine))
        expected = (dM.mean(), (norms[1] / norms[0] - 1).mean(), cosine.mean(), angle.mean())
        assert (place.dM[0], place.signed[0], place.dD[0], place.angle[0]) == pytest.approx(expected, abs=1e-9)
        if place.before_norm:
            assert place.correlation == pytest.approx(stats.pearsonr(dM, angle).statistic, abs=1e-6)
        points, states = (np.array(sorted(each)) for each in (place.points, zip(cosine, dM, strict=True)))
        np.testing.assert_allclose(1 - points[:, 0], 1 - states[:, 0], rtol=5e-4)  # four significant digits
        np.testing.assert_allclose(points[:, 1], states[:, 1], rtol=5e-4)
        resampled = stats.bootstrap((angle,), np.mean, n_resamples=2000, rng=np.random.default_rng(0), method="percentile")
        wide = np.subtract(*resampled.confidence_interval[::-1])
        assert place.angle[2] - place.angle[1] == pytest.approx(wide, rel=0.15)


def place_of(before, after):
    """A read point whose states changed as given: `points` as `drift` makes them."""
    cosine = np.array([b @ a / np.linalg.norm(a) / np.linalg.norm(b) for b, a in zip(before, after, strict=True)])
    old, new = (np.linalg.norm(each, axis=1) for each in (before, after))
    points = tuple(zip(cosine.tolist(), (abs(new / old - 1)).tolist(), strict=True))
    return file.ReadPointDrift(0, False, False, *[(0.0, 0.0, 0.0)] * 4, None, points, len(before[0]))


@pytest.mark.parametrize("angle", [1.0, 1e-4, 1e-5])
def test_the_ratio_to_the_turn_is_that_of_states_and_not_of_texts(angle):
    """One of the tokens of every text turns and grows by as much as it is displaced by the turn."""
    base, scale = tiny_model("Llama"), 1 + 2 * np.sin(angle / 2)
    sites = find_sites(base, "block-output", 1)
    blank = RoadAdapter.identity(sites)
    theta = {name: torch.full_like(values, angle, dtype=torch.float64) for name, values in blank.theta.items()}
    alpha = {name: torch.full_like(values, scale, dtype=torch.float64) for name, values in blank.alpha.items()}
    model = RoadModel(base.double(), RoadAdapter(sites, theta, alpha), positions="f1").double()
    report = measure.drift(base, model, [token_batch(40)], "all", **NAMES)
    ratio, low, high = report.places[-1].over_turn
    assert report.states > report.texts
    assert ratio == pytest.approx(1, abs=0.01)
    assert low - 1e-9 <= ratio <= high + 1e-9


@pytest.mark.parametrize("width", [384, 2048])
@pytest.mark.parametrize("degrees", [0.2, 1, 5, 20, 60])
def test_a_random_change_is_the_null_at_every_angle(degrees, width):
    """Also where most of the change of length is along the state, as at small angles."""
    generator = np.random.default_rng(0)
    states = generator.normal(size=(1000, width))
    change = np.tan(np.radians(degrees)) * generator.normal(size=states.shape)
    place = place_of(states, states + change)
    ratio, low, high = place.over_null
    assert low <= ratio <= high
    assert ratio == pytest.approx(1, abs=0.06)
    grown = place_of(states, 1.5 * (states + change))
    assert grown.null == pytest.approx(place.null)
    assert grown.over_null[0] > 1.4


@pytest.mark.parametrize("degrees", [1, 15, 30, 45, 60])
def test_one_random_vector_for_all_texts_is_as_large_as_often_as_it_says(degrees):
    """The intervals over texts of such changes do not hold the null; their chances are those of one draw for each."""
    generator, width = np.random.default_rng(0), 128
    states = np.ones(width) + 0.1 * generator.normal(size=(60, width))
    as_large, outside = [], 0
    for draw in range(200):
        vector = generator.normal(size=width)
        change = np.tan(np.radians(degrees)) * np.linalg.norm(states, axis=1, keepdims=True) * vector / np.linalg.norm(vector)
        place = place_of(states, states + change)
        if draw < 40:
            outside += not place.over_null[1] <= 1 <= place.over_null[2]
        as_large.append(place.chance_as_large)
        assert place.chance_as_large + place.chance_as_small == pytest.approx(1, abs=0.002)
    assert outside > 20
    assert stats.kstest(as_large, "uniform").pvalue > 0.01
    assert place_of(states, 3 * (states + change)).chance_as_large < 0.001
    assert replace(place, norm_is_pinned=True).chance_as_large is None


def test_the_null_is_too_large_at_80_degrees():
    """Where the cosine is small, it varies by a part of itself, which the secant magnifies."""
    generator = np.random.default_rng(0)
    states = generator.normal(size=(2000, 384))
    change = np.tan(np.radians(80)) * generator.normal(size=states.shape)
    inside = [row for row, (before, after) in enumerate(zip(states, states + change, strict=True)) if before @ after > 0]
    assert place_of(states[inside], (states + change)[inside]).over_null[0] == pytest.approx(0.84, abs=0.03)


def test_the_null_of_many_dimensions_is_the_secant():
    cosines = np.array([1.0, 0.9, 0.2])
    place = place_of(np.eye(2), np.eye(2))
    assert replace(place, width=10**12).null_at(cosines) == pytest.approx(1 / cosines - 1, abs=1e-6)
    assert replace(place, width=None).null_at(cosines) == pytest.approx(1 / cosines - 1)


def test_a_pure_rotation_is_below_the_null_and_a_pure_scaling_has_none():
    turned = np.array([[np.cos(0.3), np.sin(0.3)], [np.cos(0.4), np.sin(0.4)]])
    states = np.tile([1.0, 0.0], (2, 1))
    assert place_of(states, turned).over_null == pytest.approx((0, 0, 0), abs=1e-12)
    assert place_of(states, 2 * states).over_null is None
    assert place_of(states, -turned).null is None


def test_texts_that_all_begin_with_the_same_token_are_warned_of():
    """Behind a BOS token the first state of a causal model is that of the token, whatever the text."""
    base, batch = tiny_model("Llama"), token_batch(4)
    tuned = RoadModel(base, random_adapter(find_sites(base, "all-linear")))
    batch["input_ids"][:, 0] = 1
    with pytest.warns(UserWarning, match="the first token changes alike in all 4 texts, .* give token='last' for a causal model"):
        measure.drift(base, tuned, [batch], "first", **NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure.drift(base, tuned, [batch], "last", **NAMES)
        measure.drift(base, base, [batch], "first", **NAMES)


def test_length_against_turn_by_hand():
    """A turn of 60 degrees displaces a state by its norm; here it also gets longer by one half and by a quarter."""
    turned = np.array([[0.5, 3**0.5 / 2]])
    states = np.array([[1.0, 0.0]] * 2)
    place = place_of(states, np.concatenate((1.5 * turned, 1.25 * turned)))
    assert place.over_turn[0] == pytest.approx(3 / 8)
    assert place.over_turn[1:] == pytest.approx((1 / 4, 1 / 2))
    assert place_of(states, 2 * states).over_turn is None
    assert replace(place, norm_is_pinned=True).over_turn is None


@pytest.mark.filterwarnings("error")
def test_one_changed_text_of_many_has_ratios_with_intervals():
    """A third of the bootstrap samples do not have it: nothing changes in them, so that they have no ratio."""
    states = np.tile([1.0, 0.0], (20, 1))
    changed = states.copy()
    changed[3] = (1.0, 0.5)
    place = place_of(states, changed)
    for ratio in (place.over_null, place.over_turn):
        assert ratio[1:] == pytest.approx((ratio[0], ratio[0]))


@pytest.mark.parametrize("token", ["first", "last", "mean", "all"])
@pytest.mark.parametrize("architecture", ["Bert", "Llama"])
def test_padding_and_batches_do_not_matter(token, architecture):
    base = tiny_model(architecture, initializer_range=0.2)
    road = RoadModel(base, random_adapter(find_sites(base, "all-linear"), spread=0.1))
    lengths = (3, 7, 5, 7, 2)
    whole = padded_batch(lengths, "right")
    apart = [{key: value[row : row + 1, :length] for key, value in whole.items()} for row, length in enumerate(lengths)]
    one = measure.drift(base, road, [whole], token, **NAMES)
    many = measure.drift(base, road, apart, token, **NAMES)
    np.testing.assert_allclose(numbers(many), numbers(one), atol=1e-3, rtol=1e-3)
    assert one.places[-1].angle[0] > 1
    if architecture == "Llama":  # its positions are relative
        left = [
            {key: value.roll(7 - length, 1) for key, value in row.items()}
            for row, length in zip(_rows(whole), lengths, strict=True)
        ]
        padded = {key: torch.cat([row[key] for row in left]) for key in whole}
        np.testing.assert_allclose(
            numbers(measure.drift(base, road, [padded], token, **NAMES)), numbers(one), atol=1e-3, rtol=1e-3
        )


def _rows(batch):
    return [{key: value[row : row + 1] for key, value in batch.items()} for row in range(len(batch["input_ids"]))]


def some_sums(texts, places=3, seed=0):
    """Sums of random values, one batch of as many texts per entry of `texts`, as several processes might have."""
    generator, first, sums = np.random.default_rng(seed), 0, []
    for size in texts:
        rows = np.repeat(np.arange(size), generator.integers(1, 9, size))
        sums.append(DriftSums.of(generator.random((len(rows), places, 7)), rows, range(first, first + size)))
        first += size
    return sums


def assert_equal(sums, other):
    for name, value in vars(sums).items():
        np.testing.assert_allclose(value, getattr(other, name), rtol=1e-12, err_msg=name)


def test_shares_merge_to_the_whole_in_any_order():
    parts = some_sums([700, 1, 900, 30])
    whole = reduce(DriftSums.merge, parts)
    assert len(whole.keys) == SAMPLE < whole.texts
    assert_equal(reduce(DriftSums.merge, parts[::-1]), whole)
    assert_equal(parts[0].merge(parts[1]).merge(parts[2].merge(parts[3])), whole)
    nothing = DriftSums.of(np.zeros((0, 3, 7)), np.zeros(0, int), range(0))
    assert_equal(nothing.merge(whole), whole)
    values = np.random.default_rng(0).random((50, 2, 7))
    one = DriftSums.of(values, np.arange(50), range(50))
    halves = [DriftSums.of(values[part], np.arange(25), range(50)[part]) for part in (slice(25), slice(25, 50))]
    assert_equal(halves[1].merge(halves[0]), one)
    assert one.redrawn_states.mean() == pytest.approx(50, rel=0.02)
    assert one.redrawn_states.std() == pytest.approx(50**0.5, rel=0.1)


def test_every_process_takes_its_share(monkeypatch):
    base, batches = tiny_model("Bert"), [token_batch(rows, seed=rows) for rows in (3, 2, 4)]
    seen = {}
    for process, processes in ((0, 1), (0, 2), (1, 2)):
        monkeypatch.setattr(file, "_share", lambda share=(process, processes): share)
        monkeypatch.setattr(file, "_over_processes", lambda sums, key=(process, processes): seen.setdefault(key, sums))
        measure.drift(base, shifted(base), batches, **NAMES)
    assert [sums.texts for sums in seen.values()] == [9, 7, 2]
    assert_equal(seen[1, 2].merge(seen[0, 2]), seen[0, 1])


def test_sums_do_not_grow_with_the_texts():
    sizes = [len(pickle.dumps(reduce(DriftSums.merge, some_sums([100] * count)))) for count in (10, 30)]
    assert sizes[1] == sizes[0] < 8 * 3 * (4 * DRAWS + 2 * SAMPLE) * 1.5


def test_activations_are_not_kept():
    base, alive = tiny_model("Bert"), []

    def batches():
        for seed in range(8):
            gc.collect()
            alive.append(sum(isinstance(each, torch.Tensor) for each in gc.get_objects()))
            yield token_batch(seed=seed)

    gc.freeze()  # excludes existing objects from the collections below, and from those of the tests that follow
    measure.drift(base, shifted(base), batches(), "all", **NAMES)
    assert len(set(alive[2:])) == 1


def test_a_model_that_peft_changed_is_compared_with_itself_before():
    peft = pytest.importorskip("peft", reason="needs the extra [peft]")
    base = tiny_model("Bert")
    config = peft.LoraConfig(target_modules=["query", "value"], r=2, init_lora_weights=False)
    batch = [token_batch()]
    expected = measure.drift(copy.deepcopy(base), tuned := peft.get_peft_model(base, config), batch, **NAMES)
    assert expected.places[-1].angle[0] > 0.1
    assert numbers(measure.drift(base, tuned, batch, **NAMES)).tolist() == numbers(expected).tolist()
    assert not numbers(measure.drift(tuned, tuned, batch, **NAMES))[:, :6].any()


def test_the_adapter_of_peft_is_disabled_while_the_other_model_is_read():
    """Also where the PEFT model comes first, or the other is a RoadModel around the same base model."""
    peft = pytest.importorskip("peft", reason="needs the extra [peft]")
    base = tiny_model("Bert")
    apart, adapter, batch = copy.deepcopy(base), random_adapter(find_sites(base, ["value"]), spread=0.2), [token_batch()]
    config = peft.LoraConfig(target_modules=["query", "value"], r=2, init_lora_weights=False)
    tuned = peft.get_peft_model(base, config)
    for make in (lambda model: model, lambda model: RoadModel(model, adapter)):
        for order in (lambda model: (tuned, model), lambda model: (model, tuned)):
            with_own_base = numbers(measure.drift(*order(make(apart)), batch, **NAMES))
            np.testing.assert_allclose(numbers(measure.drift(*order(make(base)), batch, **NAMES)), with_own_base, atol=1e-6)


@pytest.mark.parametrize("token", ["first", "last", "mean", "all"])
def test_masks_of_booleans_are_read_like_those_of_numbers(token):
    base, batch = tiny_model("Bert"), padded_batch((5, 3, 7), "right")
    as_booleans = {**batch, "attention_mask": batch["attention_mask"].bool()}
    found = [numbers(measure.drift(base, shifted(base), [each], token, **NAMES)) for each in (batch, as_booleans)]
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["PrefixTuningConfig", "PromptTuningConfig"])
def test_learned_prompts_of_peft_are_refused(kind):
    """They act in calls of the PEFT model only: the model inside it, whose states are read, did not move at all."""
    peft = pytest.importorskip("peft", reason="needs the extra [peft]")
    base = tiny_model("Llama", "causal-lm")
    learned = peft.get_peft_model(copy.deepcopy(base), getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(InputError, match="PEFT's prompt learning acts in calls of the PEFT model only"):
        measure.drift(base, learned, [token_batch()], "last")
    with pytest.raises(InputError, match="PEFT's prompt learning acts in calls of the PEFT model only"):
        measure.read_features(learned, [{**token_batch(), "labels": torch.zeros(3)}], "last")


@pytest.mark.parametrize("rows", [3, 7])
def test_states_of_blocks_with_tokens_first_are_those_of_their_rows(rows):
    """As many rows as tokens were taken for each other."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}
    base = XLNetModel(XLNetConfig(**sizes)).eval()
    tuned, batch = shifted(base, 0.1), padded_batch((7, 5, 2, 7, 4, 6, 3)[:rows], "right")
    hidden = (model(**batch, output_hidden_states=True).hidden_states[1][:, 0] for model in (base, tuned))
    expected = torch.cosine_similarity(*hidden).double().arccos().rad2deg().mean().item()
    place = measure.drift(base, tuned, [batch]).place(0)
    assert place.angle[0] == pytest.approx(expected, rel=1e-4)
    lengths = batch["attention_mask"].sum(1).tolist()
    apart = [{key: value[row : row + 1, :length] for key, value in batch.items()} for row, length in enumerate(lengths)]
    for token in ("last", "mean", "all"):
        found = (measure.drift(base, tuned, batches, token) for batches in ([batch], apart))
        np.testing.assert_allclose(*map(numbers, found), atol=1e-3, rtol=1e-3)


def test_modes_are_put_back_and_dropout_is_off():
    base = tiny_model("Bert").train()
    report = measure.drift(base, base, [token_batch()], **NAMES)
    assert base.training
    assert not numbers(report)[:, :6].any()


def test_either_stack_of_an_encoder_decoder_is_read_at_its_own_tokens():
    base, encoder, decoder = tiny_model("T5"), padded_batch((3, 7, 5), "right"), padded_batch((2, 4, 1), "right", seed=1)
    batch = {**encoder, **{f"decoder_{name}": values for name, values in decoder.items()}}
    road = rotated(base, 1, 0.5, 1.2, "decoder.block")
    found = {name: measure.drift(base, road, [batch], "all", stack=f"{name}.block") for name in ("encoder", "decoder")}
    assert {name: report.states for name, report in found.items()} == {"encoder": 15, "decoder": 7}
    assert [place.angle[0] for place in found["encoder"].places] == [0, 0]
    assert found["decoder"].places[1].angle[0] == pytest.approx(np.degrees(0.5), abs=1e-3)
    features = measure.read_features(road, [{**batch, "labels": torch.zeros(3)}], "last", stack="decoder.block")
    assert features.place == "block 1"
    with pytest.raises(InputError, match="need batches with a decoder_attention_mask"):
        measure.drift(base, road, [{**encoder, "decoder_input_ids": decoder["input_ids"]}], stack="decoder.block")
    empty = {**batch, "decoder_attention_mask": batch["decoder_attention_mask"] * torch.tensor([[1], [0], [1]])}
    with pytest.raises(InputError, match="a text among 0 to 2 has no tokens"):
        measure.drift(base, road, [empty], "last", stack="decoder.block")
    with pytest.raises(InputError, match=r"choose one block stack; T5Model has encoder\.block, decoder\.block"):
        measure.drift(base, road, [batch])


def test_what_cannot_be_compared_is_refused():
    base, batch = tiny_model("Bert"), [token_batch()]
    wrong = [
        (tiny_model("Bert", num_hidden_layers=3), "before has 2 blocks, after 3: their states cannot be paired"),
        (tiny_model("Llama"), "the blocks of only one end in a normalisation"),
        (tiny_model("Bert", hidden_size=16), "before has width 32, after 16"),
    ]
    for other, message in wrong:
        with pytest.raises(InputError, match=message):
            measure.drift(base, other, batch, **NAMES)
    with pytest.raises(InputError, match=r"token \d+, after knows 3: both models must read the same tokens"):
        measure.drift(base, tiny_model("Bert", vocab_size=3), batch, **NAMES)
    with pytest.raises(InputError, match="there are no texts"):
        measure.drift(base, base, [], **NAMES)
    with pytest.raises(InputError, match="token 'cls' is not known; use first, last, mean, all"):
        measure.drift(base, base, batch, "cls", **NAMES)
    empty = [token_batch(), {**token_batch(2), "attention_mask": torch.tensor([[1] * 7, [0] * 7])}]
    with pytest.raises(InputError, match="a text among 3 to 4 has no tokens"):
        measure.drift(base, base, empty, **NAMES)
    with torch.no_grad():
        (dead := copy.deepcopy(base)).encoder.layer[1].output.LayerNorm.weight.zero_()
    with pytest.raises(InputError, match="after, block 1: a state has norm 0, and so no direction"):
        measure.drift(base, dead, batch, **NAMES)
    with torch.no_grad():
        (wild := tiny_model("Llama")).layers[0].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(InputError, match="after, block 0: a state has norm (nan|inf)"):
        measure.drift(tiny_model("Llama"), wild, batch, **NAMES)


@pytest.fixture(scope="module")
def report():
    base = tiny_model("Bert", initializer_range=0.3)
    return measure.drift(base, shifted(base, 0.1), [token_batch(20)], **NAMES)


def test_reports_come_back_from_json(report):
    assert DriftReport.from_json(report.to_json()) == report
    study = DriftStudy((report, report), ({"test": {"accuracy": 0.5}}, {}))
    assert DriftStudy.from_json(study.to_json()) == study
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "the JSON of DriftReport must hold one object"),
        ("{}", "'base' is missing"),
        (json.dumps({**json.loads(report.to_json()), "places": [{"x": 1}]}), r"unknown key 'places\[0\].x'"),
    ):
        with pytest.raises(InputError, match=message):
            DriftReport.from_json(text)
    for text, message in (
        ("[1]", "the JSON of DriftStudy must hold one object"),
        ('{"reports": [1], "scores": []}', r"reports\[0\] must be a mapping, not 1"),
        (report.to_json(), "this is the JSON of DriftReport, not of DriftStudy"),
    ):
        with pytest.raises(InputError, match=message):
            DriftStudy.from_json(text)


def test_places_are_found_by_block(report):
    assert report.layers == [0, 1]
    assert report.place(-1) == report.places[-1]
    assert report.place(0, before_norm=True) == report.places[0]
    with pytest.raises(InputError, match="block 2 does not exist; there are 2 blocks"):
        report.place(2)
    bare = replace(report, places=(report.places[1],))
    with pytest.raises(InputError, match="block 0 does not end in a normalisation"):
        bare.place(0, before_norm=True)


@pytest.mark.rendered
def test_the_drawings_show_the_numbers(report, tmp_path):
    place = report.place(-1, before_norm=True)
    ax = plots.drift_scatter(report, place=place)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), place.points)
    assert ax.get_title() == "after\nblock 1, before its LayerNorm"
    with pytest.raises(InputError, match=r"plots.drift_scatter draws a ReadPointDrift, not an int: give report.place\(layer\)"):
        plots.drift_scatter(report, place=1)
    other = replace(report, tuned="other")
    ax = plots.drift_grid([report, other])
    panels = ax.figure.axes
    assert len(panels) == 8
    assert len({(panel.get_xlim(), panel.get_ylim()) for panel in panels}) == 1
    assert [panel.get_title() for panel in panels[:3]] == ["block 0", "block 1", ""]
    np.testing.assert_allclose(panels[3].collections[0].get_offsets(), report.place(1).points)
    assert export.save_figure(ax, report, tmp_path, "grid").stat().st_size > 5000
    outputs = [place for place in report.places if not place.before_norm]
    deep = replace(report, places=tuple(replace(outputs[0], layer=layer) for layer in range(12)))
    panels = plots.drift_grid([deep]).figure.axes
    assert [panel.get_title() for panel in panels if panel.axison] == [f"block {layer}" for layer in range(12)]
    assert len({panel.get_position().y0 for panel in panels}) == 2
    ax = plots.drift_blocks([report, report, other], quantity="dM")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    lines_of = ["before the block's LayerNorm", "after it: norm set by LayerNorm", "isotropic change of the same angle"]
    assert labels == ["after", "other", *lines_of]
    dotted = [line.get_ydata().tolist() for line in ax.get_lines() if line.get_linestyle() == ":"]
    assert dotted == [[report.place(layer, True).null for layer in (0, 1)]] * 3
    lines = {tuple(container.lines[0].get_ydata()) for container in ax.containers}
    assert lines == {tuple(report.place(layer, kind).dM[0] for layer in (0, 1)) for kind in (True, False)}


@pytest.mark.processes
def test_two_processes_report_what_one_does(workplace, tmp_path, capsys, monkeypatch):
    """The `drift` command with a run folder as the tuned model, in one process and under torchrun."""
    finished = train(recipe_for(workplace, "training.max_steps=3"), workplace / "drifted", progress=False)
    compared = (workplace / "model", finished.folder, workplace / "data.csv")
    arguments = ["drift", *compared, "--token", "all", "--limit", 150, "--json"]
    code, out, err = run_cli(capsys, monkeypatch, *arguments)
    assert code == 0, err
    alone = DriftReport.from_json(out)
    assert alone.texts == 150 < alone.states
    assert alone.places[-1].angle[0] > 0.1
    together = DriftReport.from_json(run_two_processes(*arguments))
    assert (together.texts, together.states) == (alone.texts, alone.states)
    np.testing.assert_allclose(numbers(together), numbers(alone), rtol=1e-9, atol=1e-12)
    assert [place.points for place in together.places] == [place.points for place in alone.places]


def test_a_merged_model_is_not_compared_with_its_own_base():
    model, batch = road_model(), token_batch(2)
    found = measure.drift(model.model, model, [batch]).places[-1].dM[0]
    model.merge()
    assert found > 0.01
    for base, tuned in ((model.model, model), (model, model.model)):
        with pytest.raises(InputError, match="the rotations are merged into the weights of both: call unmerge first"):
            measure.drift(base, tuned, [batch])
    fresh = tiny_model("Llama", "causal-lm")
    assert measure.drift(fresh, model, [batch]).places[-1].dM[0] == pytest.approx(found, abs=1e-5)
    other = RoadModel(model.model, random_adapter(model.sites, seed=5))
    assert measure.drift(model, other, [batch]).places == measure.drift(model.model, other, [batch]).places
