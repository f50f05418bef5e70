"""Modules whose outputs are not rows of the call, or are lost, are refused, and so are rows without an order."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
import transformers
from accelerate import cpu_offload
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    DynamicCache,
    EncodecConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    JetMoeConfig,
    JetMoeForCausalLM,
    LayoutLMv3Config,
    LayoutLMv3Model,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    ModernBertConfig,
    ModernBertForMaskedLM,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    PatchTSTConfig,
    PatchTSTForPrediction,
    RwkvConfig,
    RwkvForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from helpers.models import random_adapter, tiny_model, token_batch
from helpers.road_models import GREEDY, bank_model, road_model
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.base_model import BaseModelSignature
from road_interp.adapters.joined_names import BASE
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel
from road_interp.models.row_arguments import RowArguments
from road_interp.sites import module_tree
from road_interp.sites.find import find_sites
from road_interp.sites.module_tree import reads_weight
from road_interp.sites.site import Site

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def two_adapters(sites):
    return RoadBank({name: random_adapter(sites, seed=seed, spread=2) for seed, name in enumerate("ab")})


# ------------------------------------------------------------------ modules


def offloaded(model):
    cpu_offload(model, torch.device("cpu"))


def recomputed(model):
    for site in find_sites(model, "mlp"):
        nn.utils.weight_norm(model.get_submodule(site.module))


@pytest.mark.parametrize("change", [offloaded, recomputed])
def test_weights_that_would_lose_a_change_are_not_merged(change):
    base, batch = tiny_model("Llama", "causal-lm"), token_batch(2)
    adapter = random_adapter(find_sites(base, "mlp"))
    change(base)
    model = RoadModel(base, adapter)
    rotated = model(batch)[1].logits
    with pytest.raises(InputError, match="cannot be merged: its weight is offloaded, or computed anew in every call"):
        model.merge()
    assert torch.equal(model(batch)[1].logits, rotated)


def test_a_linear_that_torch_never_calls_is_no_site():
    model = SiglipVisionModel(SiglipVisionConfig(**SIZES, image_size=16, patch_size=8)).eval()
    never = "'head.attention.out_proj' is never called: MultiheadAttention reads its weight instead"
    with pytest.raises(InputError, match=never):
        find_sites(model, "head.attention.out_proj")
    assert "head.attention.out_proj" in dict(model.named_modules())
    with pytest.raises(InputError, match=never):
        RoadModel(model, random_adapter([Site("head.attention.out_proj", 32)]))


def mamba():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 60}
    return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).eval(), token_batch(2)


def wavlm():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    small = {"conv_dim": (8,), "conv_stride": (5,), "conv_kernel": (10,), "num_conv_pos_embeddings": 8}
    model = transformers.WavLMModel(transformers.WavLMConfig(**sizes, **small, num_conv_pos_embedding_groups=2)).eval()
    return model, {"input_values": torch.randn(2, 200, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize(("make", "left_out"), [(mamba, ["dt_proj"]), (wavlm, ["q_proj", "k_proj", "v_proj", "out_proj"])])
def test_linears_whose_weights_a_model_reads_are_no_sites(make, left_out):
    torch.manual_seed(0)
    model, batch = make()
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    sites = find_sites(model, "all-linear")
    in_blocks = [name for name in linears if ".layers." in name]
    never = [name for name in in_blocks if name.rpartition(".")[2] in left_out]
    assert len(never) == 2 * len(left_out)
    assert [site.module for site in sites] == [name for name in in_blocks if name not in never]
    called = []
    for name in in_blocks:
        model.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: called.append(name))
    model(**batch)
    assert not set(called) & set(never)
    for name in never:
        with pytest.raises(InputError, match=f"'{name}' is never called: .* reads its weight instead, so that nothing would"):
            find_sites(model, name)
        with pytest.raises(InputError, match=f"'{name}' is never called"):
            RoadModel(model, random_adapter([Site(name, model.get_submodule(name).out_features)]))


def test_linears_whose_weights_a_model_could_read_are_sites_where_it_calls_them():
    """BLOOM reads the weights of two linears with tensor parallelism only, and T5 asks one for its dtype."""
    bloom = transformers.BloomModel(transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=60))
    assert reads_weight(type(bloom.h[0].mlp), "dense_4h_to_h")
    assert any(site.module == "h.1.mlp.dense_4h_to_h" for site in find_sites(bloom, "all-linear"))
    bloom.h[1].mlp.pretraining_tp, bloom.h[1].mlp.slow_but_exact = 2, True
    assert not any(site.module == "h.1.mlp.dense_4h_to_h" for site in find_sites(bloom, "all-linear"))
    assert not reads_weight(type(tiny_model("T5").decoder.block[1].layer[2].DenseReluDense), "wo")


@pytest.mark.parametrize("layer", ["x_proj", "out_proj"])
def test_layers_whose_weights_a_kernel_reads_in_training_are_refused_there(layer, monkeypatch):
    """Mamba's kernel on CUDA, played by one that returns its inputs."""
    torch.manual_seed(0)
    base, batch = mamba()
    model, beside = (RoadModel(base, random_adapter(find_sites(base, where))) for where in (layer, "in_proj"))
    base.train()
    model(batch)[1].logits.mean().backward()
    kernel = "transformers.models.mamba.modeling_mamba.mamba_inner_fn"
    monkeypatch.setattr(kernel, lambda states, *weights, **settings: states[:, :32].transpose(1, 2))
    message = f"site 'backbone.layers.0.mixer.{layer}': MambaMixer read the weight of this layer in place of calling it"
    with pytest.raises(InputError, match=message):
        model(batch)
    with pytest.raises(InputError, match=message), model.attached() as attached:
        attached(**batch)
    for call in (lambda: model(batch), lambda: model.generate(batch, max_new_tokens=1, use_cache=False)):
        with torch.no_grad(), pytest.raises(InputError, match=message):
            call()
    beside(batch)
    base(**batch)
    base.eval()
    model(batch)


