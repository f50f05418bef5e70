"""The rows and tokens that a call rotates, however its inputs are given."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import (
    GenerationConfig,
    JetMoeConfig,
    JetMoeForCausalLM,
    LlamaForCausalLM,
    MoshiConfig,
    MoshiForConditionalGeneration,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

from helpers.models import padded_batch, random_adapter, tiny_model, token_batch
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel
from road_interp.sites.find import find_sites
from road_interp.sites.site import Site

CLOSE = {"rtol": 0, "atol": 1e-5}
PAD = 2
GREEDY = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4, "pad_token_id": PAD}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def rotated(positions, architecture="Llama", head="causal-lm"):
    base = tiny_model(architecture, head)
    return RoadModel(base, random_adapter(find_sites(base, "block-output"), spread=1.0), positions)


def two_adapters():
    base = tiny_model("Llama", "causal-lm")
    sites = find_sites(base, "block-output")
    return RoadModel(base, RoadBank({name: random_adapter(sites, spread=1.0, seed=seed) for seed, name in enumerate("ab")}))


def scores(output):
    return torch.stack(output.logits)


SETTINGS = {
    "by keyword": lambda model: GREEDY,
    "in the model's config": lambda model: {key: value for key, value in GREEDY.items() if key != "pad_token_id"},
    "beside a config": lambda model: {"generation_config": GenerationConfig(max_new_tokens=4, min_new_tokens=4, do_sample=False)},
    "with an end token as a tensor": lambda model: {**GREEDY, "eos_token_id": torch.tensor(1)},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("positions", "side"), [("first", "left"), ("last", "right")])
def test_generate_infers_padding_as_transformers_does(positions, side, setting):
    model, batch = rotated(positions), padded_batch((4, 7, 5), side)
    model.model.generation_config.pad_token_id = PAD
    options = {**SETTINGS[setting](model), "output_logits": True, "return_dict_in_generate": True}
    expected = scores(model.generate(batch, **options)[1])
    ids = {"input_ids": batch["input_ids"]}
    torch.testing.assert_close(scores(model.generate(ids, **options)[1]), expected, **CLOSE)
    with model.attached() as base:
        torch.testing.assert_close(scores(base.generate(**ids, **options)), expected, **CLOSE)


def test_generate_infers_no_padding_where_transformers_infers_none():
    model, ids = rotated("first"), padded_batch((4, 7, 5), "left")["input_ids"]
    model.model.generation_config.pad_token_id = PAD
    options = {**GREEDY, "pad_token_id": None, "output_logits": True, "return_dict_in_generate": True}
    expected = scores(model.generate({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, **options)[1])
    torch.testing.assert_close(scores(model.generate({"input_ids": ids}, **options)[1]), expected, **CLOSE)


@pytest.mark.parametrize("name", ["attention_mask", "inputs", "inputs_embeds"])
def test_inputs_beside_the_mapping_of_generate_are_refused(name):
    model, batch = rotated("last"), padded_batch((4, 7, 5), "left")
    with pytest.raises(InputError, match=f"'{name}' is an input of the model: give it in the mapping"):
        model.generate({"input_ids": batch["input_ids"]}, **{name: batch["attention_mask"]}, **GREEDY)


def test_embeddings_beside_empty_ids_are_the_prompt():
    model, batch = rotated("last"), token_batch()
    embedded = model.model.get_input_embeddings()(batch["input_ids"])
    options = {**GREEDY, "output_logits": True, "return_dict_in_generate": True}
    expected = scores(model.generate({"inputs_embeds": embedded}, **options)[1])
    both = {"inputs_embeds": embedded, "input_ids": torch.zeros(3, 0, dtype=torch.long)}
    assert not torch.equal(expected, scores(model.model.generate(inputs_embeds=embedded, **options)))
    torch.testing.assert_close(scores(model.generate(both, **options)[1]), expected, **CLOSE)


def test_inputs_given_by_position_are_those_given_by_name():
    model, batch = rotated("last", "Bert", "backbone"), padded_batch((4, 7, 5), "right")
    with model.attached() as base:
        by_name = base(**batch).last_hidden_state
        assert torch.equal(base(batch["input_ids"], batch["attention_mask"]).last_hidden_state, by_name)


def test_a_cache_given_by_position_is_no_prompt():
    model, batch = rotated("last"), token_batch()
    with model.attached() as base:
        for by_position in (False, True):
            first = base(**batch, use_cache=True)
            ids, mask = torch.full((3, 1), 9), torch.ones(3, 8, dtype=torch.long)
            if by_position:
                found = base(ids, mask, None, first.past_key_values).logits
            else:
                found = expected = base(input_ids=ids, attention_mask=mask, past_key_values=first.past_key_values).logits
    torch.testing.assert_close(found, expected, **CLOSE)


def test_texts_packed_by_their_position_ids_are_refused():
    model, ids = rotated("first"), token_batch()["input_ids"]
    numbers = torch.arange(7).expand(3, -1)
    model({"input_ids": ids, "position_ids": numbers})
    packed = {"input_ids": ids.reshape(1, -1), "position_ids": numbers.reshape(1, -1)}
    forwards = packed["position_ids"] + 10 * torch.arange(3).repeat_interleave(7)
    for positions in (packed["position_ids"], forwards):
        with pytest.raises(InputError, match="positions 'first' cannot be found in packed sequences"):
            model({**packed, "position_ids": positions})
    rotated("first", "Bert", "backbone")(packed)  # which attends to all tokens
    model({**packed, "attention_mask": torch.ones(1, 21)})  # with a mask transformers reads one text


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("positions", ["last", "prompt", "all"])
def test_generate_of_an_attached_model_rotates_the_prompt_that_generate_of_the_rotated_model_does(positions, cached):
    model, batch = rotated(positions), padded_batch((4, 7, 5), "left")
    expected = model.generate(batch, use_cache=cached, **GREEDY)[1]
    with model.attached() as base:
        assert torch.equal(base.generate(**batch, use_cache=cached, **GREEDY), expected)
        assert torch.equal(base.generate(batch["input_ids"], use_cache=cached, **GREEDY), expected)  # which infers the mask
        assert base(**batch).logits.shape[:2] == (3, 7)
    assert "generate" not in model.model.__dict__


def test_a_generate_inside_another_leaves_its_prompt():
    model, batch = rotated("last"), token_batch()
    expected = model.generate(batch, use_cache=False, **GREEDY)[1]
    with model.attached() as base:

        def stop(ids, scores, **options):
            base.generate(**token_batch(1, 3), **GREEDY)
            return torch.zeros(len(ids), dtype=torch.bool)

        assert torch.equal(base.generate(**batch, use_cache=False, stopping_criteria=[stop], **GREEDY), expected)
        kept = base.generate
        base.generate = kept  # by other code
        del base.generate
    assert torch.equal(kept(**batch, **GREEDY), base.generate(**batch, **GREEDY))  # without rotations, as the statement has ended


def test_a_generate_of_the_users_own_comes_back():
    model, batch = rotated("all"), token_batch()
    calls = []

    def own(*args, **kwargs):
        calls.append(kwargs)
        return type(model.model).generate(model.model, *args, **kwargs)

    model.model.generate = own
    expected = model.generate(batch, **GREEDY)[1]
    with model.attached() as base:
        assert base.generate is not own
        assert torch.equal(base.generate(**batch, **GREEDY), expected)
    assert len(calls) == 2
    assert model.model.generate is own


def test_generate_needs_no_inputs_where_the_text_begins_with_a_token_of_the_configuration():
    model = two_adapters()
    with model.attached(adapter_names=["b"]) as base:
        started = base.generate(bos_token_id=1, **GREEDY)
        assert torch.equal(started, base.generate(torch.tensor([[1]]), **GREEDY))


def moshi():
    sizes = {"num_key_value_heads": 2, "vocab_size": 64, "audio_vocab_size": 16, "num_codebooks": 2}
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    codec = {
        **small, "model_type": "mimi", "num_filters": 4, "num_residual_layers": 1, "upsampling_ratios": [4, 2],
        "codebook_size": 16, "codebook_dim": 16, "vector_quantization_hidden_dimension": 16, "num_key_value_heads": 2,
        "head_dim": 8, "intermediate_size": 16, "num_quantizers": 4, "upsample_groups": 16, "sampling_rate": 160,
    }  # fmt: skip
    depth = {**small, **sizes, "ffn_dim": 16, "input_size": 32, "max_position_embeddings": 9}
    model = {**sizes, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "ffn_dim": 48, "head_dim": 8}
    tokens = {"pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": None}
    config = MoshiConfig(**model, **tokens, audio_encoder_config=codec, depth_decoder_config=depth)
    return MoshiForConditionalGeneration(config).eval()


def test_a_token_that_a_model_puts_before_the_prompt_is_not_its_first():
    """Moshi's generate begins with a token of its own, so that the last one of the prompt would be the last but one."""
    base = moshi()
    model = RoadModel(base, random_adapter(find_sites(base, "decoder[.]model[.]layers[.]0[.]mlp[.]fc2")), positions="last")
    codes = {name: torch.randint(0, 15, (2, 2, 5)) for name in ("user_audio_codes", "moshi_audio_codes")}
    inputs = {**token_batch(2, 5), **codes}
    options = {"max_new_tokens": 2, "do_sample": False, "return_audio_waveforms": False}
    message = "MoshiForConditionalGeneration puts a token of its own before the prompt, so that positions 'last' would be those"
    with pytest.raises(InputError, match=message):
        model.generate(inputs, **options)
    with model.attached() as attached, pytest.raises(InputError, match=message):
        attached.generate(**inputs, **options)
    model.generate(inputs, concat_unconditional_inputs=False, **options)
    model.generate(inputs, positions="all", **options)


