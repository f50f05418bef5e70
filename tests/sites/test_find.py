"""find_sites on fifteen architectures, none of which is named in the code."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BambaConfig,
    BambaModel,
    GptOssConfig,
    GptOssModel,
    JambaConfig,
    JambaModel,
    LongformerConfig,
    LongformerForSequenceClassification,
    MixtralConfig,
    MixtralModel,
    MobileBertConfig,
    MobileBertModel,
    NllbMoeConfig,
    NllbMoeModel,
    Qwen2MoeConfig,
    Qwen2MoeModel,
    Qwen3NextConfig,
    Qwen3NextModel,
    RecurrentGemmaConfig,
    RecurrentGemmaModel,
    ReformerConfig,
    ReformerModel,
    SwinConfig,
    SwinModel,
    VideoMAEConfig,
    VideoMAEModel,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerModel,
    Wav2Vec2Model,
    XLMConfig,
    XLMModel,
    XmodConfig,
    XmodModel,
)

from helpers.models import CONFIGS, tiny_model
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel
from road_interp.sites.find import find_sites, parse_layers
from road_interp.sites.module_tree import is_in_attention, layer_stacks
from road_interp.sites.site import Site

STACKS = {"T5": "encoder.block"}
QUERY_KEY = {
    "Bert": ["attention.self.query", "attention.self.key"],
    "Roberta": ["attention.self.query", "attention.self.key"],
    "DistilBert": ["attention.q_lin", "attention.k_lin"],
    "Electra": ["attention.self.query", "attention.self.key"],
    "GPT2": ["attn.c_attn[query]", "attn.c_attn[key]"],
    "GPTNeoX": ["attention.query_key_value[query]", "attention.query_key_value[key]"],
    "OPT": ["self_attn.k_proj", "self_attn.q_proj"],
    "Phi3": ["self_attn.qkv_proj[query]", "self_attn.qkv_proj[key]"],
    "T5": ["layer.0.SelfAttention.q", "layer.0.SelfAttention.k"],
    "ViT": ["attention.q_proj", "attention.k_proj"],
}
FIRST_FEED_FORWARD = {
    "Bert": ["intermediate.dense"],
    "Roberta": ["intermediate.dense"],
    "DistilBert": ["ffn.lin1"],
    "Electra": ["intermediate.dense"],
    "GPT2": ["mlp.c_fc"],
    "GPTNeoX": ["mlp.dense_h_to_4h"],
    "OPT": ["fc1"],
    "Phi3": ["mlp.gate_up_proj"],
    "T5": ["layer.1.DenseReluDense.wi"],
    "ViT": ["mlp.fc1"],
}
if any(name.endswith("attention.attention.query") for name, _ in tiny_model("ViT").named_modules()):  # transformers before 5.12
    QUERY_KEY["ViT"] = ["attention.attention.query", "attention.attention.key"]
    FIRST_FEED_FORWARD["ViT"] = ["intermediate.dense"]


def kinds(architecture, target_modules, **options):
    model = tiny_model(architecture)
    return [site.kind for site in find_sites(model, target_modules, layers=1, stack=STACKS.get(architecture), **options)]


@pytest.mark.parametrize("architecture", CONFIGS)
class TestEveryArchitecture:
    def test_query_and_key(self, architecture):
        assert kinds(architecture, "attention-qk") == QUERY_KEY.get(architecture, ["self_attn.q_proj", "self_attn.k_proj"])

    def test_query_and_key_of_eager_attention(self, architecture):
        """Its softmax is in fp32, so that gradients at queries are not exactly 0."""
        model = tiny_model(architecture)
        model.set_attn_implementation("eager")
        sdpa, eager = (
            find_sites(each, "attention-qk", 1, STACKS.get(architecture)) for each in (tiny_model(architecture), model)
        )
        assert sdpa == eager

    def test_first_feed_forward_layer(self, architecture):
        assert kinds(architecture, "fc1") == FIRST_FEED_FORWARD.get(architecture, ["mlp.gate_proj", "mlp.up_proj"])

    def test_attention_and_mlp_together_are_all_linears(self, architecture):
        attention, mlp = kinds(architecture, "attention"), kinds(architecture, "mlp")
        assert attention
        assert mlp
        assert sorted(attention + mlp) == sorted(kinds(architecture, "all-linear"))

    def test_all_linear_selects_every_linear_inside_the_blocks(self, architecture):
        model = tiny_model(architecture)
        stack = STACKS.get(architecture) or next(iter(layer_stacks(model)))
        sites = find_sites(model, "all-linear", stack=STACKS.get(architecture))
        linear = [
            n for n, m in model.get_submodule(stack).named_modules() if "Linear" in type(m).__name__ or "Conv1D" in str(m)[:6]
        ]
        assert [site.module for site in sites] == [f"{stack}.{name}" for name in linear]
        for site in sites:
            module = model.get_submodule(site.module)
            assert site.width == (module.bias.shape[0] if module.bias is not None else module.weight.shape[0])

    def test_block_outputs(self, architecture):
        model = tiny_model(architecture)
        sites = find_sites(model, "block-output", stack=STACKS.get(architecture))
        assert [(site.width, site.layer, site.kind) for site in sites] == [(32, 0, "block-output"), (32, 1, "block-output")]

    def test_find_sites_leaves_the_model_unchanged(self, architecture):
        model = tiny_model(architecture).train()
        find_sites(model, ["attention-qk", "block-output"], stack=STACKS.get(architecture))
        assert all(module.training for module in model.modules())
        assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())


def test_fused_projections_are_split_into_query_and_key():
    slices = {site.kind: site.output_slice for site in find_sites(tiny_model("GPTNeoX"), "attention-qk", layers=0)}
    assert [(p.period, p.start, p.stop) for p in slices.values()] == [(24, 0, 8), (24, 8, 16)]  # per head
    slices = {site.kind: site.output_slice for site in find_sites(tiny_model("GPT2"), "attention-qk", layers=0)}
    assert [(p.period, p.start, p.stop) for p in slices.values()] == [(96, 0, 32), (96, 32, 64)]  # one period
    sites = find_sites(tiny_model("Phi3"), "attention-qk", layers=0)
    assert [(site.width, site.output_slice.start, site.output_slice.stop) for site in sites] == [
        (32, 0, 32),
        (16, 32, 48),
    ]  # fewer keys


def test_slices_are_selected_and_replaced():
    site = find_sites(tiny_model("GPTNeoX"), "attention-qk", layers=0)[1]
    hidden = torch.arange(96.0).expand(2, 3, 96)
    key = site.output_slice.select(hidden)
    assert key[0, 0, :9].tolist() == [8, 9, 10, 11, 12, 13, 14, 15, 32]
    replaced = site.output_slice.replace(hidden, -key)
    assert torch.equal(site.output_slice.select(replaced), -key)
    assert (replaced == hidden).sum() == 2 * 3 * 64


def test_the_probe_works_in_bfloat16():
    model = tiny_model("GPTNeoX").to(torch.bfloat16)
    assert [site.kind for site in find_sites(model, "attention-qk", layers=0)] == QUERY_KEY["GPTNeoX"]


def test_cross_attention_has_queries_and_keys_too():
    sites = find_sites(tiny_model("T5"), "attention-qk", layers=0, stack="decoder.block")
    assert [site.kind for site in sites] == [
        "layer.0.SelfAttention.q",
        "layer.0.SelfAttention.k",
        "layer.1.EncDecAttention.q",
        "layer.1.EncDecAttention.k",
    ]


def test_the_shared_input_of_queries_and_keys_is_neither():
    sizes = {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}
    model = MobileBertModel(MobileBertConfig(**CONFIGS["Bert"], **sizes)).eval()
    found = [site.kind for site in find_sites(model, "attention-qk", layers=0)]
    assert found == ["attention.self.query", "attention.self.key"]


def test_values_that_reach_the_first_token_only_are_no_queries():
    """Longformer's classifiers have global attention at [CLS]."""
    config = LongformerConfig(**CONFIGS["Bert"], attention_window=4)
    model = LongformerForSequenceClassification(config).eval()
    found = [site.kind.removeprefix("attention.self.") for site in find_sites(model, "attention-qk", layers=0)]
    assert found == ["query", "key", "query_global", "key_global"]


