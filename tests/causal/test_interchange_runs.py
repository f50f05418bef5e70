"""Interchange runs, training, accuracy, scans and the depth sweep on a tiny model trained on a task."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import pyvene
import torch
import transformers
from transformers import DynamicCache

from helpers.models import random_adapter, tiny_model
from helpers.taught import ragged_pairs, taught_model
from road_interp import plots
from road_interp.causal.accuracy import InterchangeReport, interchange_accuracy
from road_interp.causal.counterfactuals import Pair, Splits, encode_pairs
from road_interp.causal.depth_sweep import DepthReport, depth_by_rows
from road_interp.causal.interchange_runs import InterchangeRuns, full_swap, no_swap
from road_interp.causal.layer_scan import ScanReport, scan
from road_interp.causal.stored_keys import StoredKeys, states_of, supports_stored_keys
from road_interp.causal.training import train_interchange
from road_interp.errors import InputError
from road_interp.models.interchange import RoadInterchangeIntervention
from road_interp.models.intervention import RoadIntervention
from road_interp.models.low_rank_interchange import LowRankInterchangeIntervention
from road_interp.models.road_model import RoadModel
from road_interp.sites.find import find_sites
from road_interp.sites.module_tree import hidden_of, hooked, with_hidden
from road_interp.sites.site import Site

# By architecture: configuration key of the number of blocks, and paths of the second block and of a module inside it.
MODELS = {
    "Llama": ("num_hidden_layers", "model.layers[1]", "mlp"),
    "GPT2": ("n_layer", "transformer.h[1]", "mlp"),
    "GPTNeoX": ("num_hidden_layers", "gpt_neox.layers[1]", "mlp"),
    "OPT": ("num_hidden_layers", "model.decoder.layers[1]", "self_attn.out_proj"),
}


@pytest.mark.parametrize("architecture", list(MODELS))
@pytest.mark.parametrize("inside", [False, True])
def test_runs_equal_pyvenes(tokenizer, architecture, inside):
    option, block, module = MODELS[architecture]
    model = tiny_model(architecture, "causal-lm", vocab_size=len(tokenizer), **{option: 3})
    pairs = ragged_pairs(tokenizer)
    site = find_sites(model, f".*[.]{module}", layers=1)[0] if inside else 1
    runs = InterchangeRuns(model, pairs, site, "who", batch_size=2)
    intervention = RoadInterchangeIntervention(32)
    rows = torch.arange(3)
    ours = runs.logits(rows, intervention)

    component = f"{block}.{module}.output" if inside else f"{block}.output"
    wrapped = pyvene.IntervenableModel([{"component": component, "intervention": intervention}], model)
    batches = [tokenizer(list(texts), padding=True, return_tensors="pt") for texts in (pairs.base, pairs.source)]
    base, source = ({key: batch[key] for key in ("input_ids", "attention_mask")} for batch in batches)
    base_ends, source_ends = ([[end] for end in side] for side in zip(*pairs.span("who"), strict=True))
    _, theirs = wrapped(base, [source], unit_locations={"sources->base": ([source_ends], [base_ends])})
    last = base["attention_mask"].sum(1) - 1
    torch.testing.assert_close(ours, theirs.logits[rows, last], atol=1e-6, rtol=1e-5)

    plain = model(**base).logits[rows, last]
    torch.testing.assert_close(runs.logits(rows, no_swap), plain, atol=1e-6, rtol=1e-5)
    assert (ours - plain).abs().amax(1).min() > 1e-5


@pytest.mark.parametrize("where", ["all-linear", "block-output"])
def test_interchanges_inside_a_rotated_model(tokenizer, where):
    base = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer), num_hidden_layers=3)
    pairs, rows = ragged_pairs(tokenizer), torch.arange(3)
    model = RoadModel(base, random_adapter(find_sites(base, where)))
    inputs = tokenizer(list(pairs.base), padding=True, return_tensors="pt")
    inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad(), model.attached() as rotated:
        runs = InterchangeRuns(rotated, pairs, 1, "who")
        plain, swapped = runs.logits(rows, no_swap), runs.logits(rows, full_swap)
    last = inputs["attention_mask"].sum(1) - 1
    torch.testing.assert_close(plain, model(base=inputs)[1].logits[rows, last], atol=1e-6, rtol=1e-5)
    if where == "all-linear":
        merged = InterchangeRuns(model.merge(), pairs, 1, "who")
        torch.testing.assert_close(swapped, merged.logits(rows, full_swap), atol=1e-5, rtol=1e-5)
    assert not any("forward" in module.__dict__ for module in base.modules())


def test_texts_longer_than_learned_positions(tokenizer):
    model = tiny_model("GPT2", "causal-lm", vocab_size=len(tokenizer), n_positions=4)
    with pytest.raises(InputError, match="GPT2LMHeadModel cannot read a text of 5 tokens: index out of range"):
        InterchangeRuns(model, ragged_pairs(tokenizer), 0, "who")


def test_double_precision_has_the_tolerance_of_single(tokenizer):
    model = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    for dtype, equal in ((torch.float64, False), (torch.float32, False), (torch.bfloat16, True)):
        runs = InterchangeRuns(model.to(dtype), ragged_pairs(tokenizer), 0, "who")
        assert runs._equals_base_odds(runs.base_odds + 0.4) == equal


def test_large_logits_are_rounded_more(tokenizer):
    """GPT-2's are near -100, where half precision has steps of a half: odds of a resumed run may be off by two of them."""
    model = tiny_model("GPT2", "causal-lm", vocab_size=len(tokenizer), tie_word_embeddings=False)
    with torch.no_grad():
        model.transformer.ln_f.bias += 1
        model.lm_head.weight -= 100 / 32
    for dtype, equal in ((torch.float32, [False, False]), (torch.bfloat16, [True, False])):
        runs = InterchangeRuns(model.to(dtype), ragged_pairs(tokenizer), 0, "who")
        assert [runs._equals_base_odds(runs.base_odds + step) for step in (1.0, 3.0)] == equal


