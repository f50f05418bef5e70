"""What torch.compile traces, run without a compiler: real entries instead of complex products, with equal results."""

from __future__ import annotations

import pytest
import torch

from helpers.models import token_batch
from helpers.road_models import bank_model, road_model
from road_interp.adapters.joined_names import BASE
from road_interp.models.open_contexts import is_rotated

CLOSE = {"rtol": 0, "atol": 1e-5}
SHAPES = [
    ("Llama", "all-linear", "road_1", 2),
    ("Llama", "attention-qk", "road_1", 8),
    ("Llama", "mlp", "road_2", 2),
    ("Llama", "block-output", "road_4", 2),
    ("GPT2", "attention-qk", "road_1", 2),  # slices of one layer
    ("GPT2", "attention-qk", "road_4", 4),
]


@pytest.fixture
def traced(monkeypatch):
    """Calls inside this take the path of compiled code."""

    def call(model, batch, **options):
        with monkeypatch.context() as patched:
            patched.setattr(torch.compiler, "is_compiling", lambda: True)
            return model(base=batch, **options)[1].logits

    return call


@torch.no_grad()
@pytest.mark.parametrize(("architecture", "target_modules", "variant", "group_size"), SHAPES)
def test_entries_equal_products(traced, architecture, target_modules, variant, group_size):
    model, batch = road_model(architecture, target_modules, variant, group_size), token_batch(3)
    assert all(site.output_slice is not None for site in model.sites) == (architecture == "GPT2")
    expected = model(base=batch)[1].logits
    plain = model.model(**batch).logits
    torch.testing.assert_close(traced(model, batch), expected, **CLOSE)
    assert (expected - plain).abs().max() > 10 * CLOSE["atol"]


@torch.no_grad()
@pytest.mark.parametrize("variant", ["road_1", "road_2"])
def test_rows_of_a_bank(traced, variant):
    model, batch = bank_model(variant=variant), token_batch(4)
    for names in (["a", "b", "c", BASE], ["c", "c", BASE, "a"]):
        expected = model(base=batch, adapter_names=names)[1].logits
        torch.testing.assert_close(traced(model, batch, adapter_names=names), expected, **CLOSE)


@torch.no_grad()
def test_an_adapter_that_is_replaced_while_it_is_attached(traced, monkeypatch):
    """The entries that were read before are not those of the new adapter."""
    model, batch = bank_model("ab"), token_batch(2)
    expected = model(base=batch, adapter_names=["b", "b"])[1].logits
    with model.attached(["a", "a"]):
        model.bank.replace("a", model.bank["b"])
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        torch.testing.assert_close(model.model(**batch).logits, expected, **CLOSE)


@torch.no_grad()
def test_an_adapter_that_is_trained_while_it_is_attached(monkeypatch):
    """Its values change without a new version of the bank."""
    model, batch = bank_model("ab"), token_batch(2)
    theta, _ = model.bank.trainable()["a"]
    with model.attached(["a", "a"]) as base:
        for step in (0.0, 0.5):
            theta.add_(step)
            expected = base(**batch).logits
            with monkeypatch.context() as patched:
                patched.setattr(torch.compiler, "is_compiling", lambda: True)
                torch.testing.assert_close(base(**batch).logits, expected, **CLOSE)


@torch.no_grad()
def test_strengths(traced):
    model, batch = road_model(), token_batch(3)
    expected = model(base=batch, strengths=[0.5, 1, -1])[1].logits
    torch.testing.assert_close(traced(model, batch, strengths=[0.5, 1, -1]), expected, **CLOSE)


@torch.no_grad()
def test_positions(traced):
    model, batch = road_model(positions="last"), token_batch(3)
    torch.testing.assert_close(traced(model, batch), model(base=batch)[1].logits, **CLOSE)


def test_whether_a_model_is_rotated_is_known():
    model = road_model()
    assert not is_rotated(model.model)
    with model.attached():
        assert is_rotated(model.model)
    assert not is_rotated(model.model)
