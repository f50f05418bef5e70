"""Reading and writing PEFT's RoAd format gives equal outputs."""

from __future__ import annotations

import copy
import json
import sys
import warnings
from dataclasses import replace

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers.models import random_adapter, tiny_model, token_batch
from helpers.recipes import recipe_for
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.base_model import BaseModelSignature
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.adapters.task_planes import TaskPlanes
from road_interp.cli import app
from road_interp.errors import InputError
from road_interp.models.road_model import RoadModel
from road_interp.runs.run import Run
from road_interp.sites.find import find_sites
from road_interp.training.api import train

TOLERANCE = {"atol": 1e-6, "rtol": 1e-6}


def peft_model(base, seed=0, name="default", **options):
    """A PEFT RoAd model with random rotations on a copy of `base`."""
    torch.manual_seed(seed)
    return peft.get_peft_model(copy.deepcopy(base), peft.RoadConfig(init_weights=False, **options), adapter_name=name).eval()


@torch.no_grad()
def logits(model, batch):
    output = model(base=batch)[1] if isinstance(model, RoadModel) else model(**batch)
    return output.logits


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
@pytest.mark.parametrize("group_size", [2, 8])
@pytest.mark.parametrize("targets", [["query", "value"], r".*layer\.1\..*(key|dense)", "all-linear"])
def test_a_peft_folder_round_trips_with_equal_outputs(variant, group_size, targets, tmp_path):
    base, batch = tiny_model("Bert", "classifier"), token_batch()
    theirs = peft_model(base, variant=variant, group_size=group_size, target_modules=targets, task_type="SEQ_CLS")
    torch.nn.init.normal_(theirs.base_model.model.classifier.modules_to_save["default"].weight)
    expected = logits(theirs, batch)
    assert not torch.allclose(expected, logits(base, batch), atol=1e-3)
    theirs.save_pretrained(tmp_path / "theirs")

    ours = RoadModel.from_peft(copy.deepcopy(base), tmp_path / "theirs")
    torch.testing.assert_close(logits(ours, batch), expected, **TOLERANCE)
    assert (ours.variant, ours.group_size) == (variant, group_size)
    in_memory = RoadModel.from_peft(copy.deepcopy(base), theirs)
    assert torch.equal(logits(in_memory, batch), logits(ours, batch))
    message = (
        r"^the PeftModel has other trained weights \(classifier.bias, classifier.weight\), which are not part of an adapter: "
        r"RoadModel.from_peft\(another_copy_of_the_model, peft_model\) loads both$"
    )
    with pytest.warns(UserWarning, match=message):
        heads = {RoadAdapter.from_peft(source).modules_to_save for source in (theirs, tmp_path / "theirs")}
    with pytest.warns(UserWarning, match=message):
        assert heads == {RoadBank.from_peft(theirs)["default"].modules_to_save} != {None}
    with pytest.warns(UserWarning, match=message):
        assert RoadAdapter.from_peft(theirs).base == BaseModelSignature.of(base)
    assert RoadAdapter.from_peft(tmp_path / "theirs").base is None  # a folder names a model, and not its size

    ours.to_peft(tmp_path / "back", ["classifier"])
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "back").eval()
    torch.testing.assert_close(logits(again, batch), expected, **TOLERANCE)
    rotated = {name for name, module in again.get_base_model().named_modules() if hasattr(module, "road_theta")}
    assert rotated == {site.name for site in ours.sites}
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["modules_to_save"]) == ("ROAD", ["classifier"])