def test_patterns_lists_and_layers(bert):
    both_layers = find_sites(bert, "query")
    assert [site.name for site in both_layers] == [f"encoder.layer.{n}.attention.self.query" for n in (0, 1)]
    assert find_sites(bert, r"encoder\.layer\.0\..*dense", layers=None) == find_sites(bert, "dense", layers=0)
    assert find_sites(bert, "query", layers=-1) == both_layers[1:]
    assert find_sites(bert, "query", layers=range(2)) == find_sites(bert, "query", layers="0-1") == both_layers
    both = find_sites(bert, ["fc1", "query", both_layers[0]], layers=[0])
    assert [site.kind for site in both] == ["attention.self.query", "intermediate.dense"]
    pooler = find_sites(bert, "pooler.dense")
    assert (pooler[0].layer, pooler[0].kind) == (None, "pooler.dense")
    assert find_sites(bert, "LayerNorm")[0].width == 32


def test_a_lora_layer_is_one_site():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model("Llama", "causal-lm"), LoraConfig(target_modules=["q_proj"]))
    sites = find_sites(model, "attention-qk", layers=0)
    assert [site.kind for site in sites] == ["self_attn.q_proj", "self_attn.k_proj"]
    assert len(find_sites(model, "all-linear", layers=0)) == 7


