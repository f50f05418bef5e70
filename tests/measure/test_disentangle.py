"""Angle and magnitude of frozen states: synthetic states with a known result, and features of tiny models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import Gemma3Config, Gemma3Model

import road_interp as ri
from helpers.models import padded_batch, random_adapter, tiny_model, token_batch
from road_interp import plots
from road_interp.data.metrics import METRICS
from road_interp.errors import InputError
from road_interp.measure import DisentangleReport, Features, disentangle, read_features, two_layer_classifier
from road_interp.measure.disentangle import CONSTANT, probe_inputs
from road_interp.measure.frozen_states import random_basis
from road_interp.measure.intervals import mean_over_seeds, wilson
from road_interp.measure.linear_probe import C_GRID, fit_probe
from road_interp.measure.two_layer_classifier import ARMS, TwoLayerClassifier, train_arm
from road_interp.models.hidden_states import find_read_points, read_states

SIZES = {"train": 640, "validation": 200, "test": 400}
WIDTH, HEADS = 8, 2
FEW_RATES = (3e-3, 3e-2)
LABELS = {
    "direction": lambda direction, length: (direction[:, 0] > 0).astype(int),
    "norm": lambda direction, length: (length > 2).astype(int),
    "number": lambda direction, length: 100 + 20 * direction[:, 0],
}


def features(states, labels):
    chunks = states.reshape(len(states), 1, HEADS, -1)
    norms = np.linalg.norm(chunks, axis=-1)
    directions = np.stack([states @ random_basis(WIDTH, seed)[:, :1].numpy() for seed in range(20)])
    return Features(states, norms, norms[..., ::-1], directions, labels)


def synthetic(kind, seed=0):
    """States with random directions around a common one and independent norms; the label depends on one of the two."""
    splits, generator = {}, np.random.default_rng(seed)
    for split, size in SIZES.items():
        direction = generator.standard_normal((size, WIDTH)) + 4 * np.eye(WIDTH)[-1]
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        length = generator.uniform(1, 3, size)
        splits[split] = features((length[:, None] * direction).astype(np.float32), LABELS[kind](direction, length))
    return splits


def study(kind, seeds=(0, 1)):
    pretrained = synthetic(kind)
    noise = {seed: synthetic(kind, 100 + seed) for seed in seeds}
    random = {
        seed: {split: features(each.states, pretrained[split].labels) for split, each in splits.items()}
        for seed, splits in noise.items()
    }
    scored = {"metric": "pearson", "num_labels": 1} if kind == "number" else {"metric": "accuracy", "num_labels": 2}
    return disentangle(pretrained, random, model="m", task=kind, **scored)


@pytest.fixture(scope="module")
def few_rates():
    """Fewer learning rates, for what does not depend on their choice."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(two_layer_classifier, "RATES", FEW_RATES)
        yield


@pytest.fixture(scope="module")
def direction(few_rates):
    return study("direction")


@pytest.fixture(scope="module")
def norm(few_rates):
    return study("norm")


def test_a_label_in_the_direction_is_seen_by_the_angle_alone(direction):
    for name in ("full", "angle only", "states", "unit states", "unit states and all norms"):
        assert direction.score(name)[0] > 0.93, name
    for name in ("random backbone", "magnitude only", "norm", "norms at all read points"):
        assert direction.score(name)[0] < 0.6, name
        _, low, high = direction.score(name)
        assert low < 0.5 < high, name
    gap, low, high = direction.gap("angle only", "magnitude only")
    assert gap == pytest.approx(direction.score("angle only")[0] - direction.score("magnitude only")[0])
    assert 0.3 < low < gap < high


def test_a_label_in_the_norm_is_seen_by_the_magnitude_alone(norm):
    for name in ("magnitude only", "norm", "norms at all read points", "unit states and all norms"):
        assert norm.score(name)[0] > 0.93, name
    assert norm.score("full")[0] > 0.8
    for name in ("random backbone", "angle only", "unit states"):
        assert norm.score(name)[0] < 0.6, name
    assert norm.gap("full", "angle only")[1] > 0.2
    assert norm.gap("full", "full")[0] == 0


def test_regression_is_scored_by_correlation(few_rates):
    report = study("number", seeds=(0,))
    for name in ("full", "angle only", "states", "unit states"):
        assert report.score(name)[0] > 0.9, name
        assert 95 < np.mean(report.of(name).predictions) < 105
    for name in ("random backbone", "magnitude only", "norm"):
        assert abs(report.score(name)[0]) < 0.2, name
    assert report.chance == 0
    width = wilson(0, SIZES["test"])[1]
    assert report.score(CONSTANT)[1:] == (-width, width)