@torch.no_grad()
def test_a_call_in_which_no_site_is_called_is_warned_of():
    base = tiny_model("GPT2", "causal-lm", add_cross_attention=True)
    model, batch = RoadModel(base, random_adapter(find_sites(base, "crossattention[.]c_proj"))), token_batch()
    for call in (lambda: model(batch), lambda: model.generate(batch, max_new_tokens=1, pad_token_id=0)):
        with pytest.warns(UserWarning, match="called no site, as 'transformer.h.0.crossattention.c_proj'"):
            call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model({**batch, "encoder_hidden_states": torch.randn(3, 4, 32)})


@torch.no_grad()
@pytest.mark.parametrize("layer", ["query_key", "value"])
def test_layers_whose_weights_are_read_for_cached_states_are_refused_with_a_cache(layer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "attention_head_size": 16, "feed_forward_size": 48, "vocab_size": 60}
    hashes = {"attn_layers": ["lsh"], "lsh_attn_chunk_length": 4, "lsh_num_chunks_after": 0, "num_buckets": 2, "hash_seed": 1}
    config = transformers.ReformerConfig(**sizes, **hashes, axial_pos_embds=False, is_decoder=True, eos_token_id=1)
    base = transformers.ReformerModelWithLMHead(config).eval()
    model, ids = RoadModel(base, random_adapter(find_sites(base, layer))), torch.randint(3, 60, (1, 8))
    cache = model({"input_ids": ids, "use_cache": True})[1].past_buckets_states
    message = f"{layer}': for the states in its cache, LSHSelfAttention reads the weight of this layer .* use_cache=False"
    with pytest.raises(InputError, match=message):
        model({"input_ids": ids[:, :1], "past_buckets_states": cache})
    with pytest.raises(InputError, match=message), model.attached() as attached:
        attached.generate(ids, max_new_tokens=2)
    model.generate({"input_ids": ids}, max_new_tokens=2, use_cache=False)
    other = RoadModel(base, random_adapter(find_sites(base, "attention.output.dense")))
    other({"input_ids": ids[:, :1], "past_buckets_states": cache})


class CalledByAnotherName(nn.Module):
    """Reads the norms of its weights, and calls its layers in a loop."""

    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = self.up.weight.norm() + self.down.weight.norm()

    def forward(self, states):
        for layer in (self.up, self.down):
            states = layer(states)
        return states


