"""Sizes from configurations alone are those of real adapters, models and LoRAs."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch

from helpers.cli import run
from helpers.models import tiny_model
from road_interp.adapters.bank import RoadBank
from road_interp.adapters.road_adapter import RoadAdapter
from road_interp.errors import InputError
from road_interp.measure.size import SHAPES, SizeReport, adapter_sizes, meta_model
from road_interp.rotation.plane_maps import VARIANTS
from road_interp.sites.find import find_sites


@pytest.fixture(params=["Bert", "Llama", "GPT2"])
def saved(request, tmp_path):
    """A tiny model, and a folder with its configuration but without weights."""
    model = tiny_model(request.param, "backbone" if request.param == "Bert" else "causal-lm")
    model.config.save_pretrained(tmp_path)
    return model, tmp_path


def test_sizes_are_those_of_real_adapters(saved):
    model, folder = saved
    found = meta_model(str(folder))
    assert {parameter.device.type for parameter in found.parameters()} == {"meta"}
    report = adapter_sizes(found, "tiny")
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert [(each.sites, each.variant) for each in report.sizes] == [
        (sites, variant) for sites in ("all-linear", "attention", "block-output") for variant in VARIANTS
    ]
    for each in report.sizes:
        adapter = RoadAdapter.identity(find_sites(model, each.sites), each.variant)
        bank = RoadBank({"a": adapter})
        assert (each.trained, each.bytes) == (adapter.num_parameters, bank.num_bytes)
        assert each.bank_bytes == 1000 * bank.num_bytes
        assert each.percent == pytest.approx(100 * adapter.num_parameters / report.parameters)
        assert (each.lora is None) == (each.sites == "block-output")


def test_lora_is_that_of_peft(saved):
    model, folder = saved
    first = adapter_sizes(meta_model(str(folder)), "tiny", ["all-linear"], ["road_1"]).sizes[0]
    names = [site.name for site in find_sites(model, "all-linear")]
    theirs = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=8, target_modules=names))
    assert first.lora == sum(parameter.numel() for name, parameter in theirs.named_parameters() if "lora_" in name)


def test_known_shapes_have_their_published_numbers_of_parameters():
    """Llama-7B: 6,738,415,616; SmolLM2-135M: 134,515,008, its embeddings counted once."""
    expected = {"Llama-7B": 6_738_415_616, "SmolLM2-135M": 134_515_008, "all-MiniLM-L6-v2": 22_713_216}
    for name, number in expected.items():
        assert sum(parameter.numel() for parameter in meta_model(name).parameters()) == number


def test_the_command_prints_a_table_and_json(capsys, monkeypatch):
    code, out, _ = run(
        capsys, monkeypatch, "size", "SmolLM2-135M", "--sites", "all-linear", "--variant", "road_1,road_4", "--json"
    )
    (printed,) = json.loads(out)["models"]
    report = SizeReport.from_json(json.dumps(printed))
    assert (code, report.model, [each.trained for each in report.sizes]) == (0, "SmolLM2-135M", [155_520, 622_080])
    code, out, _ = run(capsys, monkeypatch, "size", "all-MiniLM-L6-v2", "--sites", "all-linear")
    assert code == 0
    assert "0.0913" in out
    assert "0.1826*" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "'nowhere' has no readable configuration"),
        (["SmolLM2-135M", "--variant", "road_3"], "unknown variant 'road_3'"),
        (["SmolLM2-135M", "--sites", "all-linaer"], "all-linaer"),
    ],
)
def test_wrong_input_is_one_line(capsys, monkeypatch, arguments, message):
    code, out, err = run(capsys, monkeypatch, "size", *arguments)
    assert (code, out) == (2, "")
    *progress, error = err.strip().splitlines()
    assert error.startswith("road-interp: ")
    assert message in error
    assert progress == arguments[:1]


def test_unknown_names_are_input_errors():
    with pytest.raises(InputError, match="known without one are all-MiniLM-L6-v2"):
        meta_model("nowhere")
    with pytest.raises(InputError, match="measure.adapter_sizes, sites needs a list of str, not str"):
        adapter_sizes(meta_model("all-MiniLM-L6-v2"), "m", "all-linear")
    assert all(torch.device("meta") == next(meta_model(name).parameters()).device for name in list(SHAPES)[:2])