def test_two_stacks_need_a_choice():
    model = tiny_model("T5")
    with pytest.raises(InputError, match=r"encoder\.block and decoder\.block: choose one"):
        find_sites(model, "mlp")
    with pytest.raises(InputError, match="'nothing' is not a block stack"):
        find_sites(model, "mlp", stack="nothing")
    assert find_sites(model, r"encoder.*wi")[0].layer == 0


def test_a_pattern_selects_in_the_given_stack():
    model = tiny_model("T5")
    assert {site.module.partition(".")[0] for site in find_sites(model, "SelfAttention[.]q")} == {"encoder", "decoder"}
    for stack in ("encoder", "decoder"):
        sites = find_sites(model, ["SelfAttention[.]q", "final_layer_norm"], stack=f"{stack}.block")
        outside = ["encoder.final_layer_norm", "decoder.final_layer_norm"]
        queries = [f"{stack}.block.{layer}.layer.0.SelfAttention.q" for layer in (0, 1)]
        assert {site.module for site in sites} == {*queries, *outside}
    with pytest.raises(InputError, match="no module of T5Model matches 'EncDecAttention.q' in encoder.block"):
        find_sites(model, "EncDecAttention.q", stack="encoder.block")
    with pytest.raises(InputError, match="'nothing' is not a block stack"):
        find_sites(model, "SelfAttention[.]q", stack="nothing")


def test_given_sites_are_those_of_the_given_stack():
    model = tiny_model("T5")
    both = find_sites(model, "SelfAttention[.]q")
    decoders = [site for site in both if site.module.startswith("decoder.")]
    assert [*find_sites(model, both, stack="decoder.block")] == decoders
    assert len(decoders) < len(both)
    assert [*find_sites(model, both, layers=1, stack="decoder.block")] == decoders[1:]
    for layers in (None, 0):
        with pytest.raises(InputError, match="'nothing' is not a block stack"):
            find_sites(model, both, layers, stack="nothing")
    with pytest.raises(InputError, match="find_sites needs str, not list: give the path of a block stack"):
        find_sites(model, "mlp", stack=["encoder.block"])
    with pytest.raises(InputError, match="matches .* of encoder.block$"):
        find_sites(model, decoders, stack="encoder.block")


def test_layers_from_the_end_are_those_of_the_stack_whatever_is_selected():
    model = tiny_model("T5", num_layers=3, num_decoder_layers=3)
    with pytest.raises(InputError, match="no site of T5Model matches"):
        find_sites(model, r"encoder[.]block[.]0[.].*[.]q", layers=-1)
    assert [site.layer for site in find_sites(model, r"encoder[.]block[.]0[.].*[.]q", layers=-3)] == [0]


