"""Calls that would rotate other tokens, rows or modules than they ask for, or rotate twice, are errors."""

from __future__ import annotations

import copy
import threading
import warnings
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import pyvene
import torch
import transformers
from packaging.version import Version
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertLMHeadModel,
    CLIPConfig,
    CLIPModel,
    CsmBackboneModel,
    CsmConfig,
    DynamicCache,
    GPT2DoubleHeadsModel,
    LongformerConfig,
    LongformerModel,
    MambaConfig,
    MambaForCausalLM,
    XLNetConfig,
    XLNetModel,
)

from helpers.models import padded_batch, random_adapter, tiny_model, token_batch
from helpers.road_models import bank_model, road_model
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.errors import InputError
from road_interp.models.intervention import RoadIntervention
from road_interp.models.road_model import RoadModel
from road_interp.models.rotation_context import _rows_and_tokens
from road_interp.models.token_selection import named_inputs
from road_interp.sites.find import find_sites
from road_interp.sites.site import Site


def everywhere(model, rows=2):
    """pyvene's subspaces with all planes of every site, in every row."""
    return [[list(range(site.width // 2))] * rows for site in model.sites]


# ------------------------------------------------------------------ twice


def test_merge_and_unmerge_wait_for_attached_to_end():
    model, batch = road_model(), token_batch()
    rotated, plain = model(base=batch)[1].logits, model.model(**batch).logits
    with model.attached() as base:
        with pytest.raises(InputError, match=r"merge in .* overlaps with attached\(\)"):
            model.merge()
        assert torch.equal(base(**batch).logits, rotated)
    model.merge()
    with model.attached() as base:
        with pytest.raises(InputError, match=r"unmerge in .* overlaps with attached\(\)"):
            model.unmerge()
        torch.testing.assert_close(base(**batch).logits, rotated, rtol=0, atol=1e-5)
    model.unmerge()
    assert torch.equal(model.model(**batch).logits, plain)


def test_merged_weights_are_not_rotated_again_by_pyvenes_loop():
    model, batch = road_model(), token_batch(2)
    model.merge()
    for call in (model, model.generate):
        with pytest.raises(InputError, match="are merged, and pyvene's loop would apply them again"):
            call(base=batch, subspaces=everywhere(model))


def test_there_is_no_original_output_of_a_rotated_base():
    model, batch, in_pyvene = road_model(), token_batch(2), {"unit_locations": {"base": 0}}
    with model.attached():
        with pytest.raises(InputError, match="are attached: there is no original output"):
            model(base=batch, output_original_output=True)
        with pytest.raises(InputError, match=r"overlaps with attached\("):
            model(base=batch, output_original_output=True, **in_pyvene)
    model.merge()
    for call in (model, model.generate):
        with pytest.raises(InputError, match="are merged: there is no original output"):
            call(base=batch, output_original_output=True)
        with pytest.raises(InputError, match="are merged, and pyvene's loop would apply them again"):
            call(base=batch, output_original_output=True, **in_pyvene)


def test_the_original_output_is_not_computed_beside_attached():
    """Another thread enters `attached` between the check and the pass."""
    model, batch, refused = road_model(), token_batch(2), []
    expected, attach = model.model(**batch).logits, model.attached()

    def enter():
        with pytest.raises(InputError, match=r"attached\(\) .* overlaps with a call in MainThread"):
            attach.__enter__()
        refused.append(True)

    def before(module, args, kwargs):
        if not refused:
            thread = threading.Thread(target=enter)
            thread.start()
            thread.join()

    with model.model.register_forward_pre_hook(before, with_kwargs=True):
        original, _ = model(base=batch, output_original_output=True)
    assert refused
    assert torch.equal(original.logits, expected)


def test_a_model_is_not_copied_while_rotations_are_attached():
    model, batch = road_model(), token_batch()
    with model.attached():
        for each in (model, model.model):
            with pytest.raises(InputError, match=r"cannot be copied during attached\(\) of road_1"):
                copy.deepcopy(each)
    assert torch.equal(copy.deepcopy(model)(base=batch)[1].logits, model(base=batch)[1].logits)

    def copied(module, inputs):
        copy.deepcopy(module)

    with (
        model.model.register_forward_pre_hook(copied),
        pytest.raises(InputError, match="^a model cannot be copied during a call in MainThread: "),
    ):
        model(base=batch)


def test_an_attached_model_is_saved_with_a_warning_that_its_rotations_are_not(tmp_path):
    model = road_model()
    with model.attached() as base, pytest.warns(UserWarning, match=r"without the rotations of attached\(\) of road_1") as told:
        base.save_pretrained(tmp_path / "attached")
    assert told[0].filename == __file__
    assert (tmp_path / "attached/config.json").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        base.save_pretrained(tmp_path / "plain")
    assert "save_pretrained" not in base.__dict__


def test_an_optimizer_that_trains_no_rotation_of_an_attached_model_is_an_error():
    model, batch = road_model(), token_batch()

    def steps(parameters):
        before, optimizer = model.adapter, torch.optim.Adam(parameters, lr=0.1)
        with model.attached() as base:
            base(**batch).logits.square().sum().backward()
            optimizer.step()
        return model.adapter.distance(before)

    for parameters in (list(model.model.parameters()), [{"params": []}]):  # the second as transformers' Trainer makes it
        with pytest.raises(InputError, match="the optimizer trains nothing: the rotations of attached"):
            steps(parameters)
    assert steps([each for each in model.parameters() if each.requires_grad]) > 0
    assert not torch.optim.Adam(list(model.model.parameters())).step()


def test_pyvenes_files_without_a_config_are_not_written(tmp_path):
    model = road_model()
    for call, message in (
        (model.save_intervention, r"only a CUDA device can load: use save\(folder\)"),
        (model.load_intervention, r"needs a CUDA device: load the folder of save\(folder\)"),
    ):
        with pytest.raises(InputError, match=message):
            call(tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------ tokens


def test_pyvenes_loop_takes_tokens_as_unit_locations_only():
    model, batch = road_model(), token_batch(2)
    last = RoadModel(model.model, model.adapter, positions="last")
    for each, options in ((model, {"positions": "last"}), (last, {})):
        for call in (each, each.generate):
            with pytest.raises(InputError, match="positions 'last' have no effect .* unit_locations"):
                call(base=batch, subspaces=everywhere(model), **options)


def test_a_prompt_that_is_rotated_as_a_whole_has_no_other_positions():
    model, batch = road_model(target_modules="block-output"), token_batch(2)
    last, greedy = RoadModel(model.model, model.adapter, positions="last"), {"max_new_tokens": 2, "do_sample": False}
    for each, options in ((last, {}), (model, {"positions": "prompt"}), (model, {"positions": [[0], [1]]})):
        with pytest.raises(InputError, match="intervene_on_prompt=True asks for every token, positions .* these: leave it out"):
            each.generate(batch, intervene_on_prompt=True, **options, **greedy)
    assert torch.equal(model.generate(batch, intervene_on_prompt=True, **greedy)[1], model.generate(batch, **greedy)[1])


def test_plain_pyvene_removes_the_hook_that_finds_positions():
    model, batch = road_model(target_modules="block-output", positions="last"), token_batch()
    with model.attached() as base:
        plain = pyvene.IntervenableModel([{"component": "model.layers[1].output", "intervention": RoadIntervention(32)}], base)
        for call in (lambda: plain(batch), lambda: base(**batch)):
            with pytest.raises(
                InputError, match="which was removed from LlamaForCausalLM: pyvene's IntervenableModel removes all"
            ):
                call()
    assert torch.equal(RoadModel(model.model, model.adapter)(batch)[1].logits, model(batch)[1].logits)


def test_a_submodule_of_an_attached_model_has_no_positions():
    model, batch = road_model(), token_batch()
    last = RoadModel(model.model, model.adapter, positions="last")
    with last.attached() as base:
        for _ in range(2):
            with pytest.raises(InputError, match=r"q_proj' is called by itself: positions 'last' .* LlamaForCausalLM"):
                base.model(**batch)
            assert torch.equal(base(**batch).logits, last(base=batch)[1].logits)


def test_a_submodule_of_an_attached_model_reads_the_parameters_again():
    model, batch = road_model(), token_batch()
    plain = model.model.model(**batch).last_hidden_state
    with torch.no_grad(), model.attached() as base:
        rotated = base.model(**batch).last_hidden_state
        assert not torch.allclose(rotated, plain)
        base(**batch)
        for _, intervention in model.by_site():
            intervention.theta.zero_()
            intervention.alpha.fill_(1)
        torch.testing.assert_close(base.model(**batch).last_hidden_state, plain, rtol=0, atol=1e-6)


def test_a_prompt_in_pieces_needs_all_positions():
    model, batch = road_model(), token_batch(2, 8)
    last = RoadModel(model.model, model.adapter, positions="last")
    first, second = batch["input_ids"].split(4, dim=1)
    with torch.no_grad():
        cache = last(base={"input_ids": first, "use_cache": True})[1].past_key_values
        with pytest.raises(InputError, match="the cache holds 4 tokens and the call 4 more"):
            last(base={"input_ids": second, "past_key_values": cache})
        whole = model(base={"input_ids": batch["input_ids"]})[1].logits
        cache = model(base={"input_ids": first, "use_cache": True})[1].past_key_values
        pieces = model(base={"input_ids": second, "past_key_values": cache})[1].logits
    torch.testing.assert_close(pieces, whole[:, 4:], rtol=0, atol=1e-5)


def test_inputs_that_are_none_are_not_given():
    model, batch = road_model(), token_batch(2)
    last = RoadModel(model.model, model.adapter, positions="last")
    states = last.model.get_input_embeddings()(batch["input_ids"])
    given = {"input_ids": None, "inputs_embeds": states, "attention_mask": batch["attention_mask"]}
    torch.testing.assert_close(last(base=given)[1].logits, last(base=batch)[1].logits)
    expected = last.generate(batch, max_new_tokens=3, do_sample=False)[1]
    embedded = last.generate({key: value for key, value in given.items() if value is not None}, max_new_tokens=3, do_sample=False)
    assert torch.equal(embedded[1][:, -3:], expected[:, -3:])


def test_inputs_by_name_are_refused_with_the_forms_that_work():
    model, batch = road_model(), token_batch()
    with pytest.raises(InputError, match=r"give the inputs as one mapping, .* not model\(\);"):
        model()
    for call in (model, model.generate):
        with pytest.raises(InputError, match=r"not model\(input_ids=\.\.\.\); inside `with model.attached"):
            call(**batch)
    with pytest.raises(InputError, match="unknown argument 'task': what the base .* did you mean 'tasks'"):
        model(batch, task=["a"])
    with pytest.raises(InputError, match="'past_key_values': what the base model takes goes into the mapping; .* adapter_names"):
        model(batch, past_key_values=None)


def test_an_argument_that_is_given_twice_is_refused():
    model, batch = road_model(), token_batch()
    for name, value in (("labels", batch["input_ids"]), ("use_cache", False)):
        for pyvenes in ({}, {"unit_locations": {"base": 0}}):
            with pytest.raises(InputError, match=f"'{name}' is given twice, in the mapping of the inputs and beside it"):
                model({**batch, name: value}, **{name: value}, **pyvenes)
    with pytest.raises(InputError, match="'max_new_tokens' is given twice"):
        model.generate({**batch, "max_new_tokens": 2}, max_new_tokens=2)


def test_settings_of_the_generation_are_a_config():
    model, batch, settings = road_model(), token_batch(), {"max_new_tokens": 2}
    for call in (
        lambda: model.generate(batch, generation_config=settings),
        lambda: model.generate_batch([[3, 4]], generation_config=settings),
        lambda: model.continuous_batching(generation_config=settings),
    ):
        with pytest.raises(InputError, match="generation_config needs GenerationConfig, not dict"):
            call()


def test_a_module_that_is_no_transformers_model_is_refused():
    plain = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(InputError, match="find_sites needs a transformers model, and Sequential has no config"):
        find_sites(plain, "0")
    with pytest.raises(InputError, match="RoadModel needs a transformers model, and Sequential has no config"):
        RoadModel(plain, random_adapter([Site("0", 4)]))


@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_head_that_was_made_wider_is_refused_without_gradients_too(positions):
    base = tiny_model("Llama", "causal-lm", tie_word_embeddings=False)
    model, batch = RoadModel(base, random_adapter(find_sites(base, "lm_head")), positions), token_batch()
    with torch.no_grad():
        model(batch)
        base.resize_token_embeddings(64, mean_resizing=False)
        with pytest.raises(InputError, match="site 'lm_head' has states of width 64 here, not 60"):
            model(batch)


def test_subspaces_of_another_form_than_pyvenes_are_refused():
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, "block-output")
    model, batch = RoadModel(base, random_adapter(sites), planes=TaskPlanes.split(["a", "b"], sites)), token_batch(2)
    of_rows = model(batch, subspaces=[[[0], [1]]] * len(sites))[1].logits
    torch.testing.assert_close(of_rows, model(batch, tasks=["a", "b"])[1].logits)
    for wrong in ([[0]], [[0], [1]], [0, 1], "ab", [[[0], [1]]], [0]):
        with pytest.raises(InputError, match="subspaces needs an entry for every site, here 2, with a list"):
            model(batch, subspaces=wrong)


def test_a_model_without_generation_says_how_to_load_one_that_has_it():
    base = tiny_model("Bert")
    model = RoadModel(base, random_adapter(find_sites(base, "mlp")))
    for call in (lambda: model.generate(token_batch()), lambda: model.generate_batch([[1, 2]]), model.continuous_batching):
        with pytest.raises(InputError, match="BertModel generates no text: load the model with load_model"):
            call()
    with pytest.raises(InputError, match=r"not BertModel: give load\(folder, model\)"):
        RoadModel.load(base, "folder")


def test_recurrent_caches_count_their_tokens_or_are_refused():
    """Those of transformers 5.24 do not, those of 5.25 do."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "vocab_size": 60}
    base = MambaForCausalLM(MambaConfig(**sizes, bos_token_id=0, eos_token_id=1, pad_token_id=2)).eval()
    model = RoadModel(base, random_adapter(find_sites(base, "block-output")), positions="last")
    told = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    if Version(transformers.__version__) < Version("5.25"):
        with pytest.raises(InputError, match="the cache of MambaForCausalLM does not count its tokens"):
            model.generate(token_batch(2, 5), **told)
    else:
        _, cached = model.generate(token_batch(2, 5), **told)
        _, recomputed = model.generate(token_batch(2, 5), use_cache=False, **told)
        torch.testing.assert_close(cached.logits, recomputed.logits)


# ------------------------------------------------------------------ rows


def test_pyvenes_loop_counts_the_rows():
    model = bank_model("ab")
    batch = token_batch(3)
    with pytest.raises(InputError, match="2 adapter names for a batch of 3 rows"):
        model(base=batch, subspaces=everywhere(model, 3), adapter_names=["a", "b"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"adapter_names": ["a", None, "b"]}, "adapter names: None is not a name: give text per row, '__base__' for none"),
        ({"adapter_names": [["a", "b"], "a", "b"]}, r"adapter names: \['a', 'b'\] is not a name: .* 'a\+b' for two"),
        ({"adapter_names": [0, 1, 0]}, "adapter names: 0 is not a name"),
        ({"adapter_names": ["a"] * 3, "strengths": torch.ones(3)}, r"give strengths.tolist\(\)$"),
        ({"adapter_names": ["a"] * 3, "strengths": np.ones(3)}, r"give strengths.tolist\(\)$"),
    ],
)
def test_rows_of_a_bank_are_named_by_text(rows, message):
    with pytest.raises(InputError, match=message):
        bank_model("ab")(base=token_batch(3), **rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"tasks": ["x", None, "y"]}, "tasks: None is not a name"),
        ({"tasks": [["x", "y"], ["x"], []]}, r"tasks: \['x', 'y'\] is not a name"),
        ({"tasks": ["x"] * 3, "trainable_tasks": ["x", "x+y", "x"]}, "row 1: trainable task 'y' is not active"),
        ({"tasks": ["x"] * 3, "trainable_tasks": ["x", 1, "x"]}, "trainable tasks: 1 is not a name"),
    ],
)
def test_rows_of_tasks_are_named_by_text(rows, message):
    single = road_model()
    model = RoadModel(single.model, single.adapter, planes=TaskPlanes.split(["x", "y"], single.sites))
    with pytest.raises(InputError, match=message):
        model(base=token_batch(3), **rows)


def tokens_first(kind):
    torch.manual_seed(0)
    if kind == "Longformer":
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        settings = LongformerConfig(**sizes, vocab_size=60, attention_window=[4], max_position_embeddings=64, pad_token_id=1)
        return LongformerModel(settings).eval()
    return XLNetModel(XLNetConfig(vocab_size=60, d_model=16, n_layer=1, n_head=2, d_inner=32)).eval()


@pytest.mark.parametrize("kind", ["Longformer", "XLNet"])
def test_models_with_tokens_first_take_one_adapter_for_all_tokens(kind):
    base, batch = tokens_first(kind), token_batch(8, 8)
    sites = find_sites(base, "all-linear")
    adapter = random_adapter(sites)
    refused = f"{type(base).__name__} computes with tokens on the first axis, .*; only one adapter for all rows, .*, works there$"
    with pytest.raises(InputError, match=refused):
        RoadModel(base, adapter, positions="first")(base=batch)
    with pytest.raises(InputError, match=refused):
        RoadModel(base, RoadBank({"a": adapter, "b": random_adapter(sites, seed=1)}))(base=batch, adapter_names=list("ab" * 4))
    model = RoadModel(base, adapter)
    for arguments in ({"unit_locations": {"base": 0}}, {"subspaces": [[[0]] * 8] * len(sites)}):
        with pytest.raises(InputError, match=refused):
            model(batch, **arguments)
    with torch.no_grad():
        together = model(base=batch)[1].last_hidden_state
        alone = model(base={key: value[2:3] for key, value in batch.items()})[1].last_hidden_state
    torch.testing.assert_close(together[2:3], alone, rtol=0, atol=1e-5)


class TokensFirst(nn.Module):
    """A linear layer that computes with tokens on the first axis."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, states):
        return self.linear(states.transpose(0, 1)).transpose(0, 1)


def test_compiled_models_with_tokens_first_take_one_adapter_for_all_tokens():
    base, message = tokens_first("XLNet"), "computes with tokens on the first axis"
    sites = find_sites(base, "fc1")
    model = RoadModel(base, RoadBank({name: random_adapter(sites, seed=seed) for seed, name in enumerate("ab")}))
    batch, compiled = token_batch(2, 4), torch.compile(base, backend="eager")
    with torch.no_grad():
        with model.attached(["a"]):
            compiled(**batch)
        for names in (["a", "b"], ["a", "a"]):
            with model.attached(names), pytest.raises(InputError, match=message):
                compiled(**batch)
        base.compile(backend="eager")
        with pytest.raises(InputError, match=message):
            model(batch, adapter_names=["a", "b"])


def test_a_site_with_tokens_first_takes_one_adapter_for_all_rows():
    base, batch = tiny_model("Llama", "causal-lm"), token_batch(2, 6)
    mlp = base.model.layers[0].mlp
    mlp.down_proj = TokensFirst(mlp.down_proj)
    path = "model.layers.0.mlp.down_proj.linear"
    sites = (replace(find_sites(base, "block-output", layers=0)[0], name=path),)
    bank = RoadBank({"a": random_adapter(sites), "b": random_adapter(sites, seed=1)})
    model = RoadModel(base, bank)
    refused = (
        r"output of shape \(6, 2, 32\) does not begin with the 2 rows of the batch; only one adapter for all rows works there"
    )
    with pytest.raises(InputError, match=f"{refused}$"):
        model(base=batch, adapter_names=["a", "b"])
    single = RoadModel(base, bank["a"])
    alone = single(base={key: value[1:] for key, value in batch.items()})[1].logits
    torch.testing.assert_close(single(base=batch)[1].logits[1:], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("by_name", [True, False])
def test_rows_of_an_encoder_called_directly_are_known(by_name):
    base, batch = tiny_model("T5"), token_batch(2, 6)
    attention = base.encoder.block[0].layer[0].SelfAttention
    attention.o = TokensFirst(attention.o)
    sites = (Site("encoder.block.0.layer.0.SelfAttention.o.linear", 32),)
    model = RoadModel(base, RoadBank({"a": random_adapter(sites), "b": random_adapter(sites, seed=1)}))
    with model.attached(["a", "b"]), pytest.raises(InputError, match="does not begin with the 2 rows"):
        base.get_encoder()(**batch) if by_name else base.get_encoder()(batch["input_ids"], batch["attention_mask"])


class Joined(nn.Module):
    """A linear layer whose rows and tokens are one axis."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, states):
        return self.linear(states.flatten(0, 1)).unflatten(0, states.shape[:2])


class Pooled(Joined):
    """A linear layer of the mean over rows."""

    def forward(self, states):
        return self.linear(states.mean(0)).expand(len(states), -1, -1)


IDS, STATES = torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 5, 8)


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((), {"input_ids": IDS}, (2, 5)),
        ((IDS,), {}, (2, 5)),
        ((None, IDS), {}, (2, 5)),
        ((None,), {}, None),
        ((), {}, None),
        ((), {"input_ids": None, "inputs_embeds": STATES}, (2, 5)),
        ((), {"input_ids": torch.zeros(2, 5, 3, dtype=torch.long)}, (2, 5)),  # three codes per token
        ((), {"labels": IDS}, None),
        ((), {"attention_mask": IDS}, (2, 5)),
        ((torch.zeros(5, dtype=torch.long),), {}, None),
    ],
)
def test_the_rows_and_tokens_of_inputs(args, kwargs, expected):
    model = tiny_model("Bert")
    assert _rows_and_tokens(model, named_inputs(model, args, kwargs)) == expected


class OwnForMultipleChoices(BertForMultipleChoice):
    """A class of a user, with a name of its own."""


@pytest.mark.parametrize("kind", [BertForMultipleChoice, OwnForMultipleChoices, GPT2DoubleHeadsModel])
def test_choices_are_rows(kind):
    model = kind(tiny_model("GPT2" if kind is GPT2DoubleHeadsModel else "Bert").config)
    assert _rows_and_tokens(model, {"input_ids": torch.zeros(2, 3, 5, dtype=torch.long)}) == (6, 5)


@torch.no_grad()
def test_choices_as_long_as_the_batch_have_adapters_per_row_in_a_class_of_the_users():
    base = OwnForMultipleChoices(tiny_model("Bert").config).eval()
    sites = find_sites(base, "attention")
    adapters = {"a": random_adapter(sites), "b": random_adapter(sites, seed=1)}
    ids = torch.randint(3, 60, (2, 3, 2))
    rows = [RoadModel(base, each)({"input_ids": ids[[row]]})[1].logits for row, each in enumerate(adapters.values())]
    together = RoadModel(base, RoadBank(adapters))({"input_ids": ids}, adapter_names=["a", "b"])[1].logits
    torch.testing.assert_close(together, torch.cat(rows), rtol=0, atol=1e-6)


@torch.no_grad()
def test_one_row_with_several_codes_per_token_has_an_adapter():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
    base = CsmBackboneModel(CsmConfig(**sizes, num_codebooks=3, text_vocab_size=64, num_key_value_heads=2, head_dim=8)).eval()
    adapter, inputs = random_adapter(find_sites(base, "down_proj")), {"input_ids": torch.randint(3, 60, (1, 6, 3))}
    expected = RoadModel(base, adapter)(inputs)[1].last_hidden_state
    bank = RoadModel(base, RoadBank({"a": adapter}))
    torch.testing.assert_close(bank(inputs, adapter_names=["a"])[1].last_hidden_state, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_rows_and_tokens_in_one_axis_are_told_from_other_shapes():
    batch, names = token_batch(3, 6), ["b", "a", "b"]

    def model_with(kind):
        base = tiny_model("Llama", "causal-lm")
        mlp = base.model.layers[0].mlp
        mlp.down_proj = kind(mlp.down_proj)
        sites = (replace(find_sites(base, "block-output", layers=0)[0], name="model.layers.0.mlp.down_proj.linear"),)
        return RoadModel(base, RoadBank({"a": random_adapter(sites), "b": random_adapter(sites, seed=1)}))

    model = model_with(Joined)
    together = model(base=batch, adapter_names=names)[1].logits
    for row, name in enumerate(names):
        alone = model(base={key: value[row : row + 1] for key, value in batch.items()}, adapter_names=[name])[1].logits
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)
    assert (together[0] - model(base=batch, adapter_names=["a"] * 3)[1].logits[0]).abs().max() > 1e-4
    with pytest.raises(InputError, match=r"output of shape \(6, 32\) does not begin with the 3 rows"):
        model_with(Pooled)(base=batch, adapter_names=names)


# ------------------------------------------------------------------ gradient checkpointing


def checkpointing(model, use_reentrant=False):
    model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    model.train()
    return model


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_call_is_not_computed_again_after_it_has_ended(use_reentrant):
    model, batch = checkpointing(road_model(), use_reentrant), token_batch()
    with pytest.raises(InputError, match=r"train inside `with model.attached\(\)"):
        model(base=batch)
    with torch.no_grad():
        model(base=batch)


def test_pyvenes_loop_is_not_computed_again_after_it_has_ended():
    model, batch = checkpointing(road_model(), use_reentrant=True), token_batch()
    tokens = {"base": list(range(7))}
    with pytest.raises(InputError, match=r"pyvene's loop has removed its hooks: call model.model.gradient_checkpointing_disable"):
        model(batch, unit_locations=tokens)
    with torch.no_grad():
        model(batch, unit_locations=tokens)
    model.model.gradient_checkpointing_disable()
    model(batch, unit_locations=tokens)


def test_frozen_rotations_of_a_call_are_not_left_out_of_the_callers_checkpoints():
    model, batch = bank_model("a", "mlp"), {**token_batch(), "use_cache": False}
    model.model.enable_input_require_grads()
    for block in model.model.model.layers:
        forward = block.forward
        block.forward = lambda states, forward=forward, **options: checkpoint(
            lambda given: forward(given, **options), states, use_reentrant=True
        )
    with pytest.raises(InputError, match=r"train inside `with model.attached\(\)"):
        model(batch)
    with model.attached() as base:
        base(**batch).logits.sum().backward()  # computed again with the rotations


def test_generation_in_training_mode_with_checkpoints_is_that_of_evaluation_mode():
    pytest.importorskip("transformers", minversion="5.24", reason="older ones drop the cache with checkpoints, not its positions")
    model, batch = checkpointing(road_model()), token_batch()
    settings = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    _, training = model.generate(batch, **settings)
    model.eval()
    assert torch.equal(training, model.generate(batch, **settings)[1])
    assert torch.is_grad_enabled()


def test_passes_with_other_tokens_are_not_mixed_up_in_backward():
    model = road_model()
    model = checkpointing(RoadModel(model.model, model.adapter, positions="last"))
    one, two = padded_batch((7, 5, 3), "right"), padded_batch((2, 7, 4), "right", seed=1)
    with model.attached() as base:
        losses = [base(**batch, use_cache=False).logits.square().sum() for batch in (one, two)]
        with pytest.raises(InputError, match="call backward after every pass"):
            sum(losses).backward()


def test_gradients_are_summed_over_passes_with_a_backward_each():
    model = road_model()
    model = RoadModel(model.model, model.adapter, positions="last")
    batches = padded_batch((7, 5, 3), "right"), padded_batch((2, 7, 4), "right", seed=1)
    for batch in batches:
        model(base=batch)[1].logits.square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad()
    with checkpointing(model).attached() as base:
        for batch in batches:
            loss = base(**batch, use_cache=False).logits.square().sum()
            with torch.no_grad():
                base(**batches[1])  # a look at other texts does not change what is computed again
            loss.backward()
    for parameter, each in zip((p for p in model.parameters() if p.requires_grad), expected, strict=True):
        torch.testing.assert_close(parameter.grad, each, rtol=1e-4, atol=1e-5)


def test_a_prompt_whose_mask_leaves_out_the_cache_is_refused():
    """transformers generates the same with it, and positions would be found in the tokens behind the prompt."""
    model = road_model(target_modules="block-output")
    ids = token_batch(1, 12)["input_ids"]
    mask = torch.ones_like(ids)
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}

    def cache(length):
        filled = DynamicCache()
        with torch.no_grad():
            model.model(input_ids=ids[:, :length], past_key_values=filled)
        return {"past_key_values": filled}

    def new(result):
        return result[:, -3:].tolist()

    for positions in ("prompt", "last", "first"):
        expected = new(model.generate({"input_ids": ids, "attention_mask": mask}, positions=positions, **options)[1])
        for given in ({"input_ids": ids}, {"input_ids": ids[:, 6:]}):
            whole = {**given, "attention_mask": mask}
            if positions == "last":
                assert new(model.generate({**whole, **cache(6)}, positions=positions, **options)[1]) == expected
            else:  # the cached tokens are as they were computed
                model.generate({**whole, **cache(6)}, positions=positions, **options)
        message = f"positions '{positions}' cannot be found: the inputs hold 6 tokens, the cache 6, and the attention_mask has 6"
        part = {"input_ids": ids[:, 6:], "attention_mask": mask[:, 6:]}
        with pytest.raises(InputError, match=message):
            model.generate({**part, **cache(6)}, positions=positions, **options)
        with model.attached(positions=positions) as base, pytest.raises(InputError, match=message):
            base.generate(**part, **cache(6), **options)
        with pytest.raises(InputError, match="the inputs hold 12 tokens, the cache 0, and the attention_mask has 14"):
            model.generate({"input_ids": ids, "attention_mask": torch.ones(1, 14, dtype=int)}, positions=positions, **options)
    model.generate({**part, **cache(6)}, positions="all", **options)


def test_positions_of_numpy_are_those_of_lists():
    model, batch, options = (
        road_model(target_modules="block-output"),
        token_batch(2, 5),
        {"max_new_tokens": 3, "do_sample": False},
    )
    given = np.array([[0, 1], [2, -1]])
    ids = [model.generate(batch, positions=positions, **options)[1] for positions in (given, given.tolist())]
    assert torch.equal(*ids)
    assert RoadModel(model.model, model.adapter, given).positions == [[0, 1], [2, -1]]


def test_tokens_outside_a_row_are_refused_in_pyvenes_loop():
    model, batch = road_model(target_modules="block-output"), token_batch(2, 5)
    for token in (-1, 5):
        with pytest.raises(InputError, match=f"unit_locations name token {token}, but the rotated module has 5, counted from 0"):
            model(batch, unit_locations={"base": token})


def test_another_bank_or_other_planes_are_refused_where_rotations_would_stay(tmp_path):
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, ["q_proj"])
    model = RoadModel(base, RoadBank({"a": random_adapter(sites)}), planes=TaskPlanes.split(["x", "y"], sites))
    other, planes = RoadBank({"a": random_adapter(sites, seed=1)}), TaskPlanes.split(["x", "y"], sites, "alternating")

    def refused(how):
        with pytest.raises(InputError, match=f"the rotations are {how}, and would stay as they are: set the bank before"):
            model.bank = other
        with pytest.raises(InputError, match=f"the rotations are {how}, and would stay as they are: set the planes before"):
            model.planes = planes

    with model.attached(["a"]):
        refused("attached")
    model.merge("a")
    refused("merged")
    model.unmerge()
    model.bank, model.planes = other, planes
    again = RoadModel(base, other, planes=planes)
    batch = token_batch(1)
    for names in (["x"], ["y"]):
        options = {"adapter_names": ["a"], "tasks": names}
        assert torch.equal(*(each(batch, **options)[1].logits for each in (model, again)))


def test_other_planes_are_those_of_subspaces_and_of_a_saved_folder(tmp_path):
    base, batch = tiny_model("Llama", "causal-lm"), token_batch(2)
    sites = find_sites(base, "block-output")
    splits = [TaskPlanes.split(["x", "y"], sites), TaskPlanes.split(["x", "y"], sites, "alternating"), None]
    for number, (before, after) in enumerate(permutations(splits, 2)):
        model = RoadModel(base, random_adapter(sites), planes=before)
        model.planes = after
        model.save(tmp_path / str(number))
        loaded = RoadModel.load(tmp_path / str(number), tiny_model("Llama", "causal-lm"))
        assert (loaded.planes is None) == (after is None)
        if after is not None:
            for task, masks in after.owned.items():
                assert all(torch.equal(mask, loaded.planes.owned[task][site]) for site, mask in masks.items())
            expected = model(batch, tasks=["x", "y"])[1].logits
            torch.testing.assert_close(model(batch, subspaces=[[[0], [1]]] * len(sites))[1].logits, expected)
            assert torch.equal(loaded(batch, tasks=["x", "y"])[1].logits, expected)


def test_positions_are_not_those_of_the_sequence_that_cross_attention_reads():
    config = BertConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=60)
    config.is_decoder = config.add_cross_attention = True
    torch.manual_seed(0)
    base, batch = BertLMHeadModel(config).eval(), token_batch(2, 6)
    batch["encoder_hidden_states"] = torch.randn(2, 6, 32)
    of_text, of_others = (find_sites(base, f"crossattention.{name}") for name in ("self.query", "self.key"))
    RoadModel(base, random_adapter(of_others))(batch)
    RoadModel(base, random_adapter(of_text), "last")(batch)
    with pytest.raises(InputError, match=r"crossattention.self.key': its tokens are those of another sequence"):
        RoadModel(base, random_adapter(of_others), "last")(batch)


def test_positions_of_a_text_are_not_those_of_an_image():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 60, "eos_token_id": 59}, vision_config={**sizes, "image_size": 8, "patch_size": 4}
    )
    torch.manual_seed(0)
    base, batch = CLIPModel(config).eval(), {**token_batch(2, 5), "pixel_values": torch.randn(2, 3, 8, 8)}
    image = find_sites(base, "fc2", stack="vision_model.encoder.layers")
    RoadModel(base, random_adapter(image))(batch)
    with pytest.raises(InputError, match="is outside the text model, and its tokens are not those of the text"):
        RoadModel(base, random_adapter(image), "last")(batch)