def test_modules_of_a_peft_folder_that_are_left_out_are_warned_of(tmp_path):
    base = tiny_model("Llama", "causal-lm")
    theirs = peft_model(copy.deepcopy(base), target_modules=["q_proj"], modules_to_save=["lm_head"], group_size=8)
    torch.nn.init.normal_(theirs.base_model.model.lm_head.modules_to_save["default"].weight)
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.warns(UserWarning, match=r"trained beside the adapter of '.*theirs' \(lm_head.weight\): RoadModel.from_peft"):
        RoadModel(base, tmp_path / "theirs")
    with pytest.warns(UserWarning, match=r"name them, as in modules_to_save=\['classifier'\]"):
        RoadAdapter.load(tmp_path / "theirs").to_peft(tmp_path / "without", base)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both = RoadModel.from_peft(base, tmp_path / "theirs")
        RoadModel(base, tmp_path / "theirs")
        both.to_peft(tmp_path / "with", ["lm_head"])
    torch.testing.assert_close(logits(both, token_batch()), logits(theirs, token_batch()), **TOLERANCE)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_a_copy_of_a_tied_weight_is_refused_both_ways(tmp_path, module):
    base = tiny_model("Llama", "causal-lm", tie_word_embeddings=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns that it unties the weights
        theirs = peft_model(copy.deepcopy(base), target_modules=["q_proj"], modules_to_save=[module], group_size=2)
        copied = next(each for name, each in theirs.named_modules() if name.endswith("modules_to_save.default"))
        torch.nn.init.normal_(copied.weight)
        theirs.save_pretrained(tmp_path / "theirs")
    names = {"embed_tokens": "model.embed_tokens.weight", "lm_head": "lm_head.weight"}
    (own, other) = (names[module], *(name for key, name in names.items() if key != module))
    message = (
        f"^'{own}' is tied to '{other}', and PEFT has a copy of it that is not: give both to modules_to_save, or load the "
        "model with tie_word_embeddings=False$"
    )
    for source in (theirs, tmp_path / "theirs"):
        with pytest.raises(InputError, match=message):
            RoadModel.from_peft(copy.deepcopy(base), source)
    ours = RoadModel(base, random_adapter(find_sites(base, "q_proj")))
    with pytest.raises(InputError, match="is tied to '.*', and PEFT has a copy of it that is not"):
        ours.to_peft(tmp_path / "ours", [module])
    assert not (tmp_path / "ours").exists()
    torch.nn.init.normal_(base.get_input_embeddings().weight)
    ours.to_peft(tmp_path / "both", ["embed_tokens", "lm_head"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tied = tiny_model("Llama", "causal-lm", tie_word_embeddings=True)
        again = peft.PeftModel.from_pretrained(tied, tmp_path / "both").eval()
    torch.testing.assert_close(logits(again, token_batch()), logits(ours, token_batch()), **TOLERANCE)


def test_a_rotated_head_comes_from_a_folder(tmp_path):
    base = tiny_model("Llama", "causal-lm")
    theirs = peft_model(copy.deepcopy(base), target_modules=["q_proj", "lm_head"], group_size=2)
    theirs.save_pretrained(tmp_path / "theirs")  # with the frozen weights of the head
    ours = RoadModel.from_peft(base, tmp_path / "theirs")
    assert "lm_head" in {site.name for site in ours.sites}
    torch.testing.assert_close(logits(ours, token_batch()), logits(theirs, token_batch()), **TOLERANCE)


@pytest.mark.parametrize(("task", "stored"), [("causal-lm", "CAUSAL_LM"), ("classifier", None)])
def test_what_a_written_folder_says_of_its_model(task, stored, tmp_path):
    base = tiny_model("Llama", task)
    base.name_or_path = "somewhere/llama"
    random_adapter(find_sites(base, "q_proj")).to_peft(tmp_path / "new" / "folder", base)
    config = json.loads((tmp_path / "new" / "folder" / "adapter_config.json").read_text())
    said = {"base_model_name_or_path": "somewhere/llama", "task_type": stored, "inference_mode": True, "modules_to_save": None}
    assert {name: config[name] for name in said} == said


def test_names_that_are_no_layers_are_no_error_of_their_own(tmp_path):
    """A damaged name of a tensor is a site outside the blocks, which the model lacks."""
    base = tiny_model("Bert")
    random_adapter(find_sites(base, "fc1")).to_peft(tmp_path, base)
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    for wrong in ("1*x", "9" * 5000):
        save_file({name.replace("layer.1.", f"layer.{wrong}."): values for name, values in tensors.items()}, weights)
        with pytest.raises(InputError, match="which BertModel does not have"):
            RoadAdapter.from_peft(tmp_path, base=base)
        layers = [site.layer for site in RoadAdapter.from_peft(tmp_path).sites]
        assert None in layers


def test_a_config_that_leaves_out_pefts_defaults_has_them(tmp_path):
    defaults = peft.RoadConfig()
    assert (defaults.variant, defaults.group_size) == ("road_1", 64)
    peft_model(tiny_model("Llama", "causal-lm", hidden_size=128), target_modules=["q_proj"]).save_pretrained(tmp_path)
    written = RoadAdapter.from_peft(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    del config["variant"], config["group_size"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    read = RoadAdapter.from_peft(tmp_path)
    assert (read.variant, read.group_size) == (written.variant, written.group_size) == ("road_1", 64)
    assert read.distance(written) == 0


def test_a_number_outside_the_blocks_is_no_layer():
    base = tiny_model("Bert", "classifier")
    base.classifier = torch.nn.Sequential(torch.nn.Sequential(base.classifier))
    adapter = RoadAdapter.from_peft(peft_model(base, target_modules=["query", "classifier.0.0"], group_size=2))
    assert [site.layer for site in adapter.sites] == [0, 1, None]
    assert adapter.sites[2].name == "classifier.0.0"


def test_without_a_model_sites_are_in_the_order_of_their_layers(tmp_path):
    base = tiny_model("Bert", "classifier", num_hidden_layers=11)
    peft_model(base, target_modules=["query", "classifier"], group_size=2).save_pretrained(tmp_path)
    assert [site.layer for site in RoadAdapter.from_peft(tmp_path).sites] == [*range(11), None]


def test_written_tensors_say_that_they_are_torchs(tmp_path):
    random_adapter(find_sites(tiny_model("Bert"), "mlp")).to_peft(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_modules_to_save_need_their_model(tmp_path):
    with pytest.raises(InputError, match="^modules_to_save needs the model that has these modules, as `base`$"):
        random_adapter(find_sites(tiny_model("Bert"), "mlp")).to_peft(tmp_path, modules_to_save=["classifier"])


def test_without_peft_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"^writing PEFT folders needs PEFT: pip install peft$"):
        random_adapter(find_sites(tiny_model("Bert"), "mlp")).to_peft(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_settings_of_pefts_method_comparison(tmp_path):
    """The stored settings of PEFT's method comparison (MetaMathQA, llama-3.2-3B-lr_0.001): defaults except the variant."""
    stored = {
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "group_size": 64,
        "inference_mode": False,
        "init_weights": True,
        "peft_type": "ROAD",
        "revision": None,
        "target_modules": None,
        "task_type": None,
        "variant": "road_2",
    }
    base, batch = tiny_model("Llama", "causal-lm", hidden_size=128, intermediate_size=128), token_batch()
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.PeftConfig.from_peft_type(**stored)).eval()
    for name, parameter in theirs.named_parameters():
        if "road_" in name:
            torch.nn.init.normal_(parameter, mean=float("alpha" in name), std=0.1)
    theirs.save_pretrained(tmp_path)
    ours = RoadModel.from_peft(base, tmp_path)
    assert [site.name for site in ours.sites[:2]] == [f"model.layers.0.self_attn.{kind}_proj" for kind in "qv"]
    torch.testing.assert_close(logits(ours, batch), logits(theirs, batch), **TOLERANCE)


@pytest.mark.parametrize("architecture", ["Bert", "Roberta", "DistilBert", "Llama"])
@pytest.mark.parametrize("with_head", [True, False])
def test_classifiers_of_several_architectures(architecture, with_head, tmp_path):
    base, batch = tiny_model(architecture, "classifier"), token_batch()
    head = {
        "Roberta": ["classifier.dense", "classifier.out_proj"],
        "DistilBert": ["pre_classifier", "classifier"],
        "Llama": ["score"],
    }
    model = RoadModel(copy.deepcopy(base), random_adapter(find_sites(base, "all-linear")))
    names = head.get(architecture, ["classifier"]) if with_head else []
    with torch.no_grad():
        for name in names:
            model.model.get_submodule(name).weight.normal_()
    model.to_peft(tmp_path, names)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    torch.testing.assert_close(logits(theirs, batch), logits(model, batch), **TOLERANCE)
    again = RoadModel.from_peft(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(logits(again, batch), logits(model, batch), **TOLERANCE)


def test_an_adapter_read_from_a_folder_combines_with_the_original(tmp_path):
    adapter = random_adapter(find_sites(tiny_model("Bert"), "all-linear"))
    adapter.to_peft(tmp_path)
    assert adapter.distance(RoadAdapter.from_peft(tmp_path)) == 0
    assert RoadAdapter.from_peft(tmp_path).difference(adapter).distance(RoadAdapter.identity(adapter.sites)) < 1e-4


@pytest.mark.parametrize("architecture", ["Llama", "GPTNeoX", "Opt"])
def test_sites_equal_those_of_find_sites(architecture, tmp_path):
    architecture = {"Opt": "OPT"}.get(architecture, architecture)
    base = tiny_model(architecture, "causal-lm")
    sites = find_sites(base, "all-linear")
    adapter = random_adapter(sites, group_size=4)
    adapter.to_peft(tmp_path, base)
    batch = token_batch()
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    torch.testing.assert_close(logits(theirs, batch), logits(RoadModel(copy.deepcopy(base), adapter), batch), **TOLERANCE)
    for read in (RoadAdapter.from_peft(tmp_path, base=base), RoadAdapter.from_peft(theirs)):
        assert read.sites == sites
        assert all(torch.equal(read.theta[site.name], adapter.theta[site.name]) for site in sites)
        assert all(torch.equal(read.alpha[site.name], adapter.alpha[site.name]) for site in sites)
    without_model = RoadAdapter.from_peft(tmp_path)
    assert {site.name: site for site in without_model.sites} == {site.name: site for site in sites}
    assert [site.layer for site in without_model.sites] == sorted(site.layer for site in sites)


def test_a_head_of_another_size_names_the_peft_model():
    theirs = peft_model(tiny_model("Bert", "classifier"), target_modules=["query"], group_size=2, task_type="SEQ_CLS")
    with pytest.raises(InputError, match=r"^the PeftModel: 'classifier.weight' has shape \(2, 32\), not \(5, 32\)$"):
        RoadModel.from_peft(tiny_model("Bert", "classifier", num_labels=5), theirs)


def test_a_tied_copy_without_a_change_is_loaded():
    """PEFT saves a copy of a head that it was to train, also where it was not trained."""
    base = tiny_model("Llama", "causal-lm", tie_word_embeddings=True)
    theirs = peft_model(base, target_modules=["q_proj"], group_size=2, modules_to_save=["lm_head"])
    batch = token_batch()
    torch.testing.assert_close(logits(RoadModel.from_peft(base, theirs), batch), logits(theirs, batch), **TOLERANCE)


def test_rotations_that_act_together_are_not_read_as_one():
    """PEFT applies both; each alone gives other outputs."""
    base = tiny_model("Llama", "causal-lm")
    theirs = peft_model(base, target_modules=["q_proj"], group_size=2)
    theirs.add_adapter("b", peft.RoadConfig(target_modules=["down_proj"], group_size=2, init_weights=False))
    theirs.base_model.set_adapter(["default", "b"])
    for read in (lambda: RoadAdapter.from_peft(theirs), lambda: RoadModel.from_peft(copy.deepcopy(base), theirs)):
        with pytest.raises(InputError, match="PEFT's adapters default, b are active together: choose one with"):
            read()
    assert {site.kind for site in RoadAdapter.from_peft(theirs, "b").sites} == {"mlp.down_proj"}
    theirs.set_adapter("b")
    assert {site.kind for site in RoadAdapter.from_peft(theirs).sites} == {"mlp.down_proj"}


def test_a_peft_model_with_several_adapters():
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    theirs = peft_model(base, name="first", target_modules=["q_proj"], group_size=4)
    theirs.add_adapter(
        "second", peft.RoadConfig(target_modules=["down_proj"], variant="road_2", group_size=2, init_weights=False)
    )
    for name in ("first", "second"):
        theirs.set_adapter(name)
        for adapter in (RoadAdapter.from_peft(theirs, name), RoadAdapter.from_peft(theirs)):  # the active one
            ours = RoadModel(copy.deepcopy(base), adapter)
            torch.testing.assert_close(logits(ours, batch), logits(theirs, batch), **TOLERANCE)
    with pytest.raises(InputError, match="no PEFT adapter 'third'; it has first, second"):
        RoadAdapter.from_peft(theirs, "third")
    with pytest.raises(InputError, match="the model has no PEFT adapter: give a PeftModel"):
        RoadAdapter.from_peft(base)
    lora = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InputError, match="of type 'LORA', not 'ROAD'"):
        RoadAdapter.from_peft(lora)


def test_a_site_outside_the_blocks_has_no_layer(tmp_path):
    base = tiny_model("Bert", "classifier")
    peft_model(base, target_modules=["pooler.dense"], group_size=2).save_pretrained(tmp_path)
    for adapter in (RoadAdapter.from_peft(tmp_path), RoadAdapter.from_peft(tmp_path, base=base)):
        assert [(site.name, site.layer, site.kind) for site in adapter.sites] == [
            ("bert.pooler.dense", None, "bert.pooler.dense")
        ]


def test_sites_and_models_that_peft_cannot_express_are_refused(tmp_path):
    base = tiny_model("Llama", "causal-lm")
    linear, block_outputs = find_sites(base, "mlp"), find_sites(base, "block-output")
    adapter = random_adapter(linear)
    refused = {
        "positions 'last' cannot be expressed in PEFT": RoadModel(base, adapter, positions="last"),
        "tasks on planes cannot be expressed in PEFT": RoadModel(
            base, adapter, planes=TaskPlanes.split(["a", "b"], linear, "shares")
        ),
        "a bank holds several adapters": RoadModel(base, RoadBank({"a": adapter})),
        "is the output of a block; PEFT's RoAd rotates the outputs of linear": RoadModel(base, random_adapter(block_outputs)),
        "is a LlamaRMSNorm; PEFT's RoAd rotates the outputs of nn.Linear": RoadModel(
            base, random_adapter(find_sites(base, "input_layernorm"))
        ),
    }
    for message, model in refused.items():
        with pytest.raises(InputError, match=message):
            model.to_peft(tmp_path / "out")
    fused = tiny_model("GPT2", "causal-lm")
    with pytest.raises(InputError, match="is a slice of a module's output"):
        random_adapter(find_sites(fused, "attention-qk")).to_peft(tmp_path / "out")
    with pytest.raises(InputError, match="LlamaForCausalLM has no module 'score'"):
        adapter.to_peft(tmp_path / "out", base, ["score"])
    with pytest.raises(InputError, match="needs the model that has these modules"):
        adapter.to_peft(tmp_path / "out", modules_to_save=["score"])
    with pytest.raises(InputError, match=r"BertModel has no module 'model\.layers\.0\.mlp\.gate_proj'"):
        adapter.to_peft(tmp_path / "out", tiny_model("Bert"))
    classifier = tiny_model("Bert", "classifier")
    for names in (["classifier"], ["dense"]):
        with pytest.raises(InputError, match="is inside a module of modules_to_save, which PEFT does not rotate"):
            RoadModel(classifier, random_adapter(find_sites(classifier, ["query", "output.dense", "classifier"]))).to_peft(
                tmp_path / "out", names
            )
    assert not (tmp_path / "out").exists()


def test_broken_folders_are_refused(tmp_path):
    base = tiny_model("Llama", "causal-lm")
    good = peft_model(base, target_modules=["q_proj"], group_size=2)
    good.save_pretrained(tmp_path)
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    content, tensors = json.loads(config.read_text()), load_file(weights)
    name = next(name for name in tensors if name.endswith("road_alpha"))

    def refuse(message, changed=content, replaced=tensors, model=None):
        config.write_text(json.dumps(changed))
        save_file(replaced, weights)
        with pytest.raises(InputError, match=message):
            RoadAdapter.from_peft(tmp_path, base=model)

    refuse("contains a PEFT adapter of type 'LORA', not 'ROAD'", {**content, "peft_type": "LORA"})
    refuse("unknown variant 'road_3'", {**content, "variant": "road_3"})
    for invalid in (3, "8", None, [2], 2.0, True):
        refuse("group_size must be an even number", {**content, "group_size": invalid})
    refuse("its alpha is missing", replaced={key: values for key, values in tensors.items() if key != name})
    refuse("must be finite", replaced={**tensors, name: tensors[name] * torch.nan})
    refuse("rotates no module", replaced={"base_model.model.score.weight": torch.ones(2)})
    refuse("rotates 'model.layers.0.self_attn.q_proj', which BertModel does not have", model=tiny_model("Bert"))
    weights.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        RoadAdapter.from_peft(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match=r"\.bin files are not supported"):
        RoadAdapter.from_peft(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        RoadAdapter.from_peft(tmp_path / "gone")
    with pytest.raises(InputError, match="cannot be read"):
        RoadAdapter.from_peft(config)
    with pytest.raises(InputError, match="already contains a PEFT adapter"):
        random_adapter(find_sites(base, "mlp")).to_peft(tmp_path)
    random_adapter(find_sites(base, "mlp")).save(tmp_path / "ours")
    with pytest.raises(InputError, match="is not in PEFT's format: RoadAdapter.load reads it"):
        RoadAdapter.from_peft(tmp_path / "ours")


def test_a_head_that_does_not_fit_is_refused(tmp_path):
    base = tiny_model("Bert", "classifier")
    peft_model(base, target_modules=["query"], group_size=2, task_type="SEQ_CLS").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"{tmp_path.name}: 'classifier.bias' has shape \(2,\), not \(3,\)"):
        RoadModel.from_peft(tiny_model("Bert", "classifier", num_labels=3), tmp_path)


def test_a_model_that_the_adapter_does_not_fit_keeps_its_head(tmp_path):
    base = tiny_model("Bert", "classifier", intermediate_size=64)
    peft_model(base, target_modules=["intermediate.dense"], group_size=2, task_type="SEQ_CLS").save_pretrained(tmp_path)
    other = tiny_model("Bert", "classifier", intermediate_size=48, seed=1)
    head = other.classifier.weight.clone()
    with pytest.raises(InputError, match="has width 48, not 64"):
        RoadModel.from_peft(other, tmp_path)
    assert torch.equal(other.classifier.weight, head)


def test_the_command_line_reads_and_writes_peft(finished, workplace, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(app.sys, "argv", ["road-interp", *map(str, arguments)])
        try:
            app.main()
        except SystemExit as exit:
            return exit.code, capsys.readouterr()
        return 0, capsys.readouterr()

    assert run("export", finished.folder, "--out", tmp_path / "peft", "--json")[0] == 0
    base = Run.load(finished.folder).load_model()
    theirs = peft.PeftModel.from_pretrained(Run.load(finished.folder).load_model().model, tmp_path / "peft").eval()
    batch = {"input_ids": torch.tensor([[2, 5, 6, 3], [2, 7, 5, 3]])}
    torch.testing.assert_close(logits(theirs, batch), logits(base, batch), **TOLERANCE)

    code, captured = run("inspect", tmp_path / "peft", "--json", "--out", tmp_path / "figures")
    assert code == 0
    assert set(json.loads(captured.out)) == {site.name for site in finished.adapter.sites}
    code, captured = run("export", finished.folder, "--out", tmp_path / "peft")
    assert (code, captured.err.count("\n")) == (2, 1)
    assert "exists already" in captured.err
    assert run("export", finished.folder)[0] == 2
    blocks = recipe_for(workplace, "adapter.sites=block-output", "training.max_steps=1")
    train(blocks, tmp_path / "blocks", progress=False)
    code, captured = run("export", tmp_path / "blocks", "--out", tmp_path / "other")
    assert code == 2
    assert "is the output of a block" in captured.err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("unwrap", [False, True])
def test_a_base_that_peft_rotates_is_an_error(unwrap):
    """Both would rotate. The remedy in the message gives PEFT's own outputs."""
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    theirs = peft_model(base, target_modules=["q_proj"], group_size=2)
    expected = theirs(**batch).logits
    adapter = RoadAdapter.from_peft(theirs)
    with pytest.raises(InputError, match=r"q_proj' is rotated by PEFT already, .* rotated twice.*unload"):
        RoadModel(theirs.get_base_model() if unwrap else theirs, adapter)
    torch.testing.assert_close(RoadModel(theirs.unload(), adapter)(base=batch)[1].logits, expected, atol=1e-5, rtol=1e-5)


def test_a_base_that_peft_rotates_later_is_an_error(tmp_path):
    """PEFT puts its layers into the model that it is given."""
    base, batch = tiny_model("Llama", "causal-lm"), token_batch()
    model = RoadModel(base, random_adapter(find_sites(base, "mlp")))
    expected = model(base=batch)[1].logits
    model.to_peft(tmp_path / "peft")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    torch.testing.assert_close(theirs(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    for enter in (model.attached, model.continuous_batching):
        with pytest.raises(InputError, match=r"PEFT rotates '.*' since the RoadModel was made, .* rotated twice"):
            enter().__enter__()
    with pytest.raises(InputError, match="give PEFT a copy of the model"):
        model(base=batch)
    with theirs.disable_adapter():
        assert torch.equal(model(base=batch)[1].logits, expected)
        with model.attached() as rotated:
            assert torch.equal(rotated(**batch).logits, expected)
            theirs.base_model.enable_adapter_layers()
            with pytest.raises(InputError, match="rotated twice"):
                rotated(**batch)
    theirs.add_adapter("elsewhere", peft.RoadConfig(target_modules=["q_proj"], group_size=2))
    theirs.set_adapter("elsewhere")
    assert torch.equal(model(base=batch)[1].logits, expected)


@pytest.mark.parametrize("from_folders", [False, True])
def test_a_bank_of_a_peft_models_adapters_gives_equal_mixed_batches(from_folders, tmp_path):
    base, batch, names = tiny_model("Llama", "causal-lm"), token_batch(4), ["b", "a", "__base__", "b"]
    options = {"target_modules": ["q_proj", "up_proj"], "group_size": 2}
    theirs = peft_model(base, name="a", **options)
    theirs.add_adapter("b", peft.RoadConfig(init_weights=False, **options))
    theirs.eval()
    with torch.no_grad():
        expected = theirs(**batch, adapter_names=names).logits
    source = theirs
    if from_folders:
        theirs.save_pretrained(tmp_path)
        source = {name: tmp_path / name for name in ("a", "b")}
    bank = RoadBank.from_peft(source, base)
    found = RoadModel(copy.deepcopy(base), bank)(base=batch, adapter_names=names)[1].logits
    torch.testing.assert_close(found, expected, **TOLERANCE)
    assert list(bank) == ["a", "b"]
    assert bank.template.sites == find_sites(base, ["q_proj", "up_proj"])
    with pytest.raises(InputError, match="has no PEFT adapters"):
        RoadBank.from_peft(base)


@pytest.mark.parametrize("from_folders", [False, True])
def test_peft_adapters_with_heads_of_their_own_cannot_share_a_bank(from_folders, tmp_path):
    base = tiny_model("Bert", "classifier")
    options = {"target_modules": ["query"], "task_type": "SEQ_CLS", "group_size": 2}
    theirs = peft_model(base, name="a", **options)
    theirs.add_adapter("b", peft.RoadConfig(**options))
    torch.nn.init.normal_(theirs.base_model.model.classifier.modules_to_save["b"].weight)
    source = theirs
    if from_folders:
        theirs.save_pretrained(tmp_path)
        source = {name: tmp_path / name for name in ("a", "b")}
    with pytest.raises(InputError, match="'b' does not fit this bank: its modules_to_save differ"):
        RoadBank.from_peft(source, base)


def test_two_adapters_are_not_put_into_one_folder(tmp_path):
    base = tiny_model("Llama", "causal-lm")
    first, second = (random_adapter(find_sites(base, "q_proj"), seed=seed) for seed in (1, 2))
    first.save(tmp_path / "x")
    for other in (second, replace(first, group_size=4)):
        with pytest.raises(InputError, match="x' contains another adapter, which adapter.json describes; choose another folder"):
            other.to_peft(tmp_path / "x", base)
    first.to_peft(tmp_path / "x", base)
    with pytest.warns(UserWarning, match="x' has an adapter in PEFT's format, too, which stays as it is: PEFT reads that one"):
        second.save(tmp_path / "x")