def test_the_outcomes_say_what_was_seen_and_chosen(direction):
    assert [outcome.name for outcome in direction.arms] == list(ARMS)
    assert [outcome.numbers for outcome in direction.arms] == [WIDTH, WIDTH, WIDTH, 1]
    assert {outcome.name: outcome.numbers for outcome in direction.probes} == {
        "states": 8,
        "unit states": 8,
        "norm": 1,
        "norms at all read points": 1,
        "as many random directions": 1,
        "a random direction at all read points": 1,
        "chunk norms at the last block": 2,
        "chunk norms at all read points": 2,
        "chunk norms over the whole norm": 2,
        "chunk norms in a random basis": 2,
        "unit states and all norms": 11,
    }
    assert all(len(outcome.chosen) == 2 and len(outcome.predictions) == 800 for outcome in direction.arms)
    draws = {outcome.name: len(outcome.chosen) for outcome in direction.probes}
    drawn = ("as many random directions", "a random direction at all read points")
    assert draws == {**dict.fromkeys(draws, 1), **dict.fromkeys(drawn, 20)}
    assert all(len(outcome.predictions) == 400 * len(outcome.chosen) for outcome in direction.probes)
    share = np.mean(direction.labels)
    assert direction.chance in (pytest.approx(share), pytest.approx(1 - share))
    with pytest.raises(InputError, match="no outcome 'length'; there are full, random backbone"):
        direction.of("length")


def test_reports_come_back_from_json(direction):
    again = DisentangleReport.from_json(direction.to_json())
    assert again == direction
    assert again.summary() == direction.summary()
    for text, message in (("{", "not valid JSON"), ("[]", "must hold one object"), ("{}", "'model' is missing")):
        with pytest.raises(InputError, match=message):
            DisentangleReport.from_json(text)