def test_a_scan_needs_blocks_and_spans(tokenizer):
    pairs = ragged_pairs(tokenizer)
    model = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    for layers, spans in (([], ["who"]), ([0], [])):
        with pytest.raises(InputError, match="causal.scan needs one block and one span at least"):
            scan(model, Splits(pairs, pairs, pairs), layers, spans, lambda width: full_swap, "full swap")


@pytest.mark.parametrize("architecture", [*MODELS, "Gemma2", "Gemma3Text", "Qwen3", "Mistral"])
@pytest.mark.parametrize("span", ["who", "does", "last"])
def test_stored_keys_change_nothing(tokenizer, architecture, span):
    """Gradients too; also where the spans end at the first token of some texts, and a sliding window is shorter than a text."""
    options = {"sliding_window": 2} if architecture in ("Gemma2", "Gemma3Text", "Mistral") else {}
    model = tiny_model(architecture, "causal-lm", vocab_size=len(tokenizer), **options)
    runs = InterchangeRuns(model, ragged_pairs(tokenizer), 1, span, batch_size=2)
    assert runs.starts_at_span
    complete = copy.copy(runs)
    complete._keys = None
    found = []
    for each in (runs, complete):
        stack = RoadInterchangeIntervention(32, depth=3, spread=2.0)
        for rows in (torch.arange(3), torch.tensor([1]), torch.tensor([2, 0])):
            logits = each.logits(rows, stack)
            logits.square().sum().backward()
            found.append(logits)
        found.append(stack.theta.grad)
    half = len(found) // 2
    for one, other in zip(found[:half], found[half:], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_text_that_pairs_share_is_run_once(tokenizer):
    pairs = ragged_pairs(tokenizer)
    order = [0, 1, 0, 2, 1, 0]
    names = ("base", "source", "base_ids", "source_ids", "base_label", "source_label", "base_class", "source_class")
    repeated = replace(
        pairs,
        **{name: tuple(getattr(pairs, name)[row] for row in order) for name in names},
        positions={span: tuple(ends[row] for row in order) for span, ends in pairs.positions.items()},
        words={span: tuple(words[row] for row in order) for span, words in pairs.words.items()},
    )
    model = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    rows, (site,) = [], find_sites(model, "block-output", layers=1)
    embed = model.model.embed_tokens.forward
    model.model.embed_tokens.forward = lambda ids: rows.append(len(ids)) or embed(ids)
    runs, alone = (InterchangeRuns(model, each, site, "who", batch_size=2) for each in (repeated, pairs))
    assert rows[:6] == [2, 1, 1, 2, 2, 1]  # sources, the tests of the cache and of causal attention, bases
    stack = RoadInterchangeIntervention(32, depth=3, spread=2.0)
    torch.testing.assert_close(runs.logits(torch.arange(6), stack), alone.logits(torch.tensor(order), stack))
    torch.testing.assert_close(runs.base_odds, alone.base_odds[order])
    torch.testing.assert_close(runs.sources, alone.sources[order])


def test_complete_texts_where_stored_keys_would_be_wrong(tokenizer):
    """A model with rotations attached, whose positions may depend on the cache."""
    base = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    model = RoadModel(base, random_adapter(find_sites(base, "block-output")), positions="prompt")
    inputs = tokenizer(list(ragged_pairs(tokenizer).base), padding=True, return_tensors="pt")
    inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad(), model.attached() as rotated:
        runs = InterchangeRuns(rotated, ragged_pairs(tokenizer), 1, "who")
        assert not runs.starts_at_span
        plain = runs.logits(torch.arange(3), no_swap)
    expected = model(base=inputs)[1].logits[torch.arange(3), inputs["attention_mask"].sum(1) - 1]
    torch.testing.assert_close(plain, expected, atol=1e-6, rtol=1e-5)


def test_models_that_keep_other_things_than_keys_are_run_on_complete_texts(tokenizer):
    """Blocks that are not all of attention, attention without padding on both sides, and keys and values of different shapes."""
    model = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    assert supports_stored_keys(model, [3, 4, 5])
    for key, value in (("layer_types", ["conv", "full_attention"]), ("_attn_implementation", "flash_attention_2")):
        other = copy.copy(model)
        other.config = copy.deepcopy(model.config)
        setattr(other.config, key, value)
        assert not supports_stored_keys(other, [3, 4, 5])
    cache = DynamicCache()
    cache.update(torch.zeros(2, 1, 3, 8), torch.zeros(2, 1, 3, 8), 0)
    assert states_of(cache, 0, 5).shape == (2, 1, 2, 1, 5, 8)
    cache.update(torch.zeros(2, 1, 3, 8), torch.zeros(2, 1, 3, 4), 1)
    assert states_of(cache, 0, 5) is None
    assert states_of(cache, 2, 5) is None


def swapped_odds(model, pairs, row, span):
    """Log odds of the source's answer after one complete base text, whose state at block 1 a hook replaces."""
    found = {}
    at_base, at_source = pairs.span(span)[row]

    def read(module, args, output):
        found["state"] = hidden_of(output)[:, at_source].clone()

    def exchange(module, args, output):
        states = hidden_of(output).clone()
        states[:, at_base] = found["state"]
        return with_hidden(output, states)

    site = find_sites(model, "block-output", layers=1)[0]
    module = model.get_submodule(site.module)
    with torch.no_grad():
        with hooked([(module.register_forward_hook, read, {})]):
            model(input_ids=torch.tensor([pairs.source_ids[row]]))
        with hooked([(module.register_forward_hook, exchange, {})]):
            logits = model(input_ids=torch.tensor([pairs.base_ids[row]])).logits[0, -1]
    return float(logits[pairs.source_label[row]] - logits[pairs.base_label[row]])


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("Bert", {"is_decoder": False}),
        ("Bert", {"is_decoder": True}),
        ("Roberta", {"is_decoder": False}),
        ("Roberta", {"is_decoder": True}),
        ("GPT2", {"n_layer": 3}),
    ],
)
def test_a_swap_where_tokens_read_later_ones_or_positions_do_not_start_at_0(tokenizer, architecture, options):
    """Without causal attention, stored keys would be those of texts without the swap. Dropout stays off."""
    model = tiny_model(architecture, "causal-lm", vocab_size=len(tokenizer), **{"num_hidden_layers": 3, **options})
    pairs = ragged_pairs(tokenizer)
    runs = InterchangeRuns(model, pairs, 1, "does")
    assert runs.starts_at_span == options.get("is_decoder", True)
    model.train()
    found = runs.odds(full_swap).tolist()
    assert model.training
    model.eval()
    assert found == pytest.approx([swapped_odds(model, pairs, row, "does") for row in range(3)], abs=1e-5)