def test_a_pass_decides_whether_a_layer_is_called(monkeypatch):
    model = tiny_model("Llama")
    for block in model.layers:
        block.mlp = CalledByAnotherName(32)
    paths = ["layers.0.mlp.up", "layers.0.mlp.down", "layers.1.mlp.up", "layers.1.mlp.down"]
    assert [site.module for site in find_sites(model, "mlp")] == paths
    monkeypatch.setattr(module_tree, "_dummy_inputs", lambda model: {})  # a model that takes something else
    with pytest.raises(InputError, match="LlamaModel calls no linear layer of 'mlp': it reads their weights instead"):
        find_sites(model, "mlp")


class Grouped(nn.Linear):
    """A block-diagonal product whose output has an axis of groups, as DeepSeek-V4 has."""

    def forward(self, states):
        return super().forward(states).unflatten(-1, (4, -1)).flip(-2)


class Ungrouped(nn.Linear):
    def forward(self, states):
        return super().forward(states.flatten(-2))


def test_a_linear_with_a_forward_of_its_own_has_the_width_that_it_returns():
    model, inputs = tiny_model("Llama"), token_batch()
    for block in model.layers:
        block.mlp = nn.Sequential(Grouped(32, 32), Ungrouped(32, 32))
    for where in ("mlp", "mlp[.]0"):
        widths = {site.kind: site.width for site in find_sites(model, where)}
        assert widths["mlp.0"] == 8
    adapter = random_adapter(find_sites(model, "mlp[.]0"))
    rotated = RoadModel(model, adapter)(inputs)[1].last_hidden_state
    for block, site in zip(model.layers, adapter.sites, strict=True):
        block.mlp[0].register_forward_hook(lambda module, args, output, site=site: output @ adapter.matrix(site).T)
    assert torch.allclose(rotated, model(**inputs).last_hidden_state, atol=1e-5)