def test_a_generate_kept_from_the_statement_takes_any_rows_after_it():
    model, batch = two_adapters(), token_batch(3, 5)
    with model.attached(adapter_names=["a", "b"]) as base:
        kept = base.generate
        with pytest.raises(InputError, match="2 names for a batch of 3 rows"):
            kept(**batch, **GREEDY)
    assert torch.equal(kept(**batch, **GREEDY), model.model.generate(**batch, **GREEDY))


class Unnamed(LlamaForCausalLM):
    """A model whose forward takes anything, as wrappers of other libraries do."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def test_inputs_that_a_model_does_not_name_are_given_by_name():
    base = Unnamed(tiny_model("Llama", "causal-lm").config).eval()
    model, batch = RoadModel(base, random_adapter(find_sites(base, "block-output")), "last"), padded_batch((4, 7), "right")
    with model.attached() as attached:
        attached(**batch)
        with pytest.raises(InputError, match="Unnamed does not name its inputs: give them by name"):
            attached(batch["input_ids"], batch["attention_mask"])


def test_a_pass_after_one_that_failed_does_not_use_its_tokens():
    model = rotated("last")
    with model.attached() as base:
        handle = base.model.layers[1].register_forward_pre_hook(lambda *inputs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            base(**padded_batch((4, 7, 5), "right"))
        handle.remove()
        with pytest.raises(InputError, match="is called by itself"):
            base.model(**padded_batch((7, 4, 5), "right"))


def test_an_attached_statement_needs_a_name_for_every_row():
    model, batch = two_adapters(), token_batch(4)
    expected = model(batch, adapter_names=["a"] * 4)[1].logits
    with model.attached(["a", "b"]) as base:
        for call in (lambda: base(**batch), lambda: base(batch["input_ids"]), lambda: base.generate(**batch, **GREEDY)):
            with pytest.raises(InputError, match="2 names for a batch of 4 rows; give one per row"):
                call()
        two = {key: values[:2] for key, values in batch.items()}
        assert base.generate(**two, num_beams=2, **GREEDY).shape == (2, 11)
    with model.attached(["a"]) as base:  # for all rows
        torch.testing.assert_close(base(**batch).logits, expected, **CLOSE)


def test_an_attached_statement_needs_as_many_of_each():
    model = two_adapters()
    model.planes = TaskPlanes.split(["x", "y"], model.sites)
    for given in ({"adapter_names": ["a", "b"]}, {"adapter_names": ["a"] * 2, "strengths": [1.0, 0.5]}):
        with (
            pytest.raises(InputError, match="2 adapter names and 3 tasks are given; give as many, one per row, or one for all"),
            model.attached(**given, tasks=["x", "y", "x"]),
        ):
            pass
    batch, tasks = token_batch(3), ["x", "y", "x"]
    with model.attached(["a"] * 3, tasks=tasks) as base:
        expected = base(**batch).logits
    with model.attached(["a"], tasks=tasks) as base:
        torch.testing.assert_close(base(**batch).logits, expected, **CLOSE)


def test_experts_of_a_mixture_take_one_adapter_for_all_rows():
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2, "vocab_size": 60}
    experts = {"num_experts": 3, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "decoder_start_token_id": 0}
    base = SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(**sizes, **experts)).eval()
    inside = [name for name, _ in base.named_modules() if re.fullmatch(r"encoder\..*\.experts\..*\.wi", name)]
    sites = tuple(Site(name, base.get_submodule(name).out_features) for name in inside)
    adapter = random_adapter(sites)
    batch = {"input_ids": torch.randint(3, 60, (4, 8)), "decoder_input_ids": torch.zeros(4, 1, dtype=torch.long)}
    expected = RoadModel(base, adapter)(batch)[1].logits
    torch.testing.assert_close(RoadModel(base, RoadBank({"a": adapter}))(batch)[1].logits, expected, **CLOSE)
    with RoadModel(base, RoadBank({"a": adapter})).attached(["a"]):
        torch.testing.assert_close(base(**batch).logits, expected, **CLOSE)
    with pytest.raises(InputError, match=r"site 'encoder.*experts.*' is inside the experts of a mixture"):
        RoadModel(base, RoadBank({"a": adapter, "b": adapter}))(batch, adapter_names=["a", "b"] * 2)


def test_experts_in_a_part_of_the_model_that_is_called_by_itself():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32, "vocab_size": 60, "kv_channels": 4}
    heads = {"num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 2}
    base = JetMoeForCausalLM(JetMoeConfig(**sizes, **heads)).eval()
    bank = RoadBank(
        {name: random_adapter((Site("model.layers.0.mlp.input_linear", 64),), seed=seed) for seed, name in enumerate("ab")}
    )
    with RoadModel(base, bank).attached(["a", "b"]), pytest.raises(InputError, match="inside the experts of a mixture"):
        base.model(input_ids=torch.randint(3, 60, (2, 4)))