def test_a_given_site_without_a_layer_is_in_that_of_its_path():
    model = tiny_model("Llama")
    named = Site("layers.1.mlp.up_proj", 64)
    assert named in find_sites(model, ["attention-qk", named], layers=[1])
    assert named not in find_sites(model, ["attention-qk", named], layers=[0])


def test_a_fused_layer_and_a_slice_of_it_are_not_both_sites():
    assert len(find_sites(tiny_model("Llama"), ["attention-qk", "attention"], layers=0)) == 4
    with pytest.raises(InputError, match=r"'h.0.attn.c_attn' and a slice of it are both sites, and would be rotated twice"):
        find_sites(tiny_model("GPT2"), ["attention-qk", "attention"])


def test_layers_from_the_end_of_unequal_stacks_need_a_choice():
    """As in Whisper's turbo, whose decoder has four blocks, its encoder 32."""
    model = tiny_model("T5", num_layers=3, num_decoder_layers=2)
    assert len(find_sites(model, "SelfAttention[.]q", layers=iter([0, 1]))) == 4
    unequal = "counted from the end, which encoder.block and decoder.block have at different layers: choose one with stack="
    for layers in (-1, "0,-1", [-1, -2]):
        with pytest.raises(InputError, match=unequal):
            find_sites(model, "SelfAttention[.]q", layers=layers)
    assert [site.layer for site in find_sites(model, "SelfAttention[.]q", layers=-1, stack="decoder.block")] == [1]
    assert [site.layer for site in find_sites(model, "EncDecAttention[.]q", layers=-1)] == [1]
    assert len(find_sites(tiny_model("T5"), "SelfAttention[.]q", layers=-1)) == 2


def test_unknown_modules_and_layers_are_refused(bert):
    with pytest.raises(InputError, match="no module of BertModel matches 'querry'; similar names are .*query"):
        find_sites(bert, "querry")
    with pytest.raises(InputError, match="find_sites needs str or Site, not int: give presets, regular expressions or sites"):
        find_sites(bert, [5])
    with pytest.raises(InputError, match="neither a preset .* nor a regular expression"):
        find_sites(bert, "(")
    with pytest.raises(InputError, match="layers 0 to 1"):
        find_sites(bert, "query", layers=2)
    with pytest.raises(InputError, match="no site of BertModel matches 'pooler.dense' in layers 0"):
        find_sites(bert, "pooler.dense", layers=0)
    with pytest.raises(InputError, match="returns no hidden states"):
        find_sites(bert, "embeddings.dropout|dropout_that_is_not_called|encoder")
    bert.encoder.layer[0].intermediate.dense = nn.Linear(32, 63)
    with pytest.raises(InputError, match="width 63 cannot be paired"):
        find_sites(bert, "fc1")


def test_rotary_embeddings_are_no_site():
    """Their outputs are cosines and sines, of which a rotation would act on the first."""
    model = tiny_model("Llama", "causal-lm")
    with pytest.raises(InputError, match="'model.rotary_emb' returns cosines and sines of positions"):
        find_sites(model, "rotary_emb")
    with pytest.raises(InputError, match="'model.rotary_emb' returns cosines and sines of positions"):
        RoadModel(model, RoadAdapter.identity([Site("model.rotary_emb", 8)]))


def test_a_model_without_a_block_stack_takes_patterns_only(bert):
    bert.config.num_hidden_layers = 5
    with pytest.raises(InputError, match="by a pattern instead of a preset"):
        find_sites(bert, "mlp")
    assert len(find_sites(bert, "query")) == 2


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (3, {3}),
        (-1, {9}),
        ("2-4", {2, 3, 4}),
        ("0, 2,-1", {0, 2, 9}),
        (range(8, 10), {8, 9}),
        ([1, -9], {1}),
        (np.arange(1), {0}),
        (torch.arange(8, 10), {8, 9}),
        (list(np.arange(2)), {0, 1}),
        (np.int64(-1), {9}),
    ],
)
def test_parse_layers(layers, expected):
    assert parse_layers(layers, 10) == expected


