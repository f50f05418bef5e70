"""Families whose modules do what others do not: streams before rows, outputs changed in place, embeddings of distances."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload
from transformers import (
    DebertaConfig,
    DebertaModel,
    DebertaV2Config,
    DebertaV2Model,
    EncoderDecoderConfig,
    FalconConfig,
    FalconForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    JetMoeConfig,
    JetMoeModel,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MiniMaxConfig,
    MiniMaxForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    PhiConfig,
    PhiForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
    XGLMConfig,
    XGLMForCausalLM,
    XLMConfig,
    XLMModel,
)

from helpers.models import random_adapter, token_batch
from road_interp.adapters.bank import RoadBank
from road_interp.errors import InputError
from road_interp.models.model_families import model_types
from road_interp.models.road_model import RoadModel
from road_interp.sites.find import find_sites

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
DISTANCES = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "pad_token_id": 0}


def gemma_3n():
    layers = {"num_kv_shared_layers": 0, "laurel_rank": 4, "activation_sparsity_pattern": [0.0, 0.0]}
    heads = {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "eos_token_id": None}
    inputs = {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8}
    return Gemma3nForCausalLM(Gemma3nTextConfig(**SIZES, **layers, **heads, **inputs)).eval()


def llama_4():
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2}
    return Llama4ForCausalLM(Llama4TextConfig(**SIZES, **experts, num_key_value_heads=2, head_dim=8, pad_token_id=0))


def falcon():
    return FalconForCausalLM(FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4))


def xlm():
    return XLMModel(XLMConfig(vocab_size=64, emb_dim=32, n_layers=2, n_heads=4, pad_index=0))


def deberta():
    return DebertaModel(DebertaConfig(**SIZES, **DISTANCES)).eval()


def deberta_v3(**changes):
    config = DebertaV2Config(**SIZES, **(DISTANCES | changes), position_buckets=4, share_att_key=True)
    return DebertaV2Model(config).eval()


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_as_many_streams_as_rows_are_not_the_rows(rows, monkeypatch):
    """Gemma-3n's blocks return (4 streams, rows, tokens, width)."""
    torch.manual_seed(0)
    base = gemma_3n()
    sites = find_sites(base, "block-output")
    adapter, ids = random_adapter(sites), {"input_ids": torch.randint(2, 64, (rows, 6))}
    rotated = RoadModel(base, adapter)
    bank = RoadModel(base, RoadBank({"a": adapter}))
    for call in (
        lambda: bank(ids, adapter_names=["a"] + ["__base__"] * (rows - 1)),
        lambda: rotated(ids, strengths=[1.0] + [0.0] * (rows - 1)),
    ):
        with pytest.raises(InputError, match=f"does not begin with the {rows} rows of the batch"):
            call()
        with monkeypatch.context() as patched:
            patched.setattr(torch.compiler, "is_compiling", lambda: True)  # the path of compiled code
            with pytest.raises(InputError, match=f"does not begin with the {rows} rows of the batch"):
                call()
    whole = rotated(ids)[1].logits
    for row in range(rows):
        assert torch.allclose(rotated({"input_ids": ids["input_ids"][row : row + 1]})[1].logits[0], whole[row], atol=1e-5)


def test_heads_that_are_as_many_as_the_rows_stand_behind_them():
    """Phi's norms of queries return (rows, heads, tokens, width of a head)."""
    torch.manual_seed(0)
    base = PhiForCausalLM(PhiConfig(**SIZES, qk_layernorm=True, bos_token_id=1, eos_token_id=2)).eval()
    sites = find_sites(base, "q_layernorm")
    bank = RoadModel(base, RoadBank({"a": random_adapter(sites), "b": random_adapter(sites, seed=1)}))
    for rows in (3, 4):
        names, ids = ["a", "b", "__base__", "a"][:rows], {"input_ids": torch.randint(3, 64, (rows, 6))}
        together = bank(ids, adapter_names=names)[1].logits
        for row, name in enumerate(names):
            alone = bank({"input_ids": ids["input_ids"][row : row + 1]}, adapter_names=[name])[1].logits[0]
            assert torch.allclose(alone, together[row], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "where"),
    [(falcon, "mlp"), (llama_4, "shared_expert[.]down_proj"), (deberta, "all-linear"), (xlm, "layer_norm2[.][01]")],
)
def test_models_that_change_a_rotated_output_in_place_can_be_trained(make, where):
    """The gradients are those of rotations that are written out, in hooks that copy every output."""
    torch.manual_seed(0)
    base, inputs = make().eval(), token_batch()
    adapter = random_adapter(find_sites(base, where))
    expected = {name: tensor.clone().requires_grad_() for name, tensor in adapter.theta.items()}

    def copied(site):
        def rotate(module, args, output):
            x, y = output.unflatten(-1, (-1, 2)).unbind(-1)
            cosine, sine = (adapter.alpha[site.name] * part(expected[site.name]) for part in (torch.cos, torch.sin))
            return torch.stack((cosine * x - sine * y, sine * x + cosine * y), -1).flatten(-2).clone()

        return rotate

    handles = [base.get_submodule(site.module).register_forward_hook(copied(site)) for site in adapter.sites]
    base(**inputs)[0].pow(2).sum().backward()
    for handle in handles:
        handle.remove()
    model = RoadModel(base, adapter)
    model(inputs)[1][0].pow(2).sum().backward()
    found = [intervention.theta.grad for intervention in model.interventions.values()]
    assert max(gradient.abs().max() for gradient in found) > 0
    for gradient, angles in zip(found, expected.values(), strict=True):
        assert torch.allclose(gradient, angles.grad, rtol=1e-3, atol=1e-4)


