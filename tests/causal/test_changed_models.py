"""Runs of a model are not used once its weights, rotations, hooks or adapters have changed."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import replace

import peft
import pytest
import torch

from helpers.models import random_adapter, tiny_model
from helpers.taught import ragged_pairs
from road_interp.adapters.bank import RoadBank
from road_interp.causal.interchange_runs import InterchangeRuns, full_swap, no_swap
from road_interp.causal.resumed_model import ResumedModel
from road_interp.causal.training import train_interchange
from road_interp.errors import InputError
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.models.road_model import RoadModel
from road_interp.sites.find import find_sites

# By architecture: configuration key of the number of blocks, and paths of the second block and of a module inside it.


def test_runs_belong_to_the_rotations_that_they_were_made_with(tokenizer):
    base = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer), num_hidden_layers=3)
    pairs, model = ragged_pairs(tokenizer), RoadModel(base, random_adapter(find_sites(base, "block-output")))
    plain = InterchangeRuns(base, pairs, 1, "who")
    with model.attached() as rotated:
        made = InterchangeRuns(rotated, pairs, 1, "who")
        made.odds(no_swap)
        with pytest.raises(InputError, match="were made with other rotations attached to the model, or merged into it"):
            plain.odds(no_swap)
    plain.odds(no_swap)
    other = RoadModel(base, random_adapter(find_sites(base, "all-linear"), seed=4))
    for changed in (nullcontext, other.attached):
        with changed(), pytest.raises(InputError, match="were made with other rotations attached to the model"):
            made.odds(no_swap)
    other.merge()
    with pytest.raises(InputError, match="were made with other rotations attached to the model, or merged into it"):
        plain.odds(no_swap)
    other.unmerge()
    plain.odds(no_swap)


def change_head(model):
    model.lm_head.weight.data.neg_()


def change_embeddings(model):
    model.get_input_embeddings().weight.data.normal_()


def add_hook(model):
    model.model.layers[0].register_forward_hook(lambda module, args, output: output[..., :] * 2)


def change_dtype(model):
    model.bfloat16()


@pytest.mark.parametrize("change", [change_head, change_embeddings, add_hook, change_dtype])
def test_runs_notice_that_the_model_has_changed(tokenizer, change):
    """Stored states and odds would be those of another model."""
    model = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer), num_hidden_layers=3)
    runs = InterchangeRuns(model, ragged_pairs(tokenizer), 1, "who")
    assert runs.odds(no_swap).tolist() == pytest.approx((-runs.base_odds).tolist(), abs=1e-4)
    change(model)
    stack = RoadInterchangeIntervention(32, depth=3)
    for use in (lambda: runs.odds(no_swap), lambda: train_interchange(runs, stack, steps=1)):
        with pytest.raises(
            InputError, match="gives other answers than when these runs were made|are of a model in torch.float32"
        ):
            use()


def test_runs_notice_that_a_lora_was_switched_off(tokenizer):
    model = peft.get_peft_model(
        tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer)),
        peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False),
    )
    runs = InterchangeRuns(model.base_model.model, ragged_pairs(tokenizer), 0, "who")
    runs.odds(no_swap)
    with model.disable_adapter(), pytest.raises(InputError, match="its weights, hooks, adapters or autocast have changed"):
        runs.odds(no_swap)
    runs.odds(no_swap)


def test_runs_are_relabelled_by_pairs_of_the_same_texts(tokenizer):
    pairs = ragged_pairs(tokenizer)
    runs = InterchangeRuns(tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer)), pairs, 0, "who")
    runs.relabelled(pairs.with_arbitrary_labels(len(tokenizer)))
    with pytest.raises(InputError, match="the texts of pairs are not those of these runs"):
        runs.relabelled(replace(pairs, source_ids=pairs.source_ids[::-1]))
    with pytest.raises(InputError, match="needs CounterfactualPairs, not str: give pairs of the same texts"):
        runs.relabelled("x")
    with pytest.raises(InputError, match="encode them with the tokeniser of this model"):
        runs.relabelled(pairs.with_arbitrary_labels(100_000))


def test_relabelled_runs_exchange_at_the_spans_of_their_own_pairs(tokenizer):
    pairs = ragged_pairs(tokenizer)
    moved = replace(pairs, positions={**pairs.positions, "who": pairs.positions["does"]})
    model = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    runs = InterchangeRuns(model, pairs, 0, "who")
    found, expected = runs.relabelled(moved).odds(full_swap), InterchangeRuns(model, moved, 0, "who").odds(full_swap)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="'who' is not a span of pairs; its spans are does, last"):
        runs.relabelled(replace(pairs, positions={name: pairs.positions[name] for name in ("does", "last")}))


def test_runs_notice_maps_that_change_inside_attached(tokenizer):
    base = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    adapter = random_adapter(find_sites(base, "mlp"), spread=1)
    bank, single = RoadBank({"a": adapter}), RoadModel(base, adapter)

    def changed():
        for _, intervention in single.by_site():
            intervention.theta.data.add_(1.0)

    replaced = random_adapter(adapter.sites, seed=7, spread=1)
    for model, change in ((RoadModel(base, bank), lambda: bank.replace("a", replaced)), (single, changed)):
        with model.attached() as rotated:
            runs = InterchangeRuns(rotated, ragged_pairs(tokenizer), 1, "who")
            runs.odds(no_swap)
            change()
            with pytest.raises(InputError, match="these runs were made with other rotations"):
                runs.odds(no_swap)


@pytest.mark.parametrize(
    "by_row",
    [{"adapter_names": ["a", "b", "a"]}, {"adapter_names": ["a"] * 3, "strengths": [1, 0, 1]}, {"positions": [[0], [0], [1]]}],
)
def test_rotations_that_differ_by_row_are_refused(tokenizer, by_row):
    """The rows of a pass are the different texts, by length: the rotations would be those of other pairs."""
    base = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    sites, pairs, site = find_sites(base, "mlp"), ragged_pairs(tokenizer), find_sites(base, "block-output")[1]
    model = RoadModel(base, RoadBank({name: random_adapter(sites, seed=seed) for seed, name in enumerate("ab")}))
    options = {"adapter_names": ["a"], **by_row}
    with model.attached(**options) as rotated, pytest.raises(InputError, match="InterchangeRuns: .* for every row of a call"):
        InterchangeRuns(rotated, pairs, site, "who")
    with model.attached(adapter_names=["a"], strengths=[0.5], positions="f1") as rotated:
        InterchangeRuns(rotated, pairs, site, "who")


def test_a_call_beside_an_interchange_is_refused(tokenizer, monkeypatch):
    """It would skip the blocks before the intervened one, too; and states would be read from it while the runs are made."""
    base = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    model, refused = RoadModel(base, random_adapter(find_sites(base, "block-output"))), []

    def call():
        with pytest.raises(InputError, match="a call in other overlaps with an interchange in MainThread"):
            model(base={"input_ids": torch.tensor([[3, 4]])})
        refused.append(True)

    def call_beside(*_):
        thread = threading.Thread(target=call, name="other")
        thread.start()
        thread.join(20)

    def observed(resumed, *arguments):
        with resumed.module.register_forward_pre_hook(call_beside):
            return observe(resumed, *arguments)

    def swap(states, sources):
        call_beside()
        return full_swap(states, sources)

    expected, observe = InterchangeRuns(base, ragged_pairs(tokenizer), 1, "does"), ResumedModel.observe
    monkeypatch.setattr(ResumedModel, "observe", observed)
    runs = InterchangeRuns(base, ragged_pairs(tokenizer), 1, "does")
    assert refused
    refused.clear()
    assert torch.equal(runs.sources, expected.sources)
    assert torch.equal(runs.odds(swap), expected.odds(full_swap))
    assert refused


def test_interchanges_of_merged_weights_inside_attached(tokenizer):
    base = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    model = RoadModel(base, random_adapter(find_sites(base, "all-linear")))
    model.merge()
    expected = InterchangeRuns(base, ragged_pairs(tokenizer), 1, "does")
    with model.attached() as merged:
        runs = InterchangeRuns(merged, ragged_pairs(tokenizer), 1, "does")
        assert torch.equal(runs.odds(full_swap), expected.odds(full_swap))
        assert runs.starts_at_span