def test_a_model_that_cannot_be_run_from_a_block_on_is_refused(tokenizer):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 64}
    torch.manual_seed(0)
    model = transformers.RwkvForCausalLM(transformers.RwkvConfig(vocab_size=len(tokenizer), **sizes))
    with pytest.raises(InputError, match="RwkvForCausalLM cannot be run from block 1 on, as an interchange needs: not enough"):
        InterchangeRuns(model, ragged_pairs(tokenizer), 1, "who")


def test_texts_of_one_token(tokenizer):
    model = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    pairs = encode_pairs([Pair({"who": "Ida"}, {"who": "Otto"}, " she", " he")], tokenizer)
    assert len(pairs.base_ids[0]) == 1
    runs = InterchangeRuns(model, pairs, 0, "who")
    logits = model(input_ids=torch.tensor([pairs.source_ids[0]])).logits[0, -1]
    expected = logits[pairs.source_label[0]] - logits[pairs.base_label[0]]
    assert float(runs.odds(full_swap)) == pytest.approx(float(expected), abs=1e-5)


def test_a_model_without_numbers_is_not_run(tokenizer):
    model = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(InputError, match="without an interchange the log odds are NaN or infinite for 3 of 3 texts"):
        InterchangeRuns(model, ragged_pairs(tokenizer), 1, "who")


