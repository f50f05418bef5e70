"""Heads that are trained beside the rotations: saved, loaded, told apart, and refused where they do not fit."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file, save_file

from helpers.models import tiny_model
from road_interp.adapters.modules_to_save import differ, digest, load_modules, module_tensors, serialize_modules
from road_interp.errors import InputError


@pytest.fixture
def model():
    return tiny_model("Bert", "classifier")


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "head.safetensors"
    path.write_bytes(serialize_modules(model, ["classifier"]))
    return path


def test_a_saved_head_is_loaded(model, saved):
    weights = module_tensors(model, ["classifier"])
    assert sorted(weights) == ["classifier.bias", "classifier.weight"]
    before = {name: tensor.clone() for name, tensor in weights.items()}
    other = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in before}
    torch.nn.init.ones_(model.classifier.weight)
    load_modules(model, saved)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in {**before, **other}.items())


def test_models_with_another_head_are_told(model):
    head = {name: tensor.clone() for name, tensor in module_tensors(model, ["classifier"]).items()}
    assert not differ(model, head)
    assert not differ(model.to(torch.float64), head)
    with torch.no_grad():
        model.classifier.bias[1] += 1
    assert differ(model, head)
    assert not differ(tiny_model("Bert"), head)  # which has no head


def test_a_digest_is_that_of_names_and_weights(model):
    head = module_tensors(model, ["classifier"])
    assert digest(head) == digest(dict(reversed(head.items())))
    assert digest(head) != digest({name: tensor + 1 for name, tensor in head.items()})
    assert digest({}) is None


@pytest.mark.parametrize(
    ("message", "name", "tensor"),
    [
        ("'elsewhere' is not a tensor of BertForSequenceClassification$", "elsewhere", torch.zeros(1)),
        (r"'classifier.weight' has shape \(3, 32\), not \(2, 32\)$", "classifier.weight", torch.zeros(3, 32)),
        ("'classifier.weight' holds a value that is not finite$", "classifier.weight", torch.full((2, 32), torch.nan)),
    ],
)
def test_damaged_heads_are_refused(model, saved, message, name, tensor):
    before = model.classifier.bias.clone()
    changed = {name: values + 1 for name, values in load_file(saved).items()}
    save_file({**changed, name: tensor}, saved)
    with pytest.raises(InputError, match=f"^head.safetensors: {message}"):
        load_modules(model, saved)
    assert torch.equal(model.classifier.bias, before)


def test_an_offloaded_head_is_not_left_as_it_is(model, saved):
    head = load_file(saved)
    cpu_offload(model, torch.device("cpu"))  # the weights are on "meta" between calls
    assert differ(model, head)
    with pytest.raises(InputError, match="^head.safetensors: 'classifier.bias' is offloaded in the model and cannot be loaded"):
        load_modules(model, saved)


def test_files_and_modules_that_do_not_exist(model, tmp_path):
    with pytest.raises(InputError, match="gone cannot be read"):
        load_modules(model, tmp_path / "gone")
    with pytest.raises(InputError, match="^BertForSequenceClassification has no module 'score'$"):
        serialize_modules(model, ["score"])