def test_the_types_of_models_inside_a_model_are_known():
    part = {**SIZES, "num_hidden_layers": 1}
    inside = EncoderDecoderConfig.from_encoder_decoder_configs(DebertaConfig(**part), LlamaConfig(**part))
    assert model_types(SimpleNamespace(config=inside)) == {"encoder-decoder", "deberta", "llama"}


@pytest.mark.parametrize("linear", ["query_proj", "key_proj"])
@pytest.mark.parametrize("length", [6, 8])
def test_embeddings_of_distances_are_not_tokens(length, linear):
    """DeBERTa-v3's query and key linears are called on them, too, here on 8; as many as tokens of one row."""
    torch.manual_seed(0)
    base = deberta_v3()
    adapter = random_adapter(find_sites(base, linear))
    inputs = {"input_ids": torch.randint(4, 60, (1, length))}
    with pytest.raises(InputError, match=r"computes embeddings of distances, too, which are no tokens; only positions='all'"):
        RoadModel(base, adapter, positions="last")(inputs)
    with pytest.raises(InputError, match="computes embeddings of distances, too, which belong to no row"):
        RoadModel(base, adapter)(inputs, unit_locations={"base": 0})
    RoadModel(base, adapter)(inputs)
    RoadModel(deberta_v3(relative_attention=False), adapter, positions="last")(inputs)


def test_queries_and_keys_beside_embeddings_of_distances_are_found():
    for base, names in ((deberta(), ["in_proj[query]", "in_proj[key]"]), (deberta_v3(), ["query_proj", "key_proj"])):
        found = find_sites(base, "attention-qk", layers=0)
        assert [site.kind.removeprefix("attention.self.") for site in found] == names


@pytest.mark.parametrize(
    "make",
    [
        lambda: XGLMForCausalLM(XGLMConfig(vocab_size=64, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4)),
        lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=4)),
        lambda: RwkvForCausalLM(RwkvConfig(vocab_size=64, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2)),
        lambda: JetMoeModel(JetMoeConfig(**SIZES, kv_channels=8, num_local_experts=4)),  # its queries are those of experts
    ],
)
def test_queries_and_keys_that_gradients_do_not_show_are_refused(make):
    with pytest.raises(InputError, match="queries and keys of .* cannot be found by gradients .*: name the linear layers"):
        find_sites(make(), "attention-qk")


@pytest.mark.parametrize("where", ["block-output", "layers[.][0-9][.]mlp", "q_proj"])
def test_modules_without_weights_of_their_own_are_rotated_where_offloaded_ones_compute(where):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    adapter, inputs = random_adapter(find_sites(base, where)), token_batch()
    expected = RoadModel(base, adapter)(inputs)[1].logits
    cpu_offload(base, torch.device("cpu"))
    model = RoadModel(base, adapter)
    assert torch.equal(model(inputs)[1].logits, expected)
    assert {each.theta.device.type for each in model.interventions.values()} == {"cpu"}


def test_rotations_of_a_model_whose_weights_come_later_are_kept():
    torch.manual_seed(0)
    loaded = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    adapter, inputs = random_adapter(find_sites(loaded, "q_proj")), token_batch()
    expected = RoadModel(loaded, adapter)(inputs)[1].logits
    with torch.device("meta"):
        base = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    model = RoadModel(base, adapter)
    base.to_empty(device="cpu")
    base.load_state_dict(loaded.state_dict())
    for name, buffer in loaded.named_buffers():
        base.get_buffer(name).copy_(buffer)
    assert torch.equal(model(inputs)[1].logits, expected)
    for site in adapter.sites:
        assert torch.equal(model.adapter.angles(site), adapter.angles(site))


@pytest.mark.parametrize("positions", ["first", "last", "prompt"])
def test_a_cache_whose_first_layer_is_not_of_attention_counts_its_tokens(positions):
    torch.manual_seed(0)
    heads = {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2, "block_size": 4}
    layers = {"layer_types": ["linear_attention", "full_attention"]}
    base = MiniMaxForCausalLM(MiniMaxConfig(**SIZES, **heads, **layers, bos_token_id=0, eos_token_id=None, pad_token_id=2)).eval()
    model = RoadModel(base, random_adapter(find_sites(base, "block-output"), spread=1.0), positions)
    greedy = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    found = torch.stack(model.generate(token_batch(2, 5), **greedy)[1].logits)
    torch.testing.assert_close(
        found, torch.stack(model.generate(token_batch(2, 5), use_cache=False, **greedy)[1].logits), rtol=0, atol=1e-5
    )