def test_an_interchange_that_gives_no_numbers_is_not_measured(tokenizer):
    model = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    runs = InterchangeRuns(model, ragged_pairs(tokenizer), 0, "who")

    def broken(base, source):
        return torch.where(torch.arange(len(base)).unsqueeze(1) == 1, torch.inf, base)

    with pytest.raises(InputError, match="the log odds are NaN or infinite for 1 of 3 texts: use bfloat16 or float32"):
        interchange_accuracy(runs, broken, "broken")


def test_answers_that_are_equally_likely_are_not_swapped(tokenizer):
    model = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    torch.nn.init.zeros_(model.lm_head.weight)
    found = interchange_accuracy(InterchangeRuns(model, ragged_pairs(tokenizer), 1, "who"), full_swap, "full swap")
    assert found.outcomes == (False, False, False)
    assert (found.accuracy, found.flipped, found.log_odds) == (0, 0, 0)


def test_effective_parameters_in_inference_mode_and_no_training_there(tokenizer):
    model = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    runs, stack = InterchangeRuns(model, ragged_pairs(tokenizer), 1, "who"), RoadInterchangeIntervention(32, depth=3)
    expected = interchange_accuracy(runs, stack, "stack")
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert interchange_accuracy(runs, stack, "stack") == expected
            with pytest.raises(InputError, match=r"the training needs gradients: leave torch.no_grad\(\) or torch.inf"):
                train_interchange(runs, stack, 1, 0.1)


def test_stored_keys_that_give_other_answers_are_not_used(tokenizer, monkeypatch):
    before = StoredKeys.before

    def wrong(stored, rows, ends):
        cache = before(stored, rows, ends)
        cache.layers[1].values += 1
        return cache

    model = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    monkeypatch.setattr(StoredKeys, "before", wrong)
    assert not InterchangeRuns(model, ragged_pairs(tokenizer), 1, "does").starts_at_span
    monkeypatch.undo()
    assert InterchangeRuns(model, ragged_pairs(tokenizer), 1, "does").starts_at_span


@pytest.mark.parametrize("tokens", [slice(1, 2), 2])
def test_hooks_that_count_tokens_find_their_own(tokenizer, tokens):
    """Of another steering method, at a block behind that of the swap."""

    def steer(module, args, output):
        states = hidden_of(output).clone()
        states[:, tokens] += 2
        return with_hidden(output, states)

    model, pairs = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer), num_hidden_layers=4), ragged_pairs(tokenizer)
    model.model.layers[2].register_forward_hook(steer)
    runs = InterchangeRuns(model, pairs, 1, "who")
    assert runs.odds(full_swap).tolist() == pytest.approx([swapped_odds(model, pairs, row, "who") for row in range(3)], abs=1e-5)