@pytest.mark.parametrize("layers", ["two", "1-", "-2-3", [10], -11, [True], ["1"]])
def test_parse_layers_refuses(layers):
    with pytest.raises(InputError, match="layer"):
        parse_layers(layers, 10)


def test_group_size_must_divide_the_width():
    Site("a", 48).check_group_size(16)
    with pytest.raises(InputError, match="width 48 is not divisible by group_size 64"):
        Site("a", 48).check_group_size(64)


def test_layers_that_are_no_numbers_or_end_before_they_begin():
    base = tiny_model("Llama", "causal-lm")
    with pytest.raises(InputError, match="^layers '2-1': the range '2-1' ends before it begins$"):
        find_sites(base, "mlp", layers="2-1")
    with pytest.raises(InputError, match="^layer 1.5 does not exist: this model has layers 0 to 1$"):
        find_sites(base, "mlp", layers=1.5)


def test_blocks_of_several_classes_are_a_stack():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 60}
    model = JambaModel(JambaConfig(**sizes, num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1, num_experts=2)).eval()
    assert len({type(block) for block in model.layers}) > 1
    sites = find_sites(model, "block-output", layers=[0, 3])
    assert [(site.module, site.module_width) for site in sites] == [("layers.0", 32), ("layers.3", 32)]
    assert not [site for site in find_sites(model, "all-linear") if site.module.endswith("dt_proj")]  # whose weight is read


HYBRID = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 60}


def bamba():
    mixer = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4}
    return BambaModel(BambaConfig(**HYBRID, **mixer, num_hidden_layers=2, attn_layer_indices=[1])).eval()


def recurrent_gemma():
    layers = {"num_hidden_layers": 2, "block_types": ["recurrent", "attention"], "lru_width": 32}
    return RecurrentGemmaModel(RecurrentGemmaConfig(**HYBRID, **layers, head_dim=8, attention_window_size=8)).eval()


@pytest.mark.parametrize(
    ("make", "attention", "mlp"), [(bamba, "self_attn", "feed_forward"), (recurrent_gemma, "temporal_block", "mlp_block")]
)
def test_mixers_of_hybrid_models_are_no_feed_forward_networks(make, attention, mlp):
    """Bamba registers its mixer behind the network; the attention of RecurrentGemma is known by its class only."""
    model = make()

    def paths(target_modules):
        return [(site.layer, site.kind) for site in find_sites(model, target_modules)]

    gate_up = [(layer, f"{mlp}.{name}_proj") for layer in (0, 1) for name in ("gate", "up")]
    assert paths("fc1") == gate_up
    assert sorted(paths("mlp")) == sorted([*gate_up, (0, f"{mlp}.down_proj"), (1, f"{mlp}.down_proj")])
    assert paths("attention") == [(1, f"{attention}.{name}_proj") for name in "qkvo"]
    assert paths("attention-qk") == [(1, f"{attention}.{name}_proj") for name in "qk"]


def test_a_stack_of_attention_has_no_feed_forward_network():
    model = XLMModel(XLMConfig(vocab_size=60, emb_dim=32, n_layers=2, n_heads=4))
    names = [f"{name}_lin" for name in ("q", "k", "v", "out")]
    assert [site.kind for site in find_sites(model, "attention", layers=0, stack="attentions")] == names
    with pytest.raises(InputError, match="no site of XLMModel matches 'mlp'"):
        find_sites(model, "mlp", stack="attentions")


def test_a_block_that_is_named_after_its_attention_has_a_feed_forward_network():
    block = type("MaskedAttentionDecoderLayer", (nn.Module,), {})()  # as Mask2Former's
    block.fc1, block.attention = nn.Linear(4, 4), nn.Linear(4, 4)
    assert [is_in_attention(block, kind) for kind in ("fc1", "attention")] == [False, True]