def test_same_seed_same_numbers(few_rates):
    splits = synthetic("direction")
    before = torch.random.get_rng_state()
    first, other = (train_arm("angle only", splits, "accuracy", 2, seed) for seed in (0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    again = train_arm("angle only", splits, "accuracy", 2, 0)
    assert again[1] == first[1]
    assert all(map(torch.equal, again[0].state_dict().values(), first[0].state_dict().values()))
    assert not torch.equal(other[0].first.weight, first[0].first.weight)


def test_the_random_numbers_of_the_gpus_are_left_alone(few_rates, monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    train_arm("angle only", synthetic("direction"), "accuracy", 2, 0)
    assert not seeded


def test_the_first_layers_are_those_of_the_paper():
    states = torch.randn(5, WIDTH)
    for arm in ARMS:
        classifier = TwoLayerClassifier(arm, WIDTH, 3)
        w = classifier.first.weight.T
        expected = {
            "angle only": torch.cosine_similarity(states.unsqueeze(2), w.unsqueeze(0), dim=1),
            "magnitude only": torch.outer(states.norm(dim=1), w.norm(dim=0)),
        }.get(arm, states @ w)
        torch.testing.assert_close(classifier.units(states), expected)


def test_what_an_arm_cannot_see_does_not_change_it(few_rates):
    splits = synthetic("direction")
    test = torch.from_numpy(splits["test"].states)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)))[0]
    angle, _ = train_arm("angle only", splits, "accuracy", 2, 0)
    magnitude, _ = train_arm("magnitude only", splits, "accuracy", 2, 0)
    with torch.no_grad():
        told, measured = angle.eval()(test), magnitude.eval()(test)
        for factor in (2.0**-10, 0.5, 1024.0):
            assert torch.equal(angle(factor * test), told)
        lengths = torch.linspace(0.1, 50, len(test)).unsqueeze(1)
        torch.testing.assert_close(angle(lengths * test), told, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(magnitude(test @ turn), measured, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(angle(test @ turn), told, atol=0.1)
        assert not torch.allclose(magnitude(lengths * test), measured, atol=0.01)


@pytest.mark.parametrize("metric", ["accuracy", "matthews", "pearson"])
def test_intervals_are_those_of_the_jackknife_over_texts(direction, metric):
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=40).astype(float)
    told = np.where(generator.random(40) < 0.7, labels, generator.integers(3, size=40))
    seeds = [told, np.where(generator.random(40) < 0.2, 0.0, told)]
    outcome = replace(direction.outcomes[0], predictions=tuple(np.concatenate(seeds)))
    report = replace(direction, metric=metric, labels=tuple(labels), outcomes=(outcome,))
    whole = [METRICS[metric](labels, each) for each in seeds]
    others = [[METRICS[metric](np.delete(labels, i), np.delete(each, i)) for i in range(40)] for each in seeds]
    values = 40 * np.asarray(whole)[:, None] - 39 * np.asarray(others)
    mean, low, high = mean_over_seeds(values.ravel(), 2, metric != "accuracy")
    assert report.score("full") == pytest.approx((np.mean(whole), low + np.mean(whole) - mean, high + np.mean(whole) - mean))


def test_the_interval_of_a_correlation_is_cut_at_1_and_holds_it(direction):
    """Pseudo-values of few texts have another mean than the correlation of all."""
    ends = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        labels = generator.normal(size=10)
        outcome = replace(direction.outcomes[0], predictions=tuple(labels + 0.2 * generator.normal(size=10)))
        value, low, high = replace(direction, metric="pearson", labels=tuple(labels), outcomes=(outcome,)).score("full")
        assert low < value <= high <= 1
        ends.append(high)
    assert max(ends) == 1


def test_a_probe_is_chosen_on_the_validation_texts_and_in_a_tie_the_smallest_c(monkeypatch):
    splits = synthetic("direction")
    train, validation = ((splits[name].states, splits[name].labels) for name in ("train", "validation"))
    assert fit_probe(train, validation, "accuracy", regression=False)[1] > C_GRID[0]

    def equal(labels, predictions):
        assert labels is validation[1]
        return 0.5

    monkeypatch.setitem(METRICS, "accuracy", equal)
    assert fit_probe(train, validation, "accuracy", regression=False)[1] == C_GRID[0]


def test_in_a_tie_the_smaller_rate_and_the_earlier_epoch_win(few_rates, monkeypatch):
    monkeypatch.setitem(METRICS, "accuracy", lambda labels, predictions: 0.5)
    splits = synthetic("direction")
    classifier, rate = train_arm("full", splits, "accuracy", 2, seed=0)
    assert rate == FEW_RATES[0]
    monkeypatch.setattr(two_layer_classifier, "EPOCHS", 1)
    first, _ = train_arm("full", splits, "accuracy", 2, seed=0)
    torch.testing.assert_close(classifier.state_dict(), first.state_dict(), rtol=0, atol=0)


def test_the_constant_answer_is_that_of_the_training_texts(few_rates, monkeypatch):
    monkeypatch.setattr(two_layer_classifier, "EPOCHS", 1)
    splits = synthetic("direction")
    for split, ones in (("train", 0.9), ("test", 0.1)):
        labels = (np.random.default_rng(0).random(SIZES[split]) < ones).astype(int)
        splits[split] = replace(splits[split], labels=labels)
    report = disentangle(splits, {0: splits}, metric="accuracy", num_labels=2, model="m", task="t")
    assert {*report.of(CONSTANT).predictions} == {1.0}


def test_three_seeds_that_differ_have_the_interval_of_three(direction):
    labels = np.zeros(1000)
    seeds = [np.repeat([0.0, 1.0], [right, 1000 - right]) for right in (500, 600, 700)]
    outcomes = [replace(direction.of(name), predictions=tuple(np.concatenate(seeds))) for name in ("full", "angle only")]
    outcomes[1] = replace(outcomes[1], predictions=tuple(np.zeros(3000)))
    report = replace(direction, seeds=(0, 1, 2), labels=tuple(labels), outcomes=tuple(outcomes))
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    for mean, low, high in (report.score("full"), [1 + each for each in report.gap("full", "angle only")]):
        assert mean == pytest.approx(0.6)
        assert low < 0.6 - 0.9 * half
        assert high > 0.6 + 0.9 * half


def test_seeds_are_drawn_too(direction):
    """Two seeds, one always right and one always wrong: the interval is wide although all texts are alike."""
    outcome = replace(direction.outcomes[0], predictions=(1.0,) * 4 + (0.0,) * 4)
    report = replace(direction, labels=(1.0,) * 4, outcomes=(outcome, replace(outcome, name="norm", predictions=(1.0,) * 4)))
    assert report.score("full") == (0.5, 0, 1)
    assert report.gap("norm", "full") == (0.5, -1, 1)


def test_random_directions_are_drawn_like_seeds(direction):
    name, labels = "as many random directions", np.asarray(direction.labels)
    right = np.reshape(direction.of(name).predictions, (20, -1)) == labels
    assert direction.score(name)[0] == pytest.approx(right.mean())
    less_norm = right - (np.asarray(direction.of("norm").predictions) == labels).astype(float)
    assert direction.gap(name, "norm") == pytest.approx(mean_over_seeds(less_norm.ravel(), 20, paired=True))
    with pytest.raises(InputError, match="'full' has 2 seeds or draws, 'as many random directions' 20: they cannot be paired"):
        direction.gap("full", name)


def test_equal_outcomes_are_not_certain(direction):
    """Four texts of which all are right allow an accuracy below 1, and two classifiers without a difference allow one."""
    outcomes = tuple(replace(direction.outcomes[-1], name=name, predictions=(1.0,) * 4) for name in ("norm", "states"))
    report = replace(direction, labels=(1.0,) * 4, outcomes=outcomes)
    assert report.score("norm") == (1, *wilson(4, 4))
    assert report.gap("norm", "states") == (0, -wilson(0, 4)[1], wilson(0, 4)[1])


def test_features_of_bert_are_read_before_its_norms_too():
    model, batch = tiny_model("Bert"), {**token_batch(6), "labels": torch.arange(6)}
    batches = [{key: values[rows] for key, values in batch.items()} for rows in (slice(0, 4), slice(4, 6))]
    found = read_features(model, batches, "first")
    hidden = model(**token_batch(6), output_hidden_states=True).hidden_states
    np.testing.assert_allclose(found.states, hidden[-1][:, 0].detach(), rtol=1e-4, atol=1e-5)
    assert found.chunk_norms.shape == (6, 4, 4)
    places = find_read_points(model, token_batch(6))
    assert [place.before_norm for place in places] == [True, False, True, False]
    for column, state in enumerate(read_states(model, places, token_batch(6))):
        np.testing.assert_allclose(found.norms[:, column], state[:, 0].norm(dim=1), rtol=1e-4)
        np.testing.assert_allclose(found.chunk_norms[:, column, 1], state[:, 0, 8:16].norm(dim=1), rtol=1e-4)
    np.testing.assert_allclose((found.random_chunk_norms**2).sum(-1), found.norms**2, rtol=1e-4)
    assert not np.allclose(found.random_chunk_norms, found.chunk_norms, rtol=0.05)
    inputs = probe_inputs(found)
    shares = inputs["chunk norms over the whole norm"][0].reshape(6, 4, 4)
    np.testing.assert_allclose((shares**2).sum(-1), 1, rtol=1e-4)
    assert np.ptp(found.norms[:, 0]) > 10 * np.ptp(found.norms[:, 1])  # the normalisation removes the magnitude
    assert found.labels.tolist() == list(range(6))
    np.testing.assert_allclose(np.linalg.norm(inputs["unit states"][0], axis=1), 1, rtol=1e-6)
    before = read_features(model, batches, "first", before_norm=True)
    assert (before.place, found.place) == ("block 1, before its LayerNorm", "block 1")
    np.testing.assert_allclose(before.states, read_states(model, places[2:3], token_batch(6))[0][:, 0], rtol=1e-5)
    np.testing.assert_array_equal(before.chunk_norms, found.chunk_norms)
    directions = inputs["as many random directions"]  # orthonormal: no longer than the states, not their neurons
    assert directions.shape == (20, *found.norms.shape)
    assert np.all(np.linalg.norm(directions, axis=2) < np.linalg.norm(found.states, axis=1))
    for seed in (0, 19):
        basis = random_basis(found.states.shape[1], seed).numpy()
        np.testing.assert_allclose(found.states @ basis[:, :4], directions[seed], rtol=1e-4)
    of_places = inputs["a random direction at all read points"]
    assert of_places.shape == directions.shape
    np.testing.assert_array_equal(of_places, probe_inputs(before)["a random direction at all read points"])
    for column, state in enumerate(read_states(model, places, token_batch(6))):
        expected = state[:, 0].detach() @ random_basis(found.states.shape[1], 19)[:, column]
        np.testing.assert_allclose(of_places[19, :, column], expected, rtol=1e-4, atol=1e-5)
    for each, column in ((found, 3), (before, 2)):  # chunk norms are of the states that were read, in both cases
        np.testing.assert_allclose(probe_inputs(each)["chunk norms at the last block"][0], each.chunk_norms[:, column], rtol=1e-4)


def test_padding_side_does_not_change_the_features_of_llama():
    model, rows = tiny_model("Llama"), token_batch(3, 7)["input_ids"]
    lengths = (3, 7, 5)
    read = {}
    for side in ("left", "right"):
        ids, mask = torch.full_like(rows, 2), torch.zeros_like(rows)
        for row, length in enumerate(lengths):
            place = slice(7 - length, None) if side == "left" else slice(0, length)
            ids[row, place], mask[row, place] = rows[row, :length], 1
        read[side] = read_features(model, [{"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(3)}], "last")
    alone = model(rows[2:, :5], output_hidden_states=True)
    np.testing.assert_allclose(read["left"].states, read["right"].states, atol=1e-5)
    np.testing.assert_allclose(read["left"].norms, read["right"].norms, rtol=1e-4)
    normed = model.norm(torch.from_numpy(read["left"].states[2])).detach()  # Llama's last normalisation is after the read point
    torch.testing.assert_close(normed, alone.last_hidden_state[0, -1].detach(), rtol=1e-4, atol=1e-5)
    assert read["left"].chunk_norms.shape == (3, 2, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_mean_over_tokens_is_computed_in_full_precision(dtype):
    model, batch = tiny_model("Llama").to(dtype), padded_batch((3, 7, 5), "left")
    found = read_features(model, [{**batch, "labels": torch.zeros(3)}], "mean")
    (states,) = read_states(model, find_read_points(model, batch)[-1:], batch)
    expected = [row[mask.bool()].double().mean(0) for row, mask in zip(states, batch["attention_mask"], strict=True)]
    np.testing.assert_allclose(found.states, torch.stack(expected), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.norms[:, -1], torch.stack(expected).norm(dim=1), rtol=1e-5)


def test_rotated_blocks_are_read_before_their_norms_too():
    base, batch = tiny_model("Bert"), token_batch()
    model = ri.RoadModel(base, random_adapter(ri.find_sites(base, "block-output")))
    places = find_read_points(base, batch)
    with model.attached():
        states = [each[:, 0] for each in read_states(base, places, batch)]
    for before_norm, expected in ((False, states[3]), (True, states[2])):
        found = read_features(model, [{**batch, "labels": torch.zeros(3)}], "first", before_norm)
        np.testing.assert_allclose(found.states, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.norms, torch.stack(states, 1).norm(dim=-1), rtol=1e-4)


@pytest.mark.parametrize("token", ["first", "last", "mean"])
def test_a_text_without_tokens_is_refused(token):
    batch = {**token_batch(2), "labels": torch.zeros(2)}
    batch["attention_mask"][1] = 0
    with pytest.raises(InputError, match="a text has no tokens"):
        read_features(tiny_model("Llama"), [batch], token)


def test_the_heads_of_a_model_of_texts_and_images_are_those_of_the_texts():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    text = {**sizes, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 60}
    config = Gemma3Config(text_config=text, vision_config={**sizes, "image_size": 28, "patch_size": 14})
    batches = [{**token_batch(), "labels": torch.zeros(3)}]
    features = read_features(Gemma3Model(config).eval(), batches, "last", stack="language_model.layers")
    assert features.chunk_norms.shape == (3, 1, 4)


def test_heads_that_do_not_divide_the_state_and_no_texts_are_refused():
    model = tiny_model("Bert")
    with pytest.raises(InputError, match="there are no texts"):
        read_features(model, [], "first")
    with pytest.raises(InputError, match="needs batches with the 'labels'"):
        read_features(model, [token_batch()], "first")
    for token in ("frist", "all"):
        with pytest.raises(InputError, match=f"token '{token}' has no state per text; use first, last or mean"):
            read_features(model, [{**token_batch(), "labels": torch.zeros(3)}], token)
    model.config.num_attention_heads = 5
    with pytest.raises(InputError, match="the blocks of LlamaModel do not end in a normalisation"):
        read_features(tiny_model("Llama"), [{**token_batch(), "labels": torch.zeros(3)}], "last", before_norm=True)
    with pytest.raises(InputError, match="states of width 32 do not divide into 5 heads"):
        read_features(model, [{**token_batch(), "labels": torch.zeros(3)}], "first")


SPLITS = synthetic("direction")
TEST = SPLITS["test"]
NO_TEXTS = Features(
    TEST.states[:0], TEST.chunk_norms[:0], TEST.random_chunk_norms[:0], TEST.random_directions[:, :0], TEST.labels[:0]
)


def spoiled(**changes):
    return {**SPLITS, "test": replace(TEST, **changes)}


@pytest.mark.parametrize(
    ("given", "random", "options", "message"),
    [
        (SPLITS, {0: SPLITS}, {"metric": "f1"}, "metric 'f1' is not one of accuracy, matthews, pearson"),
        (SPLITS, {0: SPLITS}, {"metric": "pearson"}, "'pearson' does not fit num_labels 2"),
        (SPLITS, {0: SPLITS}, {"num_labels": 1}, "'accuracy' does not fit num_labels 1"),
        (SPLITS, {}, {}, "no seed"),
        ({"train": TEST}, {0: SPLITS}, {}, "features has no split 'validation'; it has train"),
        (SPLITS, {7: {}}, {}, r"random\[7\] has no split 'train'; it has none"),
        (SPLITS, {0: spoiled(labels=1 - TEST.labels)}, {}, r"random\[0\], test: other texts or another width"),
        (SPLITS, {0: spoiled(place="block 1")}, {}, r"random\[0\], test: states of block 1, those of the pretrained"),
        (spoiled(chunk_norms=TEST.chunk_norms[..., [0, 1, 1]]), {0: SPLITS}, {}, "of width 8 do not divide into 3 heads"),
        (spoiled(labels=TEST.labels[1:]), {0: SPLITS}, {}, "features, test: 400 states, 400 norms, 400 directions, 399 labels"),
        (
            spoiled(states=TEST.states * np.float32("nan")),
            {0: SPLITS},
            {},
            "features, test: a state, norm or label is not finite",
        ),
        (spoiled(random_directions=TEST.random_directions * np.inf), {0: SPLITS}, {}, "a state, norm or label is not finite"),
        (
            spoiled(random_directions=TEST.random_directions[:, 1:]),
            {0: SPLITS},
            {},
            "400 states, 400 norms, 399 directions, 400 labels",
        ),
        (spoiled(labels=TEST.labels + 1), {0: SPLITS}, {}, "test: a label is not one of the classes 0 to 1"),
        (spoiled(labels=TEST.labels / 1), {0: SPLITS}, {}, "test: a label is not one of the classes 0 to 1"),
        (spoiled(labels=TEST.labels > 0), {0: SPLITS}, {}, "test: a label is not one of the classes 0 to 1, as whole numbers"),
        (spoiled(states=TEST.states.astype(float)), {0: SPLITS}, {}, r"states are float64: give states.astype\(numpy.float32\)"),
        ({**SPLITS, "test": TEST.states}, {0: SPLITS}, {}, "measure.disentangle needs Features, not ndarray"),
        (
            {**SPLITS, "test": NO_TEXTS},
            {0: {**SPLITS, "test": NO_TEXTS}},
            {},
            "features, test: there are no texts",
        ),
        (
            {split: replace(each, labels=0 * each.labels) for split, each in SPLITS.items()},
            {0: {split: replace(each, labels=0 * each.labels) for split, each in SPLITS.items()}},
            {},
            "all training labels are the same",
        ),
    ],
)
def test_features_that_do_not_fit_are_refused(given, random, options, message):
    with pytest.raises(InputError, match=message):
        disentangle(given, random, **{"metric": "accuracy", "num_labels": 2, "model": "m", "task": "t", **options})


def test_the_study_is_drawn(direction):
    ax = plots.disentangle(direction)
    ticks = [label.get_text() for label in ax.get_yticklabels()]
    assert ticks[:4] == ["full (8)", "random backbone (8)", "angle only (8)", "magnitude only (1)"]
    assert ticks[-1] == "unit states and all norms (11)"
    arms, probes = (container.lines[0] for container in ax.containers)
    assert arms.get_xdata().tolist() == [direction.score(arm)[0] for arm in ARMS]
    assert probes.get_ydata().tolist() == list(range(4, 15))
    assert arms.get_color() != probes.get_color()
    (dashed,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert dashed.get_xdata()[0] == direction.chance
    assert ax.get_title() == "m, direction: frozen states, 2 seeds"