def test_every_pass_without_gradient_is_told(tokenizer):
    told = []
    model = tiny_model("Llama", "causal-lm", vocab_size=len(tokenizer))
    runs = InterchangeRuns(model, ragged_pairs(tokenizer), 1, "who", batch_size=2, progress=lambda *step: told.append(step))
    assert told == [(what, done, 3) for what in ("source texts", "base texts", "stored keys") for done in (0, 2)]
    told.clear()
    interchange_accuracy(runs, full_swap, "full swap")
    assert told == [("interchanges", 0, 3), ("interchanges", 2, 3)]


def test_the_model_is_left_as_it_was(taught):
    model, pairs = taught
    forwards = [block.forward for block in model.model.layers]
    runs = InterchangeRuns(model, pairs, 1, "name")
    with pytest.raises(ZeroDivisionError):
        runs.odds(lambda base, source: base / (1 // 0))
    assert [block.forward for block in model.model.layers] == forwards
    assert not any(
        "forward" in block.__dict__ or block._forward_hooks or block._forward_pre_hooks for block in model.model.layers
    )


def test_test_pairs_that_are_trained_on_are_warned_of(taught):
    model, pairs = taught
    other = replace(pairs, base=tuple(f"{text} again" for text in pairs.base))
    with pytest.warns(UserWarning, match=f"{len(pairs)} of {len(pairs)} test pairs are also training pairs"):
        scan(model, Splits(pairs, other, pairs), [0], ["name"], lambda width: full_swap, "full swap")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        scan(model, Splits(pairs, pairs, other), [0], ["name"], lambda width: full_swap, "full swap")


def test_one_pair_says_nothing_about_others(taught, tokenizer):
    model, _ = taught
    one = encode_pairs([Pair("Basil cried", "Ida cried", " he", " she")], tokenizer)
    found = interchange_accuracy(InterchangeRuns(model, one, 0, "last"), full_swap, "full swap")
    assert found.log_odds_interval == (-math.inf, math.inf)


def test_the_swaps_without_learning(taught):
    model, pairs = taught
    nothing = interchange_accuracy(InterchangeRuns(model, pairs, 0, "name"), no_swap, "no swap")
    assert (nothing.accuracy, nothing.flipped, nothing.parameters) == (0, 0, 0)
    assert nothing.log_odds == pytest.approx(0, abs=1e-4)
    everything = interchange_accuracy(InterchangeRuns(model, pairs, 0, "name"), full_swap, "full swap")
    assert (everything.accuracy, everything.flipped) == (1, 1)
    assert everything.log_odds > 2
    assert everything.interval[0] < 1 <= everything.interval[1]
    assert everything.log_odds_interval[0] < everything.log_odds < everything.log_odds_interval[1]
    runs = InterchangeRuns(model, pairs, 0, "name")
    assert everything.log_odds_by_pair == pytest.approx((runs.odds(full_swap) + runs.base_odds).tolist(), abs=6e-5)
    late = interchange_accuracy(InterchangeRuns(model, pairs, 1, "name"), full_swap, "full swap")
    assert late.accuracy == 0  # after the last block only the last position affects the answer


def test_the_boundary_of_pyvenes_boundless_das_moves_ten_times_as_fast(taught):
    """With the rate of its rotation it could hardly leave the middle."""
    model, pairs = taught
    runs, boundless = InterchangeRuns(model, pairs, 0, "name"), pyvene.BoundlessRotatedSpaceIntervention(embed_dim=32)
    boundless.temperature.requires_grad_(False)
    train_interchange(runs, boundless, 1, 0.003, temperatures=(1.0, 0.1))
    assert abs(float(boundless.intervention_boundaries) - 0.5) == pytest.approx(0.03, rel=1e-3)
    with pytest.warns(UserWarning, match="^BoundlessRotatedSpaceIntervention swaps in part at .* give temp"):
        train_interchange(runs, boundless, 1, 0.003)


@pytest.mark.parametrize("rows", ["one", "first", "mask"])
def test_an_interchange_is_learned(taught, rows):
    model, pairs = taught
    runs = InterchangeRuns(model, pairs, 0, "name")
    temperatures = None
    if rows == "one":
        intervention = RoadInterchangeIntervention(32, depth=5, rows=[0])
        assert interchange_accuracy(runs, intervention, "random angles").accuracy < 0.3
    elif rows == "first":
        intervention = RoadInterchangeIntervention(32)
    else:
        intervention, temperatures = RoadInterchangeIntervention(32, depth=2, rows="mask"), (1.0, 0.01)
    told = []
    losses = train_interchange(runs, intervention, 50, 0.1, temperatures=temperatures, progress=lambda *step: told.append(step))
    assert told == [(f"loss {loss:.3g}", step, 50) for step, loss in enumerate(losses, start=1)]
    assert len(losses) == 50
    if rows == "mask":
        assert 0 < len(intervention.harden()) < 32
    report = interchange_accuracy(runs, intervention, "learned")
    assert report.accuracy > 0.95
    assert report.parameters == sum(parameter.numel() for parameter in intervention.parameters())
    assert InterchangeReport.from_json(report.to_json()) == report


def test_pyvenes_interventions_train_as_well(taught):
    model, pairs = taught
    runs = InterchangeRuns(model, pairs, 0, "name")
    torch.manual_seed(0)
    intervention = pyvene.LowRankRotatedSpaceIntervention(embed_dim=32, low_rank_dimension=1)
    train_interchange(runs, intervention, 40, 0.05)
    assert interchange_accuracy(runs, intervention, "rank 1").accuracy > 0.95


def test_the_same_seed_gives_the_same_numbers(taught):
    model, pairs = taught
    runs = InterchangeRuns(model, pairs, 0, "name")
    found = []
    for seed in (0, 0, 1):
        intervention = RoadInterchangeIntervention(32, depth=5, rows=[0])
        losses = train_interchange(runs, intervention, 5, seed=seed)
        found.append((losses, interchange_accuracy(runs, intervention, "learned")))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_the_learning_rate_falls_to_0(taught, monkeypatch):
    model, pairs = taught
    rates = []
    step = torch.optim.Adam.step

    def recorded(self, *args, **options):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    train_interchange(InterchangeRuns(model, pairs, 0, "name"), RoadInterchangeIntervention(32, depth=5, rows=[0]), 4, 0.1)
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_half_precision_models(taught, tokenizer):
    model, _ = taught_model(tokenizer)
    runs = InterchangeRuns(model.bfloat16(), taught[1], 0, "name")
    intervention = RoadInterchangeIntervention(32, depth=5, rows=[0])
    losses = train_interchange(runs, intervention, 50, 0.1)
    assert losses[-1] < losses[0]
    assert intervention.theta.dtype == torch.float32
    assert interchange_accuracy(runs, intervention, "learned").accuracy > 0.9


def test_a_scan_finds_where_the_variable_is(taught):
    model, pairs = taught
    splits = Splits(pairs, pairs, pairs)
    told = []
    report = scan(
        model, splits, [0, 1], ["name", "last"], lambda width: full_swap, "full swap", lambda what, *counts: told.append(what)
    )
    assert [each for each in told if each.endswith(("name", "last"))] == [
        f"block {layer}, {span}" for layer in (0, 1) for span in ("name", "last")
    ]
    assert told[0] == "block 0, source texts"
    assert (report.accuracy[0][0], report.accuracy[1]) == (1, (0, 1))
    assert ScanReport.from_json(report.to_json()) == report
    learned = scan(
        model,
        splits,
        [0],
        ["name"],
        lambda width: RoadInterchangeIntervention(width, 5, [0]),
        "one row",
        steps=50,
        learning_rate=0.1,
    )
    assert learned.accuracy[0][0] > 0.95
    masked = RoadInterchangeIntervention(32, 2, "mask")
    scan(model, splits, [0], ["name"], lambda width: masked, "mask", steps=20, learning_rate=0.1, temperatures=(1.0, 0.01))
    assert 0 < len(masked.rows) < 32  # hardened before it was measured

    class Soft(LowRankInterchangeIntervention):
        has_soft_mask = True

        def harden(self):
            self.has_soft_mask = False

    soft = Soft(32, 1)
    scan(model, splits, [0], ["name"], lambda width: soft, "soft", steps=2)
    assert not soft.has_soft_mask

    ax = plots.interchange_scan(report)
    assert ax.images[0].get_array().tolist() == [[1, 0], [report.accuracy[0][1], 1]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["name", "last"]


def test_a_scan_does_not_train_one_interchange_at_several_places(taught):
    model, pairs = taught
    one = RoadInterchangeIntervention(model.config.hidden_size, rows=[0])
    with pytest.raises(InputError, match="was trained at another place; for one that exists .* give lambda width: it.requires"):
        scan(model, Splits(pairs, pairs, pairs), [0], ["name", "last"], lambda width: one, "one", steps=1)
    fixed = one.theta.detach().clone()
    scan(model, Splits(pairs, pairs, pairs), [0], ["name", "last"], lambda width: one.requires_grad_(False), "one")
    assert torch.equal(one.theta, fixed)


@pytest.mark.slow
def test_depth_does_what_rows_do(taught, monkeypatch):
    model, pairs = taught
    told, made, seeds = [], [], []
    module = sys.modules[depth_by_rows.__module__]
    make, train = module.RoadInterchangeIntervention, module.train_interchange
    monkeypatch.setattr(module, "RoadInterchangeIntervention", lambda *given: made.append(given) or make(*given))
    monkeypatch.setattr(
        module, "train_interchange", lambda *given, **options: seeds.append(options["seed"]) or train(*given, **options)
    )
    reports = [
        depth_by_rows(
            model, Splits(pairs, pairs, pairs), 0, "name", seed=seed, steps=40, progress=lambda *what: told.append(what)
        )
        for seed in (0, 1)
    ]
    assert {tuple(rows) for _, _, rows, _ in made} == {(0,), tuple(range(0, 32, 4)), tuple(range(0, 32, 2))}
    assert [seed for *_, seed in made] == seeds == sorted(seeds)
    assert {*seeds} == {0, 1}
    both = DepthReport.over_seeds(reports)
    assert DepthReport.from_json(both.to_json()) == both
    width = model.config.hidden_size
    assert (both.seeds, both.depths[0], both.rows) == ((0, 1), 1, tuple(sorted({1, 8, min(64, width // 2), width // 2})))
    for table in both.cells:
        assert [[cell.method for cell in row] for row in table] == [
            [f"depth {depth}, {count} rows" for count in both.rows] for depth in both.depths
        ]
        assert [cell.parameters for cell in (row[0] for row in table)] == [depth * width // 2 for depth in both.depths]
        assert table[0][-1].flipped > table[0][0].flipped  # one row at depth 1 depends on two dimensions
        assert table[-1][0].flipped > table[0][0].flipped
    trainings = [
        (name, done, total) for what, done, total in told for name, is_training, _ in [what.rpartition(", loss ")] if is_training
    ]
    assert trainings[0] == ("depth 1, 1 rows", 1, 40)
    assert trainings[-1] == (f"depth {both.depths[-1]}, {both.rows[-1]} rows", 40, 40)

    ax = plots.interchange_depth(both)
    means = [[[table[j][k].flipped for table in both.cells] for k in range(len(both.rows))] for j in range(len(both.depths))]
    drawn = [container.lines[0].get_ydata() for container in ax.containers]
    np.testing.assert_allclose(np.array(drawn), np.array(means).mean(-1))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [f"depth {depth}" for depth in both.depths]

    other = replace(reports[1], depths=(1,))
    with pytest.raises(InputError, match="same task, site, span, depths and rows"):
        DepthReport.over_seeds([reports[0], other])
    with pytest.raises(InputError, match="duplicate seed"):
        DepthReport.over_seeds([reports[0], reports[0]])
    low = [min(table[j][0].flipped for table in both.cells) for j in range(len(both.depths))]
    shown = [container.lines[2][0].get_segments()[0][0][1] for container in ax.containers]
    assert shown == pytest.approx(low)
    with pytest.raises(InputError, match="'seeds' is missing"):
        DepthReport.from_json("{}")


def test_what_cannot_be_interchanged_is_refused(taught):
    model, pairs = taught
    road = RoadModel(model, random_adapter(find_sites(model, "block-output")))
    with pytest.raises(InputError, match=r"not a RoadModel: use `with model\.attached\(\) as base:` and give base"):
        InterchangeRuns(road, pairs, 0, "name")
    plain = pyvene.IntervenableModel([{"component": "model.layers[0].output", "intervention": pyvene.ZeroIntervention()}], model)
    with pytest.raises(InputError, match="not an IntervenableModel of pyvene: give model.model, without the interventions"):
        InterchangeRuns(plain, pairs, 0, "name")
    runs = InterchangeRuns(model, pairs, 0, "name")
    rotation, zero = RoadIntervention(runs.site.width), pyvene.ZeroIntervention(embed_dim=runs.site.width)
    for refused in (
        lambda: interchange_accuracy(runs, rotation, "x"),
        lambda: interchange_accuracy(runs, zero, "x"),
        lambda: train_interchange(runs, rotation, steps=1),
    ):
        with pytest.raises(InputError, match="^a (Road|Zero)Intervention reads no source state, .* or full_swap$"):
            refused()
    for undivided in (pairs, (pairs, pairs, pairs)):
        with pytest.raises(
            InputError, match=r"^causal.scan needs Splits\(train, validation, test\), as load_pairs returns, not "
        ):
            scan(model, undivided, [0], ["name"], lambda width: full_swap, "full swap")


def test_wrong_places_are_refused(taught):
    model, pairs = taught
    with pytest.raises(InputError, match="'verb' is not a span of gender; its spans are name, event, because, last"):
        InterchangeRuns(model, pairs, 0, "verb")
    with pytest.raises(InputError, match="layer 2 does not exist"):
        InterchangeRuns(model, pairs, 2, "name")
    (norm,) = find_sites(model, "model[.]norm")
    with pytest.raises(
        InputError, match="'model.norm': an interchange needs the whole output of a module inside the transformer blocks"
    ):
        InterchangeRuns(model, pairs, norm, "name")
    for module, layer in (("model.layers.0.mlp", 1), ("model.layers.1", 2), ("model.norm", 0)):
        with pytest.raises(InputError, match=f"site '{module}': the module is not in block {layer} of LlamaForCausalLM"):
            InterchangeRuns(model, pairs, Site(module, 32, layer), "name")
    model.model.layers[0].idle = torch.nn.Identity()
    with pytest.raises(InputError, match="site 'model.layers.0.idle': LlamaForCausalLM does not call this module"):
        InterchangeRuns(model, pairs, Site("model.layers.0.idle", 32, 0), "name")
    del model.model.layers[0].idle
    for kind in (InterchangeReport, ScanReport):
        refused = {"{": "not valid JSON", "{}": "'task' is missing", "[]": f"the JSON of {kind.__name__} must hold one object"}
        for text, message in refused.items():
            with pytest.raises(InputError, match=message):
                kind.from_json(text)


def test_sites_of_another_model_and_no_pairs_per_pass_are_refused(taught):
    model, pairs = taught
    (other,) = find_sites(tiny_model("GPT2", "causal-lm"), "block-output", layers=[0])
    with pytest.raises(InputError, match=r"LlamaForCausalLM has no .*: give .* of find_sites\(model, "):
        InterchangeRuns(model, pairs, other, "name")
    with pytest.raises(InputError, match="InterchangeRuns: batch_size must be a whole number of at least 1, not 0"):
        InterchangeRuns(model, pairs, 0, "name", batch_size=0)


def test_an_interchange_that_writes_into_the_base_leaves_the_states_of_the_runs(taught):
    runs = InterchangeRuns(*taught, 0, "name")
    bases = runs.bases.clone()

    def in_place(base, source):
        base[:, :16] = source[:, :16]
        return base

    first = interchange_accuracy(runs, in_place, "half of the neurons")
    assert torch.equal(runs.bases, bases)
    assert interchange_accuracy(runs, in_place, "half of the neurons") == first


class SoftInTraining(torch.nn.Module):
    """A mask with dropout that is soft in training only, as in differential binary masking."""

    def __init__(self, width):
        super().__init__()
        self.mask, self.dropout = torch.nn.Parameter(torch.full((width,), 0.3)), torch.nn.Dropout(0.5)

    def forward(self, base, source, subspaces=None):
        share = self.mask.sigmoid() if self.training else (self.mask > 0).float()
        return base + self.dropout(share) * (source - base)


def test_an_interchange_is_measured_in_evaluation_mode(taught):
    runs, mask = InterchangeRuns(*taught, 0, "name"), SoftInTraining(32)
    measured, swapped = (interchange_accuracy(runs, each, "swap") for each in (mask, full_swap))
    assert measured.log_odds == pytest.approx(swapped.log_odds, abs=1e-4)
    assert mask.training
    assert mask.dropout.training