def test_a_gate_of_experts_is_not_the_last_layer_of_the_network():
    experts = {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
    model = Qwen2MoeModel(Qwen2MoeConfig(**HYBRID, **experts, num_hidden_layers=1)).eval()
    assert [site.kind for site in find_sites(model, "fc1")] == [f"mlp.shared_expert.{name}_proj" for name in ("gate", "up")]


def test_every_feed_forward_network_of_a_block_has_its_first_layers():
    """Only the last of all was left out: the others, and a router, were taken for first layers."""
    sizes = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "vocab_size": 60}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "decoder_sparse_step": 0}
    mixture = NllbMoeModel(NllbMoeConfig(**sizes, **decoder, num_experts=2, encoder_sparse_step=1)).eval()
    kinds = [site.kind for site in find_sites(mixture, "fc1", stack="encoder.layers")]
    assert kinds == ["ffn.experts.expert_0.fc1", "ffn.experts.expert_1.fc1"]
    stages = {"embed_dim": 16, "depths": [2, 1], "num_heads": [2, 2], "window_size": 2, "image_size": 16, "patch_size": 2}
    images = SwinModel(SwinConfig(**stages)).eval()
    first = [site.kind for site in find_sites(images, "mlp", layers=0) if site.width == 64]
    assert [site.kind for site in find_sites(images, "fc1", layers=0)] == first
    assert len(first) == 2


def test_an_adapter_inside_a_network_does_not_part_its_layers():
    languages = {"languages": ["en_XX"], "default_language": "en_XX", "adapter_reduction_factor": 2}
    model = XmodModel(XmodConfig(**{**CONFIGS["Bert"], **languages, "num_hidden_layers": 1})).eval()
    assert [site.kind for site in find_sites(model, "fc1")] == [
        "intermediate.dense",
        "output.adapter_modules.en_XX.dense1",
    ]


@pytest.mark.parametrize("preset", ["all-linear", "mlp", "fc1"])
def test_experts_that_are_no_linear_layers_are_warned_of(preset):
    experts = {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
    model = Qwen2MoeModel(Qwen2MoeConfig(**HYBRID, **experts, num_hidden_layers=2, mlp_only_layers=[0])).eval()
    left_out = rf"'{preset}' leaves out the experts in 'layers.1.mlp.experts', whose weights are one tensor, not linear layers"
    with pytest.warns(UserWarning, match=left_out) as warned:
        sites = find_sites(model, preset)
    assert warned[0].filename == __file__
    assert not [site for site in sites if ".experts" in site.module or site.module.endswith("shared_expert_gate")]
    gates = [str(each.message) for each in warned if "shared_expert_gate" in str(each.message)]
    of_gate = f"'{preset}' leaves out 'layers.1.mlp.shared_expert_gate' and its like: one number has no plane"
    assert gates == ([] if preset == "fc1" else [of_gate])
    assert {each.filename for each in warned} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_sites(model, "attention")
        find_sites(tiny_model("Llama"), preset)


def test_quantised_layers_that_are_not_torchs_are_warned_of():
    model = tiny_model("Llama")
    model.layers[1].mlp.gate_proj = LikeLinear(32, 48)
    left_out = "'mlp' leaves out 'layers.1.mlp.gate_proj' .*LikeLinear, no linear .* a pattern such as 'gate_proj' selects them"
    with pytest.warns(UserWarning, match=left_out) as warned:
        sites = find_sites(model, "mlp")
    assert warned[0].filename == __file__
    assert [site.kind for site in sites if site.layer == 1] == ["mlp.up_proj", "mlp.down_proj"]


class LikeLinear(nn.Module):
    """What quantisation puts in the place of a linear layer: its sizes without its class."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features

    def forward(self, states):
        return states.new_ones((*states.shape[:-1], self.out_features))


def test_keys_without_queries_are_warned_of(monkeypatch):
    """As ConvBERT's, whose queries go into a convolution of values, too."""
    roles = {"attention.self.query": "v" * 32, "attention.self.key": "k" * 32}
    monkeypatch.setattr("road_interp.sites.find.attention_roles", lambda model, blocks: iter([roles] * len(blocks)))
    with pytest.warns(UserWarning, match="'attention-qk' finds only the keys of 'encoder.layer.0': no linear") as warned:
        sites = find_sites(tiny_model("Bert"), "attention-qk", layers=0)
    assert (len(warned), warned[0].filename) == (1, __file__)
    assert [site.kind for site in sites] == ["attention.self.key"]


def linear_attention():
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
    layers = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "head_dim": 8}
    torch.manual_seed(0)
    return Qwen3NextModel(Qwen3NextConfig(**HYBRID, **heads, **experts, **layers)).eval()


