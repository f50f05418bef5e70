"""RoadModel: equal outputs with pyvene's loop, per row, with padding and in generation."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import pyvene
import torch
import torch.autograd.forward_ad as forward_ad
import transformers
from accelerate import cpu_offload

from helpers.models import needs_compiler, padded_batch, random_adapter, tiny_model, token_batch
from helpers.road_models import ARCHITECTURES, GREEDY, bank_model, road_model, through_pyvene, untouched
from helpers.taught import word_tokenizer
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.joined_names import BASE
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.errors import InputError
from road_interp.models.low_rank_interchange import LowRankInterchangeIntervention
from road_interp.models.road_model import RoadModel
from road_interp.models.row_arguments import RowArguments
from road_interp.rotation import plane_maps
from road_interp.sites.find import find_sites
from road_interp.sites.site import Site

TARGET_MODULES = ["all-linear", "attention-qk", "block-output"]


# ---------------------------------------------------------------- one adapter


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("target_modules", TARGET_MODULES)
@pytest.mark.parametrize(("variant", "group_size"), [("road_1", 2), ("road_1", 8), ("road_2", 2), ("road_4", 4)])
def test_wrapped_forward_equals_pyvenes_loop(architecture, target_modules, variant, group_size):
    model, batch = road_model(architecture, target_modules, variant, group_size), token_batch()
    assert isinstance(model, pyvene.IntervenableModel)
    original, output = model(base=batch, output_original_output=True)
    slow = through_pyvene(model, batch)
    torch.testing.assert_close(output.logits, slow, rtol=0, atol=1e-6)
    assert (output.logits - original.logits).abs().max() > 1e-5
    with torch.no_grad():
        torch.testing.assert_close(model(base=batch)[1].logits, slow, rtol=0, atol=1e-6)


def test_the_original_output_of_a_model_that_generates_no_text():
    base, batch = tiny_model("Bert"), token_batch()
    original, output = RoadModel(base, random_adapter(find_sites(base, "mlp")))(batch, output_original_output=True)
    assert torch.equal(original.last_hidden_state, base(**batch).last_hidden_state)
    assert (output.last_hidden_state - original.last_hidden_state).abs().max() > 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("target_modules", TARGET_MODULES)
def test_the_identity_is_bitwise_exact(architecture, target_modules):
    base, batch = tiny_model(architecture, "causal-lm"), token_batch()
    model = RoadModel(base, RoadAdapter.identity(find_sites(base, target_modules)))
    assert torch.equal(model(base=batch)[1].logits, base(**batch).logits)


@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
@pytest.mark.parametrize("target_modules", TARGET_MODULES)
@pytest.mark.parametrize("variant", plane_maps.VARIANTS)
def test_gradients_equal_those_of_pyvenes_loop(architecture, target_modules, variant):
    model, batch = road_model(architecture, target_modules, variant), token_batch()
    gradients = []
    for call in (lambda: model(base=batch)[1].logits, lambda: through_pyvene(model, batch)):
        model.zero_grad()
        call().log_softmax(-1)[..., 5].sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4 * gradients[1].abs().max().item())


def test_scales_of_zero_have_a_gradient():
    model, batch = road_model(), token_batch()
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter[0] = 0.0
    model(base=batch)[1].logits.square().sum().backward()
    ours = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad()
    through_pyvene(model, batch).square().sum().backward()
    theirs = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    for one, other in zip(ours, theirs, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_changed_parameters_take_effect_in_the_next_call():
    model, batch = road_model(), token_batch()
    with torch.no_grad():
        before = model(base=batch)[1].logits
        assert torch.equal(model(base=batch)[1].logits, before)
        next(iter(model.interventions.values())).theta[:] = 1.0
        after = model(base=batch)[1].logits
        torch.testing.assert_close(after, through_pyvene(model, batch), rtol=0, atol=1e-6)
    assert not torch.equal(after, before)


def test_the_adapter_of_a_new_model_is_the_given_one():
    base = tiny_model("Llama", "causal-lm")
    adapter = random_adapter(find_sites(base, "all-linear"))
    assert RoadModel(base, adapter).adapter.distance(adapter) == 0
    with pytest.raises(InputError, match="by name"):
        _ = bank_model().adapter


def test_an_adapter_of_another_model_is_refused(bert):
    adapter = random_adapter(find_sites(tiny_model("Llama"), "all-linear"))
    with pytest.raises(InputError, match=r"BertModel has no module 'layers\.0\.self_attn\.q_proj'"):
        RoadModel(bert, adapter)


def test_a_module_that_returns_no_states_is_refused():
    base = tiny_model("Llama", "causal-lm")
    model = RoadModel(base, random_adapter([Site("model", base.config.hidden_size)]))
    with pytest.raises(InputError, match="site 'model': its module returns BaseModelOutputWithPast, not states"):
        model(token_batch(2))


def test_the_models_of_an_error_have_names_or_architectures():
    adapter = road_model("GPT2").adapter
    wider = tiny_model("GPT2", "causal-lm", n_embd=64)
    with pytest.raises(InputError, match="another model, an unnamed gpt2, not for an unnamed gpt2: hidden_size is 64, not 32$"):
        RoadModel(wider, adapter)
    wider.config._name_or_path = wider.name_or_path = "somewhere/wide"
    with pytest.raises(InputError, match="another model, an unnamed gpt2, not for 'wide': hidden_size"):
        RoadModel(wider, adapter)


def test_an_adapter_may_be_a_folder_or_a_run(tmp_path):
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    adapter = random_adapter(find_sites(base, "all-linear"))
    adapter.save(tmp_path / "run" / "adapter")
    adapter.to_peft(tmp_path / "peft", base)
    expected = RoadModel(base, adapter)(base=batch)[1].logits
    for given in (str(tmp_path / "run" / "adapter"), tmp_path / "run", tmp_path / "peft", SimpleNamespace(adapter=adapter)):
        assert torch.equal(RoadModel(base, given)(base=batch)[1].logits, expected)
    with pytest.raises(InputError, match="^an object of type dict is not an adapter: .*; several together are a RoadBank$"):
        RoadModel(base, {"a": adapter})


def test_a_model_shows_its_base_and_its_adapters():
    shown = "RoadModel(LlamaForCausalLM, road_1 adapter at 2 sites, 64 parameters, positions 'last')"
    model = road_model(target_modules="block-output", positions="last")
    assert str(model) == repr(model) == f"{model}" == shown
    bank = "bank of 3 road_1 adapters at 2 sites, 64 parameters each, positions 'all')"
    assert str(bank_model(target_modules="block-output")).endswith(bank)


def test_device_and_dtype_are_those_of_the_base_model():
    model = road_model().to(torch.bfloat16)
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.bfloat16)


def test_a_pipeline_is_told_to_take_the_attached_model():
    tokenizer = word_tokenizer()
    base = tiny_model("GPT2", "causal-lm", vocab_size=len(tokenizer))
    model = RoadModel(base, random_adapter(find_sites(base, "block-output"), spread=3.0))
    with pytest.raises(InputError, match=r"`with model\.attached\(\) as base:` and give it model=base"):
        transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    classify = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)
    with pytest.raises(InputError, match="a pipeline calls a transformers model"):
        repr(classify)
    with pytest.raises(InputError):
        classify("the doctor")
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "return_tensors": True}
    with model.attached() as attached:
        (generated,) = transformers.pipeline("text-generation", model=attached, tokenizer=tokenizer)("the doctor", **options)
    inputs = tokenizer("the doctor", return_tensors="pt", return_token_type_ids=False)
    expected = model.generate(inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)[1][0]
    assert generated["generated_token_ids"] == expected.tolist()


def test_token_ids_are_a_tensor_of_rows():
    model = road_model()
    for ids, given in (([[1, 2]], "list"), (np.ones((1, 2)), "ndarray"), (torch.tensor([1, 2]), r"a tensor of shape \(2,\)")):
        for call in (model, model.generate):
            with pytest.raises(InputError, match=rf"^input_ids must be a tensor of shape .*, not {given}: tokenizer"):
                call(base={"input_ids": ids})


def test_an_adapter_of_a_model_with_a_head_says_how_to_load_it():
    model = tiny_model("Bert", "classifier")
    adapter = random_adapter(find_sites(model, "all-linear"))
    with pytest.raises(InputError, match=r"was made for this model with a head: load_model\(id, 'classifier'\)"):
        RoadModel(model.bert, adapter)
    with pytest.raises(InputError, match="has no module 'bert.*: the adapter was made for another model$"):
        RoadModel(tiny_model("GPT2"), adapter)


def test_inputs_that_are_not_a_mapping_are_refused():
    model, ids = road_model(), token_batch()["input_ids"]
    for call in (model, model.generate, lambda given: model(given, unit_locations={"base": 0})):
        with pytest.raises(InputError, match=r"^give the inputs as a mapping, base=\{'input_ids': ids\}, .* type Tensor$"):
            call(ids)


@pytest.mark.parametrize("option", [{"fused": True}, {"foreach": True}, {}], ids=str)
@pytest.mark.parametrize("attached", [False, True])
def test_evaluation_uses_the_updated_parameters(option, attached):
    """A fused optimizer does not increase the version counter of the parameters."""
    model, batch = road_model(), token_batch()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.1, **option)

    def evaluate():
        with torch.no_grad():
            return model(base=batch)[1].logits

    with model.attached() if attached else nullcontext():
        before = evaluate()
        model(base=batch)[1].logits.square().sum().backward()
        optimizer.step()
        after = evaluate()
    assert not torch.equal(before, after)
    assert torch.equal(after, RoadModel(model.model, model.adapter)(base=batch)[1].logits)


def test_return_dict_labels_and_use_cache_work_as_in_pyvene():
    model, batch = road_model(), token_batch()
    output = model(base=batch, labels=batch["input_ids"], use_cache=False, return_dict=True).intervened_outputs
    assert output.loss > 0
    assert output.past_key_values is None


# ---------------------------------------------------------------- positions


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["all", "first", "last", "prompt", "f2+l1"])
@pytest.mark.parametrize("target_modules", ["block-output", "all-linear"])
def test_a_padded_batch_equals_each_row_alone(side, positions, target_modules):
    lengths = (7, 3, 5)
    model, batch = road_model("Llama", target_modules, positions=positions), padded_batch((7, 3, 5), side)
    with torch.no_grad():
        together = model(base=batch)[1].logits
        for row, length in enumerate(lengths):
            own = batch["attention_mask"][row].bool()
            ids = batch["input_ids"][row, own].unsqueeze(0)
            alone = model(base={"input_ids": ids, "attention_mask": torch.ones_like(ids)})[1].logits
            torch.testing.assert_close(together[row, own], alone[0], rtol=0, atol=1e-5)
            assert alone.shape[1] == length


def test_lists_of_different_lengths_as_positions_of_one_call():
    model, batch = road_model("Llama", "block-output"), token_batch()
    wanted = [[0, -1], [3], []]
    fast = model(base=batch, positions=wanted)[1].logits
    rows = []
    for row, positions in enumerate([[0, 6], [3], None]):
        one = {key: value[row : row + 1] for key, value in batch.items()}
        if positions is None:
            rows.append(model.model(**one).logits)
        else:
            rows.append(through_pyvene(model, one, unit_locations={"base": [[positions]] * len(model.sites)}))
    torch.testing.assert_close(fast, torch.cat(rows), rtol=0, atol=1e-5)
    assert not torch.equal(fast, model(base=batch)[1].logits)


@pytest.mark.parametrize("positions", ["all", "last", "f1+l1", "prompt"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_cache_equals_no_cache(positions, side):
    model = road_model("Llama", "all-linear", positions=positions)
    batch = padded_batch((6, 4), "left") if side == "left" else token_batch(2, 6)
    _, cached = model.generate(batch, use_cache=True, **GREEDY)
    _, uncached = model.generate(batch, use_cache=False, **GREEDY)
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, model.model.generate(**batch, **GREEDY))


def test_generation_rotates_the_prompt_only_unless_all():
    batch = token_batch(2, 6)
    on_prompt = road_model("Llama", "block-output", positions="prompt").generate(batch, **GREEDY)[1]
    everytarget_modules = road_model("Llama", "block-output", positions="all").generate(batch, **GREEDY)[1]
    assert torch.equal(on_prompt[:, :7], everytarget_modules[:, :7])  # the first new token sees rotated prompts in both
    assert not torch.equal(on_prompt, everytarget_modules)


@pytest.mark.parametrize("positions", ["all", "last"])
def test_generation_equals_single_steps(positions):
    model, batch = road_model("Llama", "all-linear", positions=positions), token_batch(2, 6)
    ids = batch["input_ids"]
    with torch.no_grad():
        for _ in range(6):
            wanted = "all" if positions == "all" else [[5], [5]]
            logits = model(base={"input_ids": ids, "attention_mask": torch.ones_like(ids)}, positions=wanted)[1].logits
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(model.generate(batch, **GREEDY)[1], ids)


def test_invalid_positions_are_refused():
    with pytest.raises(InputError, match="'middle' is not a position"):
        road_model(positions="middle")
    with pytest.raises(InputError, match="position 9 of row 0"):
        road_model()(base=token_batch(), positions=[[9], [], []])


@pytest.mark.parametrize(
    "positions", [-1, 5, 1.5, [], [1, 2, 3], [[1.0]], [[True]], ["ab"], torch.tensor([1, 2]), {"a": 1}], ids=str
)
def test_positions_of_another_form_are_refused_by_the_model_and_by_its_calls(positions):
    model = road_model()
    calls = lambda: road_model(positions=positions), lambda: model(base=token_batch(), positions=positions)
    for call in (*calls, lambda: model.generate(token_batch(), positions=positions, **GREEDY)):
        with pytest.raises(InputError, match=r"is not a position: use all, first, .*, or one list of indices per row, as in"):
            call()


def test_lists_of_positions_may_be_tensors():
    model, batch = road_model(), token_batch()
    expected = model(base=batch, positions=[[0, -1]] * 3)[1].logits
    for positions in (torch.tensor([[0, -1]] * 3), [torch.tensor([0, -1])] * 3, [np.array([0, -1])] * 3, ((0, -1),) * 3):
        assert torch.equal(model(base=batch, positions=positions)[1].logits, expected)


def test_encoder_decoder_models_support_all_positions_only():
    base = tiny_model("T5")
    model = RoadModel(base, random_adapter(find_sites(base, "mlp", stack="encoder.block")))
    batch = token_batch()
    _, output = model(base={**batch, "decoder_input_ids": batch["input_ids"]})
    assert output.last_hidden_state.shape == (3, 7, 32)
    with pytest.raises(InputError, match="only positions='all'"):
        model(base={**batch, "decoder_input_ids": batch["input_ids"]}, positions="last")


# ---------------------------------------------------------------- a different adapter in every row


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("variant", plane_maps.VARIANTS)
@pytest.mark.parametrize("target_modules", TARGET_MODULES)
def test_a_mixed_batch_equals_each_row_alone(side, variant, target_modules):
    model, batch = bank_model(target_modules=target_modules, variant=variant), padded_batch((7, 3, 5, 7), side)
    names = ["b", BASE, "a", "b"]
    with torch.no_grad():
        together = model(base=batch, adapter_names=names)[1].logits
        for row, name in enumerate(names):
            own = batch["attention_mask"][row].bool()
            one = {key: value[row, own].unsqueeze(0) for key, value in batch.items()}
            alone = model.model(**one).logits if name == BASE else RoadModel(model.model, model.bank[name])(base=one)[1].logits
            torch.testing.assert_close(together[row, own], alone[0], rtol=0, atol=1e-5)


def test_a_mixed_batch_equals_pyvenes_loop():
    model, batch = bank_model(), token_batch()
    names = ["c", "a", BASE]
    fast = model(base=batch, adapter_names=names)[1].logits
    torch.testing.assert_close(fast, through_pyvene(model, batch, adapter_names=names), rtol=0, atol=1e-6)
    _, by_location = model(base=batch, adapter_names=names, unit_locations={"base": [[list(range(7))] * 3] * len(model.sites)})
    torch.testing.assert_close(by_location.logits, fast, rtol=0, atol=1e-6)


def test_a_call_with_one_token_leaves_nothing_for_the_next():
    model, batch = road_model(target_modules="block-output"), token_batch()
    own = {"base": [[[2], [3], [5]]] * len(model.sites)}
    expected = model(base=batch, unit_locations=own)[1].logits
    model(base=batch, unit_locations={"base": 4})
    assert torch.equal(model(base=batch, unit_locations=own)[1].logits, expected)


def test_two_tokens_are_those_of_every_row():
    model, batch = road_model(target_modules="block-output"), token_batch()
    expected = model(base=batch, positions=[[2, 4]] * 3)[1].logits
    by_row = torch.tensor([[[2, 4]] * 3] * len(model.sites))
    for tokens in ([2, 4], (2, 4), torch.tensor([2, 4]), np.array([2, 4]), by_row, by_row.numpy(), [*by_row]):
        torch.testing.assert_close(model(base=batch, unit_locations={"base": tokens})[1].logits, expected, rtol=0, atol=1e-6)
    beside_a_source = model(base=batch, unit_locations={"sources->base": (None, by_row)})[1].logits
    torch.testing.assert_close(beside_a_source, expected, rtol=0, atol=1e-6)
    one = model(base=batch, unit_locations={"base": 4})[1].logits
    assert torch.equal(model(base=batch, unit_locations={"base": np.int64(4)})[1].logits, one)
    for given in ([[2]], {"bases": 2}, {}, 2, {"source": 2, "base": 2}):
        with pytest.raises(InputError, match=r"unit_locations must be \{'base': tokens\} or"):
            model(base=batch, unit_locations=given)


@pytest.mark.parametrize("locations", [[[[2]]], [[[2], [2]]], [[2], [2], [2]], [[[2], [2], [2]]] * 3, [[[2], [2, 3], [2]]] * 2])
def test_tokens_of_other_rows_or_sites_are_refused(locations):
    model, batch = road_model(target_modules="block-output"), token_batch()
    with pytest.raises(InputError, match=r"need an entry for every site, here 2, .* each of the 3 rows"):
        model(base=batch, unit_locations={"base": locations})


@pytest.mark.parametrize("rows", [1, 2])
def test_beams_are_rotated_in_pyvenes_loop_too(rows):
    model, batch = bank_model(target_modules="block-output"), token_batch(rows)
    names, beams = ["a", "b"][:rows], {**GREEDY, "num_beams": 3, "num_return_sequences": 3}
    single = model.generate(batch, adapter_names=names, **beams)[1]
    own = [[0, 1, 2, 3], [3, 4, 5, 6]][:rows]
    generated = model.generate(batch, adapter_names=names, unit_locations={"base": 0}, **beams)[1]
    assert torch.equal(generated, _with_hooks(model, batch, names, [[0]] * rows, False, beams))
    on_prompt = {"unit_locations": {"base": [own] * len(model.sites)}, "intervene_on_prompt": True}
    prompted = model.generate(batch, adapter_names=names, **on_prompt, **beams)[1]
    assert torch.equal(prompted, _with_hooks(model, batch, names, own, True, beams))
    assert not torch.equal(generated, single)


def test_generate_with_subspaces_says_which_tokens():
    model, batch = road_model(target_modules="block-output"), token_batch(2)
    every_plane = [[list(range(site.width // 2))] * 2 for site in model.sites]
    with pytest.raises(InputError, match="rotates the generated tokens only: give unit_locations={'base': 0} if"):
        model.generate(batch, subspaces=every_plane, **GREEDY)
    everywhere = model.generate(batch, subspaces=every_plane, intervene_on_prompt=True, **GREEDY)[1]
    assert torch.equal(everywhere, model.generate(batch, **GREEDY)[1])


@pytest.mark.parametrize(
    "setting", [{"use_cache": False}, {"prompt_lookup_num_tokens": 2}, {"prefill_chunk_size": 2}, {"assistant_model": "itself"}]
)
def test_locations_of_generated_tokens_need_passes_of_one_token(setting):
    """Without a cache location 0 of every pass is the first token of the prompt, and not the generated one."""
    model, batch = road_model(target_modules="block-output"), token_batch(1)
    setting = {name: model.model if value == "itself" else value for name, value in setting.items()}
    for prompt in ({"unit_locations": {"base": 0}}, {"unit_locations": {"base": 0}, "intervene_on_prompt": True}):
        with pytest.raises(InputError, match=f"{next(iter(setting))}=.* makes passes of several tokens"):
            model.generate(batch, **prompt, **setting, **GREEDY)
    model.model.generation_config.use_cache = False
    with pytest.raises(InputError, match="use_cache=False makes passes of several tokens"):
        model.generate(batch, unit_locations={"base": 0}, **GREEDY)


def test_several_generated_tokens_in_one_pass_have_no_locations(monkeypatch):
    """As of a model that ignores use_cache."""
    model, batch = road_model(target_modules="block-output"), token_batch(1)
    monkeypatch.setattr("road_interp.models.road_model.check_locations", lambda *given: None)
    with pytest.raises(InputError, match="unit_locations are those of one generated token, but generate computed 8 in one pass"):
        model.generate(batch, unit_locations={"base": 0}, use_cache=False, **GREEDY)


@pytest.mark.parametrize("copies", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_beams_and_sequences_have_the_subspaces_of_their_row(copies):
    base, batch = tiny_model("Llama", "causal-lm"), token_batch(2)
    adapter = random_adapter(find_sites(base, "block-output"), spread=1.0)
    planes = TaskPlanes.split(["a", "b"], adapter.sites)
    model = RoadModel(base, adapter, planes=planes)
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, **copies}
    torch.manual_seed(0)
    found = model.generate(batch, subspaces=[[[0], [1]]] * len(adapter.sites), intervene_on_prompt=True, **settings)[1]
    torch.manual_seed(0)
    assert torch.equal(found, model.generate(batch, tasks=["a", "b"], **settings)[1])
    torch.manual_seed(0)
    assert not torch.equal(found, model.generate(batch, tasks=["b", "a"], **settings)[1])


def _with_hooks(model, batch, names, tokens, on_prompt, settings):
    """What plain hooks generate that rotate the tokens of every row, of the prompt or of the passes after it."""
    handles = []
    for site in model.sites:
        maps = [
            plane_maps.maps_from_parameters(a.theta[site.name], a.alpha[site.name], "road_1", 2)
            for a in map(model.bank.__getitem__, names)
        ]

        def rotate(module, args, output, maps=maps):
            if (output.shape[1] == 7) is not on_prompt:
                return output
            output = output.clone()
            for row in range(len(output)):
                given = row * len(names) // len(output)
                output[row, tokens[given]] = plane_maps.apply(maps[given], output[row, tokens[given]], 2)
            return output

        handles.append(model.model.get_submodule(site.module).register_forward_hook(rotate))
    try:
        return model.model.generate(**batch, **settings)
    finally:
        for handle in handles:
            handle.remove()


SEARCHES = {
    "greedy": {},
    "beam": {"num_beams": 3},
    "beams returned": {"num_beams": 3, "num_return_sequences": 2},
    "no cache": {"use_cache": False},
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("positions", ["all", "last"])
def test_mixed_generation_equals_each_row_alone(search, positions):
    model, batch = bank_model(positions=positions), padded_batch((6, 4, 5), "left")
    names, options = ["b", BASE, "c"], {**GREEDY, **SEARCHES[search]}
    _, together = model.generate(batch, adapter_names=names, **options)
    sequences = options.get("num_return_sequences", 1)
    for row, name in enumerate(names):
        one = {key: value[row : row + 1] for key, value in batch.items()}
        if name == BASE:
            alone = model.model.generate(**one, **options)
        else:
            alone = RoadModel(model.model, model.bank[name], positions).generate(one, **options)[1]
        assert torch.equal(together[row * sequences : (row + 1) * sequences], alone)


def test_sampling_uses_the_adapter_of_each_row():
    model, batch = bank_model(), token_batch(2, 6)
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 5, "pad_token_id": 2}
    torch.manual_seed(0)
    _, mixed = model.generate(batch, adapter_names=["a", "a"], **options)
    torch.manual_seed(0)
    _, single = RoadModel(model.model, model.bank["a"]).generate(batch, **options)
    assert torch.equal(mixed, single)


def test_adapter_names_may_be_an_array():
    model, batch = bank_model(), token_batch()
    names = ["a", "c", "__base__"]
    assert torch.equal(
        model(base=batch, adapter_names=np.array(names))[1].logits, model(base=batch, adapter_names=names)[1].logits
    )


def test_invalid_adapter_names_are_refused():
    model, batch = bank_model(), token_batch()
    with pytest.raises(InputError, match="unknown adapter 'd'; the bank holds a, b, c and __base__"):
        model(base=batch, adapter_names=["a", "d", "b"])
    with pytest.raises(InputError, match="2 adapter names for a batch of 3 rows"):
        model(base=batch, adapter_names=["a", "b"])
    for call in (model, model.generate):
        with pytest.raises(InputError, match="2 adapter names for a batch of 4 rows"):  # not two beams each
            call(base=token_batch(4), adapter_names=["a", "b"])
        with pytest.raises(InputError, match=r"adapter names must be a list, one per row, as in \['abc'\], not 'abc'"):
            call(base=batch, adapter_names="abc")
    with pytest.raises(InputError, match="adapter names must be a list"), model.attached(adapter_names="abc"):
        pass
    with pytest.raises(InputError, match="no adapter names are given"), model.attached(adapter_names=[]):
        pass
    with pytest.raises(InputError, match="adapter names must be a list"):
        through_pyvene(model, batch, adapter_names="abc")
    with pytest.raises(InputError, match="holds 3 adapters: name one per row"):
        model(base=batch)
    with pytest.raises(InputError, match="needs a model with a RoadBank"):
        road_model()(base=batch, adapter_names=["a"] * 3)
    assert untouched(model)


def test_changes_of_the_bank_take_effect_in_the_next_call():
    model, batch = bank_model(), token_batch()
    first = model(base=batch, adapter_names=["a"] * 3)[1].logits
    model.bank.replace("a", model.bank["b"])
    assert torch.equal(model(base=batch, adapter_names=["a"] * 3)[1].logits, model(base=batch, adapter_names=["b"] * 3)[1].logits)
    model.bank.add("d", model.bank["c"])
    model.bank.remove("c")
    assert not torch.equal(model(base=batch, adapter_names=["d"] * 3)[1].logits, first)


# ---------------------------------------------------------------- methods of nn.Module


def test_train_eval_to_and_parameters_reach_the_rotations():
    model = road_model()
    assert not model.eval().training
    assert model.train() is model
    assert all(intervention.training for intervention in model.interventions.values())
    named = dict(model.named_parameters())
    assert sum(p.numel() for p in named.values() if p.requires_grad) == model.adapter.num_parameters
    assert any(name.startswith("model.") for name in named)
    state = model.state_dict()
    assert len(state) == 3 * len(model.sites)
    other = road_model(seed=1)
    other.load_state_dict(state)
    assert other.adapter.distance(model.adapter) == 0
    without_forms = {name: values for name, values in state.items() if not name.endswith(".form")}  # of earlier versions
    other.load_state_dict(without_forms)
    without_forms.popitem()
    third = road_model(seed=2)
    before = third.adapter
    with pytest.raises(InputError, match="does not fit this model: missing"):
        third.load_state_dict(without_forms)
    assert third.adapter.distance(before) == 0


def test_a_state_of_another_pairing_is_refused():
    pairs, quads = road_model(group_size=2), road_model(group_size=4)
    before = quads.adapter
    with pytest.raises(InputError, match="does not fit this model: .* is not this intervention's variant, group_size"):
        quads.load_state_dict(pairs.state_dict())
    assert quads.adapter.distance(before) == 0


def test_positions_are_not_set_while_rotations_are_applied():
    """They would have no effect on what is merged or attached."""
    model = road_model()
    with model.attached(), pytest.raises(InputError, match="the rotations are attached.*: set the positions before or after"):
        model.positions = "first"
    model.merge()
    with pytest.raises(InputError, match="the rotations are merged.*: set the positions before or after"):
        model.positions = "first"
    model.unmerge()
    model.positions = "first"
    assert model.positions == "first"
    with pytest.raises(InputError, match="'frist' is not a position"):
        model.positions = "frist"
    assert model.positions == "first"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_assigned_state_is_rotated_with_in_fp32(dtype):
    model, other, inputs = road_model(), road_model(seed=1), token_batch()
    state = {name: each.to(dtype) if each.is_floating_point() else each for name, each in model.state_dict().items()}
    other.load_state_dict(state, assign=True)
    assert {each.theta.dtype for _, each in other.by_site()} == {torch.float32}
    copied = road_model(seed=1)
    copied.load_state_dict(state)
    assert torch.equal(other(inputs)[1].logits, copied(inputs)[1].logits)
    interchange = LowRankInterchangeIntervention(8, 2)
    interchange.load_state_dict({"weight": torch.ones(8, 2, dtype=dtype)}, strict=False, assign=True)
    assert interchange.weight.dtype == torch.float32


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_that_does_not_fit_changes_neither_the_model_nor_itself(assign):
    model, other = road_model(), road_model(seed=1)
    state = {name: each.clone() for name, each in list(model.state_dict().items())[1:]}
    given, before = {name: each.clone() for name, each in state.items()}, other.adapter
    with pytest.raises(InputError, match="does not fit this model: missing"):
        other.load_state_dict(state, assign=assign)
    assert other.adapter.distance(before) == 0
    assert all(torch.equal(each, given[name]) for name, each in state.items())
    assert all(parameter.requires_grad for _, each in other.by_site() for parameter in (each.theta, each.alpha))


def test_frozen_tied_weights_are_not_in_the_state_dict():
    base = tiny_model("Llama", "causal-lm", tie_word_embeddings=True)
    model = RoadModel(base, random_adapter(find_sites(base, "block-output")))
    assert len(model.state_dict()) == 3 * len(model.sites)
    base.lm_head.weight.requires_grad_(True)
    assert {"model.lm_head.weight", "model.model.embed_tokens.weight"} <= set(model.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rotations_stay_in_fp32_in_models_of_other_dtypes(dtype):
    model, batch = road_model(), token_batch()
    before = model.adapter
    model.to(dtype)
    assert model.adapter.distance(before) == 0
    _, output = model(base=batch)
    assert output.logits.dtype == dtype
    torch.testing.assert_close(output.logits, through_pyvene(model, batch), rtol=2e-2, atol=2e-2)
    output.logits.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@pytest.fixture
def default_dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("default_dtype", [torch.bfloat16, torch.float16, torch.float64], indirect=True)
def test_rotations_are_in_fp32_whatever_the_default_dtype_is(default_dtype):
    base, batch, rows = tiny_model("Llama", "causal-lm"), token_batch(), {"adapter_names": ["a", BASE, "a"]}
    sites = find_sites(base, "all-linear")
    given = random_adapter(sites, seed=1).theta
    adapter = RoadAdapter(sites, {name: angles.float() for name, angles in given.items()}, RoadAdapter.identity(sites).alpha)
    model, bank = RoadModel(base, adapter), RoadModel(base, RoadBank({"a": adapter}))
    assert model.adapter.distance(adapter) == 0
    whole, mixed = model(batch, strengths=[0.3] * 3)[1].logits, bank(batch, strengths=[0.3] * 3, **rows)[1].logits
    torch.set_default_dtype(torch.float32)
    assert torch.equal(model(batch, strengths=[0.3] * 3)[1].logits, whole)
    assert torch.equal(bank(batch, strengths=[0.3] * 3, **rows)[1].logits, mixed)
    assert whole.dtype == default_dtype
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}


def test_rotations_are_on_the_execution_device_of_offloaded_weights():
    plain, offloaded = road_model(), tiny_model("Llama", "causal-lm")
    cpu_offload(offloaded, torch.device("cpu"))  # the weights are on "meta" between calls
    assert next(offloaded.parameters()).device.type == "meta"
    model = RoadModel(offloaded, plain.adapter)
    assert {parameter.device.type for _, parameter in model.interventions.named_parameters()} == {"cpu"}
    for options in ({}, {"positions": "last"}):
        ours, theirs = (each(base=token_batch(), **options)[1].logits for each in (model, plain))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_rotations_are_on_the_devices_of_their_sites():
    base = tiny_model("Llama", "causal-lm")
    for module in base.model.layers[1].modules():
        module._hf_hook = SimpleNamespace(execution_device="meta")
    model = RoadModel(base, random_adapter(find_sites(base, "all-linear")))
    bank = RoadModel(base, RoadBank({"a": random_adapter(model.sites)}))
    expected = ["cpu" if site.layer == 0 else "meta" for site in model.sites]
    assert [each.theta.device.type for each in model.interventions.values()] == expected
    assert [each.a.device.type for each in model._selection.coefficients(RowArguments(), {}).maps()] == expected
    assert [each.a.device.type for each in bank._selection.coefficients(RowArguments(["a", BASE]), {}).maps()] == expected


def test_a_replica_rotates_by_its_own_parameters():
    """`nn.parallel.replicate` copies modules without their constructors."""
    model = road_model()
    replica, other = model._replicate_for_data_parallel(), RoadModel(model.model, RoadAdapter.identity(model.sites))
    replica._modules["interventions"] = other.interventions
    assert torch.equal(replica(base=token_batch())[1].logits, other(base=token_batch())[1].logits)
    assert not torch.equal(model(base=token_batch())[1].logits, other(base=token_batch())[1].logits)


def test_a_replaced_bank_is_used():
    model = bank_model()
    other = RoadBank({"other": random_adapter(model.sites, seed=9)})
    model.bank = other
    again = RoadModel(model.model, other)
    names = ["other", BASE, "other"]
    assert torch.equal(*(each(base=token_batch(), adapter_names=names)[1].logits for each in (model, again)))


def test_a_deep_copy_rotates_by_its_own_parameters():
    model = road_model()
    copied = copy.deepcopy(model)
    expected = model(base=token_batch())[1].logits
    with torch.no_grad():
        for _, intervention in copied.by_site():
            intervention.theta.zero_()
            intervention.alpha.fill_(1)
    assert torch.equal(model(base=token_batch())[1].logits, expected)
    bare = copied.model(**token_batch()).logits
    torch.testing.assert_close(copied(base=token_batch())[1].logits, bare, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, bare, atol=1e-3)


def test_the_state_dict_contains_other_trainable_modules():
    base = tiny_model("Bert", "classifier")
    model = RoadModel(base, random_adapter(find_sites(base, "fc1")))
    base.classifier.requires_grad_(True)
    assert {"model.classifier.weight", "model.classifier.bias"} <= set(model.state_dict())


def test_what_is_trainable():
    model = road_model(target_modules="mlp")
    for what, expected in (("angles", (True, False)), ("magnitudes", (False, True)), ("both", (True, True))):
        (_, first), *_ = model.set_trainable(what).by_site()
        assert (first.theta.requires_grad, first.alpha.requires_grad) == expected
    with pytest.raises(InputError, match="^'angle' cannot be made trainable: use both, angles or magnitudes$"):
        model.set_trainable("angle")


def test_an_adapter_of_another_width_is_refused():
    base = tiny_model("Llama")
    (site, *_) = find_sites(base, "mlp")
    with pytest.raises(InputError, match=f"the output of '{site.module}' has width {site.width}, not {2 * site.width}"):
        RoadModel(base, random_adapter((replace(site, width=2 * site.width),)))


def test_the_config_is_json_for_trackers():
    config = road_model().config
    assert len(json.loads(config.to_json_string())["intervention_types"]) == len(config.intervention_types)
    assert all(isinstance(each, type) for each in config.intervention_types)


# ---------------------------------------------------------------- torch.compile


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("variant", "target_modules"), [("road_1", "all-linear"), ("road_2", "block-output"), ("road_1", "attention-qk")]
)
def test_compiled_forward_is_equal_and_has_no_graph_break(variant, target_modules):
    model, batch = road_model(target_modules=target_modules, variant=variant), token_batch()
    inputs = {**batch, "use_cache": False}
    expected = model(base=inputs)[1].logits
    torch._dynamo.reset()
    with model.attached() as base, torch.no_grad():
        explained = torch._dynamo.explain(base)(**inputs)
        assert explained.graph_break_count == 0, explained.break_reasons
        compiled = torch.compile(base, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(**inputs).logits, expected, rtol=0, atol=1e-5)
    torch._dynamo.reset()


def test_the_parameters_of_a_bank_are_not_those_of_the_model():
    with pytest.raises(InputError, match=r"those of its adapters: use bank\.trainable"):
        bank_model().set_trainable("both")


def test_a_state_dict_holds_frozen_scales_and_angles():
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    sites = find_sites(base, "block-output")
    model = RoadModel(base, random_adapter(sites)).set_trainable("angles")
    fresh = RoadModel(base, RoadAdapter.identity(sites)).set_trainable("angles")
    fresh.load_state_dict(model.state_dict())
    assert fresh.adapter.distance(model.adapter) == 0
    with torch.no_grad():
        assert torch.equal(fresh(batch)[1].logits, model(batch)[1].logits)


@pytest.mark.parametrize("target_modules", ["block-output", "all-linear"])
def test_forward_and_backward_derivatives_are_equal(target_modules):
    base = tiny_model("Llama", "causal-lm", attn_implementation="eager").double()
    sites = find_sites(base, target_modules)
    model = RoadModel(base, random_adapter(sites))
    batch = token_batch(2, 4)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def score(values):
        return torch.func.functional_call(model, values, (batch,))[1].logits.logsumexp(-1).mean()

    values = {name: parameter.detach() for name, parameter in parameters.items()}
    forward = torch.func.jvp(score, (values,), ({name: torch.ones_like(value) for name, value in values.items()},))[1]
    backward = torch.autograd.grad(model(base=batch)[1].logits.logsumexp(-1).mean(), list(parameters.values()))
    assert abs(forward.item()) > 1e-4
    torch.testing.assert_close(forward, sum(gradient.double().sum() for gradient in backward), rtol=1e-4, atol=1e-6)
    states = base.get_input_embeddings()(batch["input_ids"]).detach()
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(states, torch.ones_like(states))
        tangent = forward_ad.unpack_dual(model({"inputs_embeds": dual})[1].logits).tangent
    weights = torch.randn_like(tangent)
    states.requires_grad_()
    product = torch.autograd.grad((model({"inputs_embeds": states})[1].logits * weights).sum(), states)[0]
    torch.testing.assert_close((tangent * weights).sum(), product.sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("variant", "group_size"), [("road_1", 2), ("road_1", 4), ("road_2", 2)])
def test_adapters_that_are_stacked_by_vmap(variant, group_size):
    model, batch = road_model(variant=variant, group_size=group_size), token_batch(2, 4)

    def logits(values):
        return torch.func.functional_call(model, values, (batch,))[1].logits

    trained = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    stacked = {name: torch.stack([values, values / 2]) for name, values in trained.items()}
    one_by_one = [logits({name: values[number] for name, values in stacked.items()}) for number in range(2)]
    torch.testing.assert_close(torch.func.vmap(logits)(stacked), torch.stack(one_by_one))


@pytest.mark.parametrize("training", [True, False])
def test_the_base_model_keeps_its_mode(training):
    base = tiny_model("Llama", "causal-lm").train(training)
    model = RoadModel(base, random_adapter(find_sites(base, "mlp")))
    assert model.training == base.training == training


def test_a_model_that_cannot_be_made_leaves_the_base_as_it_was():
    base = tiny_model("Llama", "causal-lm").train()
    planes = TaskPlanes.split(["a", "b"], find_sites(base, "q_proj"))
    with pytest.raises(InputError, match="other sites than those of the adapter"):
        RoadModel(base, random_adapter(find_sites(base, "mlp")), planes=planes)
    assert base.training
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_pyvenes_list_of_trained_parameters_and_its_freezing():
    model = road_model().set_trainable("angles")
    thetas = [intervention.theta for _, intervention in model.by_site()]
    assert list(map(id, model.get_trainable_parameters())) == list(map(id, thetas))
    model.disable_intervention_gradients()
    assert model.get_trainable_parameters() == []
    with pytest.raises(InputError, match=r"use bank.trainable\(\)"):
        bank_model().get_trainable_parameters()


def test_an_adapter_of_a_model_with_listed_positions_says_so():
    model = RoadModel(tiny_model("Llama", "causal-lm"), road_model(target_modules="q_proj").adapter, positions=[[0], [2]])
    with pytest.warns(
        UserWarning, match="positions that are lists are of one batch and not kept: the adapter rotates 'all' tokens"
    ):
        assert model.adapter.positions == "all"