def test_a_router_that_returns_scores_beside_logits_is_no_linear():
    """The scores of Llama 4's router are zero for the experts that a token does not use; a rotation would mix them."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48}
    config = transformers.Llama4TextConfig(**sizes, **experts, num_key_value_heads=2, head_dim=8, pad_token_id=0)
    model = transformers.Llama4TextModel(config)
    assert any(name.endswith("router") for name, _ in model.named_modules())
    for preset in ("all-linear", "mlp", "fc1"):
        assert not any("router" in site.kind for site in find_sites(model, preset))


def test_a_convolution_is_no_site():
    model = tiny_model("ViT")
    for use in (find_sites, lambda model, name: RoadModel(model, random_adapter([Site(name, 2)]))):
        with pytest.raises(InputError, match="'embeddings.patch_embeddings.projection' is a convolution"):
            use(model, "embeddings.patch_embeddings.projection")


@pytest.mark.parametrize(("width", "group_size"), [(32, 32), (2, 2)])
def test_one_group_of_planes_is_not_repeated_over_wider_states(width, group_size):
    base = tiny_model("GPT2", "causal-lm", n_embd=64)
    sites = [replace(site, width=width) for site in find_sites(base, "block-output")]
    model, planes = RoadModel(base, random_adapter(sites, group_size=group_size)), [list(range(width // 2))] * 2
    with pytest.raises(InputError, match=f"site 'transformer.h.0' has states of width 64 here, not {width}"):
        model(token_batch(2))
    with pytest.raises(InputError, match=f"states of width 64 cannot be rotated in {width // 2} planes"):
        model(token_batch(2), subspaces=[planes] * len(sites))


# ------------------------------------------------------------------ rows


def test_images_are_not_rows():
    vision = CLIPVisionConfig(**SIZES, image_size=16, patch_size=8)
    text = LlamaConfig(**SIZES, **TOKENS, vocab_size=64)
    base = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=60)).eval()
    images, ids = torch.randn(4, 3, 16, 16), torch.tensor([[60] * 4 + [5] * 9, [60] * 12 + [5]])
    batch = {"input_ids": ids, "pixel_values": images}
    model = RoadModel(base, two_adapters(find_sites(base, ".*vision.*q_proj")))
    with pytest.raises(InputError, match=r"site '.*vision.*' is outside the text model: a row may have several images"):
        model(batch, adapter_names=["a", "b"])
    with pytest.raises(InputError, match=r"site '.*vision.*' is outside the text model: a row may have several images"):
        model.generate(batch, adapter_names=["a", "b"], **GREEDY)  # calls the vision model by itself
    with (
        model.attached(["a", "b"]) as attached,
        pytest.raises(InputError, match=r"site '.*vision.*' is outside the text model: a row may have several images"),
    ):
        attached.generate(**batch, **GREEDY)
    model = RoadModel(base, two_adapters((*find_sites(base, ".*language_model.*q_proj"), *find_sites(base, "lm_head"))))
    found = model(batch, adapter_names=["a", "b"])[1].logits
    alone = model({"input_ids": ids[1:], "pixel_values": images[1:]}, adapter_names=["b"])[1].logits
    torch.testing.assert_close(found[1:], alone, rtol=0, atol=1e-5)
    assert model({"input_ids": ids}, adapter_names=["a", "b"])[1].logits.shape[0] == 2


def test_images_that_are_the_rows_have_an_adapter_each():
    text = {"vocab_size": 64, "projection_dim": 16, **SIZES, **TOKENS}
    config = CLIPConfig(text_config=text, vision_config={**SIZES, "image_size": 16, "patch_size": 8, "projection_dim": 16})
    model = RoadModel(CLIPModel(config).eval(), two_adapters(find_sites(CLIPModel(config), ".*vision.*q_proj|text_projection")))
    batch = {"input_ids": torch.randint(3, 60, (2, 5)), "pixel_values": torch.randn(2, 3, 16, 16)}
    found = model(batch, adapter_names=["a", "b"])[1]
    for row, name in enumerate("ab"):
        alone = model({key: value[row : row + 1] for key, value in batch.items()}, adapter_names=[name])[1]
        torch.testing.assert_close(found.image_embeds[row], alone.image_embeds[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(found.text_embeds[row], alone.text_embeds[0], rtol=0, atol=1e-5)
    with pytest.raises(InputError, match=r"site '.*' is outside the text model"):
        model({**batch, "pixel_values": torch.randn(3, 3, 16, 16)}, adapter_names=["a", "b"])


def test_texts_with_one_image_each_are_rows_at_every_site():
    sizes = {**SIZES, "vocab_size": 64, "max_position_embeddings": 40, "coordinate_size": 6, "shape_size": 4, "input_size": 16}
    base = LayoutLMv3Model(LayoutLMv3Config(**sizes, patch_size=8, **TOKENS)).eval()
    model = RoadModel(base, two_adapters(find_sites(base, "all-linear")))
    ids, boxes = torch.randint(3, 60, (2, 5)), torch.randint(0, 9, (2, 5, 4)).sort(-1).values
    batch = {"input_ids": ids, "bbox": boxes, "pixel_values": torch.randn(2, 3, 16, 16)}
    found = model(batch, adapter_names=["a", "b"])[1][0]
    alone = model({key: value[1:] for key, value in batch.items()}, adapter_names=["b"])[1][0]
    torch.testing.assert_close(found[1:], alone, rtol=0, atol=1e-5)


def test_the_rows_of_inputs_with_other_names_are_counted():
    sizes = {"d_model": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64}
    base = PatchTSTForPrediction(PatchTSTConfig(num_input_channels=2, context_length=32, patch_length=8, **sizes)).eval()
    model = RoadModel(base, two_adapters(find_sites(base, "all-linear")))
    with pytest.raises(InputError, match="2 adapter names for a batch of 4 rows"):
        model({"past_values": torch.randn(4, 32, 2)}, adapter_names=["a", "b"])


def test_experts_are_found_by_their_class():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_key_value_heads": 2, "kv_channels": 8}
    base = JetMoeForCausalLM(JetMoeConfig(**sizes, **TOKENS, vocab_size=64, num_local_experts=4, num_experts_per_tok=1)).eval()
    model = RoadModel(base, two_adapters(find_sites(base, "mlp.output_linear")))
    with pytest.raises(InputError, match=r"site '.*mlp.output_linear' is inside the experts of a mixture"):
        model(token_batch(2), adapter_names=["a", "b"])
    with pytest.raises(InputError, match="is inside the experts of a mixture"):
        model(token_batch(2), unit_locations={"base": 0}, adapter_names=["a", "b"])
    model(token_batch(1), adapter_names=["a"])


def test_rows_behind_the_others_for_guidance_are_refused():
    text = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    audio = EncodecConfig(
        num_filters=4, hidden_size=16, codebook_size=32, codebook_dim=16, upsampling_ratios=[2, 2], num_lstm_layers=1,
        target_bandwidths=[1.5], sampling_rate=240,
    )  # fmt: skip
    decoder = MusicgenDecoderConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=4, num_codebooks=2, pad_token_id=32,
        bos_token_id=32,
    )  # fmt: skip
    parts = {"text_encoder": text, "audio_encoder": audio, "decoder": decoder}
    config = MusicgenConfig(**{name: {**part.to_dict(), "model_type": part.model_type} for name, part in parts.items()})
    base = MusicgenForConditionalGeneration(config).eval()
    model = RoadModel(base, two_adapters(find_sites(base, r"decoder[.]model.*fc1")))
    ids = torch.randint(3, 60, (2, 5))
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 32, "decoder_start_token_id": 32}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with pytest.raises(InputError, match="MusicgenForConditionalGeneration doubles the rows for guidance"):
        model.generate(inputs, adapter_names=["a", "b"], guidance_scale=3.0, **options)
    with model.attached(["a", "b"]) as attached, pytest.raises(InputError, match="doubles the rows"):
        attached.generate(**inputs, guidance_scale=3.0, **options)
    model.generate({name: each[:1] for name, each in inputs.items()}, adapter_names=["a"], guidance_scale=3.0, **options)
    model.generate(inputs, adapter_names=["a", "b"], guidance_scale=1.0, **options)


def test_rows_behind_the_others_for_an_image_are_refused():
    text = LlamaConfig(**SIZES, **TOKENS, vocab_size=64)
    vision = JanusVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8, projection_dim=32
    )
    codes = JanusVQVAEConfig(
        embed_dim=8, num_embeddings=32, latent_channels=8, num_patches=2, base_channels=32, projection_dim=32
    )
    config = JanusConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), vq_config=codes.to_dict(), image_token_id=60)
    base = JanusForConditionalGeneration(config).eval()
    model = RoadModel(base, two_adapters(find_sites(base, "down_proj", stack="model.language_model.layers")))
    with pytest.raises(InputError, match="JanusForConditionalGeneration doubles the rows for guidance"):
        model.generate(token_batch(2), adapter_names=["a", "b"], generation_mode="image", guidance_scale=5.0)
    model.generate(token_batch(2), adapter_names=["a", "b"], generation_mode="text", **GREEDY)


@pytest.mark.parametrize("setting", [{"num_beams": 2}, {"num_return_sequences": 2}, {"cache_implementation": "static"}])
def test_rows_that_end_before_others_are_refused_where_others_would_take_their_places(setting):
    config = WhisperConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=4, max_source_positions=20, max_target_positions=30, pad_token_id=1,
        bos_token_id=1, eos_token_id=1, decoder_start_token_id=2, suppress_tokens=[], begin_suppress_tokens=[],
    )  # fmt: skip
    base = WhisperForConditionalGeneration(config).eval()
    model = RoadModel(base, two_adapters(find_sites(base, "mlp", stack="model.decoder.layers")))
    sounds = {"input_features": torch.randn(2, 4, 40)}
    with pytest.raises(InputError, match="WhisperForConditionalGeneration drops rows whose audio has ended"):
        model.generate(sounds, adapter_names=["a", "b"], **setting)
    with model.attached(["a", "b"]) as attached, pytest.raises(InputError, match="drops rows whose audio has ended"):
        attached.generate(**sounds, **setting)
    options = {"max_new_tokens": 3, "do_sample": False}
    for row, name in enumerate("ab"):
        both = model.generate(sounds, adapter_names=["a", "b"], **options)[1]
        alone = model.generate({"input_features": sounds["input_features"][row : row + 1]}, adapter_names=[name], **options)[1]
        assert torch.equal(both[row, : alone.shape[1]], alone[0])


def test_a_head_that_reads_labelled_tokens_only_has_no_rows():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 60}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    base = ModernBertForMaskedLM(ModernBertConfig(**sizes, **tokens, sparse_prediction=True)).eval()
    model = RoadModel(base, two_adapters(find_sites(base, "head.dense")))
    labels = torch.full((2, 6), -100)
    labels[0, 1] = labels[0, 4] = 5  # as many as rows, both of the first
    batch = {**token_batch(2, 6), "labels": labels}
    with pytest.raises(InputError, match="'head.dense': with sparse_prediction the head reads the tokens with a label only"):
        model(batch, adapter_names=["a", "b"])
    RoadModel(base, model.bank["a"])(batch)


@pytest.mark.parametrize("layers", ["0-2", 1])
def test_a_module_at_two_places_is_refused(layers):
    base = tiny_model("Llama", "causal-lm")
    first, second = base.model.layers
    base.model.layers, base.config.num_hidden_layers = nn.ModuleList([first, second, second]), 3
    with pytest.raises(InputError, match=r"'model.layers.[12]' is the same module as 'model.layers.[12]': a rotation would act"):
        RoadModel(base, random_adapter(find_sites(base, "block-output", layers=layers)))
    base.model.layers[2] = copy.deepcopy(second)
    RoadModel(base, random_adapter(find_sites(base, "block-output", layers=layers)))


def test_a_state_that_is_no_cache_does_not_count_its_tokens():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 64}
    base = RwkvForCausalLM(RwkvConfig(vocab_size=64, **sizes, bos_token_id=0, eos_token_id=1)).eval()
    model = RoadModel(base, random_adapter(find_sites(base, "block-output")), positions="first")
    with pytest.raises(InputError, match="the cache of RwkvForCausalLM does not count its tokens"):
        model.generate(token_batch(1), **GREEDY)
    model.generate(token_batch(1), use_cache=False, **GREEDY)


def test_keys_of_a_mapping_have_an_order():
    model, batch = bank_model("ab"), token_batch(2)
    expected = model(batch, adapter_names=["b", "a"])[1].logits
    assert torch.equal(model(batch, adapter_names={"b": 1, "a": 2}.keys())[1].logits, expected)


@pytest.mark.parametrize("given", [{"a", "b"}, frozenset("ab")])
def test_a_set_has_no_order_of_rows(given):
    with pytest.raises(InputError, match="adapter names must be a list, one per row"):
        bank_model("ab")(token_batch(2), adapter_names=given)


def test_the_rows_of_a_call_are_not_those_of_its_position_numbers():
    model, batch = bank_model("ab"), token_batch(2)
    with_numbers = {"position_ids": torch.arange(batch["input_ids"].shape[1])[None], **batch}
    with pytest.raises(InputError, match="1 adapter names for a batch of 2 rows"):
        model(with_numbers, adapter_names=["a"])
    expected = model(batch, adapter_names=["a", "b"])[1].logits
    torch.testing.assert_close(model(with_numbers, adapter_names=["a", "b"])[1].logits, expected)


def test_a_number_is_the_strength_of_all_planes_beside_rows_with_tasks():
    base, batch = tiny_model("Llama", "causal-lm"), token_batch(2)
    sites = find_sites(base, "mlp")
    owned = {"label": {sites[0].name: torch.arange(sites[0].width // 2) < 2}}
    model = RoadModel(base, random_adapter(sites), planes=TaskPlanes(sites, owned))
    found = model(batch, strengths=[0.0, {"label": 0.3}])[1].logits
    torch.testing.assert_close(found[0], base(**batch).logits[0], rtol=0, atol=1e-6)
    halves = model(batch, strengths=[0.5, 0.5])[1].logits
    torch.testing.assert_close(model(batch, strengths=[0.5, {"label": 0.3}])[1].logits[0], halves[0], rtol=0, atol=1e-6)


def test_subspaces_of_one_row_are_not_those_of_all():
    model, batch = road_model(), token_batch(2)
    with pytest.raises(InputError, match="subspaces list 1 rows, but the batch has 2"):
        model(batch, subspaces=[[[0]], *[None] * (len(model.sites) - 1)])


# ------------------------------------------------------------------ twice, or of another model


def test_both_passes_do_not_write_into_one_cache():
    model, batch = road_model(), token_batch(2)
    with pytest.raises(InputError, match="both passes would write into the cache"):
        model({**batch, "past_key_values": DynamicCache()}, output_original_output=True)
    with pytest.raises(InputError, match="both passes would write into the cache"):
        model.generate(batch, past_key_values=DynamicCache(), output_original_output=True, **GREEDY)


def test_the_original_output_is_not_that_of_another_model_that_is_attached():
    base = tiny_model("Llama", "causal-lm")
    outer, inner = (RoadModel(base, random_adapter(find_sites(base, "mlp"), seed=seed)) for seed in range(2))
    with outer.attached(), pytest.raises(InputError, match="are attached: there is no original output"):
        inner(token_batch(2), output_original_output=True)


def test_both_passes_do_not_change_one_state():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 64}
    base = RwkvForCausalLM(RwkvConfig(vocab_size=64, **sizes, bos_token_id=0, eos_token_id=1)).eval()
    model, batch = RoadModel(base, random_adapter(find_sites(base, "block-output"))), token_batch(1)
    state = base(**batch, use_cache=True).state
    with pytest.raises(InputError, match="both passes would write into the cache"):
        model({**batch, "state": state}, output_original_output=True)


def test_a_merged_peft_model_is_not_read():
    peft = pytest.importorskip("peft", reason="needs the extra [peft]")
    config = peft.RoadConfig(target_modules=["down_proj"], group_size=2, init_weights=False)
    model, batch = peft.get_peft_model(tiny_model("Llama", "causal-lm"), config).eval(), token_batch(2)
    expected = model(**batch).logits
    model.merge_adapter()
    with pytest.raises(InputError, match=r"the PEFT adapter is merged: .* call unmerge_adapter\(\) first"):
        RoadAdapter.from_peft(model)
    model.unmerge_adapter()
    adapter = RoadAdapter.from_peft(model)
    torch.testing.assert_close(RoadModel(model.unload(), adapter)(batch)[1].logits, expected, rtol=0, atol=1e-5)


def test_an_adapter_of_another_model_does_not_come_in_through_the_bank():
    base, batch = tiny_model("Llama", "causal-lm"), token_batch(2)
    sites = find_sites(base, "mlp")
    bank = RoadBank({"a": random_adapter(sites)})
    model = RoadModel(base, bank)
    bank.add("b", replace(random_adapter(sites, seed=3), base=BaseModelSignature("other", "mistral", 32, 2)))
    for call in (lambda: model(batch, adapter_names=["a", "b"]), lambda: model.generate(batch, adapter_names=["a", "a"])):
        with pytest.raises(InputError, match="of the bank were made for another model, 'other', not for an unnamed llama"):
            call()


def test_maps_of_an_inference_pass_can_be_trained_through():
    base, batch = tiny_model("Llama", "causal-lm"), token_batch(2)
    model = RoadModel(base, two_adapters(find_sites(base, "mlp")))
    with torch.inference_mode():
        model(batch, adapter_names=["a", "b"])
    base.model.embed_tokens.requires_grad_(True)
    model(batch, adapter_names=["a", "b"])[1].logits.sum().backward()
    assert base.model.embed_tokens.weight.grad.abs().max() > 0


@pytest.mark.parametrize("variant", ["road_1", "road_2"])
def test_maps_of_any_names_have_equal_strides(variant):
    """Compiled code is compiled again for other strides."""
    model, batch = bank_model(variant=variant), token_batch(4)
    names = (["a", "b", "c", BASE], ["b", "b", "a", "a"], ["c"] * 4)
    maps = [model._selection.coefficients(RowArguments(each), batch).maps() for each in names]
    strides = [[(each.a.stride(), None if each.b is None else each.b.stride()) for each in of_names] for of_names in maps]
    assert strides[0] == strides[1] == strides[2]