@pytest.mark.parametrize("layers", [None, 1, iter([1])])
def test_linear_attention_has_no_queries_and_keys(layers):
    """Its gates are not taken for queries, and layers that were not asked for are not probed."""
    model = linear_attention()
    found = [(site.layer, site.kind, site.width) for site in find_sites(model, "attention-qk", layers)]
    assert found == [(1, "self_attn.q_proj[query]", 32), (1, "self_attn.k_proj", 16)]  # half of q_proj is the gate
    with pytest.raises(InputError, match="no site of Qwen3NextModel matches 'attention-qk' in layers 0$"):
        find_sites(model, "attention-qk", 0)


def test_blocks_with_two_streams_have_no_single_output():
    config = ReformerConfig(vocab_size=60, attn_layers=["local"], axial_pos_embds=False, hidden_size=32, is_decoder=False)
    with pytest.raises(InputError, match="'encoder.layers.0' returns several states by name, .* select linear layers instead"):
        find_sites(ReformerModel(config).eval(), "block-output")


def test_layers_of_a_model_that_shares_one_block():
    """As ALBERT, which has one group of layers."""
    model = tiny_model("Bert")
    model.encoder.layer = nn.ModuleList([model.encoder.layer[0]])
    assert [site.layer for site in find_sites(model, "attention.self.query")] == [None]
    with pytest.raises(InputError, match="layers cannot be counted: the model has no list of blocks as long as its number"):
        find_sites(model, "attention.self.query", layers=1)


def test_queries_and_keys_beside_experts_are_found():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 60}
    model = MixtralModel(MixtralConfig(**sizes, num_hidden_layers=2, num_local_experts=2)).eval()
    implementation = model.config._experts_implementation
    kinds = [(site.layer, site.kind) for site in find_sites(model, "attention-qk")]
    assert kinds == [(layer, f"self_attn.{name}_proj") for layer in (0, 1) for name in "qk"]
    assert model.config._experts_implementation == implementation


@pytest.mark.parametrize("spread", [0.02, 0.1])
def test_queries_and_keys_beside_sinks_are_found(spread):
    """A sink takes a share of the attention that depends on queries and keys also where all tokens are equal."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": spread}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_local_experts": 4, "vocab_size": 64}
    model = GptOssModel(GptOssConfig(**sizes, **heads)).eval()
    sinks = model.layers[0].self_attn.sinks.clone()
    assert [site.kind for site in find_sites(model, "attention-qk", layers=1)] == ["self_attn.q_proj", "self_attn.k_proj"]
    assert torch.equal(model.layers[0].self_attn.sinks, sinks)


OF_SOUNDS = {
    "conv_dim": (8,),
    "conv_stride": (5,),
    "conv_kernel": (10,),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def test_the_linear_of_distances_is_neither_query_nor_key():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = Wav2Vec2ConformerModel(Wav2Vec2ConformerConfig(**sizes, **OF_SOUNDS, position_embeddings_type="relative")).eval()
    found = [site.kind for site in find_sites(model, "attention-qk", layers=0)]
    assert found == ["self_attn.linear_q", "self_attn.linear_k"]


def test_a_model_of_sounds_and_one_that_takes_something_else():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    sounds = Wav2Vec2Model(Wav2Vec2Config(**sizes, **OF_SOUNDS)).eval()
    assert [site.module for site in find_sites(sounds, "block-output")] == ["encoder.layers.0", "encoder.layers.1"]
    assert len(find_sites(sounds, "attention-qk")) == 4
    films = VideoMAEModel(VideoMAEConfig(**sizes, image_size=16, patch_size=8, num_frames=4)).eval()
    for preset in ("block-output", "attention-qk"):
        with pytest.raises(InputError, match="VideoMAEModel cannot be run on four tokens, one image or one waveform"):
            find_sites(films, preset)
    assert len(find_sites(films, "all-linear")) == 12
